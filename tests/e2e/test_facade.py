"""The façade on a real tiny transformer: what people type, and what they get for a slip."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import lateinteraction as li
from lateinteraction.domain.errors import (
    DuplicateDocument,
    InvalidFilter,
    InvalidIdentifier,
    InvalidModel,
    InvalidRanking,
    InvalidRecipe,
    InvalidText,
    UnknownDocument,
)
from lateinteraction.domain.filters import Comparison


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> li.Model:
    return li.load_model(tiny_model, device="cpu")


@pytest.fixture
def index(model: li.Model) -> li.Index:
    filled = li.Index(model)
    filled.add({"fr": "Paris is in France.", "de": "Berlin is in Germany.", "it": "Rome is in Italy."})
    return filled


def test_texts_in_texts_and_scores_out(index: li.Index) -> None:
    results = index.search("Berlin is in Germany.", k=2)
    assert results[0].id == "de"
    assert results[0].text == "Berlin is in Germany."
    assert results[0].score > results[1].score


def test_many_queries_give_a_list_for_each(index: li.Index) -> None:
    queries = ["Paris is in France.", "Rome is in Italy."]
    assert [results[0].id for results in index.search(queries, k=1)] == ["fr", "it"]
    assert index.search([]) == []


def test_texts_without_ids_get_the_lowest_free_numbers(model: li.Model) -> None:
    index = li.Index(model)
    index.add([li.Document("1", "named")])
    assert index.add(["first", "second"]).added == ("0", "2")
    assert index.add(["third"]).added == ("3",)
    assert len(index) == 4
    assert "2" in index


def test_documents_carry_metadata_to_filter_by(index: li.Index) -> None:
    index.add(
        [
            li.Document("a", "Oslo is in Norway.", {"north": True}),
            li.Document("b", "Lima is in Peru.", {"north": False}),
        ]
    )
    where = {"field": "north", "operator": "==", "value": True}
    assert [result.id for result in index.search("a city", where=where)] == ["a"]
    assert [result.metadata for result in index.search("a city", where=Comparison("north", "==", False))] == [
        {"north": False}
    ]
    assert [result.id for result in index.search("a city", candidates=["b", "nobody"])] == ["b"]
    assert index.search("a city", candidates=[]) == []


def test_documents_are_removed_by_id_and_by_filter(index: li.Index) -> None:
    index.add([li.Document("a", "Oslo", {"year": 1})])
    assert index.remove({"field": "year", "operator": "==", "value": 1}) == 1
    assert index.remove(["fr", "de"]) == 2
    assert len(index) == 1


def test_reranking_orders_what_is_given(model: li.Model) -> None:
    ranked = model.rerank("Rome is in Italy.", ["Paris is in France.", "Rome is in Italy."])
    assert [result.id for result in ranked] == ["1", "0"]
    assert model.rerank("anything", []) == []
    assert len(model.rerank("Rome", {"x": "Rome", "y": "Paris"}, k=1)) == 1


def test_search_and_rerank_score_alike(index: li.Index, model: li.Model) -> None:
    found = {result.id: result.score for result in index.search("a capital")}
    ranked = model.rerank(
        "a capital", {"fr": "Paris is in France.", "de": "Berlin is in Germany.", "it": "Rome is in Italy."}
    )
    for result in ranked:
        assert result.score == pytest.approx(found[result.id], rel=1e-5)


def test_an_explanation_sums_to_the_score_that_search_gave(index: li.Index) -> None:
    (best,) = index.search("Germany and Berlin", k=1)
    explanation = index.explain("Germany and Berlin", best.id)
    assert explanation.score == pytest.approx(best.score, rel=1e-5)
    assert sum(match.contribution for match in explanation.matches) == pytest.approx(best.score, rel=1e-5)
    for match in explanation.matches:
        assert 0 <= match.document_span[0] <= match.document_span[1] <= len(best.text)
    assert index.model.explain("Berlin", "Berlin is here").score == pytest.approx(
        index.model.rerank("Berlin", ["Berlin is here"])[0].score, rel=1e-5
    )


def test_encoded_texts_are_packed(model: li.Model) -> None:
    queries, documents = model.encode_queries(["one", "two words"]), model.encode_documents(["three"])
    assert len(queries) == 2
    assert queries.dimension == documents.dimension == 128


def test_autocast_around_the_library_changes_nothing(index: li.Index) -> None:
    plain = index.search("a city")
    with torch.autocast("cpu", torch.bfloat16):
        assert index.search("a city") == plain


def test_progress_is_told(tiny_model: Path) -> None:
    told: list[tuple[int, int]] = []
    model = li.load_model(tiny_model, device="cpu", progress=lambda done, total: told.append((done, total)))
    model.encode_documents(["one", "two"])
    assert told[-1] == (2, 2)


def test_the_recipe_can_be_changed_by_name(tiny_model: Path) -> None:
    model = li.load_model(tiny_model, recipe={"document_length": 5})
    with pytest.warns(UserWarning, match="1 of 1"):
        assert model.encode_documents(["far more than five tokens in here"]).lengths.tolist() == [5]
    with pytest.raises(InvalidRecipe, match="documant_length"):
        li.load_model(tiny_model, recipe={"documant_length": 5})


def test_threads_that_add_texts_without_ids_lose_none(model: li.Model) -> None:
    index = li.Index(model)
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda number: index.add([f"text {number}", f"again {number}"]), range(12)))
    assert len(index) == 24
    assert len({identifier for report in reports for identifier in report.added}) == 24


def test_a_search_beside_a_writer_gives_texts_of_its_own_moment(model: li.Model) -> None:
    index, stop = li.Index(model), threading.Event()
    index.add({"stays": "a text that stays"})

    def write() -> None:
        while not stop.is_set():
            index.add({"comes": "a text that comes and goes"})
            index.remove(["comes"])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            assert {"stays"} <= {result.id for result in index.search("a text")}
    finally:
        stop.set()
        writer.join()


def test_numbers_leave_out_ids_of_the_same_call(model: li.Model) -> None:
    index = li.Index(model)
    assert index.add([li.Document("0", "named"), "not named"]).added == ("0", "1")  # pyright: ignore[reportArgumentType]
    assert [result.id for result in model.rerank("x", [li.Document("0", "named"), "not named"])] != []  # pyright: ignore[reportArgumentType]


def test_an_empty_text_scores_minus_infinity_and_an_empty_query_nothing(model: li.Model) -> None:
    index = li.Index(model)
    assert index.add({"empty": "", "blank": " \n", "full": "text"}).empty == ("empty", "blank")
    assert [result.id for result in index.search("anything at all")] == ["full", "blank", "empty"]
    assert [result.score for result in index.search("anything")][1:] == [float("-inf")] * 2
    assert [result.score for result in index.search("")] == [0.0] * 3
    assert index.search("text", candidates=["empty"])[0].text == ""


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda index: index.add("a lone text"), InvalidText),
        (lambda index: index.add([17]), InvalidText),
        (lambda index: index.add({"": "text"}), InvalidIdentifier),
        (lambda index: index.add({"fr": "again"}), DuplicateDocument),
        (lambda index: index.add([li.Document("x", "1"), li.Document("x", "2")]), DuplicateDocument),
        (lambda index: index.search(17), InvalidText),
        (lambda index: index.search("x", k=0), InvalidRanking),
        (lambda index: index.search("x", candidates="fr"), InvalidText),
        (lambda index: index.search("x", candidates=[0]), InvalidIdentifier),
        (lambda index: index.search("x", where="a == 1"), InvalidFilter),
        (lambda index: index.remove([0]), InvalidIdentifier),
        (lambda index: index.remove(5), InvalidFilter),
        (lambda index: index.search("x", where={"field": "a"}), InvalidFilter),
        (lambda index: index.remove("fr"), InvalidText),
        (lambda index: index.remove(["nobody"]), UnknownDocument),
        (lambda index: index.explain("x", "nobody"), UnknownDocument),
        (lambda index: li.load_model("/nowhere/at/all"), InvalidModel),
        (lambda index: li.load_model(5), InvalidModel),
    ],
)
def test_a_mistake_is_one_clear_error_and_changes_nothing(
    index: li.Index, mistake: object, error: type[Exception]
) -> None:
    before = index.search("Paris")
    with pytest.raises(error) as caught:
        mistake(index)  # type: ignore[operator]
    assert isinstance(caught.value, li.LateInteractionError)
    assert "; expected " in str(caught.value)
    assert index.search("Paris") == before


def test_an_empty_text_is_found_last_and_fetched_by_id(tiny_model: Path) -> None:
    model = li.load_model(tiny_model, recipe={"keep_special_tokens": False})
    index = li.Index(model)
    assert index.add({"empty": "", "full": "text"}).empty == ("empty",)
    assert [(result.id, result.score) for result in index.search("text")][1] == ("empty", float("-inf"))
    assert [result.score for result in index.search("")] == [0.0, 0.0]
    assert index.explain("text", "empty").score == float("-inf")
