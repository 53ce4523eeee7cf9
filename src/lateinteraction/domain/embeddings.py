"""TokenEmbeddings: the packed ragged batch that every port exchanges.

One query, a batch and a corpus are the same type. The domain never computes on the tokens, so it never
imports an array library for them: `A` is NumPy's array in one program and a torch tensor in another.

Shapes: T tokens in all, N items, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from attrs import field, frozen
from numpy.typing import ArrayLike, NDArray

from lateinteraction.domain.errors import InvalidEmbeddings

Offsets = NDArray[np.int64]


class Array(Protocol):
    """All that the domain asks of an array."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


A = TypeVar("A", bound=Array)


def offsets_of(lengths: ArrayLike) -> Offsets:
    """Offsets (N+1,) of items that have these lengths (N,).

    Raises:
        InvalidEmbeddings: lengths that are no whole numbers.
    """
    given = _integers(lengths, "iub", "Count the tokens of each item.")
    if given.size and given.min() < 0:
        raise InvalidEmbeddings(f"a length of {given.min()}", "lengths of at least 0", "Count the tokens of each item.")
    counts = given.astype(np.int64).reshape(-1)
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _integers(values: ArrayLike, kinds: str, remedy: str) -> NDArray[Any]:
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise InvalidEmbeddings("lists of different lengths", "whole numbers in one array", remedy) from error
    if given.dtype.kind not in kinds and given.size:
        raise InvalidEmbeddings(f"values of dtype {given.dtype}", "whole numbers", remedy)
    return given


def read_only_integers(values: ArrayLike) -> NDArray[np.int64]:
    """An int64 array that nobody can write to; copied unless it already is one, with its memory."""
    given = _integers(values, "iu", "Build offsets with `offsets_of(lengths)`.")
    memory = given if given.base is None else given.base
    if given.dtype == np.int64 and isinstance(memory, np.ndarray) and not memory.flags.writeable:
        return given
    copied = given.astype(np.int64)
    copied.flags.writeable = False
    return copied


def check_offsets(offsets: Offsets, end: int, what: str = "tokens") -> None:
    """Raise unless offsets start at 0, never decrease and end at `end`."""
    remedy = "Build them with `offsets_of(lengths)`."
    if offsets.ndim != 1 or len(offsets) == 0:
        raise InvalidEmbeddings(f"offsets of shape {offsets.shape}", "one dimension and at least one entry", remedy)
    if offsets[0] != 0 or offsets[-1] != end:
        raise InvalidEmbeddings(
            f"offsets that run from {offsets[0]} to {offsets[-1]}", f"0 to {end}, the number of {what}", remedy
        )
    falls = np.flatnonzero(np.diff(offsets) < 0)
    if len(falls):
        raise InvalidEmbeddings(f"offsets that fall after entry {falls[0]}", "offsets that never decrease", remedy)


@frozen(eq=False)
class TokenEmbeddings(Generic[A]):
    """N items of one embedding per token, without padding.

    Args:
        tokens: (T, D), any array kind, any device; with its autograd history where there is one.
        offsets: int64 (N+1,) on the host; item i owns rows offsets[i] … offsets[i+1]−1. Items may be empty.

    Raises:
        InvalidEmbeddings: tokens are not 2-D, or offsets do not fit them.
    """

    tokens: A
    offsets: Offsets = field(converter=read_only_integers)

    def __attrs_post_init__(self) -> None:
        shape = getattr(self.tokens, "shape", None)
        if shape is None or len(shape) != 2:
            raise InvalidEmbeddings(
                f"tokens as a {type(self.tokens).__name__}" if shape is None else f"tokens of shape {tuple(shape)}",
                "two dimensions: tokens × dimensions",
                "Pack the items one after the other and give their offsets.",
            )
        check_offsets(self.offsets, int(self.tokens.shape[0]))

    def __reduce__(self) -> tuple[type[TokenEmbeddings[A]], tuple[A, Offsets]]:
        """Made anew when copied or unpickled, since arrays come back writeable."""
        return TokenEmbeddings, (self.tokens, self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, item: int) -> A:
        """The tokens (length, D) of one item: a view, never a copy."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        item %= len(self)
        return self.tokens[int(self.offsets[item]) : int(self.offsets[item + 1])]

    def __iter__(self) -> Iterator[A]:
        return (self[item] for item in range(len(self)))

    @property
    def dimension(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def lengths(self) -> Offsets:
        """Tokens per item, int64 (N,)."""
        return np.diff(self.offsets)

    def span(self, first: int, last: int) -> TokenEmbeddings[A]:
        """Items first … last−1: a view, never a copy."""
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"items {first} to {last} of {len(self)}")
        start, end = int(self.offsets[first]), int(self.offsets[last])
        return TokenEmbeddings(self.tokens[start:end], self.offsets[first : last + 1] - start)


@frozen(eq=False)
class TokenTrace:
    """Where each kept token comes from: its id and its characters, aligned to the embeddings' offsets.

    Args:
        token_ids: int64 (T,), in the model's vocabulary.
        starts, ends: int64 (T,), characters of the item's text; equal where a token stands for no character
            (markers, expansion).
        offsets: int64 (N+1,), as in the embeddings.
    """

    token_ids: NDArray[np.int64] = field(converter=read_only_integers)
    starts: NDArray[np.int64] = field(converter=read_only_integers)
    ends: NDArray[np.int64] = field(converter=read_only_integers)
    offsets: Offsets = field(converter=read_only_integers)

    def __attrs_post_init__(self) -> None:
        check_offsets(self.offsets, len(self.token_ids))
        if not len(self.token_ids) == len(self.starts) == len(self.ends):
            raise InvalidEmbeddings(
                f"{len(self.token_ids)} token ids, {len(self.starts)} starts, {len(self.ends)} ends",
                "as many of each",
                "Trace the same tokens that were embedded.",
            )
        if bool(np.any(self.starts < 0)) or bool(np.any(self.ends < self.starts)):
            raise InvalidEmbeddings(
                "character spans that begin below 0 or end before they start",
                "0 ≤ start ≤ end",
                "Use character offsets.",
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def characters(self, token: int) -> tuple[int, int]:
        """Start and end of one token's characters."""
        return int(self.starts[token]), int(self.ends[token])

    def span(self, first: int, last: int) -> TokenTrace:
        """Items first … last−1."""
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"items {first} to {last} of {len(self)}")
        start, end = int(self.offsets[first]), int(self.offsets[last])
        rows = slice(start, end)
        return TokenTrace(
            self.token_ids[rows], self.starts[rows], self.ends[rows], self.offsets[first : last + 1] - start
        )
