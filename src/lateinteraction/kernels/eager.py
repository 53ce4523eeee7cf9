"""MaxSim in eager torch, on packed ragged tokens: any device, differentiable, never padded.

One matrix product per chunk of documents, then a maximum over each document's rows while they are in cache.
A chunk holds whole documents; a document longer than a chunk is taken piece by piece.

Shapes: D dimensions, S query tokens in all, T document tokens in all, Q queries, N documents.
Offsets are int64 arrays on the host. Products and sums are float32, or float64 where an input is, also under autocast.
NaN gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Offsets = NDArray[np.int64]

SIMILARITIES_PER_CHUNK = 2**17
"""Similarities held at a time: 512 KiB in float32, which stays in a core's second-level cache.

On 1 × 1,000 documents of 20–300 tokens (D = 128) 2^16 … 2^18 are within a tenth of each other; 2^14 costs half as
much again and 2^21 a tenth more (`make bench CASE=maxsim`).
"""

FEWEST_ROWS_PER_CHUNK = 256
"""With very many query tokens the chunk grows beyond the cache rather than starve the matrix product."""


def maxsim_all_pairs(
    query_tokens: Tensor, query_offsets: Offsets, document_tokens: Tensor, document_offsets: Offsets
) -> Tensor:
    """Every query with every document: S[i, j] = Σ_s max_t q_{i,s} · d_{j,t}.

    Khattab and Zaharia, SIGIR 2020, eq. 3. An empty query scores 0; an empty document −∞.

    Args:
        query_tokens: (S, D).
        document_tokens: (T, D), on the same device.

    Returns:
        (Q, N), float32, or float64 for float64 input.
    """
    queries = query_tokens.type(_precision(query_tokens, document_tokens))
    return _all_pairs(
        queries,
        query_offsets,
        document_offsets,
        lambda first, last: document_tokens[int(document_offsets[first]) : int(document_offsets[last])],
    )


def maxsim_listed(query_tokens: Tensor, query_offsets: Offsets, documents: Sequence[Tensor]) -> Tensor:
    """`maxsim_all_pairs` with documents that are separate tensors (length, D), packed a chunk at a time.

    The packed chunk stays in cache; packing the whole list first would write all of it to fresh memory, which costs
    more than scoring it.
    """
    queries = query_tokens.type(_precision(query_tokens, *documents))
    offsets = np.cumsum([0, *map(len, documents)])
    return _all_pairs(queries, query_offsets, offsets, lambda first, last: torch.cat(list(documents[first:last])))


def maxsim_grouped(
    query_tokens: Tensor,
    query_offsets: Offsets,
    document_tokens: Tensor,
    document_offsets: Offsets,
    groups: Offsets,
) -> Tensor:
    """Each query with its own documents: document j of groups[i] … groups[i+1]−1 with query i.

    Returns:
        (N,), float32, or float64 for float64 input.
    """
    scores = []
    for query, (first, last) in enumerate(pairwise(map(int, groups))):
        start, end = query_offsets[query], query_offsets[query + 1]
        own = document_offsets[first : last + 1]
        scores.append(
            maxsim_all_pairs(
                query_tokens[start:end],
                np.array([0, end - start]),
                document_tokens[own[0] : own[-1]],
                own - own[0],
            )[0]
        )
    return torch.cat(scores) if scores else query_tokens.new_empty(0, dtype=_precision(query_tokens, document_tokens))


def maxsim_winners(query_tokens: Tensor, document_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One query with one document: for each query token the best similarity and its document token.

    Among equal similarities the lowest index wins.

    Returns:
        similarities (S,) and int64 indices (S,); −∞ and −1 when the document is empty.
    """
    precision = _precision(query_tokens, document_tokens)
    with torch.autocast(query_tokens.device.type, enabled=False):
        similarities = query_tokens.type(precision) @ document_tokens.type(precision).mT
    if similarities.shape[1] == 0:
        best = similarities.new_full((similarities.shape[0],), -torch.inf)
        return best, torch.full_like(best, -1, dtype=torch.int64)
    best = similarities.amax(dim=1)
    # torch.max names any of the equal maxima on some devices; the first true one is defined on all.
    return best, (similarities == best[:, None]).int().argmax(dim=1)


def _all_pairs(
    queries: Tensor, query_offsets: Offsets, document_offsets: Offsets, packed: Callable[[int, int], Tensor]
) -> Tensor:
    """Scores (Q, N), given what packs the tokens of documents first … last−1."""
    query_lengths = _lengths(query_offsets)
    columns = []
    with torch.autocast(queries.device.type, enabled=False):
        for first, last in _chunks(document_offsets, _rows_per_chunk(len(queries))):
            lengths = _lengths(document_offsets[first : last + 1])
            columns.append(_sum_per_query(_maxima(queries.mT, packed(first, last), lengths), query_lengths))
    return torch.cat(columns, dim=1) if columns else queries.new_empty((len(query_lengths), 0))


def _precision(*tokens: Tensor) -> torch.dtype:
    return torch.float64 if any(each.dtype == torch.float64 for each in tokens) else torch.float32


def _lengths(offsets: Offsets) -> list[int]:
    return [int(length) for length in np.diff(offsets)]


def _rows_per_chunk(query_tokens: int) -> int:
    return max(FEWEST_ROWS_PER_CHUNK, SIMILARITIES_PER_CHUNK // max(1, query_tokens))


def _chunks(offsets: Offsets, rows: int) -> Iterator[tuple[int, int]]:
    """Runs first … last−1 of whole documents of at most `rows` tokens together (one, if it alone has more)."""
    first, count = 0, len(offsets) - 1
    while first < count:
        fitting = int(np.searchsorted(offsets, offsets[first] + rows, side="right")) - 1
        last = min(max(fitting, first + 1), first + rows)
        yield first, last
        first = last


def _maxima(queries: Tensor, documents: Tensor, lengths: list[int]) -> Tensor:
    """The best similarity (n, S) of every query token in each of n documents, queries being (D, S)."""
    if len(lengths) == 1:
        return _maxima_of_one(queries, documents)
    similarities = documents.type(queries.dtype) @ queries
    longest = max(lengths)
    if longest > 0 and min(lengths) == longest:
        return _maximum(similarities.view(len(lengths), longest, -1), dim=1)
    absent = similarities.new_full((similarities.shape[1],), -torch.inf)
    return torch.stack([_maximum(part, dim=0) if len(part) else absent for part in similarities.split(lengths)])


def _maxima_of_one(queries: Tensor, document: Tensor) -> Tensor:
    """`_maxima` of a single document, however long it is."""
    best = queries.new_full((1, queries.shape[1]), -torch.inf)
    for piece in document.split(_rows_per_chunk(queries.shape[1])) if len(document) else ():
        later = _maximum(piece.type(queries.dtype) @ queries, dim=0)[None]
        best = torch.where((later > best) | later.isnan(), later, best)
    return best


def _maximum(similarities: Tensor, dim: int) -> Tensor:
    """The maximum; its gradient goes to the first of equal values. `amax` is a third faster but would share it out."""
    return similarities.max(dim=dim).values if similarities.requires_grad else similarities.amax(dim=dim)


def _sum_per_query(maxima: Tensor, query_lengths: list[int]) -> Tensor:
    """Scores (Q, n) from maxima (n, S)."""
    if not query_lengths:
        return maxima.new_empty((0, maxima.shape[0]))
    return torch.stack([part.sum(dim=1) for part in maxima.split(query_lengths, dim=1)])
