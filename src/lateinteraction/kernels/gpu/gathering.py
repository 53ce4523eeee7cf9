"""Gradients of query rows: each gathers the document rows that it likes best.

A program owns some tokens of one query and walks through its documents, some at a time, adding upstream · winner.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from lateinteraction.kernels.gpu.configurations import Kernel, Row, Specimen
from lateinteraction.kernels.gpu.normalisation import DEVICES, WIDTHS, before_normalisation, padded


@triton.jit(do_not_specialize=["query_stride", "query_end", "document_stride", "document_end", "N", "longest", "tiles"])
def _query_gradients(
    query_values,
    query_scales,
    query_spans,
    query_stride,
    query_end,
    document_values,
    document_scales,
    document_spans,
    document_stride,
    document_end,
    winners,
    upstream,
    gradients,
    pairs,
    order,
    bounds,
    N,
    longest,
    tiles,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    AHEAD: tl.constexpr,
):
    program = tl.program_id(0)
    query = tl.cast(program // tiles, tl.int64)
    start = tl.load(query_spans + query * query_stride)
    length = tl.load(query_spans + query * query_stride + query_end) - start
    s = tl.cast(program % tiles, tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    owned = s < length
    if pairs is None:
        begin = tl.cast(0, tl.int64)
        end = tl.cast(N, tl.int64)
    else:
        begin = tl.load(bounds + query)
        end = tl.load(bounds + query + 1)
    end = tl.where((program % tiles) * BLOCK_S < length, end, begin)

    columns = tl.arange(0, BLOCK_D)
    steps = tl.arange(0, AHEAD)
    sums = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    for first in range(begin, end, AHEAD):
        place = first + steps
        there = place < end
        if pairs is None:
            document = place
            score = query * N + document
            chosen = winners + (start + s)[None, :] * N + document[:, None]
        else:
            score = tl.load(order + place, mask=there, other=0)
            document = tl.load(pairs + score * 2 + 1)
            chosen = winners + score[:, None] * longest + s[None, :]
        token = tl.cast(tl.load(chosen, mask=there[:, None] & owned[None, :], other=-1), tl.int64)
        won = token >= 0
        origin = tl.load(document_spans + document * document_stride, mask=there, other=0)
        rows = origin[:, None] + token
        weights = tl.load(upstream + score[:, None] + tl.zeros_like(token), mask=won, other=0.0)
        if document_scales is not None:
            weights *= tl.load(document_scales + rows, mask=won, other=0.0)
        tokens = tl.load(
            document_values + rows[:, :, None] * D + columns[None, None, :],
            mask=won[:, :, None] & (columns < D)[None, None, :],
            other=0.0,
        )
        sums += tl.sum(weights[:, :, None] * tl.cast(tokens, tl.float32), axis=0)

    own = start + s
    at = own[:, None] * D + columns[None, :]
    inside = owned[:, None] & (columns < D)[None, :]
    if query_scales is not None:
        scales = tl.load(query_scales + own, mask=owned, other=0.0)
        if UNIT:
            values = tl.cast(tl.load(query_values + at, mask=inside, other=0.0), tl.float32)
            sums = before_normalisation(sums, values, scales)
        else:
            sums *= scales[:, None]
    tl.store(gradients + at, tl.cast(sums, gradients.dtype.element_ty), mask=inside)


def specimen(regime: str, values: str, D: int, *, listed: bool, **others: Any) -> Specimen:
    """A call with scales and their Jacobian, the one that needs the most registers."""
    return Specimen(
        regime,
        {
            "query_values": values,
            "query_scales": "*fp32",
            "query_spans": "*i64",
            **dict.fromkeys(("query_stride", "query_end", "document_stride", "document_end"), "i32"),
            "document_values": values,
            "document_scales": "*fp32",
            "document_spans": "*i64",
            "winners": "*i16",
            "upstream": "*fp32",
            "gradients": values,
            "pairs": "*i64" if listed else None,
            "order": "*i64" if listed else None,
            "bounds": "*i64" if listed else None,
            **dict.fromkeys(("N", "longest", "tiles"), "i32"),
            "D": D,
            "UNIT": True,
            "BLOCK_D": padded(D),
            **others,
        },
    )


QUERIES = Kernel(
    _query_gradients,
    # Eight values for each thread and document: 16 bytes where they have 16 bits. Four documents at a time, so that
    # their rows are under way together. AMD's four warps are 256 threads, not 128.
    tuple(
        Row(
            device,
            str(D),
            {"BLOCK_S": (2048 if device == "gfx942" else 1024) // D, "AHEAD": 4},
            wide_loads="some",
        )
        for D in WIDTHS
        for device in DEVICES
    )
    + tuple(Row("interpreter", str(D), {"BLOCK_S": 4, "AHEAD": 2}) for D in WIDTHS),
    (
        specimen("128", "*bf16", 128, listed=False),
        specimen("128", "*fp32", 128, listed=False),
        # Without the Jacobian no rows are read but those that are added up: the wide loads are theirs.
        *(specimen("128", values, 128, listed=False, UNIT=False) for values in ("*bf16", "*fp32")),
        *(specimen(str(D), values, D, listed=True) for D in WIDTHS for values in ("*bf16", "*fp32")),
    ),
)
"""Gradients of query rows."""
