"""MaxSim of all pairs: the maximum of each query token in each document, then the sum over each query's tokens.

A tile takes consecutive rows of the queries' values, whosever they are, so no query is padded to the length of another.
"""

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
    ceil_div,
    device_of,
    launch,
    precision_of,
    tensors_of,
)
from lateinteraction.kernels.gpu.maxima import WIDE, best_of_document
from lateinteraction.kernels.gpu.pairs import SHORT, write_pairs
from lateinteraction.kernels.gpu.sums import pieces, write_sums
from lateinteraction.kernels.operands import Tokens, winners_dtype


def maxsim_all_pairs(queries: Tokens, documents: Tokens) -> Tensor:
    """See `kernels.form.Form.maxsim_all_pairs`."""
    scores = _no_scores(queries, documents)
    write_all_pairs(queries, documents, scores)
    return scores


def maxsim_all_pairs_winners(queries: Tokens, documents: Tokens) -> tuple[Tensor, Tensor]:
    """See `kernels.form.Form.maxsim_all_pairs_winners`."""
    scores = _no_scores(queries, documents)
    shape = queries.values.shape[0], documents.spans.shape[0]
    winners = queries.values.new_empty(shape, dtype=winners_dtype(documents))
    write_all_pairs(queries, documents, scores, winners)
    return scores, winners


def _no_scores(queries: Tokens, documents: Tokens) -> Tensor:
    return queries.values.new_empty((queries.spans.shape[0], documents.spans.shape[0]), dtype=torch.float32)


def write_all_pairs(
    queries: Tokens, documents: Tokens, scores: Tensor, winners: Tensor | None = None, first_place: int = 0
) -> None:
    """Score all pairs into `scores` (Q, N), whose rows may be apart: float32, or int64 for keys (`kernels.gpu.keys`).

    Args:
        queries: their tokens.
        documents: their tokens.
        scores: what is written.
        winners: (S, N), written too unless None.
        first_place: the place of the first document.
    """
    if queries.spans.shape[0] == 1 and queries.longest <= SHORT:
        write_pairs(queries, documents, None, scores[0], winners, first_place)
        return
    rows = queries.values.shape[0]
    for some in pieces(documents.spans.shape[0], rows):
        maxima = queries.values.new_empty((some.stop - some.start, rows), dtype=torch.float32)
        part = documents._replace(spans=documents.spans[some])
        _write_maxima(queries, part, maxima, None if winners is None else winners[:, some])
        write_sums(maxima, queries.spans, scores[:, some], first_place + some.start)


def _write_maxima(queries: Tokens, documents: Tokens, maxima: Tensor, winners: Tensor | None) -> None:
    """The maxima (N, S) of all query rows in each document."""
    device = device_of(tensors_of(queries, documents))
    rows, dimension = queries.values.shape
    regime = _regime(queries, documents, winners)
    arguments = {
        "query_values": queries.values,
        "query_scales": queries.scales,
        "document_values": documents.values,
        "document_scales": documents.scales,
        "spans": documents.spans,
        "item_stride": documents.spans.stride(0),
        "end_stride": documents.spans.stride(1),
        "maxima": maxima,
        "winners": winners,
        "winner_stride": 0 if winners is None else winners.stride(0),
        "S": rows,
        "D": dimension,
    }
    tiles = ceil_div(rows, ALL_PAIRS_MAXIMA.tile(device, regime, "BLOCK_N"))
    launch(ALL_PAIRS_MAXIMA, device, regime, documents.spans.shape[0] * tiles, arguments)


def _regime(queries: Tokens, documents: Tokens, winners: Tensor | None) -> str:
    precision = precision_of(queries.values, documents.values)
    if precision == "single":
        return precision if queries.values.dtype == documents.values.dtype else "mixed"
    if queries.values.shape[1] > WIDE:
        return f"{precision} wide"
    return precision if winners is None else f"{precision} winners"


@triton.jit(do_not_specialize=["item_stride", "end_stride", "winner_stride", "S"])
def _all_pairs_maxima(
    query_values,
    query_scales,
    document_values,
    document_scales,
    spans,
    item_stride,
    end_stride,
    maxima,
    winners,
    winner_stride,
    S,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEST: tl.constexpr,
):
    # Tiles of one document follow each other, so that its tokens come from memory once and then from the cache.
    program = tl.program_id(0)
    tiles = tl.cdiv(S, BLOCK_N)
    document = tl.cast(program // tiles, tl.int64)
    s = tl.cast(program % tiles, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.load(spans + document * item_stride)
    length = tl.cast(tl.load(spans + document * item_stride + end_stride) - start, tl.int32)
    queries = (query_values, tl.minimum(s, S - 1), query_scales)
    documents = (document_values, document_scales)
    top, place = best_of_document(queries, documents, (start, length), D, BLOCK_M, WIDEST, winners is not None)
    tl.store(maxima + document * S + s, top, mask=s < S)
    if winners is not None:
        tl.store(winners + s * winner_stride + document, tl.cast(place, winners.dtype.element_ty), mask=s < S)


_NARROW = {"BLOCK_M": 64, "BLOCK_N": 128, "WIDEST": WIDE}
_WIDE = {"BLOCK_M": 64, "BLOCK_N": 128, "WIDEST": 64}
_SINGLE = {"BLOCK_M": 64, "BLOCK_N": 64, "WIDEST": 16}
_TINY = {"BLOCK_M": 8, "BLOCK_N": 8, "WIDEST": 16}
_REGIMES = ("half", "half winners", "half wide", "int8", "int8 winners", "int8 wide", "single", "mixed")


def _call(values: str, *, winners: str | None = None, scaled: bool = False, **others: Any) -> dict[str, Any]:
    """A call with spans and winners of any strides; 128 dimensions, and both sides of one dtype, unless told."""
    return {
        **dict.fromkeys(("query_values", "document_values"), values),
        **dict.fromkeys(("query_scales", "document_scales"), "*fp32" if scaled else None),
        "spans": "*i64",
        **dict.fromkeys(("item_stride", "end_stride", "winner_stride", "S"), "i32"),
        "maxima": "*fp32",
        "winners": winners,
        "D": 128,
        **others,
    }


# Registers decide, as compiled for each architecture (`make aot`). Documents of 64 rows waste less of their last tile
# than 128 would and leave room for two programs; 128 columns of query tokens halve what is read of documents against
# 64. Winners want twice the registers, so their tile is shared among eight warps.
ALL_PAIRS_MAXIMA = Kernel(
    _all_pairs_maxima,
    rows=(
        Row("sm_80", "half", _NARROW, stages=2, matrix="mma.sync"),
        Row("sm_80", "half winners", _NARROW, warps=8, stages=2, matrix="mma.sync"),
        Row("sm_80", "half wide", _WIDE, warps=8, matrix="mma.sync"),
        Row("sm_80", "int8", _NARROW, stages=2, matrix="mma.sync"),
        Row("sm_80", "int8 winners", _NARROW, warps=8, stages=2, matrix="mma.sync"),
        Row("sm_80", "int8 wide", _WIDE, warps=8, matrix="mma.sync"),
        Row("sm_80", "single", _SINGLE),
        Row("sm_80", "mixed", _SINGLE),
        Row("sm_90", "half", _NARROW, matrix="wgmma"),
        Row("sm_90", "half winners", _NARROW, warps=8, matrix="wgmma"),
        Row("sm_90", "half wide", _WIDE, warps=8, matrix="wgmma"),
        Row("sm_90", "int8", _NARROW, matrix="wgmma"),
        Row("sm_90", "int8 winners", _NARROW, warps=8, matrix="wgmma"),
        Row("sm_90", "int8 wide", _WIDE, warps=8, matrix="wgmma"),
        Row("sm_90", "single", _SINGLE),
        Row("sm_90", "mixed", _SINGLE),
        Row("sm_100", "half", _NARROW, matrix="tcgen05"),
        Row("sm_100", "half winners", _NARROW, warps=8, matrix="tcgen05"),
        Row("sm_100", "half wide", _WIDE, warps=8, matrix="tcgen05"),
        Row("sm_100", "int8", _NARROW, matrix="mma.sync"),  # Triton has no tcgen05 for bytes
        Row("sm_100", "int8 winners", _NARROW, warps=8, matrix="mma.sync"),
        Row("sm_100", "int8 wide", _WIDE, warps=8, matrix="mma.sync"),
        Row("sm_100", "single", _SINGLE),
        # From 64 rows on Triton 3.7.1 multiplies float32 that was narrower in memory in TF32, whatever it is asked for.
        Row("sm_100", "mixed", _SINGLE | {"BLOCK_M": 32}),
        Row("gfx942", "half", _NARROW, stages=2, matrix="mfma"),
        Row("gfx942", "half winners", _NARROW, warps=8, stages=2, matrix="mfma"),
        Row("gfx942", "half wide", _WIDE, warps=8, stages=2, matrix="mfma"),
        Row("gfx942", "int8", _NARROW, stages=2, matrix="mfma"),
        Row("gfx942", "int8 winners", _NARROW, warps=8, stages=2, matrix="mfma"),
        Row("gfx942", "int8 wide", _WIDE, warps=8, stages=2, matrix="mfma"),
        Row("gfx942", "single", _SINGLE, stages=2, matrix="mfma"),  # there it multiplies float32 as float32
        Row("gfx942", "mixed", _SINGLE, stages=2, matrix="mfma"),
        *(Row("interpreter", regime, _TINY) for regime in _REGIMES),
    ),
    specimens=(
        Specimen("half", _call("*bf16")),
        Specimen("half", _call("*fp16", scaled=True)),
        Specimen("half", _call("*bf16", D=96)),
        Specimen("half winners", _call("*bf16", winners="*i16")),
        Specimen("half winners", _call("*bf16", winners="*i32", scaled=True)),
        Specimen("half wide", _call("*bf16", D=1024)),
        Specimen("half wide", _call("*bf16", winners="*i16", scaled=True, D=1024)),
        Specimen("int8", _call("*i8", scaled=True)),
        Specimen("int8 winners", _call("*i8", winners="*i16", scaled=True)),
        Specimen("int8 wide", _call("*i8", winners="*i16", scaled=True, D=1024)),
        Specimen("single", _call("*fp32")),
        Specimen("single", _call("*fp32", winners="*i16", scaled=True, D=1024)),
        Specimen("mixed", _call("*fp32", document_values="*bf16")),
    ),
)
