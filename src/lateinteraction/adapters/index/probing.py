"""Documents by inverted lists, scored so that segments with lists and without compare.

Lists tell nothing of a similarity below that of the last centroid a query token probes. Where one segment is read by
its lists and another by its codes, the same bound must hold in both: else every document of the first is ahead by what
the second is honest about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lateinteraction.adapters.index.codebook import Codebook
from lateinteraction.adapters.index.hits import Part, Rows, Scores
from lateinteraction.adapters.index.options import FEW_DOCUMENTS
from lateinteraction.adapters.index.payloads import PreparedQuery, Residuals
from lateinteraction.adapters.index.views import SegmentView

IN_PARTS = 0.7
"""Tokens for each centroid, in all segments whose codes are read, up to which each segment is compared with the
centroids of its own tokens. 46,000 centroids, ms by all centroids and by each segment's: .95 3.9 3.9, .95 + .6 + .4
4.3 10.0, .9 + .9 + .9 4.4 11.4."""


def worth_probing(view: SegmentView) -> bool:
    """Whether a segment has lists, and enough of it may be returned that they reach some."""
    return view.lists is not None and len(view) > 0 and len(view) * FEW_DOCUMENTS >= len(view.payload)


def approximated(
    segments: Mapping[int, SegmentView],
    query: PreparedQuery,
    enough: int,
    nprobe: int,
    least: Scores | None = None,
) -> list[Part]:
    """By inverted lists where there are some, where these reach enough of what may be returned; else by all codes.

    Where lists reach too few, what they do not reach has nothing above their bound, which then holds nowhere: a scan
    that was held to it would find all of that alike.

    Args:
        segments: by number, with payloads that approximate.
        query: with a token at least.
        enough: documents that lists are to reach, or all of theirs.
        nprobe: lists that each token looks into.
        least: a bound (S,) that holds anyway.
    """
    listed = [number for number, view in segments.items() if worth_probing(view)]
    bound = bound_of([segments[number] for number in listed], query, nprobe, least)
    parts: list[Part] = []
    if bound is not None:
        parts = [Part(number, *probed(segments[number], query, nprobe, bound)) for number in listed]
    if sum(len(part.rows) for part in parts) < min(enough, sum(len(segments[number]) for number in listed)):
        listed, parts, bound = [], [], least
    scanned = {number: view for number, view in segments.items() if number not in listed}
    _compare_with_all(scanned.values(), query)
    for number, view in scanned.items():
        if isinstance(view.payload, Residuals):
            scores = view.payload.approximate(query, view.chosen, bound)
        else:
            scores = view.payload.approximate(query, view.chosen)
        parts.append(Part(number, view.rows(), scores))
    return sorted(parts, key=lambda part: part.segment)


def tokens_of(view: SegmentView) -> int:
    """Of all documents that may be returned."""
    lengths = view.payload.lengths
    return int((lengths if view.chosen is None else lengths[view.chosen]).sum())


def _compare_with_all(views: Iterable[SegmentView], query: PreparedQuery) -> None:
    """Compare the query with all centroids of a codebook once, where segments would do so with as many in parts."""
    tokens: dict[Codebook, int] = {}
    for view in views:
        if isinstance(view.payload, Residuals):
            tokens[view.payload.codebook] = tokens.get(view.payload.codebook, 0) + tokens_of(view)
    for codebook, count in tokens.items():
        if count > IN_PARTS * len(codebook):
            query.table(codebook)


def bound_of(
    views: Iterable[SegmentView], query: PreparedQuery, nprobe: int, least: Scores | None = None
) -> Scores | None:
    """What no approximate similarity (S,) of a query token is taken to be below, in none of these segments.

    Args:
        views: of which some may have lists.
        query: S tokens.
        nprobe: lists that each token looks into.
        least: such a bound (S,) that holds anyway.

    Returns:
        None where nothing is bounded: no lists, and no `least`.
    """
    for view in views:
        if worth_probing(view):
            assert view.lists is not None
            assert isinstance(view.payload, Residuals)
            _, similarities = query.nearest(view.payload.codebook, nprobe, view.lists.centroids)
            own = similarities.min(axis=1)
            least = own if least is None else np.maximum(least, own)
    return least


def probed(view: SegmentView, query: PreparedQuery, nprobe: int, bound: Scores) -> tuple[Rows, Scores]:
    """The documents (n,) of what may be returned that lists lift above the bound, and their approximate scores.

    Args:
        view: a segment that is `worth_probing`.
        query: S tokens.
        nprobe: lists that each token looks into.
        bound: (S,), by `bound_of` of this segment among others.
    """
    assert view.lists is not None
    assert isinstance(view.payload, Residuals)
    centroids, similarities = query.nearest(view.payload.codebook, nprobe, view.lists.centroids)
    rows, gains = view.lists.gains(centroids, np.maximum(similarities, bound[:, None]))
    if view.chosen is not None:
        among = view.among(rows)
        rows, gains = rows[among], gains[among]
    return rows, gains + bound.sum(dtype=np.float32)
