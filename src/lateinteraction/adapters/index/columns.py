"""What columns share: arrays checked as they are opened, arrays written block by block, sorted dictionaries that merge.

A stored array can be whole by its checksums and still be wrong, when whoever wrote it was. So dtypes, lengths and
offsets are checked once at opening, and nothing behind them indexes out of bounds.
"""

from __future__ import annotations

from array import array as numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from typing import Any, final

import numpy as np
from attrs import field, frozen
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.files import FileWriter
from lateinteraction.domain.embeddings import Offsets
from lateinteraction.domain.errors import CorruptIndex

Rows = NDArray[np.int64]

BLOCK = 1 << 20
"""Bytes, or rows, that are rewritten at a time."""


@frozen(eq=False)
class Column:
    """One array of one dimension on its way into a file, a block of its rows at a time.

    Columns that come from one iterator share what they read: use up the blocks of each before the next is asked for.
    """

    name: str
    dtype: np.dtype[Any] = field(converter=np.dtype)
    blocks: Iterable[NDArray[Any]]


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> Iterator[Column]:
    """Columns of one block each."""
    return (Column(name, array.dtype, (array,)) for name, array in arrays.items())


def store(file: FileWriter, columns: Iterable[Column]) -> None:
    """Write columns as they come, block by block."""
    for column in columns:
        with file.rows(column.name, column.dtype) as rows:
            for block in column.blocks:
                rows.append(block)


def in_memory(columns: Iterable[Column]) -> dict[str, NDArray[Any]]:
    """The whole arrays, by name."""
    return {column.name: np.concatenate([np.empty(0, column.dtype), *column.blocks]) for column in columns}


def vector(arrays: Arrays, name: str, dtype: DTypeLike, *, lazily: bool = False) -> NDArray[Any]:
    """An array of one dimension and this dtype; not verified yet where `lazily` is asked for.

    Raises:
        CorruptIndex: it is not there, damaged, or another kind of array.
    """
    array = arrays.lazily(name) if lazily else arrays.whole(name)
    if array.ndim != 1 or array.dtype != np.dtype(dtype):
        raise damaged(name, f"{array.dtype} of shape {array.shape}", f"{np.dtype(dtype)} of one dimension")
    return array


def vector_of(arrays: Arrays, name: str, dtype: DTypeLike, count: int, *, lazily: bool = False) -> NDArray[Any]:
    """`vector`, of this many entries."""
    array = vector(arrays, name, dtype, lazily=lazily)
    if len(array) != count:
        raise damaged(name, f"{len(array)} entries", f"{count}")
    return array


def offsets_into(arrays: Arrays, name: str, end: int) -> Offsets:
    """Offsets that start at 0, never fall and end at `end`: int64 (N+1,)."""
    offsets = vector(arrays, name, np.int64)
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != end or bool((offsets[1:] < offsets[:-1]).any()):
        raise damaged(name, "offsets out of order", f"offsets that rise from 0 to {end}")
    return offsets


def damaged(name: str, given: str, expected: str) -> CorruptIndex:
    """The error for an array whose checksums are right and whose content is not."""
    return CorruptIndex(f"{name}: {given}", expected, "Verify the index; `repair` names what it would lose.")


def checked_rows(rows: ArrayLike, count: int) -> Rows:
    """Row numbers, int64. They come from the caller, so one that is not there is an `IndexError`."""
    given = np.asarray(rows, dtype=np.int64)
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < count:
        raise IndexError(f"rows {int(given.min())} … {int(given.max())} of {count}")
    return given


def found_in(known: NDArray[np.uint32], rows: Rows) -> tuple[Rows, Rows]:
    """Which items of `rows` are among the known rows, which rise, and where those have them."""
    places = np.searchsorted(known, rows.astype(np.uint32))
    items = np.flatnonzero(places < len(known))
    items = items[known[places[items]] == rows[items]]
    return items, places[items]


def ranges(starts: Rows, lengths: Rows) -> Rows:
    """starts[0], starts[0] + 1, …, lengths[0] of them; then those of the next: where ragged items lie, in one array.

    >>> ranges(np.array([10, 0]), np.array([2, 3]))
    array([10, 11,  0,  1,  2])
    """
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def blocks_of(sizes: Rows, limit: int) -> Iterator[slice]:
    """Runs of neighbours whose sizes sum to at most `limit`; one that is larger stands alone."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, before + limit, side="right")), first + 1)
        yield slice(first, last)
        first = last


Entry = tuple[Any, bytes, int]
"""Of a sorted dictionary: what it is sorted by, its bytes, its code."""


@final
class MergedDictionary:
    """Sorted dictionaries made one, in a single pass that holds a block of bytes at a time.

    Args:
        sources: the entries of each, in rising order. Equal ones become one.
        sizes: how many codes each source has; those without an entry map to −1.

    `blocks` fills `codes` and `lengths`, so it has to be used up first.
    """

    def __init__(self, sources: Sequence[Iterator[Entry]], sizes: Sequence[int]) -> None:
        self._sources = sources
        self._lengths = numbers("q")
        self.codes = [np.full(size, -1, np.int32) for size in sizes]
        """For each source, its codes in the merged dictionary."""

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """The bytes of the merged entries, one after another."""
        waiting, last = bytearray(), None
        for _, content, source, code in merge(*map(_labelled, self._sources, range(len(self._sources)))):
            if content != last:
                last = content
                self._lengths.append(len(content))
                waiting += content
            self.codes[source][code] = len(self._lengths) - 1
            if len(waiting) >= BLOCK:
                yield np.frombuffer(bytes(waiting), np.uint8)
                waiting.clear()
        yield np.frombuffer(bytes(waiting), np.uint8)

    @property
    def lengths(self) -> Rows:
        """Bytes of each merged entry."""
        return np.array(self._lengths, dtype=np.int64)


def _labelled(entries: Iterator[Entry], source: int) -> Iterator[tuple[Any, bytes, int, int]]:
    return ((order, content, source, code) for order, content, code in entries)
