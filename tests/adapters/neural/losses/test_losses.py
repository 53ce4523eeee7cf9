"""Losses over tensors are those of the reference, in value and in every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.neural.losses import (
    Contrastive,
    Distillation,
    LearnableTemperature,
    MarginMse,
    Matryoshka,
    MaxSim,
    Objective,
    PerSource,
    Pooled,
    Weighted,
    Xtr,
    learned_of,
)
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidExample, InvalidOption
from lateinteraction.domain.recipe import TokenPooling
from lateinteraction.domain.reference import Softening
from lateinteraction.domain.training import Targets

Floats = NDArray[np.floating]
Embeddings = TokenEmbeddings[Any]
ScoreLoss = Callable[[Floats, Targets[Floats]], tuple[float, Floats]]
WIDTH = 6
seeds = st.integers(0, 2**32 - 1)
groups_of = st.lists(st.integers(2, 4), min_size=1, max_size=4)
temperatures = st.sampled_from([0.05, 0.5, 1.0, 3.0])
softenings = st.builds(
    Softening, temperature=temperatures, normalisation=st.sampled_from(["none", "minmax", "standardise"])
)


class Drawn:
    """A batch in float64: queries and documents of ragged lengths, a teacher, masks. Some negatives have no token."""

    def __init__(self, sizes: list[int], seed: int, *, others: int = 0, masked: bool = False, least: int = 0) -> None:
        generator = np.random.default_rng(seed)
        groups = offsets_of(sizes)
        lengths = generator.integers(least, 5, groups[-1] + others)
        lengths[groups[:-1]] = generator.integers(1, 5, len(sizes))
        own = np.zeros((len(sizes), groups[-1] + others), bool)
        if masked:
            own = generator.random(own.shape) < 0.3
            own[np.arange(len(sizes)), groups[:-1]] = False
        self.queries = self._embedded(generator, generator.integers(1, 5, len(sizes)))
        self.documents = self._embedded(generator, lengths)
        self.teacher = generator.standard_normal(groups[-1])
        self.settings = {"others": others, "excluded": own if masked else None}
        self.groups = groups

    def _embedded(self, generator: np.random.Generator, lengths: Any) -> Embeddings:
        tokens = generator.standard_normal((int(sum(lengths)), WIDTH))
        return TokenEmbeddings(tokens / np.linalg.norm(tokens, axis=1, keepdims=True), offsets_of(lengths))

    def targets(self, **more: Any) -> Targets[Floats]:
        return Targets(self.groups, self.teacher, **(self.settings | more))

    def of_torch(self, loss: Objective, **more: Any) -> tuple[float, Floats, Floats]:
        """The loss and its gradients with respect to both sides' tokens."""
        sides = [torch.tensor(side.tokens, requires_grad=True) for side in (self.queries, self.documents)]
        targets = Targets(self.groups, torch.tensor(self.teacher), **(self.settings | more))
        value = loss(
            TokenEmbeddings(sides[0], self.queries.offsets), TokenEmbeddings(sides[1], self.documents.offsets), targets
        )
        assert value.shape == ()
        assert value.dtype == torch.float64
        value.backward()
        gradients = [torch.zeros_like(side) if side.grad is None else side.grad for side in sides]
        return float(value.detach()), gradients[0].numpy(), gradients[1].numpy()

    def of_matrix(self, loss: ScoreLoss, **more: Any) -> tuple[float, Floats, Floats]:
        targets = self.targets(**more)
        return reference.through_maxsim(lambda scores: loss(scores, targets), self.queries, self.documents)

    def of_lists(self, loss: ScoreLoss, **more: Any) -> tuple[float, Floats, Floats]:
        targets = self.targets(**more)
        own = self.documents.span(0, len(targets))
        value, left, right = reference.through_maxsim_grouped(
            lambda scores: loss(scores, targets), self.queries, own, self.groups
        )
        rest = np.zeros((len(self.documents.tokens) - len(right), WIDTH))
        return value, left, np.concatenate([right, rest])


def agree(found: tuple[float, Floats, Floats], expected: tuple[float, Floats, Floats]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-10, abs=1e-12)
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


batches = st.builds(Drawn, groups_of, seeds, others=st.integers(0, 3), masked=st.booleans())
graded = st.builds(Drawn, groups_of, seeds, others=st.integers(0, 2), least=st.just(1))


@given(batches, temperatures, st.booleans(), st.booleans(), st.sampled_from(["own", "all"]))
def test_contrastive_is_the_reference(
    drawn: Drawn, temperature: float, own: bool, symmetric: bool, compared: str
) -> None:
    loss = Contrastive(temperature=temperature, own_negatives=own, symmetric=symmetric)

    def meant(scores: Floats, targets: Targets[Floats]) -> tuple[float, Floats]:
        return reference.contrastive(scores, targets, temperature, own_negatives=own, symmetric=symmetric)

    agree(drawn.of_torch(loss, compared=compared), drawn.of_matrix(meant, compared=compared))


@given(batches, softenings, softenings)
def test_distillation_is_the_reference(drawn: Drawn, student: Softening, teacher: Softening) -> None:
    def meant(scores: Floats, targets: Targets[Floats]) -> tuple[float, Floats]:
        return reference.distillation(scores, targets, student=student, teacher=teacher)

    agree(drawn.of_torch(Distillation(student=student, teacher=teacher)), drawn.of_lists(meant))


@given(graded, st.sampled_from([0.5, 1.0, 4.0]))
def test_margin_mse_is_the_reference(drawn: Drawn, scale: float) -> None:
    def meant(scores: Floats, targets: Targets[Floats]) -> tuple[float, Floats]:
        return reference.margin_mse(scores, targets, scale)

    agree(drawn.of_torch(MarginMse(teacher_scale=scale)), drawn.of_lists(meant))


@given(batches)
def test_pylates_preset_is_pylates_formula(drawn: Drawn) -> None:
    def meant(scores: Floats, targets: Targets[Floats]) -> tuple[float, Floats]:
        return reference.distillation(scores, targets, student=reference.PYLATE_STUDENT)

    agree(drawn.of_torch(Distillation.pylate()), drawn.of_lists(meant))


@given(graded, st.integers(1, 40))
def test_xtr_is_the_reference(drawn: Drawn, k: int) -> None:
    found = drawn.of_torch(Contrastive(interaction=Xtr(k=k)))
    targets = drawn.targets()
    scores = reference.xtr_all_pairs(drawn.queries, drawn.documents, k)
    value, upstream = reference.contrastive(scores, targets)
    agree(found, (value, *reference.xtr_gradients(drawn.queries, drawn.documents, k, upstream)))


@given(graded)
def test_more_tokens_than_there_are_may_be_asked_of_xtr(drawn: Drawn) -> None:
    everything = len(drawn.documents.tokens)
    assert drawn.of_torch(Contrastive(interaction=Xtr(k=10**6)))[0] == pytest.approx(
        drawn.of_torch(Contrastive(interaction=Xtr(k=everything)))[0]
    )
    assert math.isfinite(drawn.of_torch(Distillation(interaction=Xtr(share=1e-6)))[0])


@given(batches, temperatures)
def test_a_mean_is_a_sum_at_another_temperature(drawn: Drawn, temperature: float) -> None:
    lengths = drawn.queries.lengths
    assume(len(set(lengths)) == 1)
    agree(
        drawn.of_torch(Contrastive(temperature=temperature, interaction=MaxSim(mean=True))),
        drawn.of_torch(Contrastive(temperature=temperature * float(lengths[0]))),
    )


@given(batches)
def test_a_mean_is_over_each_querys_own_tokens(drawn: Drawn) -> None:
    def meant(scores: Floats, targets: Targets[Floats]) -> tuple[float, Floats]:
        counts = drawn.queries.lengths[:, None]
        value, upstream = reference.contrastive(scores / counts, targets)
        return value, upstream / counts

    agree(drawn.of_torch(Contrastive(interaction=MaxSim(mean=True))), drawn.of_matrix(meant))


@given(graded, temperatures, temperatures)
def test_a_weighted_sum_is_the_weighted_sum(drawn: Drawn, first: float, second: float) -> None:
    parts = [Distillation(), Contrastive(own_negatives=False)]
    both = drawn.of_torch(Weighted([(first, parts[0]), (second, parts[1])]))
    one, other = (drawn.of_torch(part) for part in parts)
    agree(both, tuple(first * a + second * b for a, b in zip(one, other, strict=True)))


@given(batches)
def test_matryoshka_is_the_loss_of_cut_tokens_that_are_unit_vectors_again(drawn: Drawn) -> None:
    def cut(embeddings: Embeddings, dimension: int) -> Embeddings:
        tokens = torch.tensor(embeddings.tokens)[:, :dimension]
        return TokenEmbeddings(tokens / tokens.norm(dim=1, keepdim=True), embeddings.offsets)

    targets = Targets(drawn.groups, **drawn.settings)
    expected = sum(
        weight * Contrastive()(cut(drawn.queries, dimension), cut(drawn.documents, dimension), targets)
        for weight, dimension in ((2.0, 6), (0.5, 3))
    )
    loss = Matryoshka(Contrastive(), (6, 3), (2.0, 0.5))
    assert drawn.of_torch(loss)[0] == pytest.approx(float(expected.detach()), rel=1e-10)


@given(graded)
def test_documents_are_pooled_before_they_are_scored(drawn: Drawn) -> None:
    pooling = TokenPooling(factor=2, protected=1)
    value, _, right = drawn.of_torch(Pooled(Contrastive(), pooling))
    drawn.documents = reference.pool(drawn.documents, pooling.factor, protected=pooling.protected)
    assert value == pytest.approx(drawn.of_torch(Contrastive())[0], rel=1e-9)
    assert np.all(np.isfinite(right))


def test_each_source_has_its_own_loss_and_temperature() -> None:
    drawn = Drawn([2, 3], 0)
    loss = PerSource({"pairs": Contrastive(temperature={"pairs": 0.5}), "scored": Distillation()})
    agree(drawn.of_torch(loss, source="pairs"), drawn.of_torch(Contrastive(temperature=0.5)))
    agree(drawn.of_torch(loss, source="scored"), drawn.of_torch(Distillation()))
    for wrong in (None, "other"):
        with pytest.raises(InvalidOption, match=r"'pairs', 'scored'"):
            drawn.of_torch(loss, source=wrong)
        with pytest.raises(InvalidOption, match="temperatures for 'pairs'"):
            drawn.of_torch(Contrastive(temperature={"pairs": 0.5}), source=wrong)


@given(batches, st.sampled_from([0.02, 0.5, 2.0]))
def test_a_learned_temperature_has_the_gradient_of_the_reference(drawn: Drawn, initial: float) -> None:
    temperature = LearnableTemperature(initial).double()
    drawn.of_torch(Contrastive(temperature=temperature))
    scores = reference.maxsim_all_pairs(drawn.queries, drawn.documents)
    _, upstream = reference.contrastive(scores, drawn.targets(), initial)
    expected = reference.temperature_gradient(scores / initial, upstream * initial)
    assert float(temperature.scale.grad) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_learned_temperature_is_found_wherever_it_is_and_has_a_limit() -> None:
    temperature = LearnableTemperature(0.5)
    inner = Contrastive(temperature=temperature)
    nested = Weighted([(1, Matryoshka(inner, (4,))), (1, Pooled(PerSource({"a": inner}), TokenPooling(factor=2)))])
    assert learned_of(nested) == (temperature,)
    assert learned_of(Contrastive()) == ()
    with torch.no_grad():
        temperature.scale.fill_(1000)
    assert float(temperature().detach()) == pytest.approx(100)


# What is hard on a loss


LOSSES = {
    "contrastive": Contrastive(symmetric=True),
    "xtr": Contrastive(interaction=Xtr(k=2)),
    "distillation": Distillation(),
    "minmax": Distillation(student=Softening(normalisation="minmax"), teacher=Softening(normalisation="minmax")),
    "standardise": Distillation(student=Softening(normalisation="standardise")),
    "pylate": Distillation.pylate(),
    "margin": MarginMse(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_scores_leave_every_gradient_finite(name: str, dtype: torch.dtype) -> None:
    tokens = torch.ones(6, 4, dtype=dtype).div(2).requires_grad_()
    queries = TokenEmbeddings(tokens, offsets_of([3, 3]))
    documents = TokenEmbeddings(torch.ones(8, 4, dtype=dtype).div(2), offsets_of([2, 2, 2, 2]))
    value = LOSSES[name](queries, documents, Targets(np.array([0, 2, 4]), torch.zeros(4)))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(tokens.grad).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "margin"])
def test_one_document_and_one_query_are_a_batch(name: str) -> None:
    drawn = Drawn([1], 3)
    value, left, _ = drawn.of_torch(LOSSES[name])
    assert value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(left, 0, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_negative_without_tokens_has_no_part_in_anything(name: str) -> None:
    drawn = Drawn([3, 3], 5, least=1)
    lengths = drawn.documents.lengths.copy()
    first, last = drawn.documents.offsets[1:3]
    lengths[1] = 0
    drawn.documents = TokenEmbeddings(
        np.delete(drawn.documents.tokens, range(first, last), axis=0), offsets_of(lengths)
    )
    value, left, right = drawn.of_torch(LOSSES[name])
    assert math.isfinite(value)
    assert np.all(np.isfinite(left))
    assert np.all(np.isfinite(right))
    drawn.documents = TokenEmbeddings(drawn.documents.tokens, offsets_of(np.delete(lengths, 1)))
    drawn.groups, drawn.teacher = np.array([0, 2, 5]), np.delete(drawn.teacher, 1)
    agree((value, left, right), drawn.of_torch(LOSSES[name]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_positive_without_tokens_is_refused(name: str) -> None:
    documents = TokenEmbeddings(torch.ones(2, 4), offsets_of([0, 2]))
    targets = Targets(np.array([0, 2]), torch.zeros(2))
    with pytest.raises(InvalidExample):
        LOSSES[name](TokenEmbeddings(torch.ones(2, 4), offsets_of([2])), documents, targets)


@pytest.mark.parametrize("name", ["distillation", "margin"])
def test_a_loss_that_learns_from_a_teacher_asks_for_one(name: str) -> None:
    both = TokenEmbeddings(torch.ones(2, 4), offsets_of([1, 1]))
    with pytest.raises(InvalidExample, match="teacher"):
        LOSSES[name](both.span(0, 1), both, Targets(np.array([0, 2])))


def test_embeddings_of_another_batch_are_refused() -> None:
    both = TokenEmbeddings(torch.ones(2, 4), offsets_of([1, 1]))
    with pytest.raises(InvalidExample, match="1 queries and 2 documents"):
        Contrastive()(both.span(0, 1), both, Targets(np.array([0, 3])))


def test_a_margin_needs_a_negative() -> None:
    both = TokenEmbeddings(torch.ones(2, 4), offsets_of([1, 1]))
    with pytest.raises(InvalidExample, match="query 1 without a negative"):
        MarginMse()(
            TokenEmbeddings(torch.ones(2, 4), offsets_of([1, 1])),
            TokenEmbeddings(torch.ones(3, 4), offsets_of([1, 1, 1])),
            Targets(np.array([0, 2, 3]), torch.zeros(3)),
        )
    assert len(both) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Contrastive(temperature=0), lambda: Contrastive(temperature={"a": -1}),
        lambda: LearnableTemperature(0.001), lambda: Xtr(k=0), lambda: Xtr(share=0), lambda: Xtr(share=2),
        lambda: MarginMse(teacher_scale=0), lambda: Weighted([]), lambda: Weighted([(0, Contrastive())]),
        lambda: Matryoshka(Contrastive(), ()), lambda: Matryoshka(Contrastive(), (0,)),
        lambda: Matryoshka(Contrastive(), (4,), (1.0, 2.0)), lambda: Matryoshka(Contrastive(), (4,), (-1.0,)),
    ],
)  # fmt: skip
def test_settings_that_make_no_loss_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidOption):
        make()


def test_more_dimensions_than_there_are_cannot_be_cut() -> None:
    with pytest.raises(InvalidOption, match="at most 6"):
        Drawn([2], 0).of_torch(Matryoshka(Contrastive(), (8,)))


def test_settings_tell_losses_apart_and_are_json() -> None:
    import json

    losses = [
        Contrastive(), Contrastive(temperature=0.5), Contrastive(temperature={"a": 0.5}), Contrastive(symmetric=True),
        Contrastive(temperature=LearnableTemperature(0.5)), Contrastive(interaction=MaxSim(mean=True)),
        Contrastive(interaction=Xtr()), Distillation(), Distillation.pylate(), MarginMse(),
        Weighted([(1, Contrastive())]), PerSource({"a": Contrastive()}), Matryoshka(Contrastive(), (4,)),
        Pooled(Contrastive(), TokenPooling(factor=2)),
    ]  # fmt: skip
    assert len({json.dumps(loss.settings, sort_keys=True) for loss in losses}) == len(losses)
