"""evaluate: any search measured on an evaluation set, a bounded number of queries at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lateinteraction.domain.errors import InvalidEvaluation, InvalidOption
from lateinteraction.domain.evaluation import EvaluationSet, Measure, Report, measure_ranking, parse_measures
from lateinteraction.domain.ports import Progress
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Query, QueryId

logger = logging.getLogger(__name__)

Search = Callable[[Sequence[Query], int], list[Ranking]]
"""Queries and k to one ranking per query: `Retriever.search`, or any ranker of the same shape."""

DEFAULT_MEASURES = ("nDCG@10", "MRR@10", "Recall@100")


def evaluate(
    search: Search,
    evaluation_set: EvaluationSet,
    measures: Iterable[str | Measure] = DEFAULT_MEASURES,
    *,
    queries_per_call: int = 256,
    progress: Progress | None = None,
) -> Report:
    """Search for every query that has a relevant document, and measure what comes back.

    All measures read one search of the largest cut-off. Queries without a relevant document are not searched for.

    Args:
        search: finds the k best documents of each query, in a corpus it holds already.
        evaluation_set: the queries and judgments. Its documents are only looked at to tell, in one log line, of
            relevant ones that are missing; a set without documents is not checked.
        measures: distinct ones, as text or `Measure`.
        queries_per_call: how many queries go into one call, and so how many rankings are held at a time.
        progress: told of the queries done, after each call.

    Raises:
        InvalidEvaluation: an unknown measure, no query with a relevant document, or not one ranking per query.
        InvalidOption: queries_per_call below 1.
    """
    wanted = parse_measures(measures)
    if queries_per_call < 1:
        raise InvalidOption(f"queries_per_call = {queries_per_call!r}", "at least 1", "256 is the default.")
    _warn_of_unreachable(evaluation_set)
    judgments = evaluation_set.judgments
    judged = [query for query in evaluation_set.queries if judgments.relevant_to(_id(query))]
    depth = max(measure.cutoff for measure in wanted)
    values = np.empty((len(wanted), len(judged)))
    for first in range(0, len(judged), queries_per_call):
        chunk = judged[first : first + queries_per_call]
        for place, (query, ranking) in enumerate(zip(chunk, _rankings(search, chunk, depth), strict=True), start=first):
            values[:, place] = measure_ranking(ranking, judgments.grades_of(_id(query)), wanted)
        if progress is not None:
            progress(first + len(chunk), len(judged))
    found = set(map(_id, judged))
    left_out = [_id(query) for query in evaluation_set.queries if _id(query) not in found]
    return Report(wanted, map(_id, judged), values, left_out)


def _id(query: Query) -> QueryId:
    assert query.id is not None  # an EvaluationSet holds no other
    return query.id


def _rankings(search: Search, queries: Sequence[Query], k: int) -> list[Ranking]:
    rankings = search(queries, k)
    if len(rankings) != len(queries):
        raise InvalidEvaluation(
            f"{len(rankings)} rankings for {len(queries)} queries", "one for each", "Return them in the queries' order."
        )
    return rankings


def _warn_of_unreachable(evaluation_set: EvaluationSet) -> None:
    unreachable = evaluation_set.unreachable if evaluation_set.documents else ()
    if unreachable:
        logger.warning(
            "%d relevant documents, such as %r, are not in the corpus and count as missed",
            len(unreachable),
            min(unreachable),
        )
