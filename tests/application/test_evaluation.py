"""evaluate: any search, in chunks, gives the report of its rankings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.application.evaluation import DEFAULT_MEASURES, evaluate
from lateinteraction.application.retrieval import Retriever
from lateinteraction.domain.errors import InvalidEvaluation, InvalidOption
from lateinteraction.domain.evaluation import EvaluationSet, RelevanceJudgments, Report
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, Query
from lateinteraction.testing.fakes import HashEncoder, ListIndex

WORDS = ["apple", "birch", "cedar", "daisy", "elder"]


@define
class WordSearch:
    """Ranks documents by how many words they share with the query, and remembers what it was asked."""

    documents: Sequence[Document]
    calls: list[tuple[list[str | None], int]] = field(factory=list)

    def __call__(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        self.calls.append(([query.id for query in queries], k))
        return [self.rank(query, k) for query in queries]

    def rank(self, query: Query, k: int) -> Ranking:
        words = set(query.text.split())
        scores = [len(words.intersection(document.text.split())) for document in self.documents]
        return Ranking.from_scores([document.id for document in self.documents], scores, k)


CORPUS = [Document(f"d{place}", text) for place, text in enumerate(["a b", "b c", "c d", "d e", "e a", "a c"])]
QUERIES = [Query("a", "q1"), Query("b c", "q2"), Query("e", "q3"), Query("x", "q4"), Query("d", "q5")]
JUDGED = {"q1": {"d0": 2, "d4": 1}, "q2": {"d1": 1}, "q3": {"d3": -1}, "q5": {"d5": 1}}


def evaluation_set() -> EvaluationSet:
    return EvaluationSet(CORPUS, QUERIES, RelevanceJudgments(JUDGED))


def test_a_report_is_that_of_the_rankings() -> None:
    search = WordSearch(CORPUS)
    report = evaluate(search, evaluation_set(), ["nDCG@3", "Recall@5"])
    rankings = {query.id: search.rank(query, 5) for query in QUERIES if query.id}
    assert report == Report.from_rankings(rankings, RelevanceJudgments(JUDGED), ["nDCG@3", "Recall@5"])
    assert report.queries == ("q1", "q2", "q5")
    assert report.left_out == ("q3", "q4")


def test_the_largest_cutoff_is_asked_for_once() -> None:
    search = WordSearch(CORPUS)
    evaluate(search, evaluation_set(), ["P@1", "Recall@4", "nDCG@2"])
    assert search.calls == [(["q1", "q2", "q5"], 4)]


def test_the_default_measures_are_known() -> None:
    assert tuple(evaluate(WordSearch(CORPUS), evaluation_set()).means) == DEFAULT_MEASURES


@given(st.integers(1, 6))
def test_chunks_change_the_calls_but_not_the_report(queries_per_call: int) -> None:
    search, done = WordSearch(CORPUS), []
    report = evaluate(
        search,
        evaluation_set(),
        queries_per_call=queries_per_call,
        progress=lambda finished, total: done.append((finished, total)),
    )
    assert report == evaluate(WordSearch(CORPUS), evaluation_set())
    assert [identifier for asked, _ in search.calls for identifier in asked] == ["q1", "q2", "q5"]
    assert all(len(asked) <= queries_per_call for asked, _ in search.calls)
    assert len(done) == len(search.calls)
    assert done[-1] == (3, 3)
    assert done == sorted(done)


def test_a_retriever_is_a_search() -> None:
    documents = [Document(f"d{place}", word) for place, word in enumerate(WORDS)]
    queries = [Query(word, f"q{place}") for place, word in enumerate(WORDS)]
    judgments = RelevanceJudgments({f"q{place}": {f"d{place}": 1} for place in range(len(WORDS))})
    retriever = Retriever(HashEncoder(), ListIndex())
    retriever.add(documents)
    report = evaluate(retriever.search, EvaluationSet(documents, queries, judgments), ["MRR@3"])
    assert report["MRR@3"] == 1.0


def test_a_search_gives_one_ranking_per_query() -> None:
    def forgetful(queries: Sequence[Query], k: int) -> list[Ranking]:
        return WordSearch(CORPUS)(queries, k)[1:]

    with pytest.raises(InvalidEvaluation, match="2 rankings for 3 queries"):
        evaluate(forgetful, evaluation_set())


def test_nothing_to_evaluate_is_an_error_before_any_search() -> None:
    search = WordSearch(CORPUS)
    with pytest.raises(InvalidEvaluation, match="no query with a relevant document, 5 without"):
        evaluate(search, EvaluationSet(CORPUS, QUERIES, RelevanceJudgments({"q1": {"d0": 0}})))
    with pytest.raises(InvalidEvaluation, match="nDCG@k"):
        evaluate(search, evaluation_set(), ["accuracy@1"])
    with pytest.raises(InvalidOption, match="queries_per_call = 0"):
        evaluate(search, evaluation_set(), queries_per_call=0)
    assert search.calls == []


def test_an_error_of_the_search_comes_through() -> None:
    def broken(queries: Sequence[Query], k: int) -> list[Ranking]:
        raise ConnectionError("no index")

    with pytest.raises(ConnectionError, match="no index"):
        evaluate(broken, evaluation_set())


def test_relevant_documents_that_no_search_can_find_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    judgments = RelevanceJudgments({"q1": {"d0": 1, "gone": 1}, "q2": {"away": 1}})
    with caplog.at_level(logging.WARNING):
        report = evaluate(
            WordSearch(CORPUS), EvaluationSet(CORPUS, QUERIES, judgments), ["Recall@5"], queries_per_call=1
        )
    assert [record.getMessage() for record in caplog.records] == [
        "2 relevant documents, such as 'away', are not in the corpus and count as missed"
    ]
    assert report.of_query("q1") == {"Recall@5": 0.5}
    assert report.of_query("q2") == {"Recall@5": 0.0}


@pytest.mark.parametrize("documents", [[], CORPUS])
def test_a_whole_corpus_or_none_at_all_tells_nothing(
    documents: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(WordSearch(CORPUS), EvaluationSet(documents, QUERIES, RelevanceJudgments(JUDGED)))
    assert caplog.records == []
