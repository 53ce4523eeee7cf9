"""The residual codec: tokens into packed buckets, and those into unit vectors. A program takes whole tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.buckets import choose
from lateinteraction.kernels.gpu.configurations import Architecture, Kernel, Row, Specimen, ceil_div, device_of, launch
from lateinteraction.kernels.gpu.normalisation import padded
from lateinteraction.kernels.gpu.tables import FLOATS
from lateinteraction.kernels.gpu.tiles import load_rows
from lateinteraction.kernels.operands import Codec


def residual_encode(values: Tensor, codes: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """As `kernels.form.Form.residual_encode`.

    Raises:
        TypeError: tokens that are not floats, or a codec that is not float32.
    """
    device = _check(codec, {"values": values, "codes": codes})
    if values.dtype not in FLOATS:
        raise TypeError(f"tokens of {values.dtype}; a codec takes float32, float16 and bfloat16")
    count, dimension = values.shape
    residuals = values.new_empty((count, -(-dimension * codec.bits // 8)), dtype=torch.uint8)
    norms = values.new_empty(count, dtype=torch.float32)
    arguments = {"values": values, "cutoffs": codec.cutoffs, "residuals": residuals, "inverse_norms": norms}
    _launch(ENCODER, device, codec, codes, arguments)
    return residuals, norms


def residual_decode(codec: Codec, codes: Tensor, residuals: Tensor) -> Tensor:
    """As `kernels.form.Form.residual_decode`.

    Raises:
        TypeError: a codec that is not float32.
    """
    device = _check(codec, {"codes": codes, "residuals": residuals})
    tokens = codec.centroids.new_empty((codes.shape[0], codec.centroids.shape[1]))
    _launch(DECODER, device, codec, codes, {"residuals": residuals, "tokens": tokens})
    return tokens


def _check(codec: Codec, others: Mapping[str, Tensor]) -> torch.device:
    for tensor in codec:
        if tensor.dtype != torch.float32:
            raise TypeError(f"a codec of {tensor.dtype}; kernels take float32")
    return device_of({**codec._asdict(), **others})


def _launch(kernel: Kernel, device: torch.device, codec: Codec, codes: Tensor, own: dict[str, Any]) -> None:
    count, dimension = codes.shape[0], codec.centroids.shape[1]
    shared = {
        "codes": codes,
        "centroids": codec.centroids,
        "weights": codec.weights,
        "T": count,
        "D": dimension,
        "BITS": codec.bits,
        "BLOCK_D": padded(dimension),
    }
    regime = "narrow" if shared["BLOCK_D"] <= NARROW else "wide"
    launch(kernel, device, regime, ceil_div(count, kernel.tile(device, regime, "BLOCK_T")), {**own, **shared})


NARROW = 256
"""Dimensions, padded, up to which a program takes several tokens to a warp."""


@triton.jit
def _norms_of(tiles, D: tl.constexpr):
    """Inverse norms (T,) of tokens (T, D); 0 for a norm of 0."""
    squares = tl.sum(tiles * tiles, axis=1)
    # Both correctly rounded: the quick ones differ from what the host would say.
    norms = tl.sqrt_rn(squares)
    zero = norms == 0
    return tl.where(zero, 0.0, tl.div_rn(tl.full(norms.shape, 1.0, tl.float32), tl.where(zero, 1.0, norms)))


@triton.jit(do_not_specialize=["T"])
def _residual_encode(
    values,
    codes,
    centroids,
    cutoffs,
    weights,
    residuals,
    inverse_norms,
    T,
    D: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    SLOTS: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = (D * BITS + 7) // 8
    t = tl.cast(tl.program_id(0), tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = tl.minimum(t, T - 1)
    nearest = load_rows(centroids, tl.cast(tl.load(codes + rows), tl.int64), 0, D, BLOCK_D)
    left_over = tl.cast(load_rows(values, rows, 0, D, BLOCK_D), tl.float32) - nearest
    buckets = tl.zeros((BLOCK_T, BLOCK_D), tl.int32)
    decoded = tl.zeros((BLOCK_T, BLOCK_D), tl.float32) + tl.load(weights)
    for cut in tl.static_range((1 << BITS) - 1):
        above = ~(left_over <= tl.load(cutoffs + cut))  # NaN goes to the last bucket, as it sorts last
        buckets += tl.cast(above, tl.int32)
        decoded = tl.where(above, tl.load(weights + cut + 1), decoded)
    d = tl.arange(0, BLOCK_D)
    inside = (d < D)[None, :]
    norms = _norms_of(tl.where(inside, nearest + decoded, 0.0), D)
    shifted = tl.where(inside, buckets, 0) << (d % SLOTS * BITS)[None, :]
    packed = tl.sum(tl.reshape(shifted, (BLOCK_T, BLOCK_D // SLOTS, SLOTS)), axis=2)
    byte = tl.arange(0, BLOCK_D // SLOTS)
    there = (t < T)[:, None] & (byte < BYTES)[None, :]
    tl.store(residuals + rows[:, None] * BYTES + byte[None, :], tl.cast(packed, tl.uint8), mask=there)
    tl.store(inverse_norms + t, norms, mask=t < T)


@triton.jit(do_not_specialize=["T"])
def _residual_decode(
    codes,
    residuals,
    centroids,
    weights,
    tokens,
    T,
    D: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    SLOTS: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = (D * BITS + 7) // 8
    t = tl.cast(tl.program_id(0), tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = tl.minimum(t, T - 1)
    bytes_ = load_rows(residuals, rows, 0, BYTES, BLOCK_D // SLOTS)
    places = tl.arange(0, SLOTS) * BITS
    spread = tl.cast(bytes_, tl.int32)[:, :, None] >> places[None, None, :]
    table = ()
    for bucket in tl.static_range(1 << BITS):
        table = table + (tl.load(weights + bucket),)  # noqa: RUF005 — device code has no unpacking
    decoded = choose(tl.reshape(spread, (BLOCK_T, BLOCK_D)), table, BITS)
    nearest = load_rows(centroids, tl.cast(tl.load(codes + rows), tl.int64), 0, D, BLOCK_D)
    d = tl.arange(0, BLOCK_D)
    inside = (d < D)[None, :]
    whole = tl.where(inside, nearest + decoded, 0.0)
    unit = whole * _norms_of(whole, D)[:, None]
    tl.store(tokens + rows[:, None] * D + d[None, :], unit, mask=(t < T)[:, None] & inside)


_DEVICES: tuple[Architecture, ...] = ("sm_90", "sm_80", "sm_100", "gfx942")


def _rows(wide_loads: bool | Literal["some"] = True) -> tuple[Row, ...]:
    return (
        # 2,048 dimensions a program and 16 a thread: bound by memory, and by 15 comparisons a dimension with 4 bits.
        *(Row(device, "narrow", {"BLOCK_T": 8}, wide_loads=wide_loads) for device in _DEVICES),
        *(Row(device, "wide", {"BLOCK_T": 2}, wide_loads=wide_loads) for device in _DEVICES),
        *(Row("interpreter", regime, {"BLOCK_T": 4}) for regime in ("narrow", "wide")),
    )


def _specimens(own: dict[str, str]) -> tuple[Specimen, ...]:
    return tuple(
        Specimen(
            regime,
            {
                **own,
                "codes": "*i32",
                "residuals": "*u8",
                "centroids": "*fp32",
                "weights": "*fp32",
                "T": "i32",
                "D": dimension,
                "BITS": bits,
                "BLOCK_D": dimension,
            },
        )
        for regime, dimension in (("narrow", 128), ("wide", 1024))
        for bits in (4, 2, 1)
    )


ENCODER = Kernel(
    _residual_encode, _rows(), _specimens({"values": "*fp16", "cutoffs": "*fp32", "inverse_norms": "*fp32"})
)
"""Buckets of tokens, and the inverse norms of what they stand for."""

DECODER = Kernel(_residual_decode, _rows("some"), _specimens({"tokens": "*fp32"}))
"""Unit vectors from buckets. A row of packed bytes is too short for loads of 16 bytes by all threads."""
