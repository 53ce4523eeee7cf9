"""Gradients of MaxSim through its winners: for each chunk a sparse weight per similarity, then two matrix products."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lateinteraction.kernels.eager.chunks import Chunk, chunks, on_host, precision_of, rows_per_chunk
from lateinteraction.kernels.eager.maxsim import by_query
from lateinteraction.kernels.operands import Tokens


def maxsim_all_pairs_gradients(
    queries: Tokens, documents: Tokens, winners: Tensor, upstream: Tensor, *, unit: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (S, D) and (R, D). See `Form.maxsim_all_pairs_gradients`."""
    sums = _zeros(queries, documents), _zeros(documents, queries)
    spans = on_host(queries.spans)
    rows = np.concatenate([np.arange(start, end) for start, end in spans]) if len(spans) else np.empty(0, np.int64)
    live = torch.as_tensor(rows, device=winners.device)
    weights = upstream.repeat_interleave(torch.as_tensor(spans[:, 1] - spans[:, 0], device=winners.device), dim=0)
    sums[0][live] = _accumulate(_effective(queries)[live], documents, winners[live], weights, sums[1])
    return _through_scales(queries, sums[0], unit), _through_scales(documents, sums[1], unit)


def maxsim_pairs_gradients(
    queries: Tokens, documents: Tokens, pairs: Tensor, winners: Tensor, upstream: Tensor, *, unit: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (S, D) and (R, D). See `Form.maxsim_pairs_gradients`."""
    sums = _zeros(queries, documents), _zeros(documents, queries)
    query_spans = on_host(queries.spans)
    for places, query, own in by_query(queries, documents, pairs):
        tokens = query.values.shape[0]
        weights = upstream[places].expand(tokens, -1)
        start, end = query_spans[int(on_host(pairs)[int(places[0]), 0])]
        sums[0][start:end] += _accumulate(_effective(query), own, winners[places, :tokens].mT, weights, sums[1])
    return _through_scales(queries, sums[0], unit), _through_scales(documents, sums[1], unit)


def _accumulate(queries: Tensor, documents: Tokens, winners: Tensor, weights: Tensor, sums: Tensor) -> Tensor:
    """Gradient (S, D) of query rows; that of the document rows is added to `sums`.

    Winners and weights are (S, N). In a chunk of C rows, W (C, S) has the weight of each winner and 0 elsewhere:
    ∂L/∂q = Wᵀ d and ∂L/∂d = W q.
    """
    total = torch.zeros_like(queries)
    for chunk in chunks(on_host(documents.spans), rows_per_chunk(queries.shape[0])):
        rows = _effective(documents, chunk).type(queries.dtype)
        spread = _spread(chunk, winners, weights, rows.shape[0])
        total += spread.mT @ rows
        chunk.add_to(sums, spread @ queries)
    return total


def _spread(chunk: Chunk, winners: Tensor, weights: Tensor, rows: int) -> Tensor:
    """W (C, S) of a chunk."""
    own = slice(chunk.first, chunk.last)
    before = np.concatenate([[0], np.cumsum(chunk.lengths)[:-1]])
    places = winners[:, own].type(torch.int64)
    taken = (places >= 0).mT
    columns = torch.arange(winners.shape[0], device=winners.device).expand(chunk.last - chunk.first, -1)
    spread = weights.new_zeros((rows, winners.shape[0]))
    placed = (places + torch.as_tensor(before, device=winners.device)).mT
    spread[placed[taken], columns[taken]] = weights[:, own].mT[taken]
    return spread


def _effective(tokens: Tokens, chunk: Chunk | None = None) -> Tensor:
    """The tokens that were compared, scaled, in the precision of sums: all rows, or a chunk's."""
    values = tokens.values if chunk is None else chunk.rows_of(tokens.values)
    values = values.type(precision_of(values))
    if tokens.scales is None:
        return values
    return values * (tokens.scales if chunk is None else chunk.rows_of(tokens.scales))[:, None]


def _through_scales(tokens: Tokens, gradient: Tensor, unit: bool) -> Tensor:
    """From the gradient of scaled tokens to that of the values; of unit vectors, without what points along them."""
    if tokens.scales is None:
        return gradient.type(tokens.values.dtype)
    if unit:
        unit_vectors = _effective(tokens)
        gradient = gradient - (gradient * unit_vectors).sum(dim=1, keepdim=True) * unit_vectors
    gradient = gradient * tokens.scales[:, None]
    return torch.where(_named(tokens)[:, None], gradient, 0).type(tokens.values.dtype)


def _named(tokens: Tokens) -> Tensor:
    """Which rows (R,) any span names. What others hold, NaN for one, is nobody's."""
    named = torch.zeros(tokens.values.shape[0], dtype=torch.bool, device=tokens.values.device)
    for start, end in on_host(tokens.spans):
        named[start:end] = True
    return named


def _zeros(tokens: Tokens, others: Tokens) -> Tensor:
    return torch.zeros_like(tokens.values, dtype=precision_of(tokens.values, others.values))
