"""XTR over segments: documents scored by the tokens alone that a query token retrieves, and what is missing imputed.

A query token retrieves the tokens that are most similar to it, of all documents that may be returned. A document of
which it retrieved none gets the least similarity that it retrieved; no token of such a document can be more similar. So
the score of a document is Σ_s max(m_s, max_t q_s · d_t), with m_s the least similarity that s retrieved, for documents
of which anything was retrieved (Lee et al., NeurIPS 2023, §3.2; `domain.reference.xtr_rankings`).

Where compressed documents are too many to be compared with, m_s is estimated by a sample of their tokens, and a
shortlist is made by centroids. (WARP takes m_s where the nearest centroids have as many tokens together as are to be
retrieved: too low, for the nearest tokens are nearer than their centroids.)

Letters: S query tokens, n documents, K centroids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lateinteraction import kernels
from lateinteraction.adapters.index.columns import blocks_of
from lateinteraction.adapters.index.hits import Part, Rows, Scores, cut
from lateinteraction.adapters.index.options import (
    RESCORED,
    RESCORED_PER_HIT,
    SearchOptions,
)
from lateinteraction.adapters.index.payloads import Payload, PreparedQuery, Residuals
from lateinteraction.adapters.index.probing import approximated, tokens_of
from lateinteraction.adapters.index.views import SegmentView
from lateinteraction.adapters.neural.transfer import to_host

TOKENS_AT_A_TIME = 2**15
"""Tokens that are decoded at a time: 16 MB at 128 dimensions."""
LOOKED_AT = 4
"""Centroids count in a shortlist as far as they have so many times the tokens together that are to be retrieved."""


class _Similar(NamedTuple):
    """Similarities (S, n) to n tokens, or to what stands for several."""

    values: Scores
    tokens: NDArray[np.float64]
    """For how many each stands, (S, n)."""


class _Compared(NamedTuple):
    """Documents of one segment, compared with each query token."""

    segment: int
    rows: Rows
    maxima: Scores
    """(n, S): of all tokens of the document; −∞ where it has none."""

    def scored(self, least: Scores) -> Part:
        """Those of which anything was retrieved."""
        retrieved = np.flatnonzero((self.maxima >= least).any(axis=1))
        lifted = np.maximum(self.maxima[retrieved], least)
        return Part(self.segment, self.rows[retrieved], lifted.sum(axis=1, dtype=np.float64).astype(np.float32))


def by_retrieved_tokens(
    segments: Sequence[SegmentView], query: PreparedQuery, k: int, options: SearchOptions
) -> list[Part]:
    """Scored documents of all segments, the k best among them; none for a query without tokens."""
    tokens = sum(map(tokens_of, segments))
    if not len(query) or not tokens:
        return []
    wanted = options.retrieved_of(tokens)
    shortlist = options.shortlist(k, sum(map(len, segments)))
    rough = _rough(segments, shortlist)
    compared: list[_Compared] = []
    similar = [_sampled(segments[number], query, wanted) for number in rough]
    for number, view in enumerate(segments):
        if number not in rough:
            precise = view.vectors if view.vectors is not None and options.rescore else view.payload
            own, nearest = _compare(number, precise, query, view.rows(), wanted)
            compared.append(own)
            similar.append(nearest)
    least = _least_retrieved(similar, wanted)
    scored = [each.scored(least) for each in compared]
    if shortlist is None or not rough:
        return scored
    centroids = [
        _by_centroids(segments[number], payload, query, LOOKED_AT * wanted) for number, payload in rough.items()
    ]
    bound = np.minimum(least, _least_retrieved(centroids, LOOKED_AT * wanted))
    near = approximated(
        {number: segments[number] for number in rough}, query, options.enough(k, shortlist), options.nprobe(), bound
    )
    return scored + _again(segments, cut(near, shortlist), query, least, k if options.rescore else None)


def _rough(segments: Sequence[SegmentView], shortlist: int | None) -> dict[int, Residuals]:
    """Segments of which a shortlist is made; none where all their documents would be in it."""
    found = {n: view.payload for n, view in enumerate(segments) if isinstance(view.payload, Residuals)}
    return {} if shortlist is None or sum(len(segments[number]) for number in found) <= shortlist else found


def _compare(
    number: int, payload: Payload, query: PreparedQuery, rows: Rows, wanted: int
) -> tuple[_Compared, _Similar]:
    """These documents, all their tokens looked at, and the similarities to the nearest `wanted` of these."""
    maxima = np.full((len(rows), len(query)), -np.inf, np.float32)
    nearest = torch.empty((len(query), 0), device="cpu")
    for block in blocks_of(payload.lengths[rows], TOKENS_AT_A_TIME):
        decoded = payload.decode(rows[block])
        table = kernels.centroid_scores(query.tokens.values, decoded.tokens)
        nearest = torch.cat([nearest, table.mT], dim=1)
        nearest = nearest.topk(min(wanted, nearest.shape[1]), dim=1, sorted=False).values
        own = np.flatnonzero(decoded.lengths)
        if len(own):
            maxima[block][own] = np.maximum.reduceat(to_host(table), decoded.offsets[:-1][own], axis=0)
    return _Compared(number, rows, maxima), _Similar(to_host(nearest), np.ones(nearest.shape))


def _sampled(view: SegmentView, query: PreparedQuery, wanted: int) -> _Similar:
    """Similarities to the nearest of some tokens, and for how many each stands: `wanted` of them, or all."""
    tokens = view.sample
    share = tokens_of(view) / max(1, len(tokens))
    table = kernels.centroid_scores(query.tokens.values, tokens).mT
    nearest = table.topk(min(len(tokens), math.ceil(wanted / max(1.0, share))), dim=1, sorted=False).values
    return _Similar(to_host(nearest), np.full(nearest.shape, share))


def _by_centroids(view: SegmentView, payload: Residuals, query: PreparedQuery, wanted: int) -> _Similar:
    """The nearest centroids of each query token, about as many as have so many tokens, and how many each has."""
    sizes = view.sizes
    count = math.ceil(2 * wanted * np.count_nonzero(sizes) / max(1, int(sizes.sum())))
    found, similarities = query.nearest(payload.codebook, max(1, min(count, len(sizes))), len(sizes))
    return _Similar(similarities, sizes[found].astype(np.float64))


def _least_retrieved(similar: Sequence[_Similar], wanted: int) -> Scores:
    """m_s (S,): where so many tokens are at least as similar; of fewer, the least similar one."""
    values = np.concatenate([each.values for each in similar], axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    tokens = np.take_along_axis(np.concatenate([each.tokens for each in similar], axis=1), order, axis=1)
    reached = np.cumsum(tokens, axis=1)
    last = (reached < np.minimum(wanted, reached[:, -1:])).sum(axis=1)
    return np.take_along_axis(values, order, axis=1)[np.arange(len(values)), last]


def _again(
    segments: Sequence[SegmentView], parts: Sequence[Part], query: PreparedQuery, least: Scores, k: int | None
) -> list[Part]:
    """These documents by what is stored, and for k hits the best of them by kept vectors where there are some."""
    scored = [_closely(part, segments[part.segment].payload, query, least) for part in parts]
    if k is None:
        return scored
    kept = [part for part in scored if segments[part.segment].vectors is not None]
    found = [part for part in scored if segments[part.segment].vectors is None]
    for part in cut(kept, max(RESCORED, RESCORED_PER_HIT * k)):
        vectors = segments[part.segment].vectors
        assert vectors is not None
        found.append(_closely(part, vectors, query, least))
    return found


def _closely(part: Part, payload: Payload, query: PreparedQuery, least: Scores) -> Part:
    return _Compared(part.segment, part.rows, payload.maxima(query, part.rows).T).scored(least)
