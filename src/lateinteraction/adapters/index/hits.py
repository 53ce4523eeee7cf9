"""Hits: what a search over segments finds, and which of it is best. Documents are named by segment and row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Documents of a segment, counted from 0."""
Scores = NDArray[np.float32]


class Part(NamedTuple):
    """Scored documents of one segment, in rising order of their rows."""

    segment: int
    rows: Rows
    scores: Scores


@final
@frozen(eq=False)
class Hits:
    """What one query found, best first; equal scores by segment and row.

    Every document whose score equals the k-th best is there, so that whoever knows the ids can choose among them.

    Args:
        segments: int64 (n,), places in the list of segments.
        rows: int64 (n,).
        scores: float32 (n,).
    """

    segments: NDArray[np.int64]
    rows: Rows
    scores: Scores

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def best(cls, parts: Sequence[Part], k: int) -> Hits:
        """The k best of these, at most one part of each segment, and those that are as good as the k-th."""
        segments, rows, scores = _joined(sorted(parts, key=lambda part: part.segment))
        least = least_of_best(scores, k)
        better = np.flatnonzero(scores > least)
        order = np.concatenate([better[np.argsort(-scores[better], kind="stable")], np.flatnonzero(scores == least)])
        return cls(segments[order], rows[order], scores[order])


def cut(parts: Sequence[Part], count: int) -> list[Part]:
    """The best so many; of equal scores the first part's, and its first rows."""
    scores = np.concatenate([part.scores for part in parts]) if parts else np.empty(0, np.float32)
    least = least_of_best(scores, count)
    equal = count - int(np.count_nonzero(scores > least))
    kept: list[Part] = []
    for part in parts:
        places = np.flatnonzero(part.scores >= least)
        ties = np.flatnonzero(part.scores[places] == least)
        places = np.delete(places, ties[max(0, equal) :])
        equal -= len(ties)
        kept.append(Part(part.segment, part.rows[places], part.scores[places]))
    return [part for part in kept if len(part.rows)]


def least_of_best(scores: Scores, count: int) -> float:
    """The score of the last of the best so many; −∞ where there are no more."""
    return -np.inf if len(scores) <= count else float(np.partition(scores, -count)[-count])


def _joined(parts: Sequence[Part]) -> tuple[NDArray[np.int64], Rows, Scores]:
    listed = [*parts, Part(0, np.empty(0, np.int64), np.empty(0, np.float32))]
    segments = np.repeat(np.array([part.segment for part in listed]), [len(part.rows) for part in listed])
    return segments, np.concatenate([part.rows for part in listed]), np.concatenate([part.scores for part in listed])
