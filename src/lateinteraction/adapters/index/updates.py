"""Updates: metadata that replaced what a segment was written with, and both seen as one.

A segment is never rewritten for a change of metadata: the rows that changed, and all of their metadata as it is now,
lie beside it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lateinteraction.adapters.index import metadata
from lateinteraction.adapters.index.arrays import Arrays, InMemory
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
from lateinteraction.adapters.index.texts import Texts
from lateinteraction.domain.embeddings import offsets_of
from lateinteraction.domain.filters import Filter
from lateinteraction.domain.text import JsonScalar, Metadata

COLUMN = "updates"
ROWS = f"{COLUMN}.rows"


def build(changes: Mapping[int, Metadata], before: Updates | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of all updates of a segment so far: those before, and these, which win.

    No update of before is visited, only its codes are moved: what it takes grows with the changes.

    Args:
        changes: row → its whole new metadata.
        before: what the last generation knew of the segment.
    """
    rows = np.array(sorted(changes), np.uint32)
    made = metadata.build((changes[row] for row in map(int, rows)), COLUMN)
    if before is None or not len(before):
        return {ROWS: rows} | made
    staying = ~np.isin(before.rows, rows)
    every = np.concatenate([before.rows[staying], rows])
    order = np.argsort(every, kind="stable")
    later = MetadataColumns(InMemory(made), len(rows), COLUMN)
    arrays: dict[str, NDArray[Any]] = {ROWS: every[order]}
    keys: list[str] = []
    for key in sorted({*before.metadata.keys, *later.keys}):
        codes, values = _joined(before.metadata.column(key), staying, later.column(key), len(rows))
        if (codes != ABSENT).any():
            name = f"{COLUMN}.{len(keys)}"
            arrays |= _dictionary(values, name) | metadata.codes_arrays(codes[order], name)
            keys.append(key)
    return arrays | metadata.keys_array(keys, COLUMN)


def _joined(
    before: ValueColumn | None, staying: NDArray[np.bool_], new: ValueColumn | None, count: int
) -> tuple[Codes, list[_Values]]:
    """Of one key: the codes of the updates that stay and then of the new ones, and the values they mean, in order.

    Args:
        before: None where no earlier update has the key.
        staying: which of the earlier updates.
        new: None where no new one has it.
        count: of new updates.
    """
    old_codes = np.full(np.count_nonzero(staying), ABSENT, np.int32) if before is None else before.codes()[staying]
    new_codes = np.full(count, ABSENT, np.int32) if new is None else new.codes()
    used = _used(old_codes).astype(np.int64)
    inserted: list[int] = []
    blocks: list[_Values] = []
    renumbered = np.empty(0 if new is None else len(new.values), np.int32)
    first = 0
    for number in range(len(renumbered)):
        assert new is not None
        wanted = new.sorted_by(number)
        place = bisect_left(used, wanted, key=before.sorted_by) if before is not None else 0
        renumbered[number] = place + len(inserted)
        if before is None or place == len(used) or before.sorted_by(int(used[place])) != wanted:
            blocks += [] if before is None else [_Values(before.values, used[first:place])]
            blocks.append(_Values(new.values, np.array([number])))
            inserted.append(place)
            first = place
    blocks += [] if before is None else [_Values(before.values, used[first:])]
    moved = np.full(1 + (0 if before is None else len(before.values)), ABSENT, np.int32)  # the last is that of ABSENT
    moved[used] = np.arange(len(used)) + np.searchsorted(inserted, np.arange(len(used)), side="right")
    return np.concatenate([moved[old_codes], np.append(renumbered, np.int32(ABSENT))[new_codes]]), blocks


class _Values(NamedTuple):
    """Some values of a dictionary."""

    texts: Texts
    codes: Rows


def _dictionary(values: Sequence[_Values], key: str) -> dict[str, NDArray[Any]]:
    """The arrays of a dictionary of these values, one after another."""
    return {
        f"{key}.bytes": np.concatenate([each.texts.joined(each.codes) for each in values]),
        f"{key}.offsets": offsets_of(np.concatenate([each.texts.lengths_of(each.codes) for each in values])),
    }


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
