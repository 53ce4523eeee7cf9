"""In-batch XTR: each query token's best tokens of all documents together, and the scores that these make.

A similarity and its row are one int64 key (`kernels.gpu.keys`), no two of them equal, so `torch.topk` has one answer.
The keys of all rows are never there at once: the best k lie in the k blocks of rows with the best maxima, so a first
pass writes the maximum of each block, and a second one the keys of the blocks that were chosen. Query tokens go through
in chunks of what is held.
"""

from __future__ import annotations

from typing import Any

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
    aligned,
    ceil_div,
    device_of,
    launch,
    precision_of,
    tensors_of,
)
from lateinteraction.kernels.gpu.grouping import owners_of
from lateinteraction.kernels.gpu.keys import LEAST, as_keys, scores_and_places
from lateinteraction.kernels.gpu.normalisation import DEVICES
from lateinteraction.kernels.gpu.tiles import add_products, as_floats, load_rows, no_products, tile_width
from lateinteraction.kernels.operands import Tokens, winners_dtype

KEYS_AT_ONCE = 2**24
"""Keys that are held for a chunk of query tokens: 128 MB. All of 8,192 × 76,800 tokens would be 5 GB."""

BLOCK = 32
"""Rows of a block: `topk` reads R / BLOCK maxima and k · BLOCK keys, fewest at √(R / k): 24 for 128 of 76,800."""


def xtr_all_pairs(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (Q, N), winners (S, N) and finders (Q, N) of documents that do not overlap; see `Form.xtr_all_pairs`.

    Raises:
        TypeError: a dtype or device that the kernels do not take.
    """
    device = device_of(tensors_of(queries, documents))
    S, N, R = queries.values.shape[0], len(documents.spans), documents.values.shape[0]
    owners = owners_of(documents)
    similarities = torch.empty(S, N, dtype=torch.float32, device=device)
    winners = torch.empty(S, N, dtype=winners_dtype(documents), device=device)
    blocks = ceil_div(R, BLOCK)
    # Going through blocks reads all rows twice; it has to leave less than half of the keys.
    selective = blocks + k * BLOCK < R // 2
    held = N + (2 * blocks + k * BLOCK if selective else blocks * BLOCK)
    chunk = aligned(KEYS_AT_ONCE // max(1, held))
    for first in range(0, S, chunk):
        part = slice(first, min(S, first + chunk))
        scales = None if queries.scales is None else queries.scales[part]
        tokens = queries._replace(values=queries.values[part], scales=scales)
        slots = _chosen_blocks(tokens, documents, owners, k) if selective else None
        keys = _keys(tokens, documents, owners, slots, k * BLOCK if selective else blocks * BLOCK)
        kept = torch.topk(keys, min(k, keys.shape[1])).values
        _settle(kept, owners, documents, similarities[part], winners[part])
    scores, finders = _scores(queries, similarities, winners)
    return scores, winners, finders


def _chosen_blocks(queries: Tokens, documents: Tokens, owners: Tensor, k: int) -> Tensor:
    """Where among the k blocks with the best maxima each block is, int32 (n, blocks); −1 where it is not."""
    blocks = ceil_div(documents.values.shape[0], BLOCK)
    maxima = torch.empty(queries.values.shape[0], blocks, dtype=torch.int64, device=owners.device)
    _launch_rows(queries, documents, owners, None, maxima, maxima_only=True)
    least = torch.topk(maxima, k).values[:, -1:]
    chosen = (maxima >= least) & (maxima != LEAST)
    return torch.where(chosen, chosen.cumsum(dim=1, dtype=torch.int32) - 1, -1)


def _keys(queries: Tokens, documents: Tokens, owners: Tensor, slots: Tensor | None, count: int) -> Tensor:
    """Keys (n, count) of the rows in chosen blocks, or in all."""
    keys = torch.full((queries.values.shape[0], count), LEAST, dtype=torch.int64, device=owners.device)
    _launch_rows(queries, documents, owners, slots, keys, maxima_only=False)
    return keys


def _launch_rows(
    queries: Tokens, documents: Tokens, owners: Tensor, slots: Tensor | None, keys: Tensor, *, maxima_only: bool
) -> None:
    device = keys.device
    regime = precision_of(queries.values, documents.values)
    S, R = queries.values.shape[0], documents.values.shape[0]
    arguments = {
        "query_values": queries.values,
        "query_scales": queries.scales,
        "document_values": documents.values,
        "document_scales": documents.scales,
        "owners": owners,
        "slots": slots,
        "keys": keys,
        "key_stride": keys.stride(0),
        "S": S,
        "R": R,
        "D": queries.values.shape[1],
        "BLOCK": BLOCK,
        "LEAST": LEAST,
        "MAXIMA": maxima_only,
    }
    tiles = ceil_div(S, ROW_KEYS.tile(device, regime, "BLOCK_N"))
    launch(ROW_KEYS, device, regime, tiles * ceil_div(R, ROW_KEYS.tile(device, regime, "BLOCK_M")), arguments)


def _settle(kept: Tensor, owners: Tensor, documents: Tokens, similarities: Tensor, winners: Tensor) -> None:
    """From the keys (n, k) that were kept: what each query token found in each document, (n, N)."""
    device, (n, k) = kept.device, kept.shape
    N = len(documents.spans)
    best = torch.full((n, N), LEAST, dtype=torch.int64, device=device)
    tiles = ceil_div(k, BEST_KEYS.tile(device, "any", "BLOCK_K"))
    launch(
        BEST_KEYS,
        device,
        "any",
        n * tiles,
        {"keys": kept, "k": k, "owners": owners, "best": best, "N": N, "tiles": tiles, "LEAST": LEAST},
    )
    arguments = {
        "best": best,
        "spans": documents.spans,
        "span_stride": documents.spans.stride(0),
        "similarities": similarities,
        "winners": winners,
        "N": N,
        "LEAST": LEAST,
    }
    tiles = ceil_div(N, FOUND_TOKENS.tile(device, "any", "BLOCK_N"))
    launch(FOUND_TOKENS, device, "any", n * tiles, {**arguments, "tiles": tiles})


def _scores(queries: Tokens, similarities: Tensor, winners: Tensor) -> tuple[Tensor, Tensor]:
    device, Q, N = winners.device, len(queries.spans), winners.shape[1]
    scores = torch.empty(Q, N, dtype=torch.float32, device=device)
    finders = torch.empty(Q, N, dtype=torch.int32, device=device)
    arguments = {
        "similarities": similarities,
        "winners": winners,
        "spans": queries.spans,
        "span_stride": queries.spans.stride(0),
        "end_stride": queries.spans.stride(1),
        "scores": scores,
        "finders": finders,
        "N": N,
    }
    tiles = ceil_div(N, MEANS.tile(device, "any", "BLOCK_N"))
    launch(MEANS, device, "any", Q * tiles, {**arguments, "tiles": tiles})
    return scores, finders


@triton.jit(do_not_specialize=["S", "R", "key_stride"])
def _row_keys(
    query_values,
    query_scales,
    document_values,
    document_scales,
    owners,
    slots,
    keys,
    key_stride,
    S,
    R,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    LEAST: tl.constexpr,
    MAXIMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEST: tl.constexpr,
):
    # Tiles of the same document rows follow each other, so that these come from memory once and then from the cache.
    program = tl.program_id(0)
    tiles = tl.cdiv(S, BLOCK_N)
    s = tl.cast(program % tiles, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.cast(program // tiles, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_rows = tl.minimum(s, S - 1)
    document_rows = tl.minimum(r, R - 1)
    BLOCK_D: tl.constexpr = tile_width(D, WIDEST)
    sums = no_products(document_values, query_values, BLOCK_M, BLOCK_N)
    for first in range(0, D, BLOCK_D):
        tokens = load_rows(document_values, document_rows, first, D, BLOCK_D)
        sums = add_products(tokens, load_rows(query_values, query_rows, first, D, BLOCK_D), sums)
    similarities = as_floats(sums, D)
    if document_scales is not None:
        similarities *= tl.load(document_scales + document_rows)[:, None]
    if query_scales is not None:
        similarities *= tl.load(query_scales + query_rows)[None, :]
    present = tl.load(owners + r, mask=r < R, other=-1) >= 0
    own = tl.where(present[:, None], as_keys(similarities, r[:, None]), LEAST)

    PARTS: tl.constexpr = BLOCK_M // BLOCK
    own = tl.reshape(own, (PARTS, BLOCK, BLOCK_N))
    block = tl.cast(program // tiles, tl.int64) * PARTS + tl.arange(0, PARTS)
    blocks = tl.cdiv(R, BLOCK)
    there = (block < blocks)[:, None] & (s < S)[None, :]
    at = keys + s[None, :] * key_stride
    if MAXIMA:
        tl.store(at + block[:, None], tl.max(own, axis=1), mask=there)
    else:
        slot = tl.zeros_like(s)[None, :] + block[:, None]
        if slots is not None:
            slot = tl.cast(tl.load(slots + s[None, :] * blocks + slot, mask=there, other=-1), tl.int64)
            there = there & (slot >= 0)
        at += slot * BLOCK
        tl.store(at[:, None, :] + tl.arange(0, BLOCK)[None, :, None], own, mask=there[:, None, :])


@triton.jit(do_not_specialize=["k", "N", "tiles"])
def _best_keys(keys, k, owners, best, N, tiles, LEAST: tl.constexpr, BLOCK_K: tl.constexpr):
    program = tl.program_id(0)
    s = tl.cast(program // tiles, tl.int64)
    place = tl.cast(program % tiles, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    key = tl.load(keys + s * k + place, mask=place < k, other=LEAST)
    row = scores_and_places(key)[1]
    document = tl.cast(tl.load(owners + row, mask=key != LEAST, other=0), tl.int64)
    # The largest of integers is the same in whatever order they come.
    tl.atomic_max(best + s * N + document, key, mask=key != LEAST, sem="relaxed")


@triton.jit(do_not_specialize=["span_stride", "N", "tiles"])
def _found_tokens(
    best, spans, span_stride, similarities, winners, N, tiles, LEAST: tl.constexpr, BLOCK_N: tl.constexpr
):
    program = tl.program_id(0)
    s = tl.cast(program // tiles, tl.int64)
    document = tl.cast(program % tiles, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = document < N
    key = tl.load(best + s * N + document, mask=there, other=LEAST)
    decoded = scores_and_places(key)
    token = decoded[1] - tl.load(spans + document * span_stride, mask=there, other=0)
    found = key != LEAST
    tl.store(similarities + s * N + document, tl.where(found, decoded[0], 0.0), mask=there)
    tl.store(winners + s * N + document, tl.cast(tl.where(found, token, -1), winners.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["span_stride", "end_stride", "N", "tiles"])
def _means(
    similarities,
    winners,
    spans,
    span_stride,
    end_stride,
    scores,
    finders,
    N,
    tiles,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    program = tl.program_id(0)
    query = tl.cast(program // tiles, tl.int64)
    document = tl.cast(program % tiles, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.load(spans + query * span_stride)
    end = tl.load(spans + query * span_stride + end_stride)
    total = tl.zeros((BLOCK_N,), tl.float32)
    count = tl.zeros((BLOCK_N,), tl.int32)
    for first in range(start, end, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        there = (s < end)[:, None] & (document < N)[None, :]
        at = s[:, None] * N + document[None, :]
        total += tl.sum(tl.load(similarities + at, mask=there, other=0.0), axis=0)
        count += tl.sum(tl.where(tl.load(winners + at, mask=there, other=-1) >= 0, 1, 0), axis=0)
    at = query * N + document
    tl.store(scores + at, total / tl.cast(tl.maximum(count, 1), tl.float32), mask=document < N)
    tl.store(finders + at, count, mask=document < N)


_MATRIX: dict[Architecture, MatrixInstruction] = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma",
    "sm_100": "tcgen05",
    "gfx942": "mfma",
}


def _row(device: Architecture, regime: str) -> Row:
    """Keys take two registers each: 128 × 64 of them, among 256 threads, leave room for two programs and more."""
    if regime == "single":
        # Plain multiply-adds, except where the device multiplies float32 as float32. With 64 rows and more Blackwell
        # would compute mixed dtypes in TF32, whatever is asked for.
        matrix = "mfma" if device == "gfx942" else None
        return Row(device, regime, {"BLOCK_M": 32, "BLOCK_N": 64, "WIDEST": 16}, 4, 2, matrix)
    matrix = _MATRIX[device]
    if regime == "int8" and device == "sm_100":
        matrix = "mma.sync"  # Triton has no tcgen05 for bytes
    return Row(device, regime, {"BLOCK_M": 128, "BLOCK_N": 64, "WIDEST": 64}, 8, 2, matrix)


def _row_specimen(regime: str, query_values: str, document_values: str, **others: Any) -> Specimen:
    return Specimen(
        regime,
        {
            "query_values": query_values,
            "query_scales": "*fp32",
            "document_values": document_values,
            "document_scales": "*fp32",
            "owners": "*i32",
            "slots": "*i32",
            "keys": "*i64",
            **dict.fromkeys(("key_stride", "S", "R"), "i32"),
            "D": 128,
            "BLOCK": BLOCK,
            "LEAST": LEAST,
            "MAXIMA": False,
            **others,
        },
    )


ROW_KEYS = Kernel(
    _row_keys,
    tuple(_row(device, regime) for regime in ("half", "single", "int8") for device in DEVICES)
    + tuple(
        Row("interpreter", regime, {"BLOCK_M": 32, "BLOCK_N": 16, "WIDEST": 32})
        for regime in ("half", "single", "int8")
    ),
    (
        _row_specimen("half", "*bf16", "*bf16", slots=None, MAXIMA=True),
        _row_specimen("half", "*bf16", "*bf16"),
        _row_specimen("half", "*fp16", "*fp16", D=1024),
        _row_specimen("single", "*fp32", "*fp32"),
        _row_specimen("single", "*fp32", "*bf16", slots=None, MAXIMA=True),
        _row_specimen("int8", "*i8", "*i8"),
    ),
)
"""Keys of similarities: the largest of each block of rows, or those of chosen blocks."""

BEST_KEYS = Kernel(
    _best_keys,
    (
        *(Row(device, "any", {"BLOCK_K": 128}, wide_loads=False) for device in DEVICES),
        Row("interpreter", "any", {"BLOCK_K": 8}),
    ),
    (
        Specimen(
            "any",
            {
                "keys": "*i64",
                **dict.fromkeys(("k", "N", "tiles"), "i32"),
                "owners": "*i32",
                "best": "*i64",
                "LEAST": LEAST,
            },
        ),
    ),
)
"""The largest key of each document."""

FOUND_TOKENS = Kernel(
    _found_tokens,
    (
        *(Row(device, "any", {"BLOCK_N": 256}, wide_loads=False) for device in DEVICES),
        Row("interpreter", "any", {"BLOCK_N": 4}),
    ),
    tuple(
        Specimen(
            "any",
            {
                "best": "*i64",
                "spans": "*i64",
                **dict.fromkeys(("span_stride", "N", "tiles"), "i32"),
                "similarities": "*fp32",
                "winners": winners,
                "LEAST": LEAST,
            },
        )
        for winners in ("*i16", "*i32")
    ),
)
"""The token behind each key."""

MEANS = Kernel(
    _means,
    (
        *(Row(device, "any", {"BLOCK_N": 64, "BLOCK_S": 32}, wide_loads=False) for device in DEVICES),
        Row("interpreter", "any", {"BLOCK_N": 4, "BLOCK_S": 4}),
    ),
    tuple(
        Specimen(
            "any",
            {
                "similarities": "*fp32",
                "winners": winners,
                "spans": "*i64",
                **dict.fromkeys(("span_stride", "end_stride", "N", "tiles"), "i32"),
                "scores": "*fp32",
                "finders": "*i32",
            },
        )
        for winners in ("*i16", "*i32")
    ),
)
"""The mean over the tokens of a query that found something of a document."""
