"""Examples become rectangles, and every embedding finds its place again."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser
from lateinteraction.adapters.huggingface.encoder import tokeniser_of
from lateinteraction.adapters.training.batches import MicroBatch, Rectangles, keys_of, micro_batch_of
from lateinteraction.domain.errors import InvalidExample
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query
from lateinteraction.domain.training import TrainingExample

WORDS = st.lists(st.sampled_from(["the", "quick", "fox", ",", "dog", "."]), min_size=1, max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def tokeniser(tokenizers: Mapping[str, PreTrainedTokenizerFast]) -> RecipeTokeniser:
    return tokeniser_of(tokenizers["bert"], EncodingRecipe(query_length=8, document_length=16, skiplist=(",", ".")))


def example(query: str, *documents: str, teacher: list[float] | None = None) -> TrainingExample:
    return TrainingExample(Query(query), [Document(f"{n}", each) for n, each in enumerate(documents)], teacher)


def made(tokeniser: RecipeTokeniser, *examples: TrainingExample, budget: int = 40) -> MicroBatch:
    rows = 100 + np.arange(len(examples))
    return micro_batch_of(examples, tokeniser, rows=rows, source="wiki", tokens_per_rectangle=budget)


def rows_in_order(rectangles: Rectangles) -> list[int]:
    """Ids of the kept tokens, as a model that gives back what it reads would put them in order."""
    given_back = []
    for batch in rectangles.batches:
        cells, _, kept, _ = np.split(batch.sheet, np.cumsum(batch.parts)[:-1])
        given_back += cells[kept].tolist()
    return [given_back[row] for row in rectangles.order]


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5), st.integers(1, 60))
def test_every_kept_token_is_found_at_its_items_place(
    tokeniser: RecipeTokeniser, texts: list[tuple[str, list[str]]], budget: int
) -> None:
    batch = made(tokeniser, *(example(query, "fox", *documents) for query, documents in texts), budget=budget)
    documents = tokeniser.documents([each for _, own in texts for each in ("fox", *own)])
    assert rows_in_order(batch.documents) == documents.token_ids[documents.kept].tolist()
    assert batch.documents.offsets.tolist() == documents.kept_offsets.tolist()
    queries = tokeniser.queries([query for query, _ in texts])
    assert rows_in_order(batch.queries) == queries.token_ids[queries.kept].tolist()
    assert batch.groups.tolist() == np.cumsum([0, *(1 + len(own) for _, own in texts)]).tolist()


@given(st.lists(WORDS, min_size=1, max_size=8), st.integers(1, 60))
def test_no_rectangle_is_beyond_the_budget_but_that_of_one_text(
    tokeniser: RecipeTokeniser, documents: list[str], budget: int
) -> None:
    batch = made(tokeniser, example("fox", "fox", *documents), budget=budget)
    for each in (*batch.queries.batches, *batch.documents.batches):
        assert each.sequences * each.width <= budget or each.sequences == 1
    assert batch.tokens <= batch.computed


def test_tokens_and_padding_are_counted(tokeniser: RecipeTokeniser) -> None:
    batch = made(tokeniser, example("fox", "fox", "the quick fox"), budget=10**6)
    length = len(tokeniser.queries(["fox"]).token_ids)
    assert (batch.queries.tokens, batch.queries.computed) == (length, length)
    lengths = np.diff(tokeniser.documents(["fox", "the quick fox"]).offsets)
    assert batch.documents.tokens == lengths.sum()
    assert batch.documents.computed == 2 * lengths.max()


def test_a_negative_without_tokens_stays_an_item(tokeniser: RecipeTokeniser) -> None:
    batch = made(tokeniser, example("fox", "fox", "", "dog"))
    lengths = np.diff(batch.documents.offsets)
    assert lengths[1] == 0
    assert lengths[0] > 0
    assert lengths[2] > 0


def test_a_positive_without_tokens_is_told_by_its_row(tokeniser: RecipeTokeniser) -> None:
    with pytest.raises(InvalidExample, match="row 101 of 'wiki', whose positive keeps no token"):
        made(tokeniser, example("fox", "fox", "dog"), example("fox", " ", "dog"))


def test_a_query_without_tokens_is_told_by_its_row(tokeniser: RecipeTokeniser) -> None:
    with pytest.raises(InvalidExample, match="row 102 of 'wiki', whose query keeps no token"):
        made(tokeniser, *(example(query, "fox") for query in ("fox", "dog", " ")))


def test_scores_for_some_rows_only_are_told_by_the_first_without(tokeniser: RecipeTokeniser) -> None:
    with pytest.raises(InvalidExample, match="row 101 of 'wiki' without teacher scores"):
        made(tokeniser, example("fox", "fox", teacher=[1.0]), example("dog", "dog"))


def test_scores_are_those_of_the_documents_in_order(tokeniser: RecipeTokeniser) -> None:
    batch = made(tokeniser, example("fox", "fox", "dog", teacher=[3, 1]), example("dog", "dog", teacher=[2]))
    assert batch.teacher is not None
    assert batch.teacher.tolist() == [3, 1, 2]
    assert batch.teacher.dtype == np.float64
    assert made(tokeniser, example("fox", "fox")).teacher is None


def test_keys_are_equal_where_ids_are_or_texts_where_queries_have_none(tokeniser: RecipeTokeniser) -> None:
    queries = [Query("fox"), Query("fox"), Query("fox", id="fox"), Query("dog", id="fox")]
    batch = made(tokeniser, *(TrainingExample(each, [Document("a", "fox"), Document("b", "fox")]) for each in queries))
    keys = batch.query_keys
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert keys[0] != keys[2]
    assert len(set(batch.document_keys.tolist())) == 2


def test_keys_are_the_same_on_every_machine() -> None:
    assert keys_of(["a", "b"]).tolist() == [3405396810240292928, 8453121595177857668]
    assert keys_of([]).shape == (0,)


def test_a_micro_batch_may_go_to_another_process(tokeniser: RecipeTokeniser) -> None:
    batch = made(tokeniser, example("fox", "fox", "dog", teacher=[1, 2]))
    copy = pickle.loads(pickle.dumps(batch))
    assert np.array_equal(copy.documents.order, batch.documents.order)
    assert copy.source == "wiki"
