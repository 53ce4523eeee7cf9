"""MaxSim: one matrix product per chunk of documents, then the best of each one's rows while they are in cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from lateinteraction.kernels.eager.chunks import (
    Chunk,
    chunks,
    maxima,
    on_host,
    precision_of,
    rows_per_chunk,
    sum_per_query,
    winners,
)
from lateinteraction.kernels.eager.order import best_of
from lateinteraction.kernels.operands import Tokens, winners_dtype

LARGEST_EXACT = 2**24 // 127**2
"""Dimensions up to which products of int8 tokens, summed in float32, are whole numbers without rounding."""

DOCUMENTS_PER_MERGE = 4096
"""Scores of each query that `maxsim_top_k` holds at a time."""


def maxsim_all_pairs(queries: Tokens, documents: Tokens) -> Tensor:
    """Scores (Q, N). See `Form.maxsim_all_pairs`."""
    query_spans, rows = on_host(queries.spans), rows_per_chunk(queries.values.shape[0])
    columns = [
        sum_per_query(_scaled(_maxima(queries, documents, chunk, rows), queries), query_spans)
        for chunk in chunks(on_host(documents.spans), rows)
    ]
    if not columns:
        return queries.values.new_empty((len(query_spans), 0), dtype=precision_of(queries.values, documents.values))
    return torch.cat(columns, dim=1)


def maxsim_all_pairs_winners(queries: Tokens, documents: Tokens) -> tuple[Tensor, Tensor]:
    """Scores (Q, N) and winners (S, N). See `Form.maxsim_all_pairs_winners`."""
    spans, rows = on_host(documents.spans), rows_per_chunk(queries.values.shape[0])
    shape = len(spans), queries.values.shape[0]
    best = queries.values.new_empty(shape, dtype=precision_of(queries.values, documents.values))
    places = queries.values.new_empty(shape, dtype=torch.int64)
    for chunk in chunks(spans, rows):
        best[chunk.first : chunk.last], places[chunk.first : chunk.last] = _winners(queries, documents, chunk, rows)
    scores = sum_per_query(_scaled(best, queries), on_host(queries.spans))
    return scores, places.mT.type(winners_dtype(documents)).contiguous()


def maxsim_pairs(queries: Tokens, documents: Tokens, pairs: Tensor) -> Tensor:
    """Scores (P,). See `Form.maxsim_pairs`."""
    scores = queries.values.new_empty(len(pairs), dtype=precision_of(queries.values, documents.values))
    for places, query, own in by_query(queries, documents, pairs):
        scores[places] = maxsim_all_pairs(query, own)[0]
    return scores


def maxsim_pairs_winners(queries: Tokens, documents: Tokens, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (P,) and winners (P, queries.longest). See `Form.maxsim_pairs_winners`."""
    scores = queries.values.new_empty(len(pairs), dtype=precision_of(queries.values, documents.values))
    rows = queries.values.new_full((len(pairs), queries.longest), -1, dtype=winners_dtype(documents))
    for places, query, own in by_query(queries, documents, pairs):
        found, where = maxsim_all_pairs_winners(query, own)
        scores[places] = found[0]
        rows[places, : where.shape[0]] = where.mT
    return scores, rows


def maxsim_top_k(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor]:
    """The best documents of each query. See `Form.maxsim_top_k`."""
    spans = documents.spans
    best = queries.values.new_empty((len(queries.spans), 0), dtype=precision_of(queries.values, documents.values))
    places = best.new_empty(best.shape, dtype=torch.int64)
    for first in range(0, len(spans), DOCUMENTS_PER_MERGE):
        scores = maxsim_all_pairs(queries, documents._replace(spans=spans[first : first + DOCUMENTS_PER_MERGE]))
        later = torch.arange(first, first + scores.shape[1], device=places.device).expand(len(scores), -1)
        best, places = torch.cat([best, scores], dim=1), torch.cat([places, later], dim=1)
        chosen = best_of(best, k)  # what was kept stands before what came later, so ties keep the lowest place
        best, places = best.gather(1, chosen), places.gather(1, chosen)
    return best, places


def inverse_norms(values: Tensor) -> Tensor:
    """1 / ‖row‖. See `Form.inverse_norms`."""
    norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)  # squares of float32 exceed its range
    return torch.where(norms == 0, 0, 1 / norms).type(precision_of(values))


def similarities(queries: Tokens, documents: Tokens, chunk: Chunk) -> Tensor:
    """The table (C, S) of a chunk's rows and all query rows; scales of the documents are in it, of the queries not."""
    precision = precision_of(queries.values, documents.values)
    wide = torch.float64 if _rounds(documents.values) or _rounds(queries.values) else precision
    table = chunk.rows_of(documents.values).type(wide) @ queries.values.type(wide).mT
    table = table.type(precision)
    return table if documents.scales is None else table * chunk.rows_of(documents.scales)[:, None]


def by_query(queries: Tokens, documents: Tokens, pairs: Tensor) -> Iterator[tuple[Tensor, Tokens, Tokens]]:
    """For each query of a list of pairs: their places in the list, the query alone, its documents."""
    rows = on_host(pairs)
    order = np.argsort(rows[:, 0], kind="stable")
    for query, group in groupby(map(int, order), lambda place: int(rows[place, 0])):
        places = list(group)
        start, end = map(int, on_host(queries.spans)[query])
        alone = Tokens(
            queries.values[start:end],
            torch.tensor([[0, end - start]]),
            end - start,
            None if queries.scales is None else queries.scales[start:end],
        )
        own = documents._replace(spans=documents.spans[pairs[places, 1]])
        yield torch.tensor(places, device=queries.values.device), alone, own


def _maxima(queries: Tokens, documents: Tokens, chunk: Chunk, rows: int) -> Tensor:
    """The best similarity (n, S) of each query row in each document of a chunk."""
    found = (maxima(similarities(queries, documents, piece), piece.lengths, -torch.inf) for piece in chunk.pieces(rows))
    return reduce(torch.maximum, found)


def _winners(queries: Tokens, documents: Tokens, chunk: Chunk, rows: int) -> tuple[Tensor, Tensor]:
    """`_maxima`, and where in its document each is (n, S)."""
    found = (winners(similarities(queries, documents, piece), piece.lengths) for piece in chunk.pieces(rows))
    best, places = next(found)
    for number, (later, where) in enumerate(found, start=1):
        better = (later > best) | later.isnan()  # an earlier piece keeps a tie
        best, places = torch.where(better, later, best), torch.where(better, where + number * rows, places)
    return best, places


def _scaled(best: Tensor, queries: Tokens) -> Tensor:
    """Maxima (n, S) with the scales of the queries. Those are never negative, so they change no maximum."""
    return best if queries.scales is None else torch.where(best.isneginf(), best, best * queries.scales)


def _rounds(values: Tensor) -> bool:
    """Whether float32 could round sums of products of these int8 values."""
    return values.dtype == torch.int8 and values.shape[1] > LARGEST_EXACT
