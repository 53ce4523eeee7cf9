"""The folder of an exported model: model.onnx, tokenizer.json, and encoder.json that says how to use them.

Version 1 of encoder.json holds the fields of `Description` under their names, the recipe as its settings, and
{"format": "lateinteraction-onnx", "version": 1}. What is read is checked here, so that nobody checks it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from attrs import asdict, fields, frozen

from lateinteraction.adapters.encoding.tokenisation import SpecialTokens
from lateinteraction.domain.errors import InvalidModel, InvalidRecipe, ModelMismatch, shown
from lateinteraction.domain.recipe import EncodingRecipe

Weights = Literal["float32", "int8"]

DESCRIPTION = "encoder.json"
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
_FORMAT, _VERSION = "lateinteraction-onnx", 1
_EXPORT_AGAIN = "Export the model again."


@frozen(kw_only=True)
class Description:
    """All that is known of an exported model besides its graph and its tokenizer.

    Args:
        recipe: how text becomes tokens.
        specials: ids of the tokenizer that have a meaning of their own.
        dimension: width of the rows that the graph gives.
        positions: most tokens of a text that the model can place; None where no limit is known.
        vocabulary: how many token embeddings the model has.
        weights: what the matrices are kept in.
        source: what was exported.
        versions: of the packages that did it.
        sha256: digest of each other file of the folder, hexadecimal.
    """

    recipe: EncodingRecipe
    specials: SpecialTokens
    dimension: int
    positions: int | None
    vocabulary: int
    weights: Weights
    source: str
    versions: Mapping[str, str]
    sha256: Mapping[str, str]


def write_description(folder: Path, description: Description) -> None:
    """Write encoder.json."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        **{each.name: getattr(description, each.name) for each in fields(Description)},
        "recipe": description.recipe.settings(),
        "specials": asdict(description.specials),
    }
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_description(folder: Path) -> Description:
    """Read and check encoder.json.

    Raises:
        InvalidModel: no such folder or file, or content that is not what `write_description` writes.
    """
    content = _read_json(folder)
    if content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise InvalidModel(
            f"{folder / DESCRIPTION} of format {shown(content.get('format'))}, version {shown(content.get('version'))}",
            f"{_FORMAT!r}, version {_VERSION}",
            "Export the model again, or install the lateinteraction that wrote it.",
        )
    for name, accepts in _FIELDS.items():
        if name not in content or not accepts(content[name]):
            given = shown(content[name]) if name in content else "nothing"
            raise InvalidModel(
                f"{folder / DESCRIPTION} with {given} as {name!r}", "what an export writes", _EXPORT_AGAIN
            )
    return Description(
        recipe=_recipe(folder, content["recipe"]),
        specials=SpecialTokens(**content["specials"]),
        **{name: content[name] for name in _FIELDS if name not in ("recipe", "specials")},
    )


def check_digests(folder: Path, description: Description) -> None:
    """Read every file once: 24 MB of weights take 0.03 s, 90 MB 0.1 s.

    Raises:
        ModelMismatch: a file that is not as it was written.
        InvalidModel: a file that is missing or cannot be read.
    """
    for name, expected in description.sha256.items():
        try:
            digest = sha256_of(folder / name)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InvalidModel(
                f"{folder} without a readable {name} ({reason})", "the whole export", _EXPORT_AGAIN
            ) from error
        if digest != expected:
            raise ModelMismatch(f"{folder / name} with sha256 {digest}", f"{expected}, as exported", _EXPORT_AGAIN)


def sha256_of(file: Path) -> str:
    """Digest of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(folder: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidModel(
            f"{folder} without a readable {DESCRIPTION} ({error.strerror or type(error).__name__})",
            "a folder that `export_onnx` wrote",
            "Check the path, or export a model first.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{folder / DESCRIPTION}, which is no JSON ({error})", "an object", _EXPORT_AGAIN) from error
    if not isinstance(content, dict):
        raise InvalidModel(f"{folder / DESCRIPTION} with {shown(content)}", "an object", _EXPORT_AGAIN)
    return cast("dict[str, Any]", content)


def _recipe(folder: Path, settings: Mapping[str, object]) -> EncodingRecipe:
    try:
        return EncodingRecipe().merge(settings)
    except InvalidRecipe as error:
        raise InvalidModel(f"{folder / DESCRIPTION} with {error.given}", error.expected, _EXPORT_AGAIN) from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_id(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _are_specials(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    given = cast("dict[str, object]", value)
    return set(given) == {each.name for each in fields(SpecialTokens)} and all(map(_is_id, given.values()))


def _are_strings(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in cast("dict[str, object]", value).values())


def _are_digests(value: object) -> bool:
    """Names of files in the folder itself, the two that are always there among them."""
    if not _are_strings(value):
        return False
    names = set(cast("dict[str, str]", value))
    return {MODEL, TOKENIZER} <= names and all(Path(name).name == name for name in names)


_FIELDS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "recipe": lambda value: isinstance(value, dict),
        "specials": _are_specials,
        "dimension": _is_count,
        "positions": lambda value: value is None or _is_count(value),
        "vocabulary": _is_count,
        "weights": lambda value: value in ("float32", "int8"),
        "source": lambda value: isinstance(value, str),
        "versions": _are_strings,
        "sha256": _are_digests,
    }
)
