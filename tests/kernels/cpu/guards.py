"""Memory between pages that nobody may touch, for inputs and for all that kernels allocate.

It ends where such a page begins, or begins where one ends: whoever goes beyond ends the process. What is left of the
last page or the first holds a pattern, which must still be there afterwards. Inputs cannot be written to.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
PROT_NONE, PROT_READ = 0, 1
PATTERN, POISON = 0xA5, 0xFF  # the second makes NaN of floats

_LIBC = ctypes.CDLL(None, use_errno=True)


class Memory:
    """What was given out, and what lies beside it."""

    def __init__(self) -> None:
        self.at_end = True
        self._rests: list[np.ndarray] = []

    def new(self, size: int) -> np.ndarray:
        """So many bytes."""
        pages = max(1, -(-size // PAGE))
        whole = np.frombuffer(mmap.mmap(-1, (pages + 2) * PAGE), np.uint8)
        usable = whole[PAGE : (pages + 1) * PAGE]
        _protect(whole.ctypes.data, PAGE, PROT_NONE)
        _protect(usable.ctypes.data + usable.nbytes, PAGE, PROT_NONE)
        usable[:] = PATTERN
        first = usable.nbytes - size if self.at_end else 0
        own = usable[first : first + size]
        own[:] = POISON
        self._rests += [usable[:first], usable[first + size :]]
        return own

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of NaN."""
        return torch.from_numpy(self.new(int(np.prod(shape)) * dtype.itemsize)).view(dtype).view(shape)

    def check(self) -> None:
        """Raise unless what lies beside everything given out is as it was; then forget about it."""
        assert all((rest == PATTERN).all() for rest in self._rests), "somebody has written beside what was given to him"
        self._rests.clear()


def _protect(address: int, size: int, how: int) -> None:
    if _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), how):
        raise OSError(ctypes.get_errno(), "mprotect")


MEMORY = Memory()


def guarded(array: np.ndarray) -> Tensor:
    """A copy of an array that can be read, and nothing else."""
    array = np.ascontiguousarray(array)
    own = MEMORY.new(array.nbytes)
    own[:] = array.reshape(-1).view(np.uint8)
    _protect(own.ctypes.data // PAGE * PAGE, max(1, -(-own.nbytes // PAGE)) * PAGE, PROT_READ)
    return torch.from_numpy(own.view(array.dtype).reshape(array.shape))


def guard_what_kernels_allocate() -> None:
    """From now on, for the rest of the process."""
    pad = torch.nn.functional.pad

    def copied(tensor: Tensor) -> Tensor:
        return MEMORY.tensor(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: str) -> Tensor:
        assert device == "cpu"
        return MEMORY.tensor(shape, dtype)

    def padded(*given: Any) -> Tensor:
        return copied(pad(*given))

    torch.empty = empty
    torch.empty_like = lambda like: MEMORY.tensor(tuple(like.shape), like.dtype)
    torch.zeros_like = lambda like: MEMORY.tensor(tuple(like.shape), like.dtype).zero_()
    torch.nn.functional.pad = padded


def break_a_rule(which: str) -> None:
    """What a kernel must not do, done on purpose."""
    at_end, _, what = which.partition("-")
    MEMORY.at_end = at_end == "end"
    given, room = guarded(np.ones(3, np.float32)), torch.empty((3,), dtype=torch.float32, device="cpu")
    if what == "read":
        ctypes.string_at(given.data_ptr(), 13)
    elif what == "write":
        ctypes.memset(given.data_ptr(), 0, 1)
    elif what == "overrun":
        ctypes.memset(room.data_ptr() + 12, 0, 1)
    elif what == "underrun":
        ctypes.memset(room.data_ptr() - 1, 0, 1)
    MEMORY.check()
