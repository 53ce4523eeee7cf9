"""The heart of MaxSim: which token of one document each of a tile of query tokens likes best. A device function.

The document's tokens lie along M, the query tokens along N, so that matrix instructions, which want 64 along M, are as
full with 16 query tokens as with 128. Maxima run elementwise in registers, over tokens that are BLOCK_M apart, and are
reduced across threads once per document.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lateinteraction.kernels.gpu.tiles import (
    add_products,
    as_floats,
    beats,
    larger,
    load_rows,
    maximum,
    no_products,
    tile_width,
    winner,
)

WIDE = 128
"""Dimensions up to which a tile takes whole rows, so that query tokens are read once for all tokens of a document."""


@triton.jit
def best_of_document(
    queries, documents, span, D: tl.constexpr, BLOCK_M: tl.constexpr, WIDEST: tl.constexpr, WINNERS: tl.constexpr
):
    """Maxima float32 (N,) of query rows over the tokens of a document, −∞ where it is empty; and their places, int32.

    Places are counted within the document and −1 where it is empty; without WINNERS they mean nothing.

    Args:
        queries: their values, the rows to take, int64 (N,), all of which are there, and their scales or None.
        documents: their values, and their scales or None.
        span: the document's first row, int64, and its length, int32.
    """
    BLOCK_N: tl.constexpr = queries[1].shape[0]
    BLOCK_D: tl.constexpr = tile_width(D, WIDEST)
    start, length = span[0], span[1]
    local = tl.arange(0, BLOCK_M)
    if D <= BLOCK_D:
        query_tile = load_rows(queries[0], queries[1], 0, D, BLOCK_D)
    best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    if WINNERS:
        steps = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(0, length, BLOCK_M):
        # Beyond its end the last token stands again: it changes no maximum, and costs less than to mask similarities.
        rows = start + tl.minimum(step + local, length - 1)
        sums = no_products(documents[0], queries[0], BLOCK_M, BLOCK_N)
        if D <= BLOCK_D:
            sums = add_products(load_rows(documents[0], rows, 0, D, BLOCK_D), query_tile, sums)
        else:
            for first in range(0, D, BLOCK_D):
                document_part = load_rows(documents[0], rows, first, D, BLOCK_D)
                sums = add_products(document_part, load_rows(queries[0], queries[1], first, D, BLOCK_D), sums)
        similarities = as_floats(sums, D)
        if documents[1] is not None:
            similarities *= tl.load(documents[1] + rows)[:, None]
        if WINNERS:
            steps = tl.where(beats(similarities, best), step, steps)
        best = larger(best, similarities)
    if WINNERS:
        top, place = winner(best, steps + local[:, None], 0)
        place = tl.minimum(place, length - 1)
    else:
        top = maximum(best, 0)
        place = tl.zeros((BLOCK_N,), tl.int32)
    if queries[2] is not None:  # noqa: SIM102 — this is known when it is compiled, the next is not
        # A scale is never negative, so it can wait until the maximum is found, except that 0 makes all tokens equal.
        if length > 0:
            scales = tl.load(queries[2] + queries[1])
            top = top * scales
            place = tl.where(scales == 0, 0, place)
    return top, place
