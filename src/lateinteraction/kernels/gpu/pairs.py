"""MaxSim of listed pairs, one program for each: the maxima of its query tokens, summed in registers."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import (
    Kernel,
    Row,
    Specimen,
    device_of,
    launch,
    precision_of,
    tensors_of,
)
from lateinteraction.kernels.gpu.keys import store_scores
from lateinteraction.kernels.gpu.maxima import WIDE, best_of_document
from lateinteraction.kernels.operands import Tokens, winners_dtype

SHORT = 32
"""Query tokens that a tile for short queries has. ColBERT fills or cuts queries to so many (SIGIR 2020, §3.2)."""


def maxsim_pairs(queries: Tokens, documents: Tokens, pairs: Tensor) -> Tensor:
    """See `kernels.form.Form.maxsim_pairs`."""
    scores = queries.values.new_empty(pairs.shape[0], dtype=torch.float32)
    write_pairs(queries, documents, pairs, scores)
    return scores


def maxsim_pairs_winners(queries: Tokens, documents: Tokens, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.form.Form.maxsim_pairs_winners`."""
    scores = queries.values.new_empty(pairs.shape[0], dtype=torch.float32)
    winners = queries.values.new_full((pairs.shape[0], queries.longest), -1, dtype=winners_dtype(documents))
    write_pairs(queries, documents, pairs, scores, winners)
    return scores, winners


def write_pairs(
    queries: Tokens,
    documents: Tokens,
    pairs: Tensor | None,
    scores: Tensor,
    winners: Tensor | None = None,
    first_place: int = 0,
) -> None:
    """Score pairs into `scores` (P,): float32, or int64 for keys (`kernels.gpu.keys`) with places from first_place on.

    Args:
        queries: their tokens.
        documents: their tokens.
        pairs: int64 (P, 2); None for query 0 with each document.
        scores: (P,), contiguous.
        winners: (P, queries.longest); without pairs (S, N), of all rows of the queries' values.
        first_place: the place of the first pair.
    """
    device = device_of({**tensors_of(queries, documents), "pairs": pairs})
    regime = _regime(queries, documents)
    pair_item, pair_side = (0, 0) if pairs is None else pairs.stride()
    winner_strides = (0, 0) if winners is None else winners.stride()
    winner_row, winner_item = winner_strides if pairs is None else reversed(winner_strides)
    arguments = {
        "query_values": queries.values,
        "query_scales": queries.scales,
        "query_spans": queries.spans,
        "query_item": queries.spans.stride(0),
        "query_end": queries.spans.stride(1),
        "document_values": documents.values,
        "document_scales": documents.scales,
        "document_spans": documents.spans,
        "document_item": documents.spans.stride(0),
        "document_end": documents.spans.stride(1),
        "pairs": pairs,
        "pair_item": pair_item,
        "pair_side": pair_side,
        "scores": scores,
        "first_place": first_place,
        "winners": winners,
        "winner_item": winner_item,
        "winner_row": winner_row,
        "D": queries.values.shape[1],
        "LONG": queries.longest > PAIR_SCORES.tile(device, regime, "BLOCK_N"),
    }
    launch(PAIR_SCORES, device, regime, scores.shape[0], arguments)


def _regime(queries: Tokens, documents: Tokens) -> str:
    precision = precision_of(queries.values, documents.values)
    if precision == "single":
        return precision if queries.values.dtype == documents.values.dtype else "mixed"
    if queries.longest > SHORT:
        return f"{precision} long"
    return f"{precision} wide" if queries.values.shape[1] > WIDE else precision


@triton.jit
def _sum_of_tile(
    queries,
    query_span,
    documents,
    span,
    step,
    winners,
    winner_row,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEST: tl.constexpr,
):
    """The sum of the maxima of query tokens step … step + BLOCK_N − 1; writes their winners where they are wanted."""
    s = step + tl.arange(0, BLOCK_N)
    rows = query_span[0] + tl.minimum(s, query_span[1] - 1)
    top, place = best_of_document(
        (queries[0], rows, queries[1]), documents, span, D, BLOCK_M, WIDEST, winners is not None
    )
    if winners is not None:
        pointers = winners + tl.cast(s, tl.int64) * winner_row
        tl.store(pointers, tl.cast(place, winners.dtype.element_ty), mask=s < query_span[1])
    return tl.sum(tl.where(s < query_span[1], top, 0.0), 0)


@triton.jit(
    do_not_specialize=[
        "query_item",
        "query_end",
        "document_item",
        "document_end",
        "pair_item",
        "pair_side",
        "first_place",
        "winner_item",
        "winner_row",
    ]
)
def _pair_scores(
    query_values,
    query_scales,
    query_spans,
    query_item,
    query_end,
    document_values,
    document_scales,
    document_spans,
    document_item,
    document_end,
    pairs,
    pair_item,
    pair_side,
    scores,
    first_place,
    winners,
    winner_item,
    winner_row,
    D: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEST: tl.constexpr,
):
    pair = tl.cast(tl.program_id(0), tl.int64)
    if pairs is None:
        query = tl.zeros((), tl.int64)
        document = pair
    else:
        query = tl.load(pairs + pair * pair_item)
        document = tl.load(pairs + pair * pair_item + pair_side)
    query_start = tl.load(query_spans + query * query_item)
    query_length = tl.cast(tl.load(query_spans + query * query_item + query_end) - query_start, tl.int32)
    start = tl.load(document_spans + document * document_item)
    length = tl.cast(tl.load(document_spans + document * document_item + document_end) - start, tl.int32)
    if winners is not None:
        winners += pair * winner_item
        if pairs is None:
            winners += query_start * winner_row
    queries = (query_values, query_scales)
    query_span = (query_start, query_length)
    documents = (document_values, document_scales)
    span = (start, length)
    total = 0.0
    if LONG:
        for step in range(0, query_length, BLOCK_N):
            total += _sum_of_tile(
                queries, query_span, documents, span, step, winners, winner_row, D, BLOCK_M, BLOCK_N, WIDEST
            )
    # Not a loop of one turn: around a loop of document tiles that nearly doubles the registers.
    elif query_length > 0:
        total = _sum_of_tile(queries, query_span, documents, span, 0, winners, winner_row, D, BLOCK_M, BLOCK_N, WIDEST)
    store_scores(scores + pair, total, first_place + pair, None)


_SHORT = {"BLOCK_M": 128, "BLOCK_N": SHORT, "WIDEST": WIDE}
_LONG = {"BLOCK_M": 64, "BLOCK_N": 64, "WIDEST": 64}
_WIDE = {"BLOCK_M": 128, "BLOCK_N": SHORT, "WIDEST": 64}
_SINGLE = {"BLOCK_M": 64, "BLOCK_N": 32, "WIDEST": 16}
_TINY = {"BLOCK_M": 8, "BLOCK_N": 8, "WIDEST": 16}
_REGIMES = ("half", "half long", "half wide", "int8", "int8 long", "int8 wide", "single", "mixed")


def _call(values: str, *, winners: str | None = None, scaled: bool = False, **others: Any) -> dict[str, Any]:
    """A call that lists pairs, with spans and winners of any strides; 128 dimensions and short queries unless told."""
    scales = "*fp32" if scaled else None
    sizes = ("query_item", "query_end", "document_item", "document_end", "pair_item", "pair_side", "first_place")
    return {
        **dict.fromkeys((*sizes, "winner_item", "winner_row"), "i32"),
        **dict.fromkeys(("query_values", "document_values"), values),
        **dict.fromkeys(("query_scales", "document_scales"), scales),
        **dict.fromkeys(("query_spans", "document_spans", "pairs"), "*i64"),
        "scores": "*fp32",
        "winners": winners,
        "D": 128,
        "LONG": False,
        **others,
    }


# Registers decide, as compiled for each architecture (`make aot`): documents of 128 rows and 32 columns of query tokens
# take 94 of them on sm_90 and leave room for two programs' three stages in shared memory.
PAIR_SCORES = Kernel(
    _pair_scores,
    rows=(
        Row("sm_80", "half", _SHORT, stages=2, matrix="mma.sync"),
        Row("sm_80", "half long", _LONG, warps=8, matrix="mma.sync"),
        Row("sm_80", "half wide", _WIDE, warps=8, matrix="mma.sync"),
        Row("sm_80", "int8", _SHORT, stages=2, matrix="mma.sync"),
        Row("sm_80", "int8 long", _LONG, warps=8, matrix="mma.sync"),
        Row("sm_80", "int8 wide", _WIDE, warps=8, matrix="mma.sync"),
        Row("sm_80", "single", _SINGLE),
        Row("sm_80", "mixed", _SINGLE),
        Row("sm_90", "half", _SHORT, matrix="wgmma"),
        Row("sm_90", "half long", _LONG, warps=8, matrix="wgmma"),
        Row("sm_90", "half wide", _WIDE, warps=8, matrix="wgmma"),
        Row("sm_90", "int8", _SHORT, matrix="wgmma"),
        Row("sm_90", "int8 long", _LONG, warps=8, matrix="wgmma"),
        Row("sm_90", "int8 wide", _WIDE, warps=8, matrix="wgmma"),
        Row("sm_90", "single", _SINGLE),
        Row("sm_90", "mixed", _SINGLE),
        Row("sm_100", "half", _SHORT, matrix="tcgen05"),
        Row("sm_100", "half long", _LONG, warps=8, matrix="tcgen05"),
        Row("sm_100", "half wide", _WIDE, warps=8, matrix="tcgen05"),
        Row("sm_100", "int8", _SHORT, matrix="mma.sync"),  # Triton has no tcgen05 for bytes
        Row("sm_100", "int8 long", _LONG, warps=8, matrix="mma.sync"),
        Row("sm_100", "int8 wide", _WIDE, warps=8, matrix="mma.sync"),
        Row("sm_100", "single", _SINGLE),
        # From 64 rows on Triton 3.7.1 multiplies float32 that was narrower in memory in TF32, whatever it is asked for.
        Row("sm_100", "mixed", _SINGLE | {"BLOCK_M": 32}),
        Row("gfx942", "half", _SHORT, stages=2, matrix="mfma"),
        Row("gfx942", "half long", _LONG, stages=2, matrix="mfma"),
        Row("gfx942", "half wide", _WIDE, stages=2, matrix="mfma"),
        Row("gfx942", "int8", _SHORT, stages=2, matrix="mfma"),
        Row("gfx942", "int8 long", _LONG, stages=2, matrix="mfma"),
        Row("gfx942", "int8 wide", _WIDE, stages=2, matrix="mfma"),
        Row("gfx942", "single", _SINGLE, stages=2, matrix="mfma"),  # there it multiplies float32 as float32
        Row("gfx942", "mixed", _SINGLE, stages=2, matrix="mfma", wide_loads=False),
        *(Row("interpreter", regime, _TINY) for regime in _REGIMES),
    ),
    specimens=(
        Specimen("half", _call("*bf16")),
        Specimen("half", _call("*fp16", winners="*i16", scaled=True)),
        Specimen("half", _call("*bf16", pairs=None, scores="*i64")),
        Specimen("half long", _call("*bf16", LONG=True)),
        Specimen("half long", _call("*bf16", winners="*i32", scaled=True, LONG=True, D=1024)),
        Specimen("half wide", _call("*fp16", D=256)),
        Specimen("half wide", _call("*bf16", winners="*i16", scaled=True, D=1024)),
        Specimen("int8", _call("*i8", scaled=True)),
        Specimen("int8", _call("*i8", winners="*i16", scaled=True)),
        Specimen("int8 long", _call("*i8", winners="*i16", scaled=True, LONG=True)),
        Specimen("int8 wide", _call("*i8", winners="*i16", scaled=True, D=1024)),
        Specimen("single", _call("*fp32")),
        Specimen("single", _call("*fp32", winners="*i16", scaled=True, LONG=True, D=1024)),
        Specimen("mixed", _call("*fp32", document_values="*bf16")),
    ),
)
