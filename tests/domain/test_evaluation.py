"""Measures equal trec_eval; judgments, evaluation sets and reports keep their invariants."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import attrs
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.errors import InvalidEvaluation
from lateinteraction.domain.evaluation import (
    EvaluationSet,
    Measure,
    RelevanceJudgments,
    Report,
    measure_ranking,
    parse_measures,
)
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, Query

NAMES = ["nDCG", "MRR", "Recall", "Precision", "AP", "Success", "hits"]
TREC = {"nDCG": "ndcg_cut", "Recall": "recall", "Precision": "P", "AP": "map_cut", "Success": "success"}
CUTOFFS = [1, 2, 3, 5, 10, 40]
MEASURES = parse_measures(f"{name}@{k}" for name in NAMES for k in CUTOFFS)

IDS = [f"{letter}{number}" for letter in ("d", "Z", "é", "日", "𝔸", "") for number in (1, 2, 10, 33)]
# Values that meet often, that are apart only beyond float32, and the two zeros.
SCORES = st.sampled_from([0.0, -0.0, 1.0, 0.1, 0.1 + 1e-9, -2.5, -math.inf]) | st.floats(-100, 100)
RUNS = st.dictionaries(st.sampled_from(IDS), SCORES, min_size=1)
GRADES = st.dictionaries(st.sampled_from(IDS), st.integers(-3, 4), min_size=1)


def as_ranking(run: dict[str, float]) -> Ranking:
    return Ranking.from_scores(list(run), list(run.values()))


def trec_eval(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What trec_eval says of every measure of `MEASURES`, by query."""
    # trec_eval reads memory it does not own where all grades of a query are below −1; a 0 changes no figure.
    qrels = {query: {**grades, "never ranked": 0} for query, grades in qrels.items()}
    asked = {f"{name}.{','.join(map(str, CUTOFFS))}" for name in TREC.values()} | {"recip_rank"}
    said = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    for figures in said.values():
        first = round(1 / figures["recip_rank"]) if figures["recip_rank"] else math.inf
        for k in CUTOFFS:
            figures[f"hits_{k}"] = figures[f"P_{k}"] * k
            figures[f"MRR_{k}"] = 1 / first if first <= k else 0.0
    return {
        query: {str(each): figures[f"{TREC.get(each.name, each.name)}_{each.cutoff}"] for each in MEASURES}
        for query, figures in said.items()
    }


@given(RUNS, GRADES)
def test_every_measure_is_what_trec_eval_says(run: dict[str, float], grades: dict[str, int]) -> None:
    expected = trec_eval({"q": grades}, {"q": run})["q"]
    ranking = as_ranking(run)
    assert {str(each): each.of(ranking, grades) for each in MEASURES} == pytest.approx(expected, abs=1e-9)


@given(st.dictionaries(st.sampled_from("abcde"), RUNS), st.dictionaries(st.sampled_from("abcde"), GRADES))
def test_a_report_is_trec_eval_over_the_queries_with_a_relevant_document(
    runs: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]
) -> None:
    rankings = {query: as_ranking(run) for query, run in runs.items()}
    judgments = RelevanceJudgments(qrels)
    judged = [query for query, grades in qrels.items() if max(grades.values()) > 0]
    if not judged:
        with pytest.raises(InvalidEvaluation, match="no query with a relevant document"):
            Report.from_rankings(rankings, judgments, MEASURES)
        return
    report = Report.from_rankings(rankings, judgments, MEASURES)
    said = trec_eval(qrels, runs)
    nothing = dict.fromkeys(map(str, MEASURES), 0.0)
    expected = {query: said.get(query, nothing) for query in judged}
    assert {query: report.of_query(query) for query in report.queries} == {
        query: pytest.approx(figures, abs=1e-9) for query, figures in expected.items()
    }
    for measure in map(str, MEASURES):
        mean = sum(figures[measure] for figures in expected.values()) / len(judged)
        assert report[measure] == pytest.approx(mean, abs=1e-9)
    assert sorted(report.left_out) == sorted({*qrels, *runs} - set(judged))


def test_ties_are_read_by_falling_id_as_trec_eval_does() -> None:
    ranking = Ranking.from_scores(["a", "b", "c", "d"], [1.0, 1.0, 1.0, 2.0])
    assert ranking.documents == ("d", "a", "b", "c")
    assert [Measure("MRR", 4).of(ranking, {document: 1}) for document in "dcba"] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert Measure("Recall", 2).of(ranking, {"c": 1}) == 1.0
    assert Measure("Recall", 2).of(ranking, {"a": 1}) == 0.0


def test_scores_that_float32_cannot_tell_apart_are_ties() -> None:
    run = {"a": 0.1 + 1e-9, "b": 0.1}
    assert trec_eval({"q": {"a": 1}}, {"q": run})["q"]["MRR@2"] == 0.5
    assert Measure("MRR", 2).of(as_ranking(run), {"a": 1}) == 0.5


# Ranks:            1     2    3    4     5
RANKING = Ranking(("d5", "d4", "d3", "d2", "d1"), [5.0, 4.0, 3.0, 2.0, 1.0])
JUDGED = {"d5": 0, "d4": 3, "d3": -2, "d2": 1, "missing": 2}
IDEAL = 3 + 2 / math.log2(3) + 1 / math.log2(4)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("nDCG@1", 0.0),
        ("nDCG@2", (3 / math.log2(3)) / (3 + 2 / math.log2(3))),
        ("nDCG@4", (3 / math.log2(3) + 1 / math.log2(5)) / IDEAL),
        ("nDCG@100", (3 / math.log2(3) + 1 / math.log2(5)) / IDEAL),
        ("MRR@1", 0.0),
        ("MRR@2", 0.5),
        ("MRR@10", 0.5),
        ("Recall@1", 0.0),
        ("Recall@2", 1 / 3),
        ("Recall@4", 2 / 3),
        ("Recall@1000", 2 / 3),
        ("P@1", 0.0),
        ("P@2", 0.5),
        ("P@5", 0.4),
        ("P@10", 0.2),
        ("AP@1", 0.0),
        ("AP@2", 0.5 / 3),
        ("AP@4", (1 / 2 + 2 / 4) / 3),
        ("Success@1", 0.0),
        ("Success@2", 1.0),
        ("hits@1", 0.0),
        ("hits@3", 1.0),
        ("hits@10", 2.0),
    ],
)
def test_measures_by_hand(measure: str, expected: float) -> None:
    assert Measure.parse(measure).of(RANKING, JUDGED) == pytest.approx(expected, abs=1e-12)


def test_a_short_ranking_is_held_against_all_that_is_relevant() -> None:
    short = Ranking(("d4",), [1.0])
    assert Measure("nDCG", 10).of(short, JUDGED) == pytest.approx(3 / IDEAL, abs=1e-12)
    assert Measure("Precision", 10).of(short, JUDGED) == 0.1
    assert Measure("AP", 10).of(short, JUDGED) == 1 / 3


@given(RUNS, GRADES)
def test_measuring_together_is_measuring_apart(run: dict[str, float], grades: dict[str, int]) -> None:
    ranking = as_ranking(run)
    assert measure_ranking(ranking, grades, MEASURES) == [each.of(ranking, grades) for each in MEASURES]


@given(st.permutations(IDS), st.data())
def test_the_order_in_which_documents_are_given_does_not_matter(order: list[str], data: st.DataObject) -> None:
    scores = {document: data.draw(SCORES) for document in IDS}
    grades = data.draw(GRADES)
    again = {document: scores[document] for document in order}
    shuffled = {document: grades[document] for document in order if document in grades}
    assert measure_ranking(as_ranking(again), shuffled, MEASURES) == measure_ranking(
        as_ranking(scores), grades, MEASURES
    )


@given(RUNS, GRADES)
def test_figures_keep_their_bounds_and_rise_with_the_cutoff(run: dict[str, float], grades: dict[str, int]) -> None:
    ranking = as_ranking(run)
    figures = {name: [Measure(name, k).of(ranking, grades) for k in CUTOFFS] for name in NAMES}
    for name in ("MRR", "Recall", "AP", "Success", "hits"):
        assert figures[name] == sorted(figures[name])
    for name in set(NAMES) - {"hits"}:
        assert all(0 <= figure <= 1 + 1e-12 for figure in figures[name])
    relevant = sum(grade > 0 for grade in grades.values())
    for hits, precision, recall, success, k in zip(
        figures["hits"], figures["Precision"], figures["Recall"], figures["Success"], CUTOFFS, strict=True
    ):
        assert hits <= min(k, relevant, len(run))
        assert precision == hits / k
        assert recall * relevant == pytest.approx(hits)
        assert success == (hits > 0)


@given(st.dictionaries(st.sampled_from(IDS), st.integers(1, 4), min_size=1))
def test_a_perfect_ranking_is_perfect(grades: dict[str, int]) -> None:
    ranking = as_ranking({document: float(grade) for document, grade in grades.items()} | {"worst": 0.0})
    for k in CUTOFFS:
        assert Measure("nDCG", k).of(ranking, grades) == pytest.approx(1, abs=1e-12)
        assert Measure("MRR", k).of(ranking, grades) == 1
        assert Measure("Recall", k).of(ranking, grades) == min(k, len(grades)) / len(grades)
        assert Measure("AP", k).of(ranking, grades) == min(k, len(grades)) / len(grades)
        assert Measure("Precision", k).of(ranking, grades) == min(k, len(grades)) / k


@given(RUNS, GRADES, st.data())
def test_moving_a_relevant_document_up_never_hurts(
    run: dict[str, float], grades: dict[str, int], data: st.DataObject
) -> None:
    document = data.draw(st.sampled_from(sorted(run)))
    # At least as good as all the rest is where nothing better is pushed down.
    grades = {**grades, document: max(1, *grades.values())}
    before = measure_ranking(as_ranking(run), grades, MEASURES)
    after = measure_ranking(as_ranking({**run, document: 101.0}), grades, MEASURES)
    assert all(new >= old - 1e-12 for new, old in zip(after, before, strict=True))


@given(RUNS, GRADES)
def test_negative_and_missing_grades_count_as_zero(run: dict[str, float], grades: dict[str, int]) -> None:
    ranking = as_ranking(run)
    positive = {document: grade for document, grade in grades.items() if grade > 0}
    zeroed = {document: max(0, grade) for document, grade in grades.items()}
    expected = measure_ranking(ranking, grades, MEASURES)
    assert measure_ranking(ranking, positive, MEASURES) == expected
    assert measure_ranking(ranking, zeroed, MEASURES) == expected


def test_without_a_relevant_document_or_a_hit_every_figure_is_zero() -> None:
    nothing = Ranking((), [])
    for grades in ({}, {"d5": 0}, {"d5": -1}):
        assert not any(measure_ranking(RANKING, grades, MEASURES))
    assert not any(measure_ranking(nothing, JUDGED, MEASURES))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("nDCG@10", "nDCG@10"),
        ("ndcg@10", "nDCG@10"),
        ("NDCG@1", "nDCG@1"),
        ("mrr@10", "MRR@10"),
        ("RR@10", "MRR@10"),
        ("recall@100", "Recall@100"),
        ("R@5", "Recall@5"),
        ("p@5", "Precision@5"),
        ("Precision@5", "Precision@5"),
        ("map@1000", "AP@1000"),
        ("AP@20", "AP@20"),
        ("success@1", "Success@1"),
        (" Hits@3\n", "hits@3"),
        ("hits@007", "hits@7"),
    ],
)
def test_a_measure_has_one_canonical_form(text: str, canonical: str) -> None:
    measure = Measure.parse(text)
    assert str(measure) == canonical
    assert Measure.parse(str(measure)) == measure
    assert Measure(measure.name.upper(), measure.cutoff) == measure
    assert hash(Measure.parse(canonical)) == hash(measure)


@pytest.mark.parametrize(
    "text",
    [
        *["", "nDCG", "nDCG@", "@10", "nDCG@ten", "nDCG@-1", "nDCG@1.5", "nDCG@١", "nDCG @10", "nDCG@10@5"],
        *["F1@10", "hit@10", "nDCG@1" + "0" * 50, "x" * 200, None, 10],
    ],
)
def test_an_unknown_measure_is_refused_with_the_known_ones(text: Any) -> None:
    with pytest.raises(InvalidEvaluation, match=r"nDCG@k, MRR@k, Recall@k, Precision@k, AP@k, Success@k, hits@k"):
        Measure.parse(text)


@pytest.mark.parametrize("name", ["", "F1", None, 3])
def test_a_measure_needs_a_known_name(name: Any) -> None:
    with pytest.raises(InvalidEvaluation, match="nDCG@k"):
        Measure(name, 10)


@pytest.mark.parametrize("cutoff", [0, -1, 1.0, True, None, "10", np.int64(10)])
def test_a_cutoff_is_a_whole_number_of_at_least_one(cutoff: Any) -> None:
    with pytest.raises(InvalidEvaluation, match="cut-off"):
        Measure("nDCG", cutoff)
    if cutoff == 0:
        with pytest.raises(InvalidEvaluation, match="cut-off 0"):
            Measure.parse("nDCG@0")


def test_measures_are_read_in_order_from_text_and_objects() -> None:
    assert parse_measures(["r@5", Measure("nDCG", 10)]) == (Measure("Recall", 5), Measure("nDCG", 10))


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ([], "no measure"),
        ("nDCG@10", "in a list"),
        (["nDCG@10", "ndcg@10"], "'nDCG@10' twice"),
        (["nDCG@10", "what"], "'what'"),
        ([10], "measure 10"),
    ],
)
def test_measures_are_distinct_and_known(measures: Any, said: str) -> None:
    with pytest.raises(InvalidEvaluation, match=said):
        parse_measures(measures)


def test_judgments_give_grades_and_relevant_documents() -> None:
    judgments = RelevanceJudgments({"q1": {"a": 2, "b": 0, "c": -1}, "q2": {}})
    assert len(judgments) == 2
    assert list(judgments) == ["q1", "q2"]
    assert "q1" in judgments
    assert "q3" not in judgments
    assert dict(judgments.grades_of("q1")) == {"a": 2, "b": 0, "c": -1}
    assert dict(judgments.grades_of("q3")) == {}
    assert judgments.relevant_to("q1") == {"a"}
    assert judgments.relevant_to("q2") == judgments.relevant_to("q3") == frozenset()


def test_judgments_are_a_copy_that_cannot_be_changed() -> None:
    given_ = {"q": {"a": 1}}
    judgments = RelevanceJudgments(given_)
    given_["q"]["a"] = 0
    given_["r"] = {}
    assert judgments == RelevanceJudgments({"q": {"a": 1}})
    for mapping in (judgments.by_query, judgments.grades_of("q"), judgments.grades_of("unjudged")):
        with pytest.raises(TypeError):
            mapping["a"] = 3  # type: ignore[index]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        judgments.by_query = {}  # type: ignore[misc]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda given_: pickle.loads(pickle.dumps(given_))])
def test_judgments_and_reports_survive_copies_and_stay_read_only(again: Any) -> None:
    judgments = again(RelevanceJudgments({"q": {"a": 1, "b": -1}}))
    assert judgments == RelevanceJudgments({"q": {"b": -1, "a": 1}})
    assert hash(judgments) == hash(RelevanceJudgments({"q": {"b": -1, "a": 1}}))
    with pytest.raises(TypeError):
        judgments.grades_of("q")["a"] = 3
    report = Report(["P@1"], ["q"], [[0.5]], ["r"])
    assert again(report) == report
    assert hash(again(report)) == hash(report)
    assert not again(report).values.flags.writeable


def test_grades_of_numpy_are_whole_numbers_too() -> None:
    grades = RelevanceJudgments({"q": {"a": np.int32(2)}}).grades_of("q")  # type: ignore[dict-item]
    assert type(grades["a"]) is int


@pytest.mark.parametrize("grade", [1.0, True, None, "1", math.nan, 2**31, -(2**31), 10**400])
def test_a_grade_is_a_whole_number(grade: Any) -> None:
    with pytest.raises(InvalidEvaluation, match="as the grade of document 'a' for query 'q'"):
        RelevanceJudgments({"q": {"a": grade}})


@pytest.mark.parametrize("judgments", [{"": {"a": 1}}, {"q": {"": 1}}, {1: {"a": 1}}, {"q": {1: 1}}, {None: {}}])
def test_judgments_are_by_ids(judgments: Any) -> None:
    with pytest.raises(InvalidEvaluation, match="non-empty str"):
        RelevanceJudgments(judgments)


def test_an_evaluation_set_holds_what_it_was_given() -> None:
    documents = [Document("a", "x"), Document("b", "y")]
    queries = [Query("?", "q"), Query("not judged", "r")]
    judgments = RelevanceJudgments({"q": {"a": 1, "absent": 2, "irrelevant": 0}})
    whole = EvaluationSet(documents, queries, judgments)
    assert whole.documents == tuple(documents)
    assert whole.queries == tuple(queries)
    assert whole.judgments is judgments
    assert whole.unreachable == {"absent"}
    assert EvaluationSet((), queries, RelevanceJudgments({})).unreachable == frozenset()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        whole.queries = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("documents", "queries", "judged", "said"),
    [
        ([], [Query("?")], {}, "a query without id"),
        ([], [Query("?", "q"), Query("!", "q")], {}, "queries that hold 'q' twice"),
        ([Document("a", "x"), Document("a", "y")], [], {}, "documents that hold 'a' twice"),
        ([], [Query("?", "q")], {"z": {}, "q": {}, "p": {"a": 1}}, "2 unknown queries, such as 'p'"),
    ],
)
def test_an_evaluation_set_is_consistent(documents: Any, queries: Any, judged: Any, said: str) -> None:
    with pytest.raises(InvalidEvaluation, match=said):
        EvaluationSet(documents, queries, RelevanceJudgments(judged))


def report() -> Report:
    return Report(["nDCG@10", "hits@3"], ["q1", "q2", "q3"], [[0.5, 1.0, 0.0], [1.0, 3.0, 0.0]], ["q4"])


def test_a_report_gives_means_rows_and_columns() -> None:
    given_ = report()
    assert len(given_) == 3
    assert given_["nDCG@10"] == given_[Measure("ndcg", 10)] == 0.5
    assert given_.means == {"nDCG@10": 0.5, "hits@3": pytest.approx(4 / 3)}
    assert list(given_.values_of("HITS@3")) == [1.0, 3.0, 0.0]
    assert given_.of_query("q2") == {"nDCG@10": 1.0, "hits@3": 3.0}
    assert given_.values.dtype == np.float64
    assert given_.values.shape == (2, 3)


def test_a_report_is_json() -> None:
    assert json.loads(json.dumps(report().to_json(), allow_nan=False)) == {
        "means": {"nDCG@10": 0.5, "hits@3": 4 / 3},
        "queries": 3,
        "left_out": ["q4"],
        "by_query": {
            "q1": {"nDCG@10": 0.5, "hits@3": 1.0},
            "q2": {"nDCG@10": 1.0, "hits@3": 3.0},
            "q3": {"nDCG@10": 0.0, "hits@3": 0.0},
        },
    }


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.randoms())
def test_a_mean_does_not_depend_on_the_order_of_the_queries(figures: list[float], random: Any) -> None:
    shuffled = random.sample(figures, len(figures))
    ids = list(map(str, range(len(figures))))
    assert Report(["AP@5"], ids, [figures])["AP@5"] == Report(["AP@5"], ids, [shuffled])["AP@5"]
    tiny = 2.0**-53  # alone too small to move a sum that has reached 1
    first, last = (Report(["AP@5"], "abc", [row])["AP@5"] for row in ([1.0, tiny, tiny], [tiny, tiny, 1.0]))
    assert first == last == (1.0 + 2 * tiny) / 3


def test_a_report_cannot_be_changed_and_knows_its_equal() -> None:
    values = np.array([[0.5]])
    given_ = Report(["P@1"], ["q"], values)
    values[0, 0] = 1.0
    assert given_["P@1"] == 0.5
    assert given_ == Report(["Precision@1"], ["q"], [[0.5]])
    assert given_ != Report(["P@1"], ["q"], [[0.25]])
    assert hash(given_) == hash(Report(["P@1"], ["q"], [[0.5]]))
    for view in (given_.values, given_.values_of("P@1")):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 1.0


def test_a_report_names_what_was_not_measured() -> None:
    with pytest.raises(InvalidEvaluation, match=r"'nDCG@5'; expected one of nDCG@10, hits@3"):
        report()["nDCG@5"]
    with pytest.raises(InvalidEvaluation, match="measure 'recall'"):
        report()["recall"]
    with pytest.raises(InvalidEvaluation, match="'q4', which is left out"):
        report().of_query("q4")
    with pytest.raises(InvalidEvaluation, match="'q5', which is unknown"):
        report().of_query("q5")


@pytest.mark.parametrize(
    ("queries", "values", "left_out", "said"),
    [
        ([], np.empty((1, 0)), ["q"], "no query with a relevant document, 1 without"),
        (["q"], [[0.5, 0.5]], [], r"values of shape \(1, 2\)"),
        (["q"], [0.5], [], r"values of shape \(1,\)"),
        (["q"], [[math.nan]], [], "finite values"),
        (["q"], [[math.inf]], [], "finite values"),
        (["q", "q"], [[0.5, 0.5]], [], "queries that hold 'q' twice"),
        (["q"], [[0.5]], ["q"], "queries that hold 'q' twice"),
    ],
)
def test_a_report_is_consistent(queries: Any, values: Any, left_out: Any, said: str) -> None:
    with pytest.raises(InvalidEvaluation, match=said):
        Report(["P@1"], queries, values, left_out)
