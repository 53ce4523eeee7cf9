"""Tombstones: which rows of a segment are documents no more, one bit for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import damaged, vector_of

NAME = "tombstones.bits"


def build(gone: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The array for a segment of which these rows are gone, bool (N,): the lowest bit of a byte is its first row."""
    return {NAME: np.packbits(gone, bitorder="little")}


def live(arrays: Arrays, documents: int) -> NDArray[np.bool_]:
    """Which of the segment's rows are still documents, bool (N,), read-only.

    Raises:
        CorruptIndex: the bitmap is missing, damaged, or that of a segment of another size.
    """
    bits = vector_of(arrays, NAME, np.uint8, -(-documents // 8))
    unpacked = np.unpackbits(bits, bitorder="little")
    if unpacked[documents:].any():
        raise damaged(NAME, "a row gone that is not there", f"bits for {documents} rows, and zeros")
    remaining = unpacked[:documents] == 0
    remaining.flags.writeable = False
    return remaining
