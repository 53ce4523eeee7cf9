"""Training examples and targets: explicit roles, counts that fit."""

from __future__ import annotations

import math
import pickle
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.embeddings import offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidExample
from lateinteraction.domain.text import Document, Query
from lateinteraction.domain.training import (
    Targets,
    TrainingExample,
    TrainingReport,
    beyond_margin,
    false_negatives,
)
from lateinteraction.testing.strategies import training_examples

QUERY = Query("where?")
DOCUMENTS = [Document("1", "here"), Document("2", "there")]


def test_an_example_holds_the_positive_first() -> None:
    example = TrainingExample(QUERY, DOCUMENTS, [1.0, 0.5])  # type: ignore[arg-type]
    assert example.documents == tuple(DOCUMENTS)
    assert example.teacher == (1.0, 0.5)
    assert TrainingExample(QUERY, DOCUMENTS[:1]).teacher is None  # type: ignore[arg-type]


@given(training_examples())
def test_examples_are_values(example: TrainingExample) -> None:
    again = pickle.loads(pickle.dumps(example))
    assert again == example
    assert hash(again) == hash(example)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        again.documents = ()


@pytest.mark.parametrize(
    ("documents", "teacher", "said"),
    [
        ([], None, "without documents"),
        ([], [], "without documents"),
        (DOCUMENTS, [], "0 teacher scores for 2 documents"),
        (DOCUMENTS, [1.0], "1 teacher scores for 2 documents"),
        (DOCUMENTS, [1.0, 2.0, 3.0], "3 teacher scores for 2 documents"),
        (DOCUMENTS, [1.0, math.nan], "no finite number"),
        (DOCUMENTS, [-math.inf, 1.0], "no finite number"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(documents: Any, teacher: Any, said: str) -> None:
    with pytest.raises(InvalidExample, match=said):
        TrainingExample(QUERY, documents, teacher)


@given(st.lists(st.integers(1, 4), max_size=6))
def test_the_positive_is_the_first_of_each_group(counts: list[int]) -> None:
    targets: Targets[Any] = Targets([0, *np.cumsum(counts, dtype=np.int64)])  # type: ignore[arg-type]
    assert len(targets) == sum(counts)
    assert [int(place) for place in targets.positives] == [sum(counts[:group]) for group in range(len(counts))]
    assert targets.positives.dtype == np.int64
    assert not targets.groups.flags.writeable


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([], "at least one entry"),
        ([1, 2], "run from 1 to 2"),
        ([-1, 2], "run from -1 to 2"),
        ([0, 3, 2], "fall after entry 1"),
        ([0, 2, 2], "a query without a document"),
        ([0, 0, 2], "a query without a document"),
    ],
)
def test_groups_are_offsets_without_an_empty_one(groups: Any, said: str) -> None:
    with pytest.raises(InvalidExample, match=said):
        Targets(groups)


def test_groups_that_are_no_offsets_name_their_cause() -> None:
    with pytest.raises(InvalidExample) as refused:
        Targets([1, 2])  # type: ignore[arg-type]
    assert isinstance(refused.value.__cause__, InvalidEmbeddings)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), ()])
def test_a_teacher_scores_every_document(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidExample, match=r"expected \(2,\)"):
        Targets([0, 2], np.zeros(shape))  # type: ignore[arg-type]
    teacher = np.zeros(2)
    assert Targets([0, 2], teacher).teacher is teacher  # type: ignore[arg-type]


def test_targets_are_compared_by_identity() -> None:
    targets: Targets[Any] = Targets([0, 2])  # type: ignore[arg-type]
    assert targets == targets
    assert targets != Targets([0, 2])  # type: ignore[arg-type]


def test_a_training_report_is_a_value() -> None:
    losses = [2.0, 1.0]
    report = TrainingReport(10, 320, losses)  # type: ignore[arg-type]
    losses.clear()
    assert report == TrainingReport(10, 320, (2.0, 1.0))
    assert (report.steps, report.examples, report.losses) == (10, 320, (2.0, 1.0))


# What a query is compared with


def test_documents_of_others_follow_the_own() -> None:
    targets = Targets(np.array([0, 2, 3]), others=2)
    assert (len(targets), targets.columns) == (3, 5)
    np.testing.assert_array_equal(targets.own_pairs, [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    assert targets.compared_pairs.all()
    np.testing.assert_array_equal(Targets(np.array([0, 2, 3]), compared="own").compared_pairs, [[1, 1, 0], [0, 0, 1]])


def test_what_is_excluded_is_not_compared() -> None:
    excluded = np.array([[False, False, True], [False, True, False]])
    compared = Targets(np.array([0, 2, 3]), excluded=excluded).compared_pairs
    np.testing.assert_array_equal(compared, ~excluded)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"excluded": np.zeros((2, 4), bool)}, "shape"),
        ({"excluded": np.zeros((2, 3), int)}, "int64"),
        ({"excluded": np.ones((2, 3), bool)}, "positive"),
        ({"others": -1}, "others"),
        ({"compared": "some"}, "compared"),
    ],
)
def test_masks_that_fit_no_batch_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidExample, match=told):
        Targets(np.array([0, 2, 3]), **wrong)


def test_a_mask_cannot_be_changed_from_outside() -> None:
    given = np.zeros((1, 2), bool)
    targets = Targets(np.array([0, 2]), excluded=given)
    given[0, 1] = True
    assert targets.compared_pairs.all()


keys = st.integers(0, 4)


@given(st.data())
def test_false_negatives_are_what_they_are_said_to_be(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    others = data.draw(st.integers(0, 3))
    groups, own = offsets_of(sizes), sum(sizes)
    queries = data.draw(st.lists(keys, min_size=len(sizes), max_size=len(sizes)))
    documents = data.draw(st.lists(keys, min_size=own + others, max_size=own + others))
    answered = np.full(own + others, -1)
    answered[groups[:-1]] = queries
    answered[own:] = data.draw(st.lists(keys | st.just(-1), min_size=others, max_size=others))
    found = false_negatives(queries, documents, answered, groups)
    for query, positive in enumerate(groups[:-1]):
        for column in range(groups[-1] + others):
            same_document = documents[column] == documents[positive]
            answers_it = answered[column] == queries[query]
            assert found[query, column] == (column != positive and (same_document or answers_it))


def test_a_negative_that_a_teacher_puts_near_the_positive_is_none() -> None:
    found = beyond_margin([5.0, 4.5, 3.0, 1.0, 0.5], np.array([0, 3, 5]), 1.0)
    np.testing.assert_array_equal(found, [False, True, False, False, True])
