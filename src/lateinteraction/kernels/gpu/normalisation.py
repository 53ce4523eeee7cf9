"""Inverse norms of rows, and the way of a gradient back through a normalisation. Kernels that hold whole rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import (
    Architecture,
    Kernel,
    Row,
    Specimen,
    ceil_div,
    device_of,
    launch,
)
from lateinteraction.kernels.gpu.tiles import load_rows

WIDTHS = (128, 64, 256, 512, 1024)
"""Row widths that have configurations, the most usual first; rows are padded to powers of two inside the kernel."""

DEVICES: tuple[Architecture, ...] = ("sm_90", "sm_80", "sm_100", "gfx942")


@triton.jit
def before_normalisation(gradients, values, scales):
    """Gradients (M, D) of rows x from those of x̂ = x · scale, where the scale (M,) is 1 / ‖x‖ and 0 for a row of zeros.

    ∂L/∂x = (g − (g · x̂) x̂) / ‖x‖, all float32.
    """
    units = values * scales[:, None]
    inward = tl.sum(gradients * units, axis=1)
    return (gradients - inward[:, None] * units) * scales[:, None]


@triton.jit(do_not_specialize=["R"])
def _inverse_norms(values, norms, R, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr):
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    entries = tl.cast(load_rows(values, tl.minimum(rows, R - 1), 0, D, BLOCK_D), tl.float32)
    # Powers of two bring what is very large or small to where its squares have room; nothing is rounded by them.
    largest = tl.max(tl.abs(entries), axis=1)
    factor = tl.where(largest > 1e15, 2.0**-64, tl.where(largest < 1e-15, 2.0**64, 1.0))
    entries = entries * factor[:, None]
    squares = tl.sum(entries * entries, axis=1)
    # Both correctly rounded: the quick ones differ from what the host would say.
    inverse = tl.div_rn(tl.full((BLOCK_R,), 1.0, tl.float32), tl.sqrt_rn(tl.where(squares == 0, 1.0, squares)))
    tl.store(norms + rows, tl.where(squares == 0, 0.0, inverse * factor), mask=rows < R)


def padded(D: int) -> int:
    """The power of two (at least 16, the least a matrix instruction takes) that rows of D dimensions are padded to.

    Raises:
        TypeError: rows that no program can hold.
    """
    if max(WIDTHS) < D:
        raise TypeError(f"rows of {D} dimensions; kernels that hold whole rows take {max(WIDTHS)} at most")
    return max(16, 1 << (D - 1).bit_length())


def width(D: int) -> int:
    """Which of `WIDTHS` serves rows of D dimensions."""
    return max(min(WIDTHS), padded(D))


def check_floats(values: Tensor) -> None:
    """Raise `TypeError` unless the values are float32, float16 or bfloat16."""
    if values.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"values of {values.dtype}; this kernel takes float32, float16 and bfloat16")


def inverse_norms(values: Tensor) -> Tensor:
    """1 / ‖row‖, float32 (R,), of values (R, D); 0 for a row of zeros.

    Raises:
        TypeError: a dtype, width or device that the kernel does not take.
    """
    device = device_of({"values": values})
    check_floats(values)
    R, D = values.shape
    norms = values.new_empty(R, dtype=torch.float32)
    regime = str(width(D))
    rows = INVERSE_NORMS.tile(device, regime, "BLOCK_R")
    arguments = {"values": values.contiguous(), "norms": norms, "R": R, "D": D, "BLOCK_D": padded(D)}
    launch(INVERSE_NORMS, device, regime, ceil_div(R, rows), arguments)
    return norms


INVERSE_NORMS = Kernel(
    _inverse_norms,
    # 4,096 values a program: 32 for each of its threads, four loads of 16 bytes in float16. Bound by memory.
    tuple(Row(device, str(D), {"BLOCK_R": 4096 // D}) for D in WIDTHS for device in DEVICES)
    + tuple(Row("interpreter", str(D), {"BLOCK_R": 4}) for D in WIDTHS),
    tuple(
        Specimen(str(D), {"values": values, "norms": "*fp32", "R": "i32", "D": D, "BLOCK_D": D})
        for D in WIDTHS
        for values in ("*bf16", "*fp32")
    ),
)
"""The norms of rows."""
