"""How much of an exact search a quicker one finds, and how much quicker it is: measured, on queries of one's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, final

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.domain.ranking import Ranking, check_cutoff

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.index.options import SearchOptions
    from lateinteraction.adapters.index.snapshot import IndexSnapshot

WARMING = 5
"""Queries that are answered before any is timed: the first ones read what all need."""


@final
@frozen
class Latency:
    """How long one query at a time takes, in milliseconds.

    Attributes:
        median: of all queries.
        slow: what 95 % of them stay within.
    """

    median: float
    slow: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Latency:
        """Of the times of some queries."""
        return cls(*(float(1000 * each) for each in np.quantile(seconds, [0.5, 0.95])))

    def __str__(self) -> str:
        return f"{self.median:.2f} ms (95 %: {self.slow:.2f} ms)"


@final
@frozen
class RecallReport:
    """What a search finds of what the exact one finds, by the best that is stored of each document.

    Attributes:
        queries: how many were asked.
        k: hits of each.
        recall: the share of the exact k best that were found; a document that ties with the k-th is as good as it.
        agreeing: the share of queries whose first hit is as good as the exact first.
        searched, exact: how long a query took.
    """

    queries: int
    k: int
    recall: float
    agreeing: float
    searched: Latency
    exact: Latency

    def __str__(self) -> str:
        return (
            f"recall@{self.k} {self.recall:.4f} of the exact search, first hit {self.agreeing:.4f}, "
            f"{self.queries} queries\n{self.searched} a query; exact: {self.exact}"
        )


def recall_report(
    snapshot: IndexSnapshot,
    queries: TokenEmbeddings[Tensor],
    k: int = 10,
    options: SearchOptions | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> RecallReport:
    """Answer each query twice, as the options say and exactly, in turns.

    Args:
        snapshot: of the index.
        queries: a sample like those that will be asked.
        k: hits of each.
        options: of the search that is measured; its interaction is that of the exact one, too.
        clock: seconds.

    Raises:
        InvalidEmbeddings: no queries.
        InvalidRanking: k below 1.
    """
    from lateinteraction.adapters.index.options import SearchOptions

    check_cutoff(k)
    if not len(queries):
        raise InvalidEmbeddings("no queries", "some, to measure with", "Encode a sample of queries.")
    chosen = options or SearchOptions()
    exactly = evolve(chosen, effort="exact", candidates=None, probe=None, rescore=True)
    for number in range(min(WARMING, len(queries))):
        for each in (chosen, exactly):
            snapshot.search(queries.span(number, number + 1), k, options=each)
    times = np.empty((len(queries), 2))
    found: list[tuple[Ranking, Ranking]] = []
    for number in range(len(queries)):
        query, pair = queries.span(number, number + 1), []
        for side, each in enumerate((chosen, exactly)):
            start = clock()
            pair += snapshot.search(query, k, options=each)
            times[number, side] = clock() - start
        found.append((pair[0], pair[1]))
    shares = [_shared(one, truth) for one, truth in found]
    agreeing = [_shared(one.truncate(1), truth.truncate(1)) for one, truth in found]
    latencies = map(Latency.of, times.T)
    return RecallReport(len(queries), k, float(np.mean(shares)), float(np.mean(agreeing)), *latencies)


def _shared(found: Ranking, truth: Ranking) -> float:
    """The share of the truth that was found, or has the score of its last hit; 1 where there is nothing to find."""
    if not len(truth):
        return 1.0
    known = {*truth.documents}
    least = truth.scores[-1]
    good = sum(
        document in known or score == least for document, score in zip(found.documents, found.scores, strict=True)
    )
    return min(good, len(truth)) / len(truth)
