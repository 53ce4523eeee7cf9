"""In-batch XTR scores: each query token's best tokens of the whole batch, and what they say of each document."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lateinteraction.kernels.eager.chunks import chunks, on_host, precision_of, rows_per_chunk
from lateinteraction.kernels.eager.maxsim import similarities
from lateinteraction.kernels.eager.order import best_of
from lateinteraction.kernels.operands import Tokens, winners_dtype


def xtr_all_pairs(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (Q, N), winners (S, N), finders (Q, N). See `Form.xtr_all_pairs`."""
    best, rows, owners = _retrieved(queries, documents, k)
    count = len(documents.spans), queries.values.shape[0]
    # The place, in a query token's list, of the first token of each document: lists are best first.
    first = torch.full((count[1], count[0]), best.shape[1], device=best.device)
    places = torch.arange(best.shape[1], device=best.device).expand_as(owners)
    first.scatter_reduce_(1, owners, places, "amin")
    found = first < best.shape[1]
    first = torch.where(found, first, 0)
    similar = torch.where(found, best.gather(1, first), 0) if best.shape[1] else best.new_zeros(found.shape)
    if queries.scales is not None:
        similar = similar * queries.scales[:, None]
    starts = documents.spans[:, 0]
    winners = torch.where(found, rows.gather(1, first) - starts, -1) if best.shape[1] else first.fill_(-1)
    spans = on_host(queries.spans)
    sums = [similar[start:end].sum(dim=0) for start, end in spans]
    counts = [found[start:end].sum(dim=0) for start, end in spans]
    if not len(spans):
        nothing = similar.new_empty((0, count[0]))
        return nothing, winners.type(winners_dtype(documents)), nothing.type(torch.int32)
    finders = torch.stack(counts)
    return torch.stack(sums) / finders.clamp(min=1), winners.type(winners_dtype(documents)), finders.type(torch.int32)


def _retrieved(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best tokens (S, k) of each query row: similarities, rows of the values, documents; best first."""
    spans = on_host(documents.spans)
    rising = np.argsort(spans[:, 0], kind="stable")  # ties go to the lowest row, whatever the order of the spans
    precision = precision_of(queries.values, documents.values)
    best = queries.values.new_empty((queries.values.shape[0], 0), dtype=precision)
    rows, owners = (best.new_empty(best.shape, dtype=torch.int64) for _ in range(2))
    limit = rows_per_chunk(queries.values.shape[0])
    for chunk in chunks(spans[rising], limit):
        for piece in chunk.pieces(limit):
            later = similarities(queries, documents, piece).mT
            own_rows = np.concatenate([np.arange(start, end) for start, end in piece.spans])
            own = np.repeat(rising[chunk.first : chunk.last], piece.lengths)
            best, rows, owners = (
                torch.cat([kept, torch.as_tensor(new, device=kept.device).expand_as(later)], dim=1)
                for kept, new in ((best, later), (rows, own_rows), (owners, own))
            )
            chosen = best_of(best, k)
            best, rows, owners = (each.gather(1, chosen) for each in (best, rows, owners))
    return best, rows, owners
