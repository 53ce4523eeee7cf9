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


def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory on the host, of which nothing is said; whatever torch's defaults are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def spans_within(spans: Tensor, rows: int) -> Tensor:
    """Spans, item after item.

    Raises:
        TypeError: not int64, or not on the host.
        IndexError: a span of rows that are not there; a program would read them.
    """
    if spans.device.type != "cpu" or spans.dtype != torch.int64:
        raise TypeError(f"spans of {spans.dtype} on {spans.device}: this form takes int64 on the host")
    spans = spans.contiguous()
    starts, ends = spans.numpy().T
    if starts.size and (starts.min() < 0 or ends.max() > rows or (starts > ends).any()):
        raise IndexError(f"spans from {starts.min()} to {ends.max()} of {rows} rows, or one that ends before it begins")
    return spans


def codes_within(codes: Tensor, centroids: int, spans: Tensor | None = None) -> Tensor:
    """Codes int32, one after the other; those that spans name are of centroids that there are.

    All are looked at where that is quickest and finds nothing wrong; else those of the spans alone.

    Raises:
        TypeError: another dtype, or not on the host.
        IndexError: a code of a centroid that is not there; a program would read it.
    """
    codes = readable("codes", codes, torch.int32)
    numbers = codes.numpy()
    if spans is not None:
        starts, ends = spans.numpy().T
        lengths = ends - starts
        named = int(lengths.sum())
        if len(codes) > 4 * named or not _within(numbers, centroids):
            before = np.cumsum(lengths) - lengths
            numbers = numbers[np.repeat(starts - before, lengths) + np.arange(named)]
    if not _within(numbers, centroids):
        raise IndexError(f"codes from {numbers.min()} to {numbers.max()} of {centroids} centroids")
    return codes


def _within(numbers: NDArray[np.int32], end: int) -> bool:
    """Whether all are at least 0 and below the end. Negative numbers are large ones without their sign."""
    return not numbers.size or int(numbers.view(np.uint32).max()) < end


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
