"""What losses and trainers promise: a scalar that knows no order, and a run that sees every example once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import strategies as st

from lateinteraction.domain.embeddings import A, offsets_of
from lateinteraction.domain.errors import InvalidExample
from lateinteraction.domain.evaluation import Report
from lateinteraction.domain.ports import Encoder, Loss, Trainer
from lateinteraction.domain.text import Document, DocumentId, Query, QueryId
from lateinteraction.domain.training import Targets, TrainingExample
from lateinteraction.testing import strategies
from lateinteraction.testing.contracts.checks import Conversions, Embeddings, Floats, chosen, holds_for, packed
from lateinteraction.testing.sources import ListedExamples

_batches = strategies.grouped_embeddings(queries=(1, 4), group=(2, 3), each=(1, 4))
_DIRECTIONS = np.eye(4, dtype=np.float32)


class LossContract(Conversions[A]):
    """Every `Loss`."""

    tolerance: float = 1e-5
    """Of losses, relative above 1 and absolute below."""
    needs_teacher: bool = False
    """Whether the loss learns from a teacher's scores."""

    def make_loss(self) -> Loss[A]:
        """The loss, ready to use."""
        raise NotImplementedError

    def loss_of(
        self, queries: Embeddings, documents: Embeddings, lengths: Sequence[int], teacher: Floats | None = None
    ) -> float:
        """The loss of a batch in which query i owns the next lengths[i] documents, the positive first."""
        groups = offsets_of(lengths)
        if self.needs_teacher and teacher is None:
            teacher = _teacher_of(lengths)
        targets = Targets(groups, self.tensor(teacher) if self.needs_teacher and teacher is not None else None)
        value = self.make_loss()(self.given(queries), self.given(documents), targets)
        assert tuple(value.shape) == ()
        return float(self.array(value))

    @holds_for(_batches)
    def test_a_loss_is_one_finite_number(self, batch: Any) -> None:
        queries, documents, groups = batch
        assert math.isfinite(self.loss_of(queries, documents, np.diff(groups)))

    @holds_for(_batches, st.randoms(use_true_random=False))
    def test_the_order_of_the_batch_does_not_matter(self, batch: Any, random: Any) -> None:
        queries, documents, groups = batch
        order = list(range(len(queries)))
        random.shuffle(order)
        columns = [column for query in order for column in range(groups[query], groups[query + 1])]
        teacher = _teacher_of(np.diff(groups))
        there = self.loss_of(queries, documents, np.diff(groups), teacher)
        back = self.loss_of(
            chosen(queries, order), chosen(documents, columns), np.diff(groups)[order], teacher[columns]
        )
        assert math.isclose(there, back, rel_tol=self.tolerance, abs_tol=self.tolerance)

    def test_better_embeddings_have_a_lower_loss(self) -> None:
        queries = packed([[[1, 0, 0, 0]], [[0, 1, 0, 0]]], 4)
        right = packed([[row] for row in _DIRECTIONS[[0, 2, 1, 3]].astype(float)], 4)
        wrong = packed([[row] for row in _DIRECTIONS[[2, 0, 3, 1]].astype(float)], 4)
        assert self.loss_of(queries, right, [2, 2]) < self.loss_of(queries, wrong, [2, 2])

    def test_an_empty_negative_leaves_the_loss_finite(self) -> None:
        queries = packed([[[1, 0]], [[0, 1]]], 2)
        documents = packed([[[1, 0]], [], [[0.5, 0]], [[0, 1]], [[1, 0]], [[0.5, 0.5]]], 2)
        assert math.isfinite(self.loss_of(queries, documents, [3, 3]))

    def test_an_empty_positive_is_refused(self) -> None:
        if self.needs_teacher:
            return
        queries, documents = packed([[[1, 0]]], 2), packed([[], [[1, 0]]], 2)
        with pytest.raises(InvalidExample):
            self.loss_of(queries, documents, [2])


class TrainerContract(Conversions[A]):
    """Every `Trainer`."""

    def make_trainer(self) -> Trainer[Any, Any, A]:
        """A new trainer that goes through the examples once and calls `watch` at least once."""
        raise NotImplementedError

    def make_model(self) -> Any:
        """A model that the trainer can fit."""
        raise NotImplementedError

    def make_loss(self) -> Any:
        """A loss that the trainer can lower, and that needs no teacher."""
        raise NotImplementedError

    def encoder_of(self, model: Any) -> Encoder[A]:
        """The encoder of such a model; a model that is one is its own."""
        return cast("Encoder[A]", model)

    def test_every_example_is_seen(self) -> None:
        report = self.make_trainer().fit(self.make_model(), self.make_loss(), [_examples("a", 5)])
        assert report.examples == 5
        assert report.steps >= 1

    def test_examples_of_all_sources_are_seen(self) -> None:
        sources = [_examples("a", 3), _examples("b", 2)]
        assert self.make_trainer().fit(self.make_model(), self.make_loss(), sources).examples == 5

    def test_losses_are_reported_and_finite(self) -> None:
        report = self.make_trainer().fit(self.make_model(), self.make_loss(), [_examples("a", 4)])
        assert report.losses
        assert all(map(math.isfinite, report.losses))

    def test_the_watch_is_given_an_encoder_that_encodes(self) -> None:
        lengths: list[int] = []

        def watch(encoder: Encoder[A]) -> Report:
            lengths.append(len(encoder.encode_queries([Query("late interaction")])))
            return Report(["MRR@10"], [QueryId("q")], [[1.0]])

        self.make_trainer().fit(self.make_model(), self.make_loss(), [_examples("a", 4)], watch)
        assert lengths
        assert set(lengths) == {1}

    def test_the_model_still_encodes_afterwards(self) -> None:
        model = self.make_model()
        self.make_trainer().fit(model, self.make_loss(), [_examples("a", 2)])
        embeddings = self.encoder_of(model).encode_queries([Query("late"), Query("interaction")])
        assert len(embeddings) == 2


def _examples(name: str, count: int) -> ListedExamples:
    examples = [
        TrainingExample(
            Query(f"question {row}"),
            [
                Document(DocumentId(f"{name}{row}+"), f"the answer to question {row}"),
                Document(DocumentId(f"{name}{row}-"), "something else"),
            ],
        )
        for row in range(count)
    ]
    return ListedExamples(name, examples)


def _teacher_of(lengths: Sequence[int] | Floats) -> Floats:
    """1 for each positive and 0 for the rest."""
    scores = np.zeros(int(np.sum(lengths)), dtype=np.float32)
    scores[offsets_of(lengths)[:-1]] = 1
    return scores
