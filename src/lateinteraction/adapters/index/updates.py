"""Updates: metadata that replaced what a segment was written with, and both seen as one.

A segment is never rewritten for a change of metadata: the rows that changed, and all of their metadata as it is now,
lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lateinteraction.adapters.index import metadata
from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import (
    Column,
    MergedDictionary,
    Rows,
    checked_rows,
    damaged,
    found_in,
    of_arrays,
    vector,
)
from lateinteraction.adapters.index.metadata import ABSENT, Codes, MetadataColumns, ValueColumn, rising
from lateinteraction.domain.embeddings import offsets_of
from lateinteraction.domain.filters import Filter
from lateinteraction.domain.text import JsonScalar, Metadata

COLUMN = "updates"
ROWS = f"{COLUMN}.rows"


def build(changes: Mapping[int, Metadata], before: Updates | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of all updates of a segment so far: those before, and these, which win.

    Args:
        changes: row → its whole new metadata.
        before: what the last generation knew of the segment.
    """
    known = {} if before is None else before.by_row()
    replaced = {**known, **changes}
    rows = sorted(replaced)
    return {ROWS: np.array(rows, np.uint32)} | metadata.build((replaced[row] for row in rows), COLUMN)


@final
class Updates:
    """The stored updates of a segment.

    Args:
        arrays: "updates.rows" u4 rising; "updates.keys" and so on, the metadata of each of them, as in a segment.

    Raises:
        CorruptIndex: arrays that are missing, damaged or do not fit.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.rows: NDArray[np.uint32] = vector(arrays, ROWS, np.uint32)
        if not rising(self.rows, 2**32):
            raise damaged(ROWS, "rows out of order", "rows that rise")
        self.metadata = MetadataColumns(arrays, len(self.rows), COLUMN)

    def __len__(self) -> int:
        return len(self.rows)

    def by_row(self) -> dict[int, Metadata]:
        """Row → its whole metadata."""
        return dict(zip(map(int, self.rows), self.metadata.at(np.arange(len(self))), strict=True))


class Layer(NamedTuple):
    """One dictionary of values, and the code of each kept row in it; −1 where the row has none, or not from here."""

    column: ValueColumn
    codes: Codes


@final
class MetadataView:
    """The metadata of a segment as it is now.

    Args:
        written: what the segment was written with.
        updates: what replaced some of it since.

    Raises:
        CorruptIndex: updates of rows that the segment does not have.
    """

    def __init__(self, written: MetadataColumns, updates: Updates | None = None) -> None:
        self._written = written
        self._updates = updates
        if updates is not None and len(updates) and int(updates.rows[-1]) >= len(written):
            raise damaged(ROWS, f"the row {int(updates.rows[-1])}", f"rows below {len(written)}")

    def __len__(self) -> int:
        return len(self._written)

    @property
    def keys(self) -> frozenset[str]:
        """Keys that some document has, or had before an update."""
        return frozenset((*self._written.keys, *(() if self._updates is None else self._updates.metadata.keys)))

    def at(self, rows: ArrayLike) -> list[dict[str, JsonScalar]]:
        """The metadata of these rows. See `MetadataColumns.at`."""
        chosen = checked_rows(rows, len(self))
        found = self._written.at(chosen)
        if self._updates is not None:
            items, places = found_in(self._updates.rows, chosen)
            for item, replaced in zip(items, self._updates.metadata.at(places), strict=True):
                found[item] = replaced
        return found

    def matching(self, where: Filter) -> NDArray[np.bool_]:
        """Which documents the filter means, bool (N,). See `MetadataColumns.matching`."""
        chosen = self._written.matching(where)
        if self._updates is not None:
            chosen[self._updates.rows] = self._updates.metadata.matching(where)
        return chosen

    def layers(self, key: str, kept: Rows) -> Iterator[Layer]:
        """Where the values of the kept rows under a key come from."""
        items, places = (kept[:0], kept[:0]) if self._updates is None else found_in(self._updates.rows, kept)
        written = self._written.column(key)
        if written is not None:
            codes = written.codes()[kept]
            codes[items] = ABSENT
            yield Layer(written, codes)
        updated = None if self._updates is None else self._updates.metadata.column(key)
        if updated is not None:
            codes = np.full(len(kept), ABSENT, np.int32)
            codes[items] = updated.codes()[places]
            yield Layer(updated, codes)


def merged(parts: Sequence[tuple[MetadataView, Rows]]) -> Iterator[Column]:
    """The columns of the kept rows of each part, part after part: what `metadata.build` makes of their metadata.

    No document is visited; of the distinct values of a key, a block at a time.
    """
    keys: list[str] = []
    for key in sorted(frozenset().union(*(view.keys for view, _ in parts))):
        layers = [list(view.layers(key, kept)) for view, kept in parts]
        if any(bool((layer.codes != ABSENT).any()) for part in layers for layer in part):
            yield from _merged_key(len(keys), layers, [len(kept) for _, kept in parts])
            keys.append(key)
    yield from of_arrays(metadata.keys_array(keys))


def _merged_key(number: int, parts: Sequence[Sequence[Layer]], lengths: Sequence[int]) -> Iterator[Column]:
    layers = [layer for part in parts for layer in part]
    entries = [layer.column.entries(_used(layer.codes)) for layer in layers]
    dictionary = MergedDictionary(entries, [len(layer.column.values) for layer in layers])
    yield Column(f"metadata.{number}.bytes", np.uint8, dictionary.blocks())
    yield Column(f"metadata.{number}.offsets", np.int64, (offsets_of(dictionary.lengths),))
    merged_codes = iter(dictionary.codes)
    codes = np.full(sum(lengths), ABSENT, np.int32)
    for part, end, length in zip(parts, np.cumsum(lengths), lengths, strict=True):
        own = codes[end - length : end]
        for layer in part:
            present = layer.codes != ABSENT
            own[present] = next(merged_codes)[layer.codes[present]]
    yield from of_arrays(metadata.codes_arrays(codes, f"metadata.{number}"))


def _used(codes: Codes) -> Codes:
    return np.unique(codes[codes != ABSENT])
