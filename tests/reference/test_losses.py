"""Losses: their values, their gradients, and what leaves them unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidExample, InvalidOption
from lateinteraction.domain.reference import AS_IS, PYLATE_STUDENT, Softening
from lateinteraction.domain.training import Targets

Floats = NDArray[np.floating]
Differences = Callable[[Callable[[Floats], float], Floats], Floats]
seeds = st.integers(0, 2**32 - 1)
temperatures = st.sampled_from([0.25, 1.0, 3.0])
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
"""Documents of each query."""
with_negatives = st.lists(st.integers(2, 4), min_size=1, max_size=4)
softenings = st.builds(
    Softening, temperature=temperatures, normalisation=st.sampled_from(["none", "minmax", "standardise"])
)


def matrix(sizes: list[int], seed: int) -> tuple[Floats, Targets[Floats]]:
    """Scores (Q, N) of every query with every document."""
    scores = np.random.default_rng(seed).standard_normal((len(sizes), sum(sizes)))
    return scores, Targets(offsets_of(sizes))


def lists(sizes: list[int], seed: int) -> tuple[Floats, Targets[Floats]]:
    """Scores (N,) of each document with its own query, and a teacher's."""
    scores, teacher = np.random.default_rng(seed).standard_normal((2, sum(sizes)))
    return scores, Targets(offsets_of(sizes), teacher)


# InfoNCE


def test_equal_scores_cost_the_logarithm_of_their_number() -> None:
    loss, gradient = reference.contrastive(np.zeros((2, 4)), Targets(np.array([0, 1, 4])))
    assert loss == pytest.approx(math.log(4))
    np.testing.assert_allclose(gradient, np.array([[-0.75, 0.25, 0.25, 0.25], [0.25, -0.75, 0.25, 0.25]]) / 2)


@given(sizes, seeds, temperatures)
def test_contrastive_is_the_cross_entropy_of_the_positives(sizes: list[int], seed: int, temperature: float) -> None:
    scores, targets = matrix(sizes, seed)
    log_p = scipy.special.log_softmax(scores / temperature, axis=1)
    expected = -np.mean([log_p[i, positive] for i, positive in enumerate(targets.positives)])
    assert reference.contrastive(scores, targets, temperature)[0] == pytest.approx(expected, rel=1e-12)


@given(sizes, seeds, temperatures)
def test_contrastive_gradient_is_its_slope(
    central_differences: Differences, sizes: list[int], seed: int, temperature: float
) -> None:
    scores, targets = matrix(sizes, seed)
    slopes = central_differences(lambda moved: reference.contrastive(moved, targets, temperature)[0], scores)
    np.testing.assert_allclose(reference.contrastive(scores, targets, temperature)[1], slopes, atol=1e-8)


@given(sizes, seeds)
def test_contrastive_gradient_of_each_query_sums_to_0(sizes: list[int], seed: int) -> None:
    _, gradient = reference.contrastive(*matrix(sizes, seed))
    np.testing.assert_allclose(gradient.sum(axis=1), 0.0, atol=1e-12)


@given(sizes, seeds)
def test_contrastive_does_not_depend_on_the_order_of_the_queries(sizes: list[int], seed: int) -> None:
    scores, targets = matrix(sizes, seed)
    order = np.random.default_rng(seed).permutation(len(sizes))
    columns = np.concatenate([np.arange(targets.groups[i], targets.groups[i + 1]) for i in order])
    moved = Targets(offsets_of(np.array(sizes)[order]))
    loss, gradient = reference.contrastive(scores, targets)
    moved_loss, moved_gradient = reference.contrastive(scores[order][:, columns], moved)
    assert moved_loss == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(moved_gradient, gradient[order][:, columns], rtol=1e-12)


def test_large_scores_and_small_temperatures_stay_finite() -> None:
    loss, gradient = reference.contrastive(np.array([[30.0, 32.0]]), Targets(np.array([0, 2])), 1e-3)
    assert loss == pytest.approx(2000.0)
    np.testing.assert_allclose(gradient, [[-1000.0, 1000.0]])


def test_an_empty_negative_is_as_if_it_were_not_there() -> None:
    targets, fewer = Targets(np.array([0, 3])), Targets(np.array([0, 2]))
    loss, gradient = reference.contrastive(np.array([[1.0, -np.inf, 2.0]]), targets)
    expected, expected_gradient = reference.contrastive(np.array([[1.0, 2.0]]), fewer)
    assert loss == pytest.approx(expected)
    np.testing.assert_allclose(gradient, np.insert(expected_gradient, 1, 0.0, axis=1))


# Distillation


def test_distillation_worked_out_by_hand() -> None:
    teacher = np.log([0.75, 0.25])
    loss, gradient = reference.distillation(np.zeros(2), Targets(np.array([0, 2]), teacher))
    assert loss == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    np.testing.assert_allclose(gradient, [-0.25, 0.25])


@given(sizes, seeds, temperatures, temperatures)
def test_distillation_is_the_mean_divergence_of_the_softmaxes(
    sizes: list[int], seed: int, own: float, given_: float
) -> None:
    scores, targets = lists(sizes, seed)
    divergences = []
    for first, last in zip(targets.groups[:-1], targets.groups[1:], strict=True):
        teacher = scipy.special.softmax(targets.teacher[first:last] / given_)
        student = scipy.special.softmax(scores[first:last] / own)
        divergences.append(own**2 * scipy.special.rel_entr(teacher, student).sum())
    loss, _ = reference.distillation(
        scores, targets, student=Softening(temperature=own), teacher=Softening(temperature=given_)
    )
    assert loss == pytest.approx(np.mean(divergences), rel=1e-9, abs=1e-12)


@given(sizes, seeds, softenings, softenings)
def test_distillation_gradient_is_its_slope(
    central_differences: Differences, sizes: list[int], seed: int, student: Softening, teacher: Softening
) -> None:
    scores, targets = lists(sizes, seed)
    spreads = [np.ptp(own) for own in np.split(scores, targets.groups[1:-1]) if len(own) > 1]
    gaps = [np.diff(np.sort(own)).min() for own in np.split(scores, targets.groups[1:-1]) if len(own) > 1]
    assume(min(spreads, default=1.0) > 0.3 and min(gaps, default=1.0) > 1e-3)  # away from the kinks of min and max

    def loss(moved: Floats) -> float:
        return reference.distillation(moved, targets, student=student, teacher=teacher)[0]

    _, gradient = reference.distillation(scores, targets, student=student, teacher=teacher)
    np.testing.assert_allclose(gradient, central_differences(loss, scores), rtol=1e-6, atol=1e-7)


@given(sizes, seeds, softenings)
def test_a_student_that_agrees_has_nothing_to_learn(sizes: list[int], seed: int, softening: Softening) -> None:
    scores, _ = lists(sizes, seed)
    loss, gradient = reference.distillation(
        scores, Targets(offsets_of(sizes), scores), student=softening, teacher=softening
    )
    assert loss == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


@given(sizes, seeds, softenings, softenings)
def test_the_divergence_is_never_negative(sizes: list[int], seed: int, student: Softening, teacher: Softening) -> None:
    assert reference.distillation(*lists(sizes, seed), student=student, teacher=teacher)[0] >= -1e-12


@pytest.mark.parametrize("normalisation", ["minmax", "standardise"])
@given(sizes, seeds, st.sampled_from([0.5, 2.0, 10.0]), st.sampled_from([-3.0, 0.0, 7.0]))
def test_normalised_students_do_not_depend_on_scale_and_offset(
    normalisation: reference.losses.Normalisation, sizes: list[int], seed: int, scale: float, offset: float
) -> None:
    scores, targets = lists(sizes, seed)
    student = Softening(normalisation=normalisation)
    loss, gradient = reference.distillation(scores, targets, student=student)
    moved_loss, moved_gradient = reference.distillation(scale * scores + offset, targets, student=student)
    assert moved_loss == pytest.approx(loss, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(scale * moved_gradient, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("normalisation", ["minmax", "standardise"])
def test_equal_scores_normalise_to_a_uniform_distribution_without_gradient(normalisation: str) -> None:
    """0.1 three times: their mean is not 0.1 in float64, so a standard deviation alone would not be 0."""
    targets = Targets(np.array([0, 3]), np.array([1.0, 2.0, 3.0]))
    loss, gradient = reference.distillation(np.full(3, 0.1), targets, student=Softening(normalisation=normalisation))
    expected, _ = reference.distillation(np.zeros(3), targets)
    assert loss == pytest.approx(expected)
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_minmax_maps_the_extremes_to_0_and_1() -> None:
    targets = Targets(np.array([0, 3]), np.zeros(3))
    loss, _ = reference.distillation(np.array([4.0, 6.0, 8.0]), targets, student=Softening(normalisation="minmax"))
    expected, _ = reference.distillation(np.array([0.0, 0.5, 1.0]), targets)
    assert loss == pytest.approx(expected)


def test_the_first_of_equal_extremes_carries_their_gradient() -> None:
    targets = Targets(np.array([0, 4]), np.array([3.0, 1.0, 2.0, 0.0]))
    student = Softening(normalisation="minmax")
    _, gradient = reference.distillation(np.array([1.0, 1.0, 0.0, 0.0]), targets, student=student)
    p_student = scipy.special.softmax([1.0, 1.0, 0.0, 0.0])
    direct = p_student - scipy.special.softmax(targets.teacher)
    pull = direct[:2].sum()
    np.testing.assert_allclose(gradient, direct + np.array([-pull, 0.0, pull, 0.0]))


def test_pylates_epsilon_makes_equal_scores_pass_a_gradient_of_1e8() -> None:
    targets = Targets(np.array([0, 2]), np.array([1.0, 0.0]))
    _, gradient = reference.distillation(np.array([0.5, 0.5]), targets, student=PYLATE_STUDENT)
    assert np.abs(gradient).max() > 1e7


@pytest.mark.parametrize(
    "softening", [AS_IS, Softening(normalisation="minmax"), Softening(normalisation="standardise")]
)
def test_an_empty_document_drops_out_of_both_distributions(softening: Softening) -> None:
    targets = Targets(np.array([0, 4]), np.array([1.0, 9.0, 2.0, 3.0]))
    fewer = Targets(np.array([0, 3]), np.array([1.0, 2.0, 3.0]))
    loss, gradient = reference.distillation(
        np.array([1.0, -np.inf, 2.0, 5.0]), targets, student=softening, teacher=softening
    )
    expected, expected_gradient = reference.distillation(
        np.array([1.0, 2.0, 5.0]), fewer, student=softening, teacher=softening
    )
    assert loss == pytest.approx(expected)
    np.testing.assert_allclose(gradient, np.insert(expected_gradient, 1, 0.0))


# Margins


def test_margin_mse_worked_out_by_hand() -> None:
    scores, teacher = np.array([3.0, 1.0, 2.0, 5.0, 1.0]), np.array([1.0, 0.0, 0.0, 2.0, 0.0])
    loss, gradient = reference.margin_mse(scores, Targets(np.array([0, 3, 5]), teacher))
    # Errors: 2 − 1, 1 − 1 and 4 − 2; two queries.
    assert loss == ((1 + 0) / 2 + 4) / 2
    np.testing.assert_array_equal(gradient, [0.5, -0.5, 0.0, 2.0, -2.0])


@given(with_negatives, seeds, st.sampled_from([0.5, 1.0, 2.0]))
def test_margin_mse_gradient_is_its_slope(
    central_differences: Differences, sizes: list[int], seed: int, scale: float
) -> None:
    scores, targets = lists(sizes, seed)
    slopes = central_differences(lambda moved: reference.margin_mse(moved, targets, scale)[0], scores)
    np.testing.assert_allclose(reference.margin_mse(scores, targets, scale)[1], slopes, atol=1e-7)


@given(with_negatives, seeds, st.sampled_from([0.5, 2.0]))
def test_only_margins_matter(sizes: list[int], seed: int, scale: float) -> None:
    _, targets = lists(sizes, seed)
    level = np.repeat(np.random.default_rng(seed).standard_normal(len(sizes)), sizes)
    loss, gradient = reference.margin_mse(scale * targets.teacher + level, targets, scale)
    assert loss == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def test_an_empty_negative_has_no_margin() -> None:
    scores, teacher = np.array([3.0, -np.inf, 2.0]), np.array([1.0, 0.0, 0.5])
    loss, gradient = reference.margin_mse(scores, Targets(np.array([0, 3]), teacher))
    assert loss == 0.25
    np.testing.assert_array_equal(gradient, [1.0, 0.0, -1.0])


# Down to the tokens


@st.composite
def smooth(draw: st.DrawFn) -> tuple[TokenEmbeddings[Floats], TokenEmbeddings[Floats], Offsets]:
    """Queries, documents of theirs, and groups; no document is empty and no winner is near another token."""
    generator = np.random.default_rng(draw(seeds))
    groups = offsets_of(draw(st.lists(st.integers(2, 3), min_size=1, max_size=2)))
    lengths = st.integers(1, 3)
    counts = [draw(st.lists(lengths, min_size=n, max_size=n)) for n in (len(groups) - 1, int(groups[-1]))]
    width = draw(st.integers(1, 3))
    queries, documents = (
        TokenEmbeddings(generator.standard_normal((sum(each), width)), offsets_of(each)) for each in counts
    )
    for document in documents:
        found = np.sort(queries.tokens @ document.T, axis=1)
        assume(np.diff(found, axis=1).min(initial=1.0) > 1e-3)
    return queries, documents, groups


@given(smooth(), temperatures)
def test_gradients_reach_the_tokens_through_maxsim(
    central_differences: Differences,
    batch: tuple[TokenEmbeddings[Floats], TokenEmbeddings[Floats], Offsets],
    temperature: float,
) -> None:
    queries, documents, groups = batch
    targets = Targets(groups)

    def loss(query_tokens: Floats, document_tokens: Floats) -> tuple[float, Floats, Floats]:
        return reference.through_maxsim(
            lambda scores: reference.contrastive(scores, targets, temperature),
            TokenEmbeddings(query_tokens, queries.offsets),
            TokenEmbeddings(document_tokens, documents.offsets),
        )

    _, grad_queries, grad_documents = loss(queries.tokens, documents.tokens)
    slopes = central_differences(lambda tokens: loss(tokens, documents.tokens)[0], queries.tokens)
    np.testing.assert_allclose(grad_queries, slopes, rtol=1e-6, atol=1e-7)
    slopes = central_differences(lambda tokens: loss(queries.tokens, tokens)[0], documents.tokens)
    np.testing.assert_allclose(grad_documents, slopes, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", [reference.distillation, reference.margin_mse])
@given(smooth(), seeds)
def test_gradients_reach_the_tokens_of_each_querys_own_documents(
    central_differences: Differences,
    loss: Callable[[Floats, Targets[Floats]], tuple[float, Floats]],
    batch: tuple[TokenEmbeddings[Floats], TokenEmbeddings[Floats], Offsets],
    seed: int,
) -> None:
    queries, documents, groups = batch
    targets = Targets(groups, np.random.default_rng(seed).standard_normal(len(documents)))

    def through(query_tokens: Floats, document_tokens: Floats) -> tuple[float, Floats, Floats]:
        return reference.through_maxsim_grouped(
            lambda scores: loss(scores, targets),
            TokenEmbeddings(query_tokens, queries.offsets),
            TokenEmbeddings(document_tokens, documents.offsets),
            groups,
        )

    _, grad_queries, grad_documents = through(queries.tokens, documents.tokens)
    slopes = central_differences(lambda tokens: through(tokens, documents.tokens)[0], queries.tokens)
    np.testing.assert_allclose(grad_queries, slopes, rtol=1e-5, atol=1e-6)
    slopes = central_differences(lambda tokens: through(queries.tokens, tokens)[0], documents.tokens)
    np.testing.assert_allclose(grad_documents, slopes, rtol=1e-5, atol=1e-6)


# Edges and errors

none = Targets(np.array([0]), np.empty(0))
one = Targets(np.array([0, 2]), np.array([1.0, 0.0]))


def test_a_batch_without_queries_costs_nothing() -> None:
    assert reference.contrastive(np.empty((0, 0)), none)[0] == 0.0
    assert reference.distillation(np.empty(0), none)[0] == 0.0
    assert reference.margin_mse(np.empty(0), none)[0] == 0.0


def test_gradients_are_float32_unless_scores_are_float64() -> None:
    for dtype, expected in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        assert reference.contrastive(np.zeros((1, 2), dtype), one)[1].dtype == expected
        assert reference.distillation(np.zeros(2, dtype), one)[1].dtype == expected
        assert reference.margin_mse(np.zeros(2, dtype), one)[1].dtype == expected


unlabelled, unfinished = Targets(np.array([0, 2])), Targets(np.array([0, 2]), np.array([1.0, np.nan]))
bad_examples = {
    "scores of another batch": lambda: reference.contrastive(np.zeros((2, 2)), one),
    "a matrix for lists": lambda: reference.distillation(np.zeros((1, 2)), one),
    "an empty positive": lambda: reference.contrastive(np.array([[-np.inf, 1.0]]), one),
    "an empty positive with a margin": lambda: reference.margin_mse(np.array([-np.inf, 1.0]), one),
    "only empty documents": lambda: reference.distillation(np.full(2, -np.inf), one),
    "only empty negatives": lambda: reference.margin_mse(np.array([1.0, -np.inf]), one),
    "no negative": lambda: reference.margin_mse(np.zeros(1), Targets(np.array([0, 1]), np.zeros(1))),
    "no teacher": lambda: reference.distillation(np.zeros(2), unlabelled),
    "no teacher of margins": lambda: reference.margin_mse(np.zeros(2), unlabelled),
    "a teacher that says NaN": lambda: reference.distillation(np.zeros(2), unfinished),
}
bad_options = {
    "temperature 0": lambda: Softening(temperature=0.0),
    "infinite temperature": lambda: Softening(temperature=math.inf),
    "unknown normalisation": lambda: Softening(normalisation="softmax"),
    "negative epsilon": lambda: Softening(epsilon=-1e-8),
    "negative contrastive temperature": lambda: reference.contrastive(np.zeros((1, 2)), one, -1.0),
    "teacher scale 0": lambda: reference.margin_mse(np.zeros(2), one, 0.0),
}


@pytest.mark.parametrize("what", bad_examples)
def test_examples_without_a_loss_are_refused(what: str) -> None:
    with pytest.raises(InvalidExample):
        bad_examples[what]()


@pytest.mark.parametrize("what", bad_options)
def test_options_out_of_range_are_refused(what: str) -> None:
    with pytest.raises(InvalidOption):
        bad_options[what]()


# What is compared


@given(sizes, seeds, temperatures, st.booleans(), st.booleans(), st.integers(0, 2))
def test_contrastive_gradient_is_its_slope_whatever_is_compared(
    central_differences: Differences,
    sizes: list[int],
    seed: int,
    temperature: float,
    own: bool,
    both: bool,
    more: int,
) -> None:
    generator = np.random.default_rng(seed)
    groups = offsets_of(sizes)
    excluded = generator.random((len(sizes), groups[-1] + more)) < 0.3
    excluded[np.arange(len(sizes)), groups[:-1]] = False
    targets = Targets(groups, others=more, excluded=excluded)
    scores = generator.standard_normal(excluded.shape)

    def loss(moved: Floats) -> tuple[float, Floats]:
        return reference.contrastive(moved, targets, temperature, own_negatives=own, symmetric=both)

    slopes = central_differences(lambda moved: loss(moved)[0], scores)
    np.testing.assert_allclose(loss(scores)[1], slopes, atol=1e-8)
    np.testing.assert_array_equal(loss(scores)[1][excluded], 0)


@given(sizes, seeds)
def test_what_is_not_compared_could_as_well_not_be_there(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = offsets_of(sizes)
    scores = generator.standard_normal((len(sizes), groups[-1] + 2))
    excluded = np.zeros(scores.shape, bool)
    excluded[:, groups[-1] :] = True
    masked, _ = reference.contrastive(scores, Targets(groups, others=2, excluded=excluded))
    assert masked == pytest.approx(reference.contrastive(scores[:, :-2], Targets(groups))[0], rel=1e-12)


def test_a_symmetric_loss_of_pairs_does_not_tell_queries_from_documents() -> None:
    scores = np.random.default_rng(0).standard_normal((4, 4))
    one, gradient = reference.contrastive(scores, Targets(np.arange(5)), symmetric=True)
    other, turned = reference.contrastive(scores.T, Targets(np.arange(5)), symmetric=True)
    assert one == pytest.approx(other, rel=1e-12)
    np.testing.assert_allclose(gradient, turned.T, atol=1e-15)


@given(sizes, seeds, st.floats(-1, 1))
def test_the_gradient_of_a_scale_is_its_slope(sizes: list[int], seed: int, logarithm: float) -> None:
    scores, targets = matrix(sizes, seed)

    def loss(at: float) -> tuple[float, Floats]:
        return reference.contrastive(scores * math.exp(at), targets)

    _, upstream = loss(logarithm)
    slope = (loss(logarithm + 1e-6)[0] - loss(logarithm - 1e-6)[0]) / 2e-6
    assert reference.temperature_gradient(scores * math.exp(logarithm), upstream) == pytest.approx(slope, abs=1e-7)
