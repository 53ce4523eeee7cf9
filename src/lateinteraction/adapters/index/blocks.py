"""Checksums per block, compared where bytes are first used and remembered: what was verified once costs a lookup."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index.layout import BLOCK, damage


@final
class Blocks:
    """The blocks of a file and which of them were found sound.

    Threads may check at once: a block is marked after it was verified, and marking one twice is harmless.

    Args:
        name: of the file, for messages.
        data: what the table covers.
        table: crc32 of each 64 KiB.
    """

    def __init__(self, name: str, data: NDArray[np.uint8], table: NDArray[np.uint32]) -> None:
        self._name, self._data, self._table = name, data, table
        self._sound = np.zeros(len(table), np.bool_)
        self._unverified = _counts(self._sound)
        """How many blocks before each are not verified, at some moment that may have passed: never too few."""

    def check(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Verify the blocks of bytes starts[i] … stops[i]−1 for every i; all must lie within the data.

        Raises:
            CorruptIndex: one of them is damaged.
        """
        before = self._unverified
        if not before[-1]:
            return
        firsts, ends = starts // BLOCK, (stops + (BLOCK - 1)) // BLOCK
        unknown = before[firsts] < before[ends]
        if unknown.any():
            unknown &= starts < stops
            self._verify(firsts[unknown], ends[unknown])

    def check_span(self, start: int, stop: int) -> None:
        """Verify the blocks of bytes start … stop−1."""
        before = self._unverified
        first, end = start // BLOCK, -(-stop // BLOCK)
        if start < stop and before[first] < before[end]:
            self._verify(np.array([first]), np.array([end]))

    def damages(self) -> Iterator[tuple[int, int, str]]:
        """Every damaged block: first byte, byte after the last, what is wrong; reads all, remembers nothing."""
        for block in range(len(self._table)):
            if (found := self._sum(block)) != self._table[block]:
                start = block * BLOCK
                yield start, min(start + BLOCK, len(self._data)), f"checksum {found:08x}, not {self._table[block]:08x}"

    def _verify(self, firsts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        places = len(self._table) + 1
        openings = np.bincount(firsts, minlength=places) - np.bincount(ends, minlength=places)
        wanted = np.cumsum(openings)[:-1] > 0
        for block in map(int, np.flatnonzero(wanted & ~self._sound)):
            if (found := self._sum(block)) != self._table[block]:
                raise damage(
                    self._name,
                    block * BLOCK,
                    f"checksum {found:08x}",
                    f"{self._table[block]:08x} for 64 KiB from there",
                )
            self._sound[block] = True
        self._unverified = _counts(self._sound)

    def _sum(self, block: int) -> int:
        return zlib.crc32(self._data[block * BLOCK : (block + 1) * BLOCK].data)


def _counts(sound: NDArray[np.bool_]) -> NDArray[np.int64]:
    counts = np.zeros(len(sound) + 1, np.int64)
    np.cumsum(~sound, out=counts[1:])
    return counts
