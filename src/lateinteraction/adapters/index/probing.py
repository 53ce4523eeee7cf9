"""Documents by inverted lists, scored so that segments with lists and without compare.

Lists tell nothing of a similarity below that of the last centroid a query token probes. Where one segment is read by
its lists and another by its codes, the same bound must hold in both: else every document of the first is ahead by what
the second is honest about.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lateinteraction.adapters.index.hits import Rows, Scores
from lateinteraction.adapters.index.options import FEW_DOCUMENTS
from lateinteraction.adapters.index.payloads import PreparedQuery, Residuals
from lateinteraction.adapters.index.views import SegmentView


def worth_probing(view: SegmentView) -> bool:
    """Whether a segment has lists, and enough of it may be returned that they reach some."""
    return view.lists is not None and len(view) * FEW_DOCUMENTS >= len(view.payload)


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
