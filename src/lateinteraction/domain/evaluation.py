"""Evaluation: judgments, measures, and the report of a search, equal to what trec_eval prints for the same run.

A document is relevant when its grade is at least 1. Unjudged documents and negative grades count as 0.

Shapes: M measures, Q queries, k the cut-off, R relevant documents, r ≤ k ranks that hold a document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lateinteraction.domain.errors import InvalidEvaluation
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId, Query, QueryId

Grades = Mapping[DocumentId, int]
Values = NDArray[np.float64]

_UNJUDGED: Grades = MappingProxyType({})
_LARGEST_GRADE = 2**31 - 1


def _read_only(judgments: Mapping[QueryId, Grades]) -> Mapping[QueryId, Grades]:
    return MappingProxyType({query: MappingProxyType(_whole(query, grades)) for query, grades in judgments.items()})


def _whole(query: QueryId, grades: Grades) -> dict[DocumentId, int]:
    for identifier in (query, *grades):
        if not isinstance(identifier, str) or not identifier:
            raise InvalidEvaluation(f"an id that is {identifier!r:.80}", "a non-empty str", "Judge by the items' ids.")
    for document, grade in grades.items():
        if isinstance(grade, bool) or not isinstance(grade, int | np.integer) or abs(grade) > _LARGEST_GRADE:
            raise InvalidEvaluation(
                f"{type(grade).__name__} as the grade of document {document!r:.80} for query {query!r:.80}",
                f"an int between -{_LARGEST_GRADE:,} and {_LARGEST_GRADE:,}",
                "Use 0 for not relevant and 1 and above for relevant.",
            )
    return {document: int(grade) for document, grade in grades.items()}


@attrs.frozen
class RelevanceJudgments:
    """What is known of relevance: query id → document id → grade, read-only.

    Grades are kept as given; measures count a negative one as 0.

    Raises:
        InvalidEvaluation: an id that is no str or empty, or a grade that is no 32-bit integer.
    """

    by_query: Mapping[QueryId, Grades] = attrs.field(converter=_read_only, hash=False)

    def __reduce__(self) -> tuple[type[RelevanceJudgments], tuple[dict[QueryId, dict[DocumentId, int]]]]:
        """Read-only mappings do not pickle; judgments must, to reach worker processes."""
        return RelevanceJudgments, ({query: dict(grades) for query, grades in self.by_query.items()},)

    def __len__(self) -> int:
        return len(self.by_query)

    def __iter__(self) -> Iterator[QueryId]:
        return iter(self.by_query)

    def __contains__(self, query: object) -> bool:
        return query in self.by_query

    def grades_of(self, query: QueryId) -> Grades:
        """The grade of each document judged for the query; empty where the query is not judged."""
        return self.by_query.get(query, _UNJUDGED)

    def relevant_to(self, query: QueryId) -> frozenset[DocumentId]:
        """The documents with a grade of at least 1."""
        return frozenset(document for document, grade in self.grades_of(query).items() if grade > 0)


@attrs.frozen(eq=False)
class EvaluationSet:
    """A corpus, queries to put to it, and what is known of their relevance.

    Judgments may name documents that the corpus lacks; trec_eval counts those too, so they lower recall and nDCG.

    Raises:
        InvalidEvaluation: a query without id, a query or document id twice, or judgments of a query that is not there.
    """

    documents: tuple[Document, ...] = attrs.field(converter=tuple)
    queries: tuple[Query, ...] = attrs.field(converter=tuple)
    judgments: RelevanceJudgments

    def __attrs_post_init__(self) -> None:
        if any(query.id is None for query in self.queries):
            raise InvalidEvaluation(
                "a query without id", "an id for every query", "Judgments find queries by their ids."
            )
        queries = [query.id for query in self.queries if query.id is not None]
        _check_distinct(queries, "queries")
        _check_distinct([document.id for document in self.documents], "documents")
        unknown = set(self.judgments).difference(queries)
        if unknown:
            raise InvalidEvaluation(
                f"judgments of {len(unknown)} unknown queries, such as {min(unknown)!r:.80}",
                "judgments of the queries of the set",
                "Add the queries or drop their judgments.",
            )

    @property
    def unreachable(self) -> frozenset[DocumentId]:
        """Relevant documents that the corpus lacks: no search can find them."""
        relevant = frozenset[DocumentId]().union(*map(self.judgments.relevant_to, self.judgments))
        return relevant.difference(document.id for document in self.documents)


def _ndcg(gains: Values, ideal: Values, k: int) -> float:
    discounts = np.log2(np.arange(2, k + 2))
    return _discounted(gains, discounts) / _discounted(ideal[:k], discounts) if len(ideal) else 0.0


def _discounted(gains: Values, discounts: Values) -> float:
    return float(np.sum(gains / discounts[: len(gains)]))


def _reciprocal_rank(gains: Values, _: Values, __: int) -> float:
    found = np.flatnonzero(gains)
    return 1.0 / (int(found[0]) + 1) if len(found) else 0.0


def _recall(gains: Values, ideal: Values, _: int) -> float:
    return int(np.count_nonzero(gains)) / len(ideal) if len(ideal) else 0.0


def _precision(gains: Values, _: Values, k: int) -> float:
    return int(np.count_nonzero(gains)) / k


def _average_precision(gains: Values, ideal: Values, _: int) -> float:
    found = np.flatnonzero(gains)
    return float(np.sum(np.arange(1, len(found) + 1) / (found + 1))) / len(ideal) if len(ideal) else 0.0


def _success(gains: Values, _: Values, __: int) -> float:
    return float(np.any(gains))


def _hits(gains: Values, _: Values, __: int) -> float:
    return float(np.count_nonzero(gains))


_FORMULAS: Mapping[str, Callable[[Values, Values, int], float]] = {
    "nDCG": _ndcg,
    "MRR": _reciprocal_rank,
    "Recall": _recall,
    "Precision": _precision,
    "AP": _average_precision,
    "Success": _success,
    "hits": _hits,
}
_ALIASES = {"r": "Recall", "p": "Precision", "map": "AP", "rr": "MRR"} | {name.lower(): name for name in _FORMULAS}


def _canonical(name: Any) -> Any:
    return _ALIASES.get(name.lower(), name) if isinstance(name, str) else name


def _unknown_measure(given: object) -> InvalidEvaluation:
    known = ", ".join(f"{name}@k" for name in _FORMULAS)
    return InvalidEvaluation(f"measure {given!r:.80}", f"one of {known} (or R, P, MAP, RR)", "Write it as 'nDCG@10'.")


@attrs.frozen
class Measure:
    """A figure for one ranking, from its k best documents. `str(measure)` is its one canonical form.

    With gᵢ the grade at rank i, rel = [g ≥ 1], R the relevant documents of the query:

    - nDCG@k: Σᵢ gᵢ / log₂(i + 1) over the same sum of the best possible ranking. Linear gain, as `ndcg_cut`
      (Järvelin and Kekäläinen, TOIS 2002, with the discount trec_eval uses).
    - MRR@k: 1 / rank of the first relevant document, 0 beyond rank k; its mean over queries gives the name.
    - Recall@k: relevant in the top k / R. Precision@k: relevant in the top k / k, even where fewer than k are ranked.
    - AP@k: Σ Precision@i over the relevant ranks i ≤ k / R, as `map_cut`.
    - Success@k: 1 when any of the top k is relevant. hits@k: how many of them are.

    Where nothing is relevant each measure is 0.

    Args:
        name: nDCG, MRR (RR), Recall (R), Precision (P), AP (MAP), Success or hits, in any case.
        cutoff: k, at least 1.

    Raises:
        InvalidEvaluation: another name or cut-off.
    """

    name: str = attrs.field(converter=_canonical)
    cutoff: int

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in _FORMULAS:
            raise _unknown_measure(self.name)
        if isinstance(self.cutoff, bool) or not isinstance(self.cutoff, int) or self.cutoff < 1:
            raise InvalidEvaluation(f"cut-off {self.cutoff!r:.40}", "a whole number of at least 1", "Use 10, say.")

    @classmethod
    def parse(cls, text: str) -> Measure:
        """`nDCG@10`, `recall@100`, `R@5` … as a measure."""
        parts = re.fullmatch(r"\s*([A-Za-z]+)@([0-9]{1,9})\s*", text) if isinstance(text, str) else None
        if parts is None:
            raise _unknown_measure(text)
        return cls(parts[1], int(parts[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.cutoff}"

    def of(self, ranking: Ranking, grades: Grades) -> float:
        """The figure for a ranking, given the grades of its query.

        Ties are read in trec_eval's order, by falling document id, although a `Ranking` lists them by rising id:
        trec_eval sorts a run anew by its scores (float32 in both), so only this gives the figure it prints for the
        same run.
        """
        return measure_ranking(ranking, grades, [self])[0]


def parse_measures(measures: Iterable[str | Measure]) -> tuple[Measure, ...]:
    """Distinct measures, in the order given.

    Raises:
        InvalidEvaluation: none at all, one that is unknown, or one twice.
    """
    if isinstance(measures, str):
        raise InvalidEvaluation(f"measures = {measures!r:.80}", "a sequence of measures", "Put it in a list.")
    parsed = tuple(each if isinstance(each, Measure) else Measure.parse(each) for each in measures)
    if not parsed:
        raise InvalidEvaluation("no measure", "one or more", "Ask for 'nDCG@10', say.")
    _check_distinct(list(map(str, parsed)), "measures")
    return parsed


def measure_ranking(ranking: Ranking, grades: Grades, measures: Sequence[Measure]) -> list[float]:
    """Each measure of one ranking: `measure.of` for all of them, with the grades looked up once."""
    gains = _gains(ranking, grades, max(measure.cutoff for measure in measures))
    ideal = _ideal(grades)
    return [_FORMULAS[measure.name](gains[: measure.cutoff], ideal, measure.cutoff) for measure in measures]


def _gains(ranking: Ranking, grades: Grades, k: int) -> Values:
    """Grades (r,) of the k best documents, ties by falling id; nothing below 0."""
    falling = -ranking.scores
    first, end = np.searchsorted(falling, falling, "left"), np.searchsorted(falling, falling, "right")
    rows = (first + end - 1 - np.arange(len(falling)))[:k]  # mirrors each run of equal scores
    return np.array([max(0, grades.get(ranking.documents[row], 0)) for row in map(int, rows)], dtype=np.float64)


def _ideal(grades: Grades) -> Values:
    """Grades (R,) of the relevant documents, falling."""
    return np.array(sorted((grade for grade in grades.values() if grade > 0), reverse=True), dtype=np.float64)


def _matrix(values: ArrayLike) -> Values:
    copied = np.array(values, dtype=np.float64)
    copied.flags.writeable = False
    return copied


@attrs.frozen
class Report:
    """Each measure for each query that has a relevant document; means are over those queries.

    Args:
        measures: M distinct measures.
        queries: Q distinct query ids, at least one.
        values: float64 (M, Q), finite.
        left_out: queries of the evaluation that have no relevant document, and so no part in the means.

    Raises:
        InvalidEvaluation: nothing to report, repeated measures or queries, or values of another shape or not finite.
    """

    measures: tuple[Measure, ...] = attrs.field(converter=parse_measures)
    queries: tuple[QueryId, ...] = attrs.field(converter=tuple)
    values: Values = attrs.field(converter=_matrix, eq=attrs.cmp_using(eq=np.array_equal), hash=False)
    left_out: tuple[QueryId, ...] = attrs.field(default=(), converter=tuple)

    def __attrs_post_init__(self) -> None:
        if not self.queries:
            raise InvalidEvaluation(
                f"no query with a relevant document, {len(self.left_out)} without",
                "at least one",
                "Check that the judgments use the ids of the queries and grades of 1 and above.",
            )
        _check_distinct([*self.queries, *self.left_out], "queries")
        shape = (len(self.measures), len(self.queries))
        if self.values.shape != shape or not np.all(np.isfinite(self.values)):
            raise InvalidEvaluation(
                f"values of shape {self.values.shape}", f"finite values of shape {shape}", "Measure every query."
            )

    @classmethod
    def from_rankings(
        cls,
        rankings: Mapping[QueryId, Ranking],
        judgments: RelevanceJudgments,
        measures: Iterable[str | Measure],
    ) -> Report:
        """The report of a finished run. A query with relevant documents that the run lacks counts 0."""
        wanted = parse_measures(measures)
        queries = [query for query in judgments if judgments.relevant_to(query)]
        columns = [
            measure_ranking(rankings.get(query, _NO_HITS), judgments.grades_of(query), wanted) for query in queries
        ]
        left_out = dict.fromkeys([*judgments, *rankings]).keys() - set(queries)
        return cls(wanted, queries, np.transpose(columns), sorted(left_out))

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew when it is unpickled, since arrays come back writeable."""
        return Report, (self.measures, self.queries, self.values, self.left_out)

    def __len__(self) -> int:
        """Queries that the means are over."""
        return len(self.queries)

    def __getitem__(self, measure: str | Measure) -> float:
        """The mean of a measure, the same whatever the order of the queries."""
        return math.fsum(self.values_of(measure)) / len(self)

    @property
    def means(self) -> dict[str, float]:
        """The mean of each measure by its canonical name."""
        return {str(measure): self[measure] for measure in self.measures}

    def values_of(self, measure: str | Measure) -> Values:
        """One measure for every query, float64 (Q,) in the order of `queries`."""
        wanted = measure if isinstance(measure, Measure) else Measure.parse(measure)
        if wanted not in self.measures:
            raise InvalidEvaluation(
                f"measure '{wanted}'", f"one of {', '.join(map(str, self.measures))}", "Ask for it when you evaluate."
            )
        return self.values[self.measures.index(wanted)]

    def of_query(self, query: QueryId) -> dict[str, float]:
        """Each measure of one query by its canonical name."""
        if query not in self.queries:
            reason = "left out" if query in self.left_out else "unknown"
            raise InvalidEvaluation(
                f"query {query!r:.80}, which is {reason}", "a query of the report", "See `queries`."
            )
        return self._column(self.queries.index(query))

    def to_json(self) -> dict[str, Any]:
        """Means, counts and every figure, in dictionaries, lists and JSON scalars."""
        return {
            "means": self.means,
            "queries": len(self),
            "left_out": list(self.left_out),
            "by_query": {query: self._column(place) for place, query in enumerate(self.queries)},
        }

    def _column(self, place: int) -> dict[str, float]:
        return {str(measure): float(row[place]) for measure, row in zip(self.measures, self.values, strict=True)}


_NO_HITS = Ranking((), np.empty(0, np.float32))


def _check_distinct(ids: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for identifier in ids:
        if identifier in seen:
            raise InvalidEvaluation(
                f"{what} that hold {identifier!r:.80} twice", f"distinct {what}", "Drop one of the two."
            )
        seen.add(identifier)
