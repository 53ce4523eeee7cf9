"""EncodingRecipe: how text becomes tokens, and which of them keep an embedding.

The only home of encoding defaults. Token ids of the skiplist belong to a tokenizer, so an adapter resolves
the words; everything decided from ids alone is decided here, on the host, before a device is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import numpy as np
from attrs import asdict, evolve, field, fields_dict, frozen
from numpy.typing import NDArray

from lateinteraction.domain.errors import InvalidRecipe, shown

Expansion = Literal["none", "fixed"]
PoolingFlavour = Literal["exact", "pylate"]


def _words(words: Any) -> tuple[str, ...]:
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise InvalidRecipe(f"skiplist = {words!r:.80}", "a sequence of words", "Write it as a list: ['.', ','].")
    return tuple(cast("Iterable[str]", words))


@frozen
class TokenPooling:
    """Hierarchical pooling: the similar tokens of a document become their mean.

    Clavié, Chaffin and Adams, arXiv 2409.14683; the arithmetic is `domain.reference.pooling`.

    Args:
        factor: at least 1, not necessarily whole: 2 halves the tokens, 1 changes nothing.
        protected: tokens at the start that stay as they are ([CLS], the document marker).
        flavour: `exact` gives max(⌊n / factor⌋, 1) unit vectors for n tokens that are not protected; `pylate` gives
            what PyLate 1.6 gives: at most as many, not normalised again.

    Raises:
        InvalidRecipe: a factor below 1, a negative number of protected tokens, or an unknown flavour.
    """

    factor: float
    protected: int = 1
    flavour: PoolingFlavour = "exact"

    def __attrs_post_init__(self) -> None:
        number = isinstance(self.factor, (int, float)) and not isinstance(self.factor, bool)
        if not (number and math.isfinite(self.factor) and self.factor >= 1):
            raise InvalidRecipe(
                f"a pooling factor of {shown(self.factor)}", "a finite number of at least 1", "2 halves the tokens."
            )
        if not _is_count(self.protected, least=0):
            raise InvalidRecipe(
                f"{shown(self.protected)} protected tokens", "a whole number of at least 0", "0 protects none."
            )
        if self.flavour not in ("exact", "pylate"):
            raise InvalidRecipe(f"pooling flavour {self.flavour!r}", "'exact' or 'pylate'", "Choose one of the two.")

    @property
    def changes_nothing(self) -> bool:
        return self.factor == 1


def _pooling(given: Any) -> TokenPooling | None:
    """Pooling, also as the mapping that JSON makes of it."""
    if given is None or isinstance(given, TokenPooling):
        return given
    if not isinstance(given, Mapping):
        raise InvalidRecipe(f"pooling = {shown(given)}", "a TokenPooling or None", "TokenPooling(2) halves the tokens.")
    settings = cast("Mapping[str, Any]", given)
    known = set(fields_dict(TokenPooling))
    if "factor" not in settings or not set(settings) <= known:
        raise InvalidRecipe(
            f"pooling with settings {sorted(map(str, settings))}",
            f"a factor, and some of {sorted(known)}",
            "Write {'factor': 2}.",
        )
    return TokenPooling(**settings)


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
        expansion_token: what queries are filled with; None is the mask token or, in decoders, which have none, the
            end-of-sequence token.
        skiplist: words whose tokens keep no embedding in documents (punctuation, in ColBERT).
        query_skiplist: the same for queries; their expansion is not skipped.
        keep_special_tokens: whether [CLS], [SEP] and the like keep theirs.
        normalise: whether each embedding is divided by its L2 norm.
        dimension: keep this many leading dimensions, before normalising (Matryoshka); None keeps all.
        pooling: what becomes of a document's kept tokens; None leaves them as they are.

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
    expansion_token: str | None = None
    skiplist: tuple[str, ...] = field(default=(), converter=_words)
    query_skiplist: tuple[str, ...] = field(default=(), converter=_words)
    keep_special_tokens: bool = True
    normalise: bool = True
    dimension: int | None = None
    pooling: TokenPooling | None = field(default=None, converter=_pooling)

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
        for name in ("query_prefix", "document_prefix", "expansion_token"):
            if getattr(self, name) is not None and not (isinstance(getattr(self, name), str) and getattr(self, name)):
                raise InvalidRecipe(
                    f"{name} = {getattr(self, name)!r}", "a non-empty str or None", "None is the default."
                )
        for name in ("query_prompt", "document_prompt"):
            if not isinstance(getattr(self, name), str) or not _is_utf8(getattr(self, name)):
                raise InvalidRecipe(f"{name} = {getattr(self, name)!r}", "a str of text", "'' adds no prompt.")
        for name in ("attend_to_expansion", "keep_special_tokens", "normalise"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRecipe(f"{name} = {shown(getattr(self, name))}", "True or False", "Choose one of the two.")
        if self.pooling is not None and not self.pooling.changes_nothing and not self.normalise:
            raise InvalidRecipe(
                "pooling without normalise",
                "unit vectors, which it clusters by their angles",
                "Normalise, or leave pooling out.",
            )
        if any(not isinstance(word, str) or not word for word in (*self.skiplist, *self.query_skiplist)):
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

    def settings(self) -> dict[str, Any]:
        """All settings as JSON would hold them: `EncodingRecipe().merge(recipe.settings())` is the recipe again."""
        own: dict[str, Any] = asdict(self)
        return own | {name: list(own[name]) for name in ("skiplist", "query_skiplist")}

    def keeps_tokens(
        self, token_ids: NDArray[np.int64], special: NDArray[np.bool_], skipped_ids: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which tokens (T,) keep an embedding: not skipped, and not special unless special ones are kept.

        Args:
            token_ids, special: ids (T,), and which of them are markers; expansion is not.
            skipped_ids: what the words of this role's skiplist mean to the tokenizer.
        """
        kept = ~np.isin(token_ids, skipped_ids) if len(skipped_ids) else np.ones_like(special)
        return kept if self.keep_special_tokens else kept & ~special


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
