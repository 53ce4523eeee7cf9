"""What an index was made with, as its manifests remember it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

from attrs import Attribute, evolve, field, frozen

from lateinteraction.adapters.index.analysis import Analyser, Language
from lateinteraction.domain.errors import IndexMismatch, InvalidOption, shown

Codec = Literal["auto", "float16", "int8", "residual4", "residual2", "residual1"]
"""How embeddings are stored: `float16` and `int8` for all; `residual`, with so many bits for each dimension, for those
of large segments, beside float16 for small ones. `auto` is `residual4`."""

Keep = Literal["nothing", "int8", "float16"]
"""What is kept beside residuals: nothing, or the vectors that they were made of, rounded to 8 or 16 bits."""


def _is_codec(_: object, __: Attribute[Codec], codec: object) -> None:
    if codec not in get_args(Codec):
        raise InvalidOption(f"codec = {shown(codec)}", f"one of {', '.join(get_args(Codec))}", "Choose one of them.")


def _is_keep(options: IndexOptions, _: Attribute[Keep], keep: object) -> None:
    if keep not in get_args(Keep):
        raise InvalidOption(f"keep = {shown(keep)}", f"one of {', '.join(get_args(Keep))}", "Choose one of them.")
    if keep != "nothing" and options.bits is None:
        raise InvalidOption(
            f"keep = {shown(keep)} with codec = {shown(options.codec)}",
            "a residual codec, beside which vectors can be kept",
            "Choose one of those, or leave `keep` out.",
        )


def _is_language(_: object, __: Attribute[Language], language: Language) -> None:
    Analyser(language)


@frozen
class IndexOptions:
    """What a person chooses when an index is made.

    Args:
        codec: how embeddings are stored; see `Codec`.
        language: what words are stemmed by for lexical search; see `Analyser`.
        keep: what is kept beside residuals; see `Keep`.

    Raises:
        InvalidOption: a codec, a language or vectors to keep that there are not.
    """

    codec: Codec = field(default="auto", validator=_is_codec)
    language: Language = field(default="english", validator=_is_language)
    keep: Keep = field(default="nothing", validator=_is_keep)

    @property
    def bits(self) -> int | None:
        """Of a residual codec."""
        codec = "residual4" if self.codec == "auto" else self.codec
        return int(codec[-1]) if codec.startswith("residual") else None


@frozen
class IndexSettings:
    """What an index was made with, and the width of what it holds.

    Args:
        options: what was chosen.
        encoder: its fingerprint (see `fingerprint`); None where embeddings may come from anywhere.
        dimension: width of the embeddings; None until the first are added.
    """

    options: IndexOptions = field(factory=IndexOptions)
    encoder: Mapping[str, str] | None = None
    dimension: int | None = None

    @property
    def analyser(self) -> Analyser:
        """What makes terms of texts."""
        return _analyser_of(self.options.language)

    @property
    def bits(self) -> int | None:
        """Of a residual codec."""
        return self.options.bits

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> IndexSettings:
        """What `to_json` gave.

        Raises:
            IndexMismatch: settings that this version of the library does not know.
        """
        try:
            language = Analyser.from_settings(given["analyser"]).language
            options = IndexOptions(given["codec"], language, given.get("keep", "nothing"))
            return cls(options, given["encoder"], given["dimension"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, IndexMismatch):
                raise
            raise IndexMismatch(
                f"settings of an index, {shown(given)}", "those of this version", "Update this library."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "codec": self.options.codec,
            "keep": self.options.keep,
            "analyser": self.analyser.settings(),
            "encoder": None if self.encoder is None else dict(self.encoder),
            "dimension": self.dimension,
        }

    def of_width(self, dimension: int) -> IndexSettings:
        """The same for embeddings of this width."""
        return self if self.dimension == dimension else evolve(self, dimension=dimension)


@cache
def _analyser_of(language: Language) -> Analyser:
    """One for all who ask, for it remembers the words that it has seen."""
    return Analyser(language)
