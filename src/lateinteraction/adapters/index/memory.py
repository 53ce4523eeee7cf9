"""What a process gives back to the operating system while it goes on: memory that was freed, pages of mapped files.

A build that goes on for hours then needs no more memory than its largest step does. Where a system knows no such
request nothing happens, and nothing but the memory taken is different.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NOT_NEEDED: int | None = getattr(mmap, "MADV_DONTNEED", None)


def give_back_freed() -> None:
    """Have the C library return what it keeps of freed memory. Takes milliseconds.

    glibc keeps what lies between blocks that are still in use, and blocks of up to 32 MB for whoever asks next: a third
    of the peak of a build, some 300 MB.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library of Linux
        if trim is not None:
            trim(0)


def let_go(data: NDArray[np.uint8]) -> None:
    """Give the pages of a mapped, read-only file back; they are mapped again, from the system's cache, when next read.

    An array that lies on no mapping stays as it is.
    """
    owner: Any = data
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, mmap.mmap) and _NOT_NEEDED is not None and not data.flags.writeable:
        owner.madvise(_NOT_NEEDED)
