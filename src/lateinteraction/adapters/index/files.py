"""Data files: arrays written in one pass, with a checksum per block, and verified where they are read.

What the arrays mean is left to those who name them; which files belong together, to the manifests.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, final

import numpy as np
from attrs import evolve, frozen
from numpy.typing import DTypeLike, NDArray

from lateinteraction.adapters.index.arrays import check_rows
from lateinteraction.adapters.index.blocks import Blocks
from lateinteraction.adapters.index.layout import (
    ALIGNMENT,
    BLOCK,
    DTYPES,
    OPENING,
    Entry,
    Layout,
    damage,
    digest_of,
    footer_of,
    read_layout,
    trailer_of,
)
from lateinteraction.adapters.index.memory import let_go
from lateinteraction.adapters.index.storage import Buffer, Storage, is_name, temporary_name
from lateinteraction.domain.errors import CorruptIndex, InvalidOption, StorageFailed

_PIECE = 1 << 18
"""Smaller writes are gathered up to so many bytes."""


@frozen
class FileRecord:
    """What a manifest says of a data file.

    Attributes:
        name: in the folder.
        length: bytes.
        digest: BLAKE2b-128 of table and footer, in hexadecimal: through the checksums, of all that the file holds.
    """

    name: str
    length: int
    digest: str


@final
class FileWriter:
    """Writes one data file under a temporary name. A `with` block that ends without `close` abandons it.

    Args:
        storage: where.
        name: the final one, which the record names; whoever commits publishes the file under it.
        kind: what the arrays are together, such as "segment".

    Attributes:
        temporary: the name that the file has until it is published.
    """

    def __init__(self, storage: Storage, name: str, kind: str) -> None:
        self.temporary = temporary_name()
        self._storage, self._name, self._kind = storage, name, kind
        self._body = _Body(storage, self.temporary)
        self._entries: list[Entry] = []
        self._rows: Rows | None = None
        self._record: FileRecord | None = None
        self._published = False

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None or self._record is None:
            self.abandon()

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Write a whole array, of any shape."""
        entry = self._begun(name, array.dtype)
        self._body.write(_bytes_of(array))
        self._entries.append(evolve(entry, shape=array.shape))

    @contextmanager
    def rows(self, name: str, dtype: DTypeLike, row_shape: tuple[int, ...] = ()) -> Iterator[Rows]:
        """Write an array (rows, *row_shape) block by block. Nothing else is written before the `with` block ends."""
        entry = self._begun(name, np.dtype(dtype))
        self._rows = Rows(self._body, np.dtype(entry.dtype), row_shape)
        yield self._rows
        self._rows.end()
        self._entries.append(evolve(entry, shape=(len(self._rows), *row_shape)))
        self._rows = None

    def close(self) -> FileRecord:
        """Write what describes the arrays, and bring the file to the disk; it keeps its temporary name for now."""
        if self._record is None:
            self._check_between()
            self._record = FileRecord(self._name, *self._body.finish(footer_of(self._kind, self._entries)))
        return self._record

    def publish(self) -> FileRecord:
        """`close`, and give the file its final name; the folder is not synced."""
        record = self.close()
        if not self._published:
            self._storage.publish(self.temporary, record.name)
            self._published = True
        return record

    def abandon(self) -> None:
        """Remove the file unless it was published. Where that fails the temporary is left to collection."""
        with suppress(StorageFailed):
            self._body.close()
            if not self._published:
                self._storage.unlink(self.temporary)

    def _begun(self, name: str, dtype: np.dtype[Any]) -> Entry:
        self._check_between()
        if self._record is not None or not name or any(name == entry.name for entry in self._entries):
            raise InvalidOption(
                f"an array named {name!r}, {'after the end' if self._record else 'empty or taken'}",
                "arrays of different names, before `close`",
                "Name it otherwise, or write it earlier.",
            )
        stored = _stored(dtype)
        self._body.align()
        return Entry(name, stored.str, (), self._body.length)

    def _check_between(self) -> None:
        if self._rows is not None:
            raise InvalidOption(
                "an array whose rows are not all there", "its `with` block to end", "Write it afterwards."
            )


@final
class Rows:
    """An array that grows while it is written: what `FileWriter.rows` gives."""

    def __init__(self, body: _Body, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self._body: _Body | None = body
        self._dtype, self._row_shape, self._count = dtype, row_shape, 0

    def __len__(self) -> int:
        return self._count

    def append(self, block: NDArray[Any]) -> None:
        """Add rows (n, *row_shape) of exactly this dtype."""
        if self._body is None:
            raise InvalidOption("rows for an array that is complete", "them within its `with` block", "Append earlier.")
        if not block.ndim or block.shape[1:] != self._row_shape or _stored(block.dtype) != self._dtype:
            expected = f"(n, {', '.join(map(str, self._row_shape))}) of {self._dtype}"
            raise InvalidOption(f"rows {block.shape} of {block.dtype}", expected, "Convert them.")
        self._body.write(_bytes_of(block))
        self._count += len(block)

    def end(self) -> None:
        """Take no more."""
        self._body = None


@final
class _Body:
    """The bytes of a file on their way: summed per block, gathered, written."""

    def __init__(self, storage: Storage, temporary: str) -> None:
        self.length = 0
        self._file = storage.create(temporary)
        self._sound = True
        self._gathered = bytearray()
        self._table = bytearray()
        self._crc = 0
        self.write(OPENING)

    def write(self, data: Buffer) -> None:
        """Bytes that the table covers."""
        left = memoryview(data)
        while left:
            piece = left[: BLOCK - self.length % BLOCK]
            self._crc = zlib.crc32(piece, self._crc)
            self.length += len(piece)
            if self.length % BLOCK == 0:
                self._end_block()
            left = left[len(piece) :]
        self._emit(data)

    def align(self) -> None:
        """Zeros up to where an array may begin."""
        self.write(bytes(-self.length % ALIGNMENT))

    def finish(self, footer: bytes) -> tuple[int, str]:
        """Table, footer and trailer, then to the disk; the length and the digest of the file."""
        self.align()
        if self.length % BLOCK:
            self._end_block()
        closing = bytes(self._table) + footer
        trailer = trailer_of(bytes(self._table), footer)
        self._emit(closing + trailer)
        self._flush()
        self._sound = False  # until it is on the disk, which is tried once
        self._file.sync()
        self._file.close()
        return self.length + len(closing) + len(trailer), digest_of(closing)

    def close(self) -> None:
        self._file.close()

    def _end_block(self) -> None:
        self._table += self._crc.to_bytes(4, "little")
        self._crc = 0

    def _emit(self, data: Buffer) -> None:
        if len(self._gathered) + len(data) > _PIECE:
            self._flush()
        if len(data) > _PIECE:
            self._send(data)
        else:
            self._gathered += data

    def _flush(self) -> None:
        self._send(self._gathered)
        self._gathered = bytearray()

    def _send(self, data: Buffer) -> None:
        if not self._sound:
            raise StorageFailed("a file of which a write failed", "a file that is whole", "Abandon it; write it anew.")
        self._sound = False
        self._file.write(data)
        self._sound = True


@final
class StoredFile:
    """`Arrays` of a mapped data file; blocks are verified when they are first used. Threads may read at once.

    The arrays stay readable when the file is unlinked. Nobody may shorten it, and nothing here does.
    """

    def __init__(self, record: FileRecord, data: NDArray[np.uint8], layout: Layout) -> None:
        self.record = record
        self.kind = layout.kind
        self._entries = {entry.name: entry for entry in layout.entries}
        self._views = {
            entry.name: data[entry.offset : entry.stop].view(entry.dtype).reshape(entry.shape)
            for entry in layout.entries
        }
        self._blocks = Blocks(record.name, data[: layout.length], layout.table)
        self._data = data

    @classmethod
    def open(cls, storage: Storage, record: FileRecord) -> StoredFile:
        """Map a file and read what describes it; no array is read.

        Raises:
            CorruptIndex: it is damaged or another than the record names, or missing: then from a FileNotFoundError.
            IndexMismatch: a later version of this library wrote it.
        """
        if not is_name(record.name):
            raise CorruptIndex(f"a file named {record.name!r}", "a plain name", "The manifest is damaged.")
        try:
            data = storage.map(record.name)
        except FileNotFoundError as error:
            raise CorruptIndex(
                f"{record.name}, which is missing", f"a file of {record.length} bytes", "Repair, or restore a snapshot."
            ) from error
        if len(data) != record.length:
            raise damage(record.name, min(len(data), record.length), f"its end after {len(data)}", record.length)
        layout = read_layout(record.name, data)
        if layout.digest != record.digest:
            raise damage(record.name, layout.length, f"digest {layout.digest} of its table and footer", record.digest)
        return cls(record, data, layout)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """The arrays, in the order they were written."""
        return tuple(self._entries)

    def whole(self, name: str) -> NDArray[Any]:
        """All of an array, verified now."""
        self.check_all(name)
        return self._views[name]

    def lazily(self, name: str) -> NDArray[Any]:
        """A view that is not verified: `check` the rows before they are used."""
        self._entry(name)
        return self._views[name]

    def check(self, name: str, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
        """Verify rows firsts[i] … lasts[i]−1 for every i."""
        entry = self._entry(name)
        check_rows(f"{name!r} of {self.record.name}", entry.rows, firsts, lasts)
        self._blocks.check(entry.offset + firsts * entry.row_bytes, entry.offset + lasts * entry.row_bytes)

    def check_all(self, name: str) -> None:
        """Verify every row."""
        entry = self._entry(name)
        self._blocks.check_span(entry.offset, entry.stop)

    def let_go(self) -> None:
        """Give back the pages that were read; those who read them now, or next, have them from the system's cache."""
        let_go(self._data)

    def verify(self) -> list[str]:
        """Every damaged block, in words, read anew; none where all is sound."""
        return [
            f"{self.record.name}: bytes {start} … {stop - 1} of {self._names_within(start, stop)}: {wrong}"
            for start, stop, wrong in self._blocks.damages()
        ]

    def _names_within(self, start: int, stop: int) -> str:
        names = [entry.name for entry in self._entries.values() if entry.offset < stop and start < entry.stop]
        return ", ".join(names) or "no array"

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CorruptIndex(
                f"{self.record.name} without an array {name!r}",
                f"it beside {', '.join(self._entries)}",
                "Verify the index.",
            )
        return self._entries[name]


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype as it is written: little-endian, of the closed list."""
    stored = dtype.newbyteorder("<")
    if stored.str not in DTYPES:
        raise InvalidOption(f"an array of {dtype}", f"one of {', '.join(sorted(DTYPES))}", "Convert it.")
    return stored


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The values in C order, little-endian; copied only where they lie otherwise."""
    return np.ascontiguousarray(array, _stored(array.dtype)).reshape(-1).view(np.uint8).data
