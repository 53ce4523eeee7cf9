"""Training losses in plain NumPy: each gives its value and its hand-derived gradient with respect to the scores.

Values are computed in float64; gradients come back float32, or float64 where the scores are. An empty document
scores −∞: as a negative it drops out (gradient 0), as a positive it leaves no loss to compute and is an error.
Shapes: Q queries, N documents of the batch, S query tokens, T document tokens, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import Offsets
from lateinteraction.domain.errors import InvalidExample, InvalidOption
from lateinteraction.domain.reference.maxsim import (
    Embeddings,
    Floats,
    maxsim_all_pairs,
    maxsim_all_pairs_gradients,
    maxsim_grouped,
    maxsim_grouped_gradients,
    precision_of,
)
from lateinteraction.domain.training import Targets

Normalisation = Literal["none", "minmax", "standardise"]
ScoreLoss = Callable[[Floats], tuple[float, Floats]]


def _check_positive_number(name: str, number: float) -> None:
    if not (number > 0 and math.isfinite(number)):
        raise InvalidOption(f"{name} = {number!r}", "a finite number above 0", "1.0 changes nothing.")


@frozen(kw_only=True)
class Softening:
    """How the scores x of one query become a distribution: p = softmax(normalise(x) / temperature).

    Args:
        temperature: above 0.
        normalisation: `none`; `minmax`, (x − min) / (max − min + epsilon); `standardise`, (x − mean) / standard
            deviation, of the population. Scores that are all equal become zeros, and pass no gradient.
        epsilon: only of `minmax`. Above 0, equal scores do pass a gradient, 1/epsilon times too steep.

    Raises:
        InvalidOption: one of these out of range.
    """

    temperature: float = 1.0
    normalisation: Normalisation = "none"
    epsilon: float = 0.0

    def __attrs_post_init__(self) -> None:
        _check_positive_number("temperature", self.temperature)
        if self.normalisation not in ("none", "minmax", "standardise"):
            raise InvalidOption(
                f"normalisation = {self.normalisation!r}",
                "'none', 'minmax' or 'standardise'",
                "Choose one of the three.",
            )
        if not (self.epsilon >= 0 and math.isfinite(self.epsilon)):
            raise InvalidOption(f"epsilon = {self.epsilon!r}", "a finite number of at least 0", "0 is exact.")


AS_IS = Softening()
"""The softmax of the scores themselves."""

PYLATE_STUDENT = Softening(normalisation="minmax", epsilon=1e-8)
"""What PyLate 1.6 does to student scores by default; it leaves teacher scores alone."""


def contrastive(
    scores: Floats,
    targets: Targets[Floats],
    temperature: float = 1.0,
    *,
    own_negatives: bool = True,
    symmetric: bool = False,
) -> tuple[float, Floats]:
    """InfoNCE over the documents that queries are compared with: the loss, and its gradient (Q, N + others).

        L = 1/Q Σ_i [ −S_i,i+ / τ + log Σ_j exp(S_ij / τ) ]
        ∂L/∂S_ij = (p_ij − 1[j = i+]) / (τ Q),   p_i = softmax(S_i / τ) over the compared,   i+ the positive of query i

    As the targets have it by default, every document of another query, positives included, is a negative. van den Oord
    et al., arXiv 1807.03748, §2.3. A symmetric loss is the mean of this one and of that which has each positive find
    its query: the same with the columns of the positives for rows.

    Args:
        scores: (Q, N + others).
        targets: whose document is whose, and which are compared.
        temperature: τ, above 0.
        own_negatives: whether a query is compared with its own negatives.
        symmetric: whether positives are compared with all queries too.

    Raises:
        InvalidExample: scores of another shape than the targets, or a positive that scores −∞.
        InvalidOption: a temperature that is not above 0.
    """
    _check_scores(scores, (len(targets.positives), targets.columns))
    _check_positive_number("temperature", temperature)
    compared = targets.compared_pairs
    if not own_negatives:
        compared &= ~targets.own_pairs
        compared[np.arange(len(compared)), targets.positives] = True
    logits = np.where(compared, scores.astype(np.float64) / temperature, -np.inf)
    total, gradient = _cross_entropy(logits, targets.positives)
    if symmetric:
        backwards, columns = _cross_entropy(logits[:, targets.positives].T, np.arange(len(logits)))
        total, gradient = (total + backwards) / 2, gradient / 2
        gradient[:, targets.positives] += columns.T / 2
    return _mean_over_queries(total, gradient / temperature, scores, targets)


def temperature_gradient(scores: Floats, gradient: Floats) -> float:
    """∂L/∂s of a contrastive loss of scores that are multiplied by exp(s) = 1/τ: Σ_ij S_ij ∂L/∂S_ij; −∞ is left out.

    Args:
        scores: (Q, N + others), as the loss was given them.
        gradient: ∂L/∂S, as it gave it.
    """
    finite = np.isfinite(scores)
    return float(np.sum(scores[finite].astype(np.float64) * gradient[finite]))


def distillation(
    scores: Floats, targets: Targets[Floats], *, student: Softening = AS_IS, teacher: Softening = AS_IS
) -> tuple[float, Floats]:
    """KL divergence of the student's view of a query's own documents from the teacher's: the loss, its gradient (N,).

        L = 1/Q Σ_i τ_S² KL(p_T ‖ p_S),   p_T = softmax(n_T(z) / τ_T),   p_S = softmax(n_S(s) / τ_S)
        ∂L/∂n_S = τ_S (p_S − p_T) / Q,    then through the normalisation n_S

    Listwise distillation as in Santhanam et al. (ColBERTv2), NAACL 2022, §3.2; τ_S² keeps the gradient's size as
    the student's temperature changes (Hinton, Vinyals and Dean, arXiv 1503.02531, §2).

    Args:
        scores: (N,), s, each document with its own query.
        targets: whose document is whose, and the teacher's scores z.
        student: how s becomes a distribution.
        teacher: how z becomes one.

    Raises:
        InvalidExample: scores of another shape than the targets, no finite teacher score for each document, or
            a query whose documents all score −∞.
    """
    _check_scores(scores, (len(targets),))
    labels = _teacher_scores(targets)
    total, gradient = 0.0, np.zeros(scores.shape)
    for i, own in enumerate(_own_documents(scores, targets)):
        if not len(own):
            raise InvalidExample(f"query {i}, whose documents all score −∞", "one that kept a token", "Drop the query.")
        normalised = _normalise(scores[own].astype(np.float64), student)
        log_student = _log_softmax(normalised / student.temperature)
        log_teacher = _log_softmax(_normalise(labels[own], teacher) / teacher.temperature)
        total += student.temperature**2 * float(np.exp(log_teacher) @ (log_teacher - log_student))
        upstream = student.temperature * (np.exp(log_student) - np.exp(log_teacher))
        gradient[own] = _normalise_gradient(scores[own].astype(np.float64), normalised, student, upstream)
    return _mean_over_queries(total, gradient, scores, targets)


def margin_mse(scores: Floats, targets: Targets[Floats], teacher_scale: float = 1.0) -> tuple[float, Floats]:
    """Squared error of the margins between a query's positive and its negatives: the loss, and its gradient (N,).

        L = 1/Q Σ_i 1/K_i Σ_k e_ik²,   e_ik = (s_i+ − s_ik) − c (z_i+ − z_ik)
        ∂L/∂s_ik = −2 e_ik / (Q K_i),  ∂L/∂s_i+ = Σ_k 2 e_ik / (Q K_i)

    K_i negatives of query i; where all queries have as many, this is the mean over all margins of Hofstätter et
    al., arXiv 2010.02666.

    Args:
        scores: (N,), s, each document with its own query.
        targets: whose document is whose, and the teacher's scores z.
        teacher_scale: c, what brings the teacher's margins to the size of the student's.

    Raises:
        InvalidExample: scores of another shape than the targets, no finite teacher score for each document, a
            positive that scores −∞, or a query without a negative that scores more.
        InvalidOption: a teacher scale that is not above 0.
    """
    _check_scores(scores, (len(targets),))
    labels = _teacher_scores(targets)
    _check_positive_number("teacher_scale", teacher_scale)
    total, gradient = 0.0, np.zeros(scores.shape)
    for i, (positive, own) in enumerate(zip(targets.positives, _own_documents(scores, targets), strict=True)):
        _check_positive(float(scores[positive]), i)
        negatives = own[own != positive]
        if not len(negatives):
            raise InvalidExample(f"query {i} without a negative", "one that kept a token", "Give it one or drop it.")
        margins = float(scores[positive]) - scores[negatives].astype(np.float64)
        errors = margins - teacher_scale * (labels[positive] - labels[negatives])
        total += float(np.mean(errors**2))
        gradient[negatives] = -2.0 * errors / len(negatives)
        gradient[positive] = -gradient[negatives].sum()
    return _mean_over_queries(total, gradient, scores, targets)


def through_maxsim(loss: ScoreLoss, queries: Embeddings, documents: Embeddings) -> tuple[float, Floats, Floats]:
    """A loss of MaxSim scores (Q, N), and its gradients (S, D) and (T, D) with respect to the tokens.

    `loss` takes the scores and gives its value and gradient: `lambda scores: contrastive(scores, targets)`.
    """
    value, upstream = loss(maxsim_all_pairs(queries, documents))
    return value, *maxsim_all_pairs_gradients(queries, documents, upstream)


def through_maxsim_grouped(
    loss: ScoreLoss, queries: Embeddings, documents: Embeddings, groups: Offsets
) -> tuple[float, Floats, Floats]:
    """A loss of MaxSim scores (N,) of each document with its own query, and its gradients (S, D) and (T, D)."""
    value, upstream = loss(maxsim_grouped(queries, documents, groups))
    return value, *maxsim_grouped_gradients(queries, documents, groups, upstream)


def _cross_entropy(logits: NDArray[np.float64], positives: Offsets) -> tuple[float, NDArray[np.float64]]:
    """Σ_i −log softmax(logits_i) at i's positive, and its gradient."""
    total, gradient = 0.0, np.zeros(logits.shape)
    for i, positive in enumerate(positives):
        _check_positive(float(logits[i, positive]), i)
        log_p = _log_softmax(logits[i])
        total -= float(log_p[positive])
        gradient[i] = np.exp(log_p)
        gradient[i, positive] -= 1.0
    return total, gradient


def _mean_over_queries(
    total: float, gradient: NDArray[np.float64], scores: Floats, targets: Targets[Floats]
) -> tuple[float, Floats]:
    queries = max(len(targets.positives), 1)
    return float(total / queries), (gradient / queries).astype(precision_of(scores))


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max()
    return shifted - np.log(np.exp(shifted).sum())


def _normalise(values: NDArray[np.float64], softening: Softening) -> NDArray[np.float64]:
    if softening.normalisation == "none":
        return values
    spread = _spread(values, softening)
    centre = values.min() if softening.normalisation == "minmax" else values.mean()
    return (values - centre) / spread if spread > 0 else np.zeros_like(values)


def _normalise_gradient(
    values: NDArray[np.float64], normalised: NDArray[np.float64], softening: Softening, upstream: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Upstream ∂L/∂n turned into ∂L/∂x, where n = (x − centre) / r.

        minmax:       ∂L/∂x_j = (∂L/∂n_j − (1[j = max] − 1[j = min]) Σ_k n_k ∂L/∂n_k) / r,  r = max − min + ε
        standardise:  ∂L/∂x_j = (∂L/∂n_j − n_j / m Σ_k n_k ∂L/∂n_k) / r,  r = the standard deviation of m scores

    The centre has no part in it: softmax does not see it, so Σ_k ∂L/∂n_k = 0. Of equal extremes, the first carries
    the gradient.
    """
    if softening.normalisation == "none":
        return upstream
    spread = _spread(values, softening)
    if not spread > 0:
        return np.zeros_like(values)
    pull = float(upstream @ normalised)
    if softening.normalisation == "standardise":
        return (upstream - normalised * pull / len(values)) / spread
    gradient = upstream.copy()
    gradient[values.argmin()] += pull
    gradient[values.argmax()] -= pull
    return gradient / spread


def _spread(values: NDArray[np.float64], softening: Softening) -> float:
    """What a normalisation divides by."""
    width = float(values.max() - values.min())
    if softening.normalisation == "minmax":
        return width + softening.epsilon
    return float(values.std()) if width > 0 else 0.0  # the mean of equal numbers may differ from them by rounding


def _own_documents(scores: Floats, targets: Targets[Floats]) -> list[NDArray[np.int64]]:
    """The documents of each query, those that score −∞ left out."""
    return [
        np.arange(first, last)[scores[first:last] > -np.inf]
        for first, last in zip(targets.groups[:-1], targets.groups[1:], strict=True)
    ]


def _teacher_scores(targets: Targets[Floats]) -> NDArray[np.float64]:
    if targets.teacher is None:
        raise InvalidExample("targets without teacher scores", "one for each document", "Label the examples first.")
    if not np.all(np.isfinite(targets.teacher)):
        raise InvalidExample("a teacher score that is not finite", "finite scores", "Label the example again.")
    return targets.teacher.astype(np.float64)


def _check_scores(scores: Floats, shape: tuple[int, ...]) -> None:
    if scores.shape != shape:
        raise InvalidExample(f"scores of shape {scores.shape}", f"{shape} by the targets", "Score the same batch.")


def _check_positive(score: float, query: int) -> None:
    if score == -np.inf:
        raise InvalidExample(
            f"a positive of query {query} that scores −∞", "one that kept a token", "Drop the example."
        )
