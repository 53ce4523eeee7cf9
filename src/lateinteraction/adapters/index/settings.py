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

Tier = Literal["auto", "exact", "compressed", "listed"]
"""How a segment is stored and searched: `exact`, all that is stored is scored; `compressed`, by a residual codec, whose
codes are all looked at; `listed`, the same with inverted lists. `auto` goes by the tokens of each segment."""

MOST_CENTROIDS = 2**18
"""Of a codebook: 128 MiB of float32 at 128 dimensions."""


_FORCED = ("tier", "centroids")
"""What settings name where it was forced."""


def _is_codec(_: object, __: Attribute[Codec], codec: object) -> None:
    if codec not in get_args(Codec):
        raise InvalidOption(f"codec = {shown(codec)}", f"one of {', '.join(get_args(Codec))}", "Choose one of them.")


def _is_keep(options: IndexOptions, _: Attribute[Keep], keep: object) -> None:
    if keep not in get_args(Keep):
        raise InvalidOption(f"keep = {shown(keep)}", f"one of {', '.join(get_args(Keep))}", "Choose one of them.")
    if keep != "nothing" and options.bits is None:
        raise InvalidOption(
            f"keep = {shown(keep)} with codec = {shown(options.codec)}, tier = {shown(options.tier)}",
            "a residual codec, beside which vectors can be kept",
            "Choose one of those, or leave `keep` out.",
        )


def _is_tier(options: IndexOptions, _: Attribute[Tier], tier: object) -> None:
    if tier not in get_args(Tier):
        raise InvalidOption(f"tier = {shown(tier)}", f"one of {', '.join(get_args(Tier))}", "Choose one of them.")
    compresses = options.codec not in ("float16", "int8")
    if tier in ("compressed", "listed") and not compresses:
        raise InvalidOption(
            f"tier = {shown(tier)} with codec = {shown(options.codec)}",
            "a residual codec, which alone compresses",
            "Choose one of those, or leave `tier` out.",
        )
    if tier == "exact" and compresses and options.codec != "auto":
        raise InvalidOption(
            f"tier = 'exact' with codec = {shown(options.codec)}",
            "a codec that scores everything it stores",
            "Choose float16 or int8, or leave `codec` out for float16.",
        )


def _is_count(options: IndexOptions, _: Attribute[int | None], count: object) -> None:
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_CENTROIDS:
        raise InvalidOption(
            f"centroids = {shown(count)}", f"1 to {MOST_CENTROIDS:,}", "Leave the number to the index, which is None."
        )
    if options.bits is None:
        raise InvalidOption(
            f"centroids = {count} with codec = {shown(options.codec)}, tier = {shown(options.tier)}",
            "a residual codec, which alone has centroids",
            "Leave `centroids` out.",
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
        tier: how every segment is stored and searched, whatever its size; see `Tier`. A residual codec that is forced
            begins with the first token, on which its codebook is trained, and its quantiser for good: begin with many.
        centroids: of the codebook; None: by the number of tokens. It gets fewer only while there are less than two
            tokens for each, and more never, neither as the index grows nor as its documents become others.

    Raises:
        InvalidOption: what there is not, or what does not go together.
    """

    codec: Codec = field(default="auto", validator=_is_codec)
    language: Language = field(default="english", validator=_is_language)
    keep: Keep = field(default="nothing", validator=_is_keep)
    tier: Tier = field(default="auto", validator=_is_tier)
    centroids: int | None = field(default=None, validator=_is_count)

    @property
    def bits(self) -> int | None:
        """Of a residual codec; None where there is none, or none is ever to be used."""
        if self.tier == "exact":
            return None
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
            forced = {name: given[name] for name in _FORCED if name in given}
            options = IndexOptions(given["codec"], language, given.get("keep", "nothing"), **forced)
            return cls(options, given["encoder"], given["dimension"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, IndexMismatch):
                raise
            raise IndexMismatch(
                f"settings of an index, {shown(given)}", "those of this version", "Update this library."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """For the manifest. What was not forced is not there, as in those that were written before it could be."""
        forced = {name: getattr(self.options, name) for name in _FORCED}
        return {
            "codec": self.options.codec,
            "keep": self.options.keep,
            **{name: value for name, value in forced.items() if value not in ("auto", None)},
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
