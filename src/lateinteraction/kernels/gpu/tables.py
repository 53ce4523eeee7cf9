"""What query tokens score with centroids: the table, the table in eight bits, and the best of each query token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import (
    INTERPRETED,
    RAGGED,
    Architecture,
    Kernel,
    Row,
    Specimen,
    ceil_div,
    device_of,
    launch,
    unit_of,
)
from lateinteraction.kernels.gpu.keys import LEAST, as_keys, scores_and_places
from lateinteraction.kernels.gpu.tiles import add_products, load_rows, no_products
from lateinteraction.kernels.operands import CentroidTable

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of tokens that have no scales."""

LAST_PLACE = 2**32 - 1
"""What the lower half of a key counts down from."""

_LEAST: tl.constexpr = tl.constexpr(LEAST)
_DEVICES: tuple[Architecture, ...] = ("sm_90", "sm_80", "sm_100", "gfx942")


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────


def centroid_scores(query_values: Tensor, centroids: Tensor) -> Tensor:
    """As `kernels.form.Form.centroid_scores`.

    Not `torch.mm`: the host may have allowed TF32 for it, and it chooses how to sum by the shape of the whole, so that
    a score would depend on how many other tokens are in the call. For one query the time is that of reading the
    centroids and writing the table; float32 arithmetic hides behind it.

    Raises:
        TypeError: query tokens that are not floats, or centroids that are not float32.
    """
    device = device_of({"query values": query_values, "centroids": centroids})
    if query_values.dtype not in FLOATS or centroids.dtype != torch.float32:
        raise TypeError(f"tokens of {query_values.dtype} and centroids of {centroids.dtype}; floats and float32 can be")
    (tokens, dimension), count = query_values.shape, centroids.shape[0]
    scores = centroids.new_empty((count, tokens))
    regime = "few tokens" if tokens <= FEW_TOKENS else "many tokens"
    block_k, block_s = (CENTROID_SCORES.tile(device, regime, name) for name in ("BLOCK_K", "BLOCK_S"))
    arguments = {
        "query_values": query_values.type(torch.float32),
        "centroids": centroids,
        "scores": scores,
        "K": count,
        "S": tokens,
        "D": dimension,
    }
    launch(CENTROID_SCORES, device, regime, ceil_div(count, block_k) * ceil_div(tokens, block_s), arguments)
    return scores


FEW_TOKENS = 32
"""Query tokens up to which one tile holds them all."""


@triton.jit(do_not_specialize=["K", "S"])
def _centroid_scores(
    query_values,
    centroids,
    scores,
    K,
    S,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    tiles = tl.cdiv(S, BLOCK_S)
    k = tl.cast(program // tiles, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    s = tl.cast(program % tiles, tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    centroid_rows, query_rows = tl.minimum(k, K - 1), tl.minimum(s, S - 1)
    sums = no_products(centroids, query_values, BLOCK_K, BLOCK_S)
    for first in range(0, D, BLOCK_D):
        queries = load_rows(query_values, query_rows, first, D, BLOCK_D)
        sums = add_products(load_rows(centroids, centroid_rows, first, D, BLOCK_D), queries, sums)
    tl.store(scores + k[:, None] * S + s[None, :], sums, mask=(k < K)[:, None] & (s < S)[None, :])


def _scores_row(device: Architecture, regime: str) -> Row:
    # 32 sums a thread: of five instructions four are multiplications, and nothing spills. CDNA has float32 matrices.
    many = regime == "many tokens"
    tiles = {"BLOCK_K": 128, "BLOCK_S": 64 if many else 32, "BLOCK_D": 16}
    return Row(device, regime, tiles, 8 if many else 4, 3, "mfma" if device == "gfx942" else None)


CENTROID_SCORES = Kernel(
    _centroid_scores,
    (
        *(_scores_row(device, regime) for regime in ("few tokens", "many tokens") for device in _DEVICES),
        *(
            Row("interpreter", regime, {"BLOCK_K": 16, "BLOCK_S": 16, "BLOCK_D": 16})
            for regime in ("few tokens", "many tokens")
        ),
    ),
    tuple(
        Specimen(
            regime,
            {"query_values": "*fp32", "centroids": "*fp32", "scores": "*fp32", "K": "i32", "S": "i32", "D": D},
        )
        for D in (128, 100)
        for regime in ("few tokens", "many tokens")
    ),
)
"""Products of all centroids with all query tokens."""


# ── eight bits ──────────────────────────────────────────────────────────────────────────────────────────────────────


def quantise_table(scores: Tensor) -> CentroidTable:
    """As `kernels.form.Form.quantise_table`.

    Raises:
        TypeError: scores that are not float32.
    """
    device = device_of({"scores": scores})
    if scores.dtype != torch.float32:
        raise TypeError(f"scores of {scores.dtype}; a table is float32")
    count, tokens = scores.shape
    lows, highs = torch.aminmax(scores, dim=0)  # exact in any order
    values, steps = scores.new_empty((count, tokens), dtype=torch.uint8), torch.empty_like(lows)
    unit = unit_of(tokens)
    regime = f"{RAGGED[unit]}table"
    block_k, block_s = (QUANTISED_TABLE.tile(device, regime, name) for name in ("BLOCK_K", "BLOCK_S"))
    arguments = {
        "scores": scores,
        "lows": lows,
        "highs": highs,
        "values": values,
        "steps": steps,
        "K": count,
        "units": tokens // unit,
        "UNIT": unit,
    }
    launch(QUANTISED_TABLE, device, regime, ceil_div(count, block_k) * ceil_div(tokens, block_s), arguments)
    return CentroidTable(values, steps, lows)


@triton.jit(do_not_specialize=["K", "units"])
def _quantised_table(
    scores,
    lows,
    highs,
    values,
    steps,
    K,
    units,
    UNIT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    program = tl.program_id(0)
    S = tl.cast(units, tl.int64) * UNIT
    tiles = tl.cast(tl.cdiv(S, BLOCK_S), tl.int32)
    k = tl.cast(program // tiles, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    s = tl.cast(program % tiles, tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    column = s < S
    low = tl.load(lows + s, mask=column, other=0.0)
    # Divisions are rounded as the host rounds them: on a device torch multiplies by 1/255, and Triton's `/` is quick.
    step = tl.div_rn(tl.load(highs + s, mask=column, other=0.0) - low, tl.full((BLOCK_S,), 255.0, tl.float32))
    there = (k < K)[:, None] & column[None, :]
    places = k[:, None] * S + s[None, :]
    above = tl.load(scores + places, mask=there, other=0.0) - low[None, :]
    flat = tl.broadcast_to((step > 0)[None, :], (BLOCK_K, BLOCK_S)) == 0
    exact = tl.div_rn(above, tl.where(flat, 1.0, tl.broadcast_to(step[None, :], (BLOCK_K, BLOCK_S))))
    # Next to 1.5 · 2²³ a float32 has no place for fractions: the sum is rounded to the nearest integer, ties to even.
    rounded = (tl.where(flat, 0.0, exact) + 12582912.0) - 12582912.0
    tl.store(values + places, tl.cast(tl.cast(rounded, tl.int32), tl.uint8), mask=there)
    if program // tiles == 0:
        tl.store(steps + s, step, mask=column)


QUANTISED_TABLE = Kernel(
    _quantised_table,
    # A thread has 16 scores of one centroid where columns allow, and writes them as 16 bytes.
    (
        *(
            Row(device, f"{ragged}table", {"BLOCK_K": 64, "BLOCK_S": 32}, wide_loads=not ragged)
            for ragged in RAGGED.values()
            for device in _DEVICES
        ),
        *(Row("interpreter", f"{ragged}table", {"BLOCK_K": 16, "BLOCK_S": 4}) for ragged in RAGGED.values()),
    ),
    tuple(
        Specimen(
            f"{ragged}table",
            {
                **dict.fromkeys(("scores", "lows", "highs", "steps"), "*fp32"),
                "values": "*u8",
                **dict.fromkeys(("K", "units"), "i32"),
                "UNIT": unit,
            },
        )
        for unit, ragged in RAGGED.items()
    ),
)
"""A table between the extremes of its columns."""


# ── the best centroids ──────────────────────────────────────────────────────────────────────────────────────────────


MOST_ROUNDS = 4 if INTERPRETED else 64
"""Centroids to a query token up to which they are taken one by one, at about a microsecond each: the time of a round of
loads. More are quicker found among all keys at once. (Few where rounds are interpreted, at milliseconds each.)"""


def probe(scores: Tensor, nprobe: int) -> Tensor:
    """As `kernels.form.Form.probe`.

    Raises:
        TypeError: scores that are not float32.
    """
    device = device_of({"scores": scores})
    if scores.dtype != torch.float32:
        raise TypeError(f"scores of {scores.dtype}; a table is float32")
    count, tokens = scores.shape
    nprobe = min(nprobe, count)
    block = block_of(count) if nprobe <= MOST_ROUNDS else 1
    blocks = ceil_div(count, block)
    best = scores.new_empty((tokens, blocks), dtype=torch.int64)
    unit = unit_of(tokens)
    regime = f"{RAGGED[unit]}{'blocks' if block > 1 else 'all'}"
    block_k, block_s = (BEST_OF_BLOCKS.tile(device, regime, name) for name in ("BLOCK_K", "BLOCK_S"))
    programs = ceil_div(count, max(block, block_k)) * ceil_div(tokens, block_s)
    sizes = {"K": count, "blocks": blocks, "BLOCK": block}
    units = {"units": tokens // unit, "UNIT": unit}
    launch(BEST_OF_BLOCKS, device, regime, programs, {"scores": scores, "best": best, **sizes, **units})
    if block == 1:
        return LAST_PLACE - (torch.topk(best, nprobe, dim=1).values & LAST_PLACE)  # no two keys are equal
    found = scores.new_empty((tokens, nprobe), dtype=torch.int64)
    arguments = {"scores": scores, "best": best, "found": found, **sizes, "S": tokens, "nprobe": nprobe}
    launch(BEST_CENTROIDS, device, "table", tokens, {**arguments, "BLOCKS": max(16, triton.next_power_of_2(blocks))})
    return found


def block_of(count: int) -> int:
    """Centroids to a block: about as many as there are blocks, so that few numbers are looked at on both levels."""
    return max(32, 1 << (round(count**0.5) - 1).bit_length())


@triton.jit(do_not_specialize=["K", "units", "blocks"])
def _best_of_blocks(
    scores,
    best,
    K,
    units,
    blocks,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    S = tl.cast(units, tl.int64) * UNIT
    tiles = tl.cast(tl.cdiv(S, BLOCK_S), tl.int32)
    group = tl.cast(program // tiles, tl.int64)
    s = tl.cast(program % tiles, tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    top = tl.full((BLOCK_K, BLOCK_S), _LEAST, tl.int64)
    for first in range(0, BLOCK, BLOCK_K):
        k = group * max(BLOCK, BLOCK_K) + first + tl.arange(0, BLOCK_K)
        there = (k < K)[:, None] & (s < S)[None, :]
        tile = tl.load(scores + k[:, None] * S + s[None, :], mask=there, other=0.0)
        keys = tl.where(there, as_keys(tile, k[:, None]), _LEAST)
        if BLOCK == 1:
            tl.store(best + s[None, :] * blocks + k[:, None], keys, mask=there)
        top = tl.maximum(top, keys)
    if BLOCK > 1:
        tl.store(best + s * blocks + group, tl.max(top, 0), mask=s < S)


@triton.jit(do_not_specialize=["K", "S", "blocks", "nprobe"])
def _best_centroids(scores, best, found, K, S, blocks, nprobe, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    s = tl.cast(tl.program_id(0), tl.int64)
    held = tl.arange(0, BLOCKS)
    keys = tl.load(best + s * blocks + held, mask=held < blocks, other=_LEAST)
    for rank in range(nprobe):
        top = tl.max(keys, 0)
        place = scores_and_places(top)[1]
        tl.store(found + s * nprobe + rank, place)
        # The block that had the best one puts forward its next: the best of what is worse. No two keys are equal.
        block = place // BLOCK
        k = block * BLOCK + tl.arange(0, BLOCK)
        column = tl.load(scores + k * S + s, mask=k < K, other=0.0)
        own = tl.where(k < K, as_keys(column, k), _LEAST)
        keys = tl.where(held == block, tl.max(tl.where(own < top, own, _LEAST), 0), keys)


_SIZES = {"K": "i32", "blocks": "i32"}

BEST_OF_BLOCKS = Kernel(
    _best_of_blocks,
    (
        *(
            Row(device, f"{ragged}{regime}", {"BLOCK_S": 32, "BLOCK_K": 32}, wide_loads=not ragged)
            for ragged in RAGGED.values()
            for regime in ("blocks", "all")
            for device in _DEVICES
        ),
        *(
            Row("interpreter", f"{ragged}{regime}", {"BLOCK_S": 4, "BLOCK_K": 32})
            for ragged in RAGGED.values()
            for regime in ("blocks", "all")
        ),
    ),
    tuple(
        Specimen(
            f"{ragged}{regime}",
            {"scores": "*fp32", "best": "*i64", **_SIZES, "units": "i32", "UNIT": unit, "BLOCK": block},
        )
        for unit, ragged in RAGGED.items()
        for regime, block in (("blocks", 256), ("all", 1))
    ),
)
"""The best score of each block of centroids and its place, as a key, for each query token; or the keys of all."""

BEST_CENTROIDS = Kernel(
    _best_centroids,
    # One warp: what it waits for is memory, and every maximum stays within the warp.
    (*(Row(device, "table", {}, warps=1, wide_loads=False) for device in _DEVICES), Row("interpreter", "table", {})),
    tuple(
        Specimen(
            "table",
            {
                "scores": "*fp32",
                "best": "*i64",
                "found": "*i64",
                **_SIZES,
                "S": "i32",
                "nprobe": "i32",
                "BLOCK": size,
                "BLOCKS": size,
            },
        )
        for size in (256, 1024, 32)
    ),
)
"""The centroids that each query token scores best with, in order."""
