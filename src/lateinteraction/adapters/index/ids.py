"""Ids: external ids to row numbers and back.

A sorted column of 64-bit hashes finds the row, and the bytes of the id decide. So nothing is held in memory for an id,
and looking up 1,000 of 1,000,000 takes less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lateinteraction.adapters.index import texts
from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import Column, Rows, damaged, of_arrays, vector_of
from lateinteraction.adapters.index.texts import Texts

COLUMN = "ids"
_BYTES_OF_HASH = 8
_BYTES_OF_KEY = 8
_FEW = 64
"""Ids that are decoded and sorted without looking for fewer."""

Hashes = NDArray[np.uint64]


def build(ids: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a column of distinct ids."""
    encoded = [identifier.encode() for identifier in ids]
    return texts.of_bytes(encoded, COLUMN) | _sorted(_hashes_of(encoded))


def _hashes_of(encoded: Iterable[bytes]) -> Hashes:
    """BLAKE2b, since ids are other people's: nobody can choose many that collide."""
    digests = b"".join([blake2b(content, digest_size=_BYTES_OF_HASH).digest() for content in encoded])
    return np.frombuffer(digests, "<u8")


def _sorted(hashes: Hashes) -> dict[str, NDArray[Any]]:
    order = np.argsort(hashes, kind="stable")
    return {"ids.hashes": hashes[order], "ids.rows": order.astype(np.uint32)}


class HashedIds(NamedTuple):
    """Ids to look up, hashed once for any number of columns."""

    encoded: list[bytes]
    lengths: Rows
    hashes: Hashes

    @classmethod
    def of(cls, ids: Sequence[str]) -> HashedIds:
        encoded = [identifier.encode("utf-8", "surrogatepass") for identifier in ids]  # no stored id has surrogates
        return cls(encoded, np.fromiter(map(len, encoded), np.int64, len(encoded)), _hashes_of(encoded))

    def joined(self, items: Rows) -> NDArray[np.uint8]:
        chosen = self.encoded if len(items) == len(self.encoded) else [self.encoded[item] for item in map(int, items)]
        return np.frombuffer(b"".join(chosen), np.uint8)


class _Directory(NamedTuple):
    hashes: Hashes
    rows: NDArray[np.uint32]


@final
class Ids:
    """A stored column of ids, distinct by construction.

    Args:
        arrays: "ids.bytes" u1, "ids.offsets" i8 (N+1,), "ids.hashes" u8 (N,) rising, "ids.rows" u4 (N,) in that order.

    Raises:
        CorruptIndex: an array is missing, damaged or of another kind, or offsets that do not fit.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self.texts = Texts(arrays, COLUMN)
        self._directory: _Directory | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, rows: ArrayLike) -> list[str]:
        """The ids of these rows. See `Texts.at`."""
        return self.texts.at(rows)

    def lowest(self, rows: Rows, count: int) -> Rows:
        """Those `count` of these rows whose ids come first, in no order of their own; few ids are decoded.

        Eight bytes at a time: UTF-8 is ordered as the characters are that it stands for.
        """
        found, depth = [rows[:0]], 0
        while len(rows) > count:
            lengths = self.texts.lengths_of(rows)
            if len(rows) <= max(_FEW, 2 * count) or int(lengths.max()) <= depth:
                names = self.at(rows)
                rows = rows[sorted(range(len(rows)), key=names.__getitem__)[:count]]
                break
            keys = self._keys(rows, lengths, depth)
            last = np.partition(keys, count - 1)[count - 1]
            found.append(rows[keys < last])
            count -= len(found[-1])
            rows = rows[keys == last]
            depth += _BYTES_OF_KEY
        return np.concatenate([*found, rows])

    def _keys(self, rows: Rows, lengths: Rows, depth: int) -> NDArray[np.uint64]:
        """The next eight bytes of the ids of these rows as one number; zeros where an id is shorter."""
        content = self._arrays.lazily("ids.bytes")
        ends = self.texts.offsets[rows] + lengths
        starts = np.minimum(self.texts.offsets[rows] + depth, ends)
        self._arrays.check("ids.bytes", starts, np.minimum(starts + _BYTES_OF_KEY, ends))
        present = np.minimum(ends - starts, _BYTES_OF_KEY)
        keys = np.zeros(len(rows), np.uint64)
        windows = max(0, len(content) - _BYTES_OF_KEY + 1)
        whole = starts < windows
        if windows:
            overlapping = np.ndarray(windows, ">u8", content, strides=(1,))
            keys[whole] = overlapping[starts[whole]]
        for item in map(int, np.flatnonzero(~whole)):  # the last few of the column
            tail = content[starts[item] : ends[item]].tobytes()
            keys[item] = int.from_bytes(tail.ljust(_BYTES_OF_KEY, b"\0"), "big")
        unused = (8 * (_BYTES_OF_KEY - present)).astype(np.uint64)
        kept = np.where(present > 0, np.uint64(2**64 - 1) << np.minimum(unused, np.uint64(63)), np.uint64(0))
        return keys & kept

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The row of each id, int64; −1 where it is not here."""
        return self.find(HashedIds.of(ids))

    def find(self, asked: HashedIds) -> Rows:
        """`rows_of`, for ids that are looked up in several columns."""
        directory = self._opened()
        found = np.full(len(asked.encoded), -1, np.int64)
        places = np.empty(len(found), np.int64)
        order = np.argsort(asked.hashes)  # neighbours share what the search reads: it takes half the time
        places[order] = np.searchsorted(directory.hashes, asked.hashes[order])
        waiting = np.arange(len(found))
        while len(waiting):  # once, unless two ids share a hash
            waiting = waiting[places[waiting] < len(self)]
            waiting = waiting[directory.hashes[places[waiting]] == asked.hashes[waiting]]
            rows = directory.rows[places[waiting]].astype(np.int64)
            same = self._are(rows, asked, waiting)
            found[waiting[same]] = rows[same]
            waiting = waiting[~same]
            places[waiting] += 1
        return found

    def _are(self, rows: Rows, asked: HashedIds, items: Rows) -> NDArray[np.bool_]:
        """Whether the id of each row is the asked one, byte for byte."""
        same = self.texts.lengths_of(rows) == asked.lengths[items]
        stored, given = self.texts.joined(rows[same]), asked.joined(items[same])
        differences = np.concatenate([[0], np.cumsum(stored != given)])
        ends = np.cumsum(asked.lengths[items[same]])
        same[same] = differences[ends] == differences[ends - asked.lengths[items[same]]]
        return same

    def hashes_by_row(self) -> Hashes:
        """The hash of each row's id, (N,)."""
        directory = self._opened()
        hashes = np.empty(len(self), np.uint64)
        hashes[directory.rows] = directory.hashes
        return hashes

    def _opened(self) -> _Directory:
        if self._directory is None:  # two threads may both open it, to the same end
            hashes = vector_of(self._arrays, "ids.hashes", np.uint64, len(self))
            rows = vector_of(self._arrays, "ids.rows", np.uint32, len(self))
            if bool((hashes[1:] < hashes[:-1]).any()):
                raise damaged("ids.hashes", "hashes out of order", "hashes that rise")
            if not _names_each_row_once(rows):
                raise damaged("ids.rows", "rows that come up twice or are not there", "each row once")
            self._directory = _Directory(hashes, rows)
        return self._directory


def _names_each_row_once(rows: NDArray[np.uint32]) -> bool:
    if len(rows) and int(rows.max()) >= len(rows):
        return False
    seen = np.zeros(len(rows), np.bool_)
    seen[rows] = True
    return bool(seen.all())


def merged(parts: Sequence[tuple[Ids, Rows]]) -> Iterator[Column]:
    """The columns of the kept rows of each part, part after part. No id is hashed anew."""
    yield from texts.merged([(ids.texts, kept) for ids, kept in parts], COLUMN)
    hashes = [ids.hashes_by_row()[kept] for ids, kept in parts]
    yield from of_arrays(_sorted(np.concatenate([np.empty(0, np.uint64), *hashes])))
