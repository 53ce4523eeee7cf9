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

from lateinteraction.domain.errors import InvalidEmbeddings, InvalidExample
from lateinteraction.domain.text import Document, Query
from lateinteraction.domain.training import Targets, TrainingExample, TrainingReport
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
