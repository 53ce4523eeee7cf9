"""What drivers of many numbers hand to programs, and how they share out rows among threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.kernels.cpu.threads import run, shares

Given = NDArray[np.int64]

FLOATS = torch.float32, torch.float16, torch.bfloat16
"""What tokens may be made of where they are only read."""


def given(*numbers: int) -> Given:
    """A program's `given`: to be kept alive, like the tensors whose addresses are in it, until the program returns."""
    return np.array(numbers, np.int64)


def readable(what: str, tensor: Tensor, *dtypes: torch.dtype) -> Tensor:
    """The tensor, row after row.

    Raises:
        TypeError: another dtype, or not on the host.
    """
    if tensor.device.type != "cpu" or tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{what} of {tensor.dtype} on {tensor.device}: this form takes {names}, on the host")
    return tensor.detach().contiguous()


def spans_given(spans: Tensor) -> tuple[int, int, int, int]:
    """Spans as programs take them: address, bytes between items and within one, and how many."""
    return spans.data_ptr(), 8 * spans.stride(0), 8 * spans.stride(1), len(spans)


def share(task: Callable[[int, int], None], count: int, block: int, work: float) -> None:
    """Call task(first, last) for ranges of 0 … count − 1, whole blocks each, in as many threads as pay.

    Args:
        work: multiply-adds, or what takes as long, in all.
    """
    blocks = shares(np.ones(-(-count // block), np.int64), work)
    run(lambda first, last: task(first * block, min(last * block, count)), blocks)
