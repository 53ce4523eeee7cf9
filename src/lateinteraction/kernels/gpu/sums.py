"""Scores from maxima: the sum over each query's own tokens of the maximum that each has in a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import Kernel, Row, Specimen, aligned, ceil_div, device_of, launch
from lateinteraction.kernels.gpu.keys import store_scores

MAXIMA_BYTES = 2**28
"""Memory for the maxima of the query tokens in as many documents as are scored at once."""


def sum_per_query(
    write_maxima: Callable[[Tensor, Tensor], None], query_spans: Tensor, document_spans: Tensor, tokens: int
) -> Tensor:
    """Scores float32 (Q, N) from maxima of `tokens` rows of queries, held for as many documents at once as fit.

    Args:
        write_maxima: fills maxima float32 (n, S) for documents with spans (n, 2).
        query_spans: which rows are whose, int64 (Q, 2).
        document_spans: int64 (N, 2).
        tokens: S.
    """
    scores = document_spans.new_empty((query_spans.shape[0], document_spans.shape[0]), dtype=torch.float32)
    for piece in pieces(document_spans.shape[0], tokens):
        maxima = scores.new_empty((piece.stop - piece.start, tokens))
        write_maxima(maxima, document_spans[piece])
        write_sums(maxima, query_spans, scores[:, piece])
    return scores


def pieces(documents: int, tokens: int) -> Iterator[slice]:
    """Ranges of documents whose maxima with so many query tokens can be held at once."""
    step = aligned(MAXIMA_BYTES // (4 * max(1, tokens)))
    for first in range(0, documents, step):
        yield slice(first, min(documents, first + step))


def write_sums(maxima: Tensor, query_spans: Tensor, scores: Tensor, first_place: int = 0) -> None:
    """Sum maxima (N, S) into scores (Q, N), whose rows may be apart.

    Scores are float32, or int64 for keys (`kernels.gpu.keys`) with places from first_place on.
    """
    device = device_of({"maxima": maxima, "query spans": query_spans, "scores": scores})
    arguments = {
        "maxima": maxima,
        "S": maxima.shape[1],
        "spans": query_spans,
        "item_stride": query_spans.stride(0),
        "end_stride": query_spans.stride(1),
        "scores": scores,
        "score_stride": scores.stride(0),
        "N": scores.shape[1],
        "first_place": first_place,
    }
    blocks = ceil_div(scores.shape[1], SUMS_OF_MAXIMA.tile(device, "any", "BLOCK_DOCUMENTS"))
    launch(SUMS_OF_MAXIMA, device, "any", scores.shape[0] * blocks, arguments)


@triton.jit(do_not_specialize=["S", "item_stride", "end_stride", "score_stride", "N", "first_place"])
def _sums_of_maxima(
    maxima,
    S,
    spans,
    item_stride,
    end_stride,
    scores,
    score_stride,
    N,
    first_place,
    BLOCK_DOCUMENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    blocks = tl.cdiv(N, BLOCK_DOCUMENTS)
    query = tl.cast(program // blocks, tl.int64)
    documents = tl.cast(program % blocks, tl.int64) * BLOCK_DOCUMENTS + tl.arange(0, BLOCK_DOCUMENTS)
    start = tl.load(spans + query * item_stride)
    length = tl.cast(tl.load(spans + query * item_stride + end_stride) - start, tl.int32)
    pointers = maxima + documents[:, None] * S + start
    # Tiles are counted from the query's first token: its sum has one order wherever the query lies.
    total = tl.zeros((BLOCK_DOCUMENTS,), tl.float32)
    for step in range(0, length, BLOCK_ROWS):
        rows = step + tl.arange(0, BLOCK_ROWS)[None, :]
        total += tl.sum(tl.load(pointers + rows, mask=(documents[:, None] < N) & (rows < length), other=0.0), 1)
    store_scores(scores + query * score_stride + documents, total, first_place + documents, documents < N)


def _call(scores: str) -> Specimen:
    sizes = ("S", "item_stride", "end_stride", "score_stride", "N", "first_place")
    return Specimen("any", {"maxima": "*fp32", "spans": "*i64", "scores": scores, **dict.fromkeys(sizes, "i32")})


# 32 tokens of 16 documents: a line of memory for each document, 16 loads a thread.
SUMS_OF_MAXIMA = Kernel(
    _sums_of_maxima,
    rows=(
        *(
            Row(architecture, "any", {"BLOCK_DOCUMENTS": 16, "BLOCK_ROWS": 32}, warps=1, stages=2, wide_loads=False)
            for architecture in ("sm_80", "sm_90", "sm_100", "gfx942")
        ),
        Row("interpreter", "any", {"BLOCK_DOCUMENTS": 4, "BLOCK_ROWS": 8}),
    ),
    specimens=(_call("*fp32"), _call("*i64")),
)
