"""Description: what every format says, in one form; and the checks that all formats share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from attrs import field, frozen

from lateinteraction.adapters.huggingface.sources import Place
from lateinteraction.domain.errors import InvalidModel, shown

Format = Literal["pylate", "sentence-transformers", "multi-vector", "stanford", "plain"]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@frozen(kw_only=True)
class Description:
    """A checkpoint before its weights are read.

    Args:
        format: whose files they are.
        transformer: the folder in the checkpoint that holds the transformer and its tokenizer; "" is the root.
        dense: the folders of its dense layers, in the order they are applied.
        inline_projection: whether a `linear.weight` among the transformer's weights is its projection.
        settings: of the recipe, as the files have them.
        bounded: those of the lengths that the model's positions bound, instead of having to fit them.
        lower_case: whether texts are lower-cased, whatever the tokenizer does.
        remarks: what its reader should be warned of, a sentence or two each.
    """

    format: Format
    transformer: str = ""
    dense: tuple[str, ...] = ()
    inline_projection: bool = False
    settings: Mapping[str, object] = field(default=NOTHING)
    bounded: tuple[str, ...] = ()
    lower_case: bool = False
    remarks: tuple[str, ...] = ()


def flag(place: Place, file: str, config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """A setting that is true or false; the default where it is absent or null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise refused(place, f"{key} = {shown(value)} in {file}", "true or false", "Correct the file.")
    return value


def refused(place: Place, what: str, expected: str, remedy: str) -> InvalidModel:
    """An error about something in a checkpoint's files."""
    return InvalidModel(f"{place}, with {what}", expected, remedy)
