"""Columns of texts: their UTF-8 one after another and the offsets between them, as Arrow lays out large strings.

Ids, metadata values and terms are such columns too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import (
    BLOCK,
    Column,
    Rows,
    blocks_of,
    checked_rows,
    damaged,
    offsets_into,
    ranges,
    vector,
)
from lateinteraction.domain.embeddings import offsets_of

COLUMN = "texts"


def build(texts: Iterable[str], column: str = COLUMN) -> dict[str, NDArray[Any]]:
    """The arrays of a column.

    Args:
        texts: what UTF-8 can write, as documents are.
        column: the prefix of the arrays' names.
    """
    return of_bytes([text.encode() for text in texts], column)


def of_bytes(contents: Sequence[bytes], column: str) -> dict[str, NDArray[Any]]:
    """The arrays of a column whose texts are encoded already."""
    return {
        f"{column}.bytes": np.frombuffer(b"".join(contents), np.uint8),
        f"{column}.offsets": offsets_of(np.fromiter(map(len, contents), np.int64, len(contents))),
    }


@final
class Texts:
    """A stored column. Offsets are verified at opening, texts when they are read.

    Args:
        arrays: `<column>.bytes` u1 and `<column>.offsets` i8 (N+1,).
        column: the prefix of their names.

    Raises:
        CorruptIndex: an array is missing, damaged or of another kind, or offsets that do not fit.
    """

    def __init__(self, arrays: Arrays, column: str = COLUMN) -> None:
        self._arrays = arrays
        self._name = f"{column}.bytes"
        self._bytes = vector(arrays, self._name, np.uint8, lazily=True)
        self._content = self._bytes.data
        self._whole = False
        self.offsets = offsets_into(arrays, f"{column}.offsets", len(self._bytes))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths_of(self, rows: Rows) -> Rows:
        """Bytes of each of these texts."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def at(self, rows: ArrayLike) -> list[str]:
        """The texts of these rows.

        Raises:
            IndexError: a row that is not there.
            CorruptIndex: damage, or bytes that are no UTF-8.
        """
        return list(map(self._decoded, *self._spans(checked_rows(rows, len(self)))))

    def one(self, row: int) -> str:
        """One text. The column is verified whole at the first call, so that a bisection does not check each step."""
        if not self._whole:
            self._arrays.check_all(self._name)
            self._whole = True
        return self._decoded(self.offsets[row], self.offsets[row + 1])

    def encoded(self, rows: ArrayLike) -> list[bytes]:
        """The texts of these rows as they are stored."""
        starts, lasts = self._spans(checked_rows(rows, len(self)))
        return [bytes(self._content[start:last]) for start, last in zip(starts, lasts, strict=True)]

    def joined(self, rows: Rows) -> NDArray[np.uint8]:
        """The bytes of these rows, one after another: a view where the rows are neighbours."""
        if not len(rows):
            return self._bytes[:0]
        starts, lasts = self.offsets[rows], self.offsets[rows + 1]
        self._arrays.check(self._name, starts, lasts)
        if bool((starts[1:] == lasts[:-1]).all()):
            return self._bytes[int(starts[0]) : int(lasts[-1])]
        return self._bytes[ranges(starts, lasts - starts)]

    def _decoded(self, start: int, end: int) -> str:
        try:
            return str(self._content[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self._name, f"the byte {error.object[error.start]:#04x} in a text", "UTF-8") from error

    def _spans(self, rows: Rows) -> tuple[Iterator[int], Iterator[int]]:
        starts, lasts = self.offsets[rows], self.offsets[rows + 1]
        self._arrays.check(self._name, starts, lasts)
        return map(int, starts), map(int, lasts)


def merged(parts: Sequence[tuple[Texts, Rows]], column: str = COLUMN) -> Iterator[Column]:
    """The columns of the kept rows of each part, part after part; copied a block at a time, never decoded."""
    yield Column(f"{column}.bytes", np.uint8, chain.from_iterable(_kept_blocks(*part) for part in parts))
    lengths = [texts.lengths_of(kept) for texts, kept in parts]
    yield Column(f"{column}.offsets", np.int64, (offsets_of(np.concatenate([np.empty(0, np.int64), *lengths])),))


def _kept_blocks(texts: Texts, kept: Rows) -> Iterator[NDArray[np.uint8]]:
    return (texts.joined(kept[block]) for block in blocks_of(texts.lengths_of(kept), BLOCK))
