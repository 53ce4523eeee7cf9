"""k-means on unit vectors: which centroid is nearest to each token, and where each centroid moves."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import (
    Architecture,
    Kernel,
    MatrixInstruction,
    Row,
    Specimen,
    ceil_div,
    device_of,
    launch,
)
from lateinteraction.kernels.gpu.normalisation import padded
from lateinteraction.kernels.gpu.tables import FLOATS
from lateinteraction.kernels.gpu.tiles import add_products, beats, load_rows, tile_width, winner

_DEVICES: tuple[Architecture, ...] = ("sm_90", "sm_80", "sm_100", "gfx942")


# ── nearest centroids ───────────────────────────────────────────────────────────────────────────────────────────────


def kmeans_assign(values: Tensor, centroids: Tensor) -> Tensor:
    """As `kernels.form.Form.kmeans_assign`.

    Raises:
        TypeError: tokens that are not floats, or centroids that are not float32.
    """
    device = _check(values, centroids)
    (count, dimension), clusters = values.shape, centroids.shape[0]
    regime = _REGIMES[values.dtype]
    block_t, block_k = (NEAREST_CENTROIDS.tile(device, regime, name) for name in ("BLOCK_T", "BLOCK_K"))
    blocks = ceil_div(count, block_t)
    ranges = max(1, min(ENOUGH_PROGRAMS // max(1, blocks), clusters // (FEWEST_TILES * block_k)))
    best = centroids.new_empty((ranges, count))
    places = centroids.new_empty((ranges, count), dtype=torch.int32)
    arguments = {
        "values": values,
        "parts": parts_of(centroids, values.dtype),
        "best": best,
        "places": places,
        "T": count,
        "K": clusters,
        "ranges": ranges,
        "D": dimension,
        "PARTS": PARTS[values.dtype],
    }
    launch(NEAREST_CENTROIDS, device, regime, blocks * ranges, arguments)
    return places[0] if ranges == 1 else _best_range(best, places)


ENOUGH_PROGRAMS = 1024
"""Programs that keep the largest devices busy. Where tokens make fewer, each set of tokens is compared with several
ranges of centroids at once."""

FEWEST_TILES = 8
"""Tiles of centroids that a range has at least: fewer would not pay for the tokens, which each range reads again."""

PARTS = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
"""How many numbers of the tokens' dtype make up a centroid's float32."""

_REGIMES = {torch.float32: "single", torch.float16: "two parts", torch.bfloat16: "three parts"}


def parts_of(centroids: Tensor, dtype: torch.dtype) -> Tensor:
    """Centroids float32 (K, D) as sums of numbers of another dtype, (parts, K, D), the largest part first.

    Tokens of 16 bits meet centroids of 32. Each centroid becomes what 16 bits hold of it, what they hold of the rest,
    and so on: products of 16 bits are exact in float32, so their sum is the float32 product to within 22 bits (float16)
    or 24 (bfloat16), at a quarter of the time that multiplying in float32 takes, or less. float16 has few exponents:
    all centroids are multiplied by one power of two, which moves no maximum, so that parts stay clear of the smallest.
    """
    if dtype == torch.float32:
        return centroids[None]
    rest = centroids
    if dtype == torch.float16 and centroids.numel():
        exponent = torch.frexp(centroids.abs().amax()).exponent
        rest = torch.ldexp(centroids, LARGEST_EXPONENT - exponent)
    parts = []
    for _ in range(PARTS[dtype]):
        parts.append(rest.type(dtype))
        rest = rest - parts[-1].type(torch.float32)
    return torch.stack(parts)


LARGEST_EXPONENT = 15
"""The largest part of a centroid is below 2¹⁵; float16 ends before 2¹⁶."""


@triton.jit(do_not_specialize=["T", "K", "ranges"])
def _nearest_centroids(
    values,
    parts,
    best,
    places,
    T,
    K,
    ranges,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEST: tl.constexpr,
):
    BLOCK_D: tl.constexpr = tile_width(D, WIDEST)
    program = tl.program_id(0)
    # Neighbours share a range, not tokens: the centroids they read together come from the cache.
    blocks = tl.cdiv(T, BLOCK_T)
    own_range = tl.cast(program // blocks, tl.int64)
    t = tl.cast(program % blocks, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = tl.minimum(t, T - 1)
    length = tl.cdiv(tl.cdiv(tl.cast(K, tl.int64), ranges), BLOCK_K) * BLOCK_K
    start = own_range * length
    stop = tl.minimum(start + length, K)
    if D <= BLOCK_D:
        tokens = load_rows(values, rows, 0, D, BLOCK_D)
    top = tl.full((BLOCK_T, BLOCK_K), float("-inf"), tl.float32)
    found = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    for first in range(start, stop, BLOCK_K):
        # Beyond the range its last centroid stands again: it beats nobody, as it comes after itself.
        k = tl.minimum(first + tl.arange(0, BLOCK_K), stop - 1)
        sums = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
        for part in tl.static_range(PARTS):
            own = parts + tl.cast(part, tl.int64) * K * D
            if D <= BLOCK_D:
                sums = add_products(tokens, load_rows(own, k, 0, D, BLOCK_D), sums)
            else:
                for column in range(0, D, BLOCK_D):
                    piece = load_rows(own, k, column, D, BLOCK_D)
                    sums = add_products(load_rows(values, rows, column, D, BLOCK_D), piece, sums)
        found = tl.where(beats(sums, top), tl.cast(first, tl.int32), found)
        top = tl.maximum(top, sums, propagate_nan=tl.PropagateNan.ALL)
    score, place = winner(top, tl.minimum(found + tl.arange(0, BLOCK_K)[None, :], tl.cast(stop - 1, tl.int32)), 1)
    tl.store(best + own_range * T + t, score, mask=t < T)
    tl.store(places + own_range * T + t, place, mask=t < T)


@triton.jit(do_not_specialize=["T", "ranges"])
def _best_of_ranges(best, places, codes, T, ranges, BLOCK_T: tl.constexpr):
    t = tl.cast(tl.program_id(0), tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = t < T
    top = tl.load(best + t, mask=inside, other=0.0)
    code = tl.load(places + t, mask=inside, other=0)
    for each in range(1, ranges):
        row = tl.cast(each, tl.int64) * T + t
        score = tl.load(best + row, mask=inside, other=0.0)
        wins = beats(score, top)
        code = tl.where(wins, tl.load(places + row, mask=inside, other=0), code)
        top = tl.where(wins, score, top)
    tl.store(codes + t, code, mask=inside)


def _best_range(best: Tensor, places: Tensor) -> Tensor:
    """The places (T,) of the best scores (ranges, T); ties go to the lower range, whose places are lower."""
    ranges, count = best.shape
    codes = torch.empty_like(places[0])
    arguments = {"best": best, "places": places, "codes": codes, "T": count, "ranges": ranges}
    programs = ceil_div(count, BEST_OF_RANGES.tile(best.device, "any", "BLOCK_T"))
    launch(BEST_OF_RANGES, best.device, "any", programs, arguments)
    return codes


_MATRIX: dict[Architecture, MatrixInstruction] = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma",
    "sm_100": "tcgen05",
    "gfx942": "mfma",
}
_FLOAT32: dict[Architecture, MatrixInstruction | None] = {
    "sm_80": None,
    "sm_90": None,
    "sm_100": None,
    "gfx942": "mfma",
}


def _nearest_row(device: Architecture, regime: str) -> Row:
    if regime == "single":
        return Row(device, regime, {"BLOCK_T": 128, "BLOCK_K": 64, "WIDEST": 16}, 8, 3, _FLOAT32[device])
    # 128 tokens: every set of tokens reads all centroids from the cache, at 64 tokens for longer than it multiplies.
    widest = 64 if device == "gfx942" else 128
    stages = 3 if device in ("sm_90", "sm_100") else 2
    return Row(device, regime, {"BLOCK_T": 128, "BLOCK_K": 64, "WIDEST": widest}, 8, stages, _MATRIX[device])


NEAREST_CENTROIDS = Kernel(
    _nearest_centroids,
    (
        *(_nearest_row(device, regime) for regime in ("two parts", "three parts", "single") for device in _DEVICES),
        *(
            Row("interpreter", regime, {"BLOCK_T": 16, "BLOCK_K": 16, "WIDEST": 32})
            for regime in ("two parts", "three parts", "single")
        ),
    ),
    tuple(
        Specimen(
            regime,
            {
                "values": values,
                "parts": values,
                "best": "*fp32",
                "places": "*i32",
                "T": "i32",
                "K": "i32",
                "ranges": "i32",
                "D": dimension,
                "PARTS": parts,
            },
        )
        for dimension in (128, 384)
        for regime, values, parts in (("two parts", "*fp16", 2), ("three parts", "*bf16", 3), ("single", "*fp32", 1))
    ),
)
"""The centroid of a range that is nearest to each token."""

BEST_OF_RANGES = Kernel(
    _best_of_ranges,
    (
        *(Row(device, "any", {"BLOCK_T": 512}, wide_loads=False) for device in _DEVICES),
        Row("interpreter", "any", {"BLOCK_T": 16}),
    ),
    (Specimen("any", {"best": "*fp32", "places": "*i32", "codes": "*i32", "T": "i32", "ranges": "i32"}),),
)
"""The nearest of what ranges found."""


# ── where centroids move ────────────────────────────────────────────────────────────────────────────────────────────


def kmeans_update(values: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """As `kernels.form.Form.kmeans_update`.

    Tokens are sorted by code, stably, and each centroid sums its own in that order: no race, so no other sum.

    Raises:
        TypeError: tokens that are not floats, or centroids that are not float32.
    """
    device = _check(values, centroids, codes)
    clusters, dimension = centroids.shape
    sorted_codes, order = torch.sort(codes, stable=True)
    firsts = torch.arange(clusters + 1, dtype=codes.dtype, device=device)
    moved = torch.empty_like(centroids)
    arguments = {
        "values": values,
        "order": order,
        "bounds": torch.searchsorted(sorted_codes, firsts),
        "centroids": centroids,
        "moved": moved,
        "D": dimension,
        "BLOCK_D": padded(dimension),
    }
    launch(MOVED_CENTROIDS, device, "wide" if arguments["BLOCK_D"] > NARROW else "narrow", clusters, arguments)
    return moved


NARROW = 256
"""Dimensions, padded, up to which a program sums 16 tokens at once."""


def _check(values: Tensor, centroids: Tensor, codes: Tensor | None = None) -> torch.device:
    if values.dtype not in FLOATS or centroids.dtype != torch.float32:
        raise TypeError(f"tokens of {values.dtype} and centroids of {centroids.dtype}; floats and float32 can be")
    return device_of({"values": values, "centroids": centroids, "codes": codes})


@triton.jit
def _moved_centroids(
    values, order, bounds, centroids, moved, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr
):
    centroid = tl.cast(tl.program_id(0), tl.int64)
    start, stop = tl.load(bounds + centroid), tl.load(bounds + centroid + 1)
    sums = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(start, stop, BLOCK_T):
        places = first + tl.arange(0, BLOCK_T)
        own = places < stop
        rows = tl.load(order + places, mask=own, other=0)
        tokens = tl.cast(load_rows(values, rows, 0, D, BLOCK_D), tl.float32)
        sums += tl.sum(tl.where(own[:, None], tokens, 0.0), axis=0)
    norm = tl.sqrt_rn(tl.sum(sums * sums, axis=0))
    d = tl.arange(0, BLOCK_D)
    before = tl.load(centroids + centroid * D + d, mask=d < D, other=0.0)
    after = tl.div_rn(sums, tl.where(norm == 0, 1.0, norm) + tl.zeros((BLOCK_D,), tl.float32))
    tl.store(moved + centroid * D + d, tl.where(norm == 0, before, after), mask=d < D)


MOVED_CENTROIDS = Kernel(
    _moved_centroids,
    (
        *(Row(device, "narrow", {"BLOCK_T": 16}) for device in _DEVICES),
        *(Row(device, "wide", {"BLOCK_T": 4}) for device in _DEVICES),
        *(Row("interpreter", regime, {"BLOCK_T": 4}) for regime in ("narrow", "wide")),
    ),
    tuple(
        Specimen(
            regime,
            {
                "values": values,
                "order": "*i64",
                "bounds": "*i64",
                "centroids": "*fp32",
                "moved": "*fp32",
                "D": dimension,
                "BLOCK_D": dimension,
            },
        )
        for regime, dimension in (("narrow", 128), ("wide", 1024))
        for values in ("*fp16", "*fp32")
    ),
)
"""The normalised mean of each centroid's tokens."""
