"""The strategies give what they promise always, and the hard cases often enough to be met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lateinteraction.domain.filters import (
    And,
    Comparison,
    ComparisonOperator,
    Filter,
    Not,
    Or,
    filter_from_json,
    filter_to_json,
    matches,
)
from lateinteraction.domain.reference.maxsim import similarities
from lateinteraction.domain.text import Document, Metadata, check_distinct
from lateinteraction.domain.training import Targets
from lateinteraction.testing import strategies
from lateinteraction.testing.strategies import Precision, Values

MET = settings(max_examples=500, database=None, derandomize=True, phases=[Phase.generate])
"""A case that does not come within so many examples is not met in a normal run either."""

values = st.sampled_from(get_args(Values))
precisions = st.sampled_from(get_args(Precision))


def is_met(strategy: SearchStrategy[Any], case: Callable[[Any], bool]) -> bool:
    return case(find(strategy, case, settings=MET))


@given(strategies.texts())
def test_texts_can_be_written(text: str) -> None:
    assert text.encode().decode() == text


@pytest.mark.parametrize(
    "case",
    [
        lambda text: text == "",
        lambda text: text != "" and text.isspace(),
        lambda text: "\x00" in text,
        lambda text: "\u200d" in text,
        lambda text: any("\u0590" <= letter <= "\u06ff" for letter in text),
        lambda text: len(text.split()) > 3,
        lambda text: len(text.casefold()) != len(text),
    ],
    ids=["empty", "spaces", "NUL", "joined emoji", "right to left", "words", "changes length with its case"],
)
def test_awkward_texts_are_met(case: Callable[[str], bool]) -> None:
    assert is_met(strategies.texts(), case)


@given(strategies.documents())
def test_documents_hold_metadata_of_scalars(document: Document) -> None:
    assert all(isinstance(value, (str, int, float, bool, type(None))) for value in document.metadata.values())


def test_queries_have_an_id_or_none() -> None:
    assert is_met(strategies.queries(), lambda query: query.id is None)
    assert is_met(strategies.queries(), lambda query: query.id is not None)


@given(strategies.filters())
def test_filters_survive_their_wire_form(where: Any) -> None:
    assert filter_from_json(filter_to_json(where)) == where


@pytest.fixture(scope="module")
def filtered() -> list[tuple[Filter, Metadata]]:
    drawn: list[tuple[Filter, Metadata]] = []

    @settings(MET, max_examples=400)
    @given(strategies.filters(), strategies.metadata())
    def draw(where: Filter, metadata: Metadata) -> None:
        drawn.append((where, metadata))

    draw()
    return drawn


def test_every_combination_is_met_and_some_of_them_nested(filtered: list[tuple[Filter, Metadata]]) -> None:
    assert {type(where) for where, _ in filtered if where.nodes > 2} == {And, Or, Not}
    assert max(where.depth for where, _ in filtered) > 2


@pytest.mark.parametrize("operator", get_args(ComparisonOperator))
def test_comparisons_match_and_do_not_match(operator: str, filtered: list[tuple[Filter, Metadata]]) -> None:
    """Any filter drawn beside any metadata drawn: the two ask and answer about the same values."""
    comparisons = [where for where, _ in filtered if isinstance(where, Comparison) and where.operator == operator]
    outcomes = {
        matches(where, metadata) for where in comparisons for _, metadata in filtered if where.field in metadata
    }
    assert outcomes == {True, False}


@given(st.data())
def test_bounds_on_items_and_tokens_hold(data: Any) -> None:
    least, more, shortest, further = (data.draw(st.integers(0, 3)) for _ in range(4))
    drawn = data.draw(
        strategies.token_embeddings(dimension=5, items=(least, least + more), each=(shortest, shortest + further))
    )
    assert drawn.dimension == 5
    assert least <= len(drawn) <= least + more
    assert all(shortest <= length <= shortest + further for length in drawn.lengths)


@pytest.mark.parametrize(
    "case",
    [
        lambda drawn: len(drawn) == 0,
        lambda drawn: 0 in drawn.lengths and len(drawn.tokens) > 0,
        lambda drawn: len(drawn) > 1 and drawn.lengths[0] == 0,
        lambda drawn: len(drawn) > 1 and drawn.lengths[-1] == 0,
        lambda drawn: 1 in drawn.lengths,
        lambda drawn: max(drawn.lengths, default=0) > 4,
        lambda drawn: len(drawn.tokens) > 3 and len(np.unique(drawn.tokens, axis=0)) < len(drawn.tokens),
    ],
    ids=["no items", "empty item", "empty first", "empty last", "one token", "long item", "repeated token"],
)
def test_hard_batches_are_met(case: Callable[[Any], bool]) -> None:
    assert is_met(strategies.token_embeddings(), case)


@pytest.mark.parametrize("dimension", strategies.DIMENSIONS)
def test_every_dimension_is_met(dimension: int) -> None:
    assert is_met(strategies.token_embeddings(), lambda drawn: drawn.dimension == dimension)


@given(precisions.flatmap(lambda precision: strategies.tokens(4, 3, values="dyadic", precision=precision)))
def test_dyadic_values_are_eighths_in_any_precision(tokens: Any) -> None:
    assert np.array_equal(np.round(tokens.astype(np.float64) * 8), tokens.astype(np.float64) * 8)
    assert np.all(np.abs(tokens) <= 1)


@given(strategies.tokens(9, 3, values="repeated"))
def test_repeated_values_have_few_distinct_tokens(tokens: Any) -> None:
    assert len(np.unique(tokens, axis=0)) <= 3


@given(strategies.tokens(5, 7, values="unit"))
def test_unit_values_have_length_one(tokens: Any) -> None:
    assert np.allclose(np.linalg.norm(tokens, axis=1), 1, atol=1e-6)


@given(values.flatmap(lambda kind: strategies.tokens(4, 3, values=kind, precision="float16")))
def test_float16_is_float16(tokens: Any) -> None:
    assert tokens.dtype == np.float16


@given(values.flatmap(lambda kind: strategies.tokens(4, 3, values=kind, precision="bfloat16")))
def test_bfloat16_is_float32_that_bfloat16_can_hold(tokens: Any) -> None:
    assert tokens.dtype == np.float32
    assert np.array_equal(torch.from_numpy(tokens).bfloat16().float().numpy(), tokens)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1))
def test_rounding_to_bfloat16_is_that_of_torch(numbers: list[float]) -> None:
    array = np.array(numbers, dtype=np.float32)
    assert np.array_equal(strategies.in_bfloat16(array), torch.from_numpy(array).bfloat16().float().numpy())


def test_rounding_to_bfloat16_sends_ties_to_even() -> None:
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], dtype=np.float32)
    assert np.array_equal(strategies.in_bfloat16(halfway), np.array([1, 1 + 2**-6, -1], dtype=np.float32))


@given(strategies.query_document_embeddings())
def test_queries_and_documents_share_a_dimension(pair: Any) -> None:
    assert pair[0].dimension == pair[1].dimension


@given(
    precisions.flatmap(lambda precision: strategies.query_document_embeddings(values="opposed", precision=precision))
)
def test_opposed_similarities_are_all_negative(pair: Any) -> None:
    assert np.all(similarities(pair[0].tokens, pair[1].tokens) < 0)


def test_pairs_have_negative_scores_ties_and_empty_items() -> None:
    pairs = strategies.query_document_embeddings()
    assert is_met(
        pairs, lambda pair: min(map(len, pair)) > 1 and np.all(similarities(pair[0].tokens, pair[1].tokens) < 0)
    )
    assert is_met(pairs, lambda pair: all(0 in each.lengths and len(each.tokens) for each in pair))
    assert is_met(pairs, lambda pair: _has_a_tie(similarities(pair[0].tokens, pair[1].tokens)))


def _has_a_tie(found: Any) -> bool:
    return found.shape[1] > 1 and bool(np.any(np.diff(np.sort(found, axis=1))[:, -1] == 0))


@given(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2), st.data())
def test_groups_have_as_many_documents_as_allowed(queries: int, least: int, more: int, data: Any) -> None:
    own = data.draw(strategies.groups(queries, least=least, most=least + more))
    assert len(own) == queries + 1
    assert all(least <= count <= least + more for count in np.diff(own))


@given(strategies.grouped_embeddings(group=(1, 3)))
def test_groups_of_at_least_one_make_targets(drawn: Any) -> None:
    queries, documents, groups = drawn
    assert len(Targets(groups)) == len(documents)
    assert len(groups) == len(queries) + 1


def test_masks_are_not_only_prefixes() -> None:
    whole = find(strategies.token_embeddings(), lambda drawn: len(drawn.tokens) > 5, settings=MET)
    masks = strategies.keep_masks(whole)
    assert is_met(masks, lambda mask: bool(np.any(np.diff(mask.astype(int)) > 0)))
    assert is_met(masks, lambda mask: not mask.any())
    assert is_met(masks, lambda mask: bool(mask.all()))


@given(strategies.corpora())
def test_a_corpus_has_an_item_for_each_of_distinct_documents(corpus: Any) -> None:
    documents, embeddings = corpus
    assert len(documents) == len(embeddings)
    check_distinct(document.id for document in documents)


def test_rankings_tie_and_end_in_minus_infinity() -> None:
    rankings = strategies.rankings()
    assert is_met(rankings, lambda ranking: len(ranking) == 0)
    assert is_met(rankings, lambda ranking: len(set(map(float, ranking.scores))) < len(ranking))
    assert is_met(rankings, lambda ranking: len(ranking) > 1 and ranking.scores[-1] == -np.inf < ranking.scores[0])


@pytest.mark.parametrize("case", [lambda grade: grade < 0, lambda grade: grade == 0, lambda grade: grade > 1])
def test_judgments_have_grades_below_and_above_zero(case: Callable[[int], bool]) -> None:
    assert is_met(
        strategies.judgments(),
        lambda judged: any(case(g) for query in judged for g in judged.grades_of(query).values()),
    )


@given(st.none() | st.booleans(), st.data())
def test_examples_have_a_teacher_as_asked_for(teacher: bool | None, data: Any) -> None:
    example = data.draw(strategies.training_examples(teacher=teacher))
    assert teacher is None or (example.teacher is not None) is teacher
