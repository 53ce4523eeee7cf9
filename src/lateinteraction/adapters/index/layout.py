"""The layout of a data file: what its bytes mean, without reading or writing any.

    LATEIDX1 · arrays, each at a multiple of 64 bytes · table: crc32 of each 64 KiB before it · footer: JSON
    · trailer: lengths of table and footer, format version, crc32 of all from the table to here, XDIETAL1

Numbers are little-endian. Every later version keeps the places of its number and of the closing magic.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from struct import Struct
from typing import Any, cast

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.domain.errors import CorruptIndex, IndexMismatch

FORMAT = 1
"""The version that is written, and the newest that is read."""
BLOCK = 1 << 16
ALIGNMENT = 64
OPENING, CLOSING = b"LATEIDX1", b"XDIETAL1"
DTYPES = frozenset({"|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"})

_LENGTHS = Struct("<QQI")
_TRAILER = Struct("<QQII8s")
_MOST_BYTES = 1 << 62
"""Of one array, were its empty axes of length 1: NumPy counts in 63 bits."""


@frozen
class Entry:
    """An array of a file, as the footer names it: dtype as NumPy writes it, offset in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """Along the first axis; a single value is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])

    @property
    def stop(self) -> int:
        return self.offset + self.rows * self.row_bytes


@frozen(eq=False)
class Layout:
    """What a file says of itself: its kind, its arrays, and the checksum of each block of its first `length` bytes."""

    kind: str
    entries: tuple[Entry, ...]
    length: int
    table: NDArray[np.uint32]
    digest: str


def digest_of(closing: bytes) -> str:
    """BLAKE2b-128 of table and footer, in hexadecimal."""
    return hashlib.blake2b(closing, digest_size=16).hexdigest()


def footer_of(kind: str, entries: Sequence[Entry]) -> bytes:
    """The footer of a file with these arrays."""
    arrays = [
        {"name": each.name, "dtype": each.dtype, "shape": each.shape, "offset": each.offset}  #
        for each in entries
    ]
    return json.dumps({"format": FORMAT, "kind": kind, "arrays": arrays}, separators=(",", ":")).encode()


def trailer_of(table: bytes, footer: bytes) -> bytes:
    """The last bytes of a file with this table and footer."""
    lengths = _LENGTHS.pack(len(table), len(footer), FORMAT)
    return lengths + zlib.crc32(table + footer + lengths).to_bytes(4, "little") + CLOSING


def read_layout(name: str, data: NDArray[np.uint8]) -> Layout:
    """What the file of this name and content says of itself; the arrays are not read.

    Raises:
        CorruptIndex: it is damaged, or no data file.
        IndexMismatch: a later version wrote it.
    """
    trailer = data[-_TRAILER.size :].tobytes()
    if len(data) < ALIGNMENT + _TRAILER.size or trailer[-len(CLOSING) :] != CLOSING:
        raise damage(name, max(len(data) - len(CLOSING), 0), trailer[-len(CLOSING) :], CLOSING)
    table_length, footer_length, version, crc, _ = _TRAILER.unpack(trailer)
    if version > FORMAT:
        raise IndexMismatch(
            f"{name}, of format {version}", f"format {FORMAT} or an earlier one", "Use a newer version of this library."
        )
    length = len(data) - _TRAILER.size - footer_length - table_length
    if length < ALIGNMENT or length % ALIGNMENT or table_length != 4 * -(-length // BLOCK):
        found = f"a table of {table_length} and a footer of {footer_length} bytes"
        raise damage(name, len(data) - _TRAILER.size, found, f"lengths that fit a file of {len(data)}")
    closing = data[length : -_TRAILER.size].tobytes()
    if (found := zlib.crc32(closing + trailer[: _LENGTHS.size])) != crc:
        raise damage(name, length, f"checksum {found:08x} of table and footer", f"{crc:08x}")
    if (opening := data[: len(OPENING)].tobytes()) != OPENING:
        raise damage(name, 0, opening, OPENING)
    table = np.frombuffer(closing[:table_length], np.dtype("<u4")).astype(np.uint32)
    kind, entries = _read_footer(name, closing[table_length:], length)
    return Layout(kind, entries, length, table, digest_of(closing))


def damage(name: str, offset: int, found: object, expected: object) -> CorruptIndex:
    """The error for a file that is not what was written."""
    return CorruptIndex(
        f"{name}, with {found} at byte {offset}",
        f"{expected}",
        "Verify the index, then repair it or restore a snapshot.",
    )


def _read_footer(name: str, footer: bytes, length: int) -> tuple[str, tuple[Entry, ...]]:
    """Kind and arrays; nothing that a footer can say makes an array reach beyond the first `length` bytes."""
    try:
        match json.loads(footer):
            case {"format": int(), "kind": str(kind), "arrays": [*arrays]}:
                entries = tuple(_entry(cast("object", each)) for each in arrays)
            case _:
                raise ValueError("no format, kind and arrays")
        stop = len(OPENING)
        for entry in entries:
            if entry.offset < stop or entry.stop > length:
                raise ValueError(f"array {entry.name!r} at {entry.offset} … {entry.stop}")
            stop = entry.stop
        if len({entry.name for entry in entries}) < len(entries):
            raise ValueError("an array named twice")
    except (ValueError, RecursionError) as error:
        raise damage(name, length, f"a footer that is wrong ({error})", "a footer of this library") from error
    return kind, entries


def _entry(described: Any) -> Entry:
    match described:
        case {"name": str(name), "dtype": str(dtype), "shape": [*shape], "offset": int(offset)}:
            sizes = [size for size in shape if type(size) is int and size >= 0]
            most = math.prod(max(size, 1) for size in sizes)
            if (
                dtype in DTYPES
                and len(sizes) == len(shape) <= 8
                and most < _MOST_BYTES // 8
                and offset % ALIGNMENT == 0
            ):
                return Entry(name, dtype, tuple(sizes), offset)
        case _:
            pass
    raise ValueError("an array without name, dtype, shape and offset that can be")
