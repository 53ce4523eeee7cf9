"""EncodingRecipe: how text becomes tokens, and which of them keep an embedding.

The only home of encoding defaults. Token ids of the skiplist belong to a tokenizer, so an adapter resolves
the words; everything decided from ids alone is decided here, on the host, before a device is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import numpy as np
from attrs import evolve, field, fields_dict, frozen
from numpy.typing import NDArray

from lateinteraction.domain.errors import InvalidRecipe

Expansion = Literal["none", "fixed"]


def _words(words: Any) -> tuple[str, ...]:
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise InvalidRecipe(f"skiplist = {words!r:.80}", "a sequence of words", "Write it as a list: ['.', ','].")
    return tuple(cast("Iterable[str]", words))


@frozen(kw_only=True)
class EncodingRecipe:
    """Settings of one encoder.

    Args:
        query_length, document_length: most tokens of a text, special tokens, prefix and expansion included.
        query_prefix, document_prefix: a marker that is one token, inserted after the first special token.
        query_prompt, document_prompt: text put in front of every text before tokenisation.
        expansion: `fixed` fills every query with mask tokens to `query_length` (ColBERT, Khattab and Zaharia,
            SIGIR 2020, §3.2); `none` leaves it as long as it is.
        attend_to_expansion: whether the other tokens see the added mask tokens.
        skiplist: words whose tokens keep no embedding in documents (punctuation, in ColBERT).
        keep_special_tokens: whether [CLS], [SEP] and the like keep theirs.
        normalise: whether each embedding is divided by its L2 norm.
        dimension: keep this many leading dimensions, before normalising (Matryoshka); None keeps all.

    Raises:
        InvalidRecipe: a length below 2, a dimension below 1, or attending to an expansion that is off.
    """

    query_length: int = 256
    document_length: int = 256
    query_prefix: str | None = None
    document_prefix: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    expansion: Expansion = "none"
    attend_to_expansion: bool = False
    skiplist: tuple[str, ...] = field(default=(), converter=_words)
    keep_special_tokens: bool = True
    normalise: bool = True
    dimension: int | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("query_length", "document_length"):
            if not _is_count(getattr(self, name), least=2):
                raise InvalidRecipe(
                    f"{name} = {getattr(self, name)!r}", "a whole number of at least 2", "Use 32 or more."
                )
        if self.dimension is not None and not _is_count(self.dimension, least=1):
            raise InvalidRecipe(f"dimension = {self.dimension!r}", "a whole number of at least 1", "None keeps all.")
        if self.expansion not in ("none", "fixed"):
            raise InvalidRecipe(f"expansion = {self.expansion!r}", "'none' or 'fixed'", "Choose one of the two.")
        if self.attend_to_expansion and self.expansion == "none":
            raise InvalidRecipe(
                "attend_to_expansion without expansion", "expansion='fixed'", "Turn expansion on or attention off."
            )
        for name in ("query_prefix", "document_prefix"):
            if getattr(self, name) is not None and not (isinstance(getattr(self, name), str) and getattr(self, name)):
                raise InvalidRecipe(
                    f"{name} = {getattr(self, name)!r}", "a non-empty str or None", "None adds no prefix."
                )
        for name in ("query_prompt", "document_prompt"):
            if not isinstance(getattr(self, name), str):
                raise InvalidRecipe(f"{name} = {getattr(self, name)!r}", "a str", "'' adds no prompt.")
        if any(not isinstance(word, str) or not word for word in self.skiplist):
            raise InvalidRecipe(f"skiplist = {self.skiplist!r:.80}", "non-empty words", "Drop the empty ones.")

    def merge(self, overrides: Mapping[str, object]) -> EncodingRecipe:
        """A new recipe with these settings replaced.

        Raises:
            InvalidRecipe: a name that is no setting, or a result that contradicts itself.
        """
        known = fields_dict(EncodingRecipe)
        unknown = sorted(map(str, set(overrides) - set(known)))
        if unknown:
            raise InvalidRecipe(f"unknown settings {unknown}", f"some of {sorted(known)}", "Check the spelling.")
        return evolve(self, **overrides)

    def keeps_query_tokens(self, special: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which tokens of a query keep an embedding, from the mask (T,) of special ones; no skiplist here."""
        return np.ones_like(special) if self.keep_special_tokens else ~special

    def keeps_document_tokens(
        self, token_ids: NDArray[np.int64], special: NDArray[np.bool_], skipped_ids: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which tokens (T,) of a document keep an embedding: not skipped, and not special unless specials are kept."""
        kept = ~np.isin(token_ids, skipped_ids)
        return kept if self.keep_special_tokens else kept & ~special


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
