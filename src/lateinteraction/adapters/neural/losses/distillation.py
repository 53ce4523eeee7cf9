"""Distillation and MarginMse: what a teacher thinks of a query's own documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
import torch
from attrs import asdict, field, frozen
from torch import Tensor, nn

from lateinteraction.adapters.neural.losses.interactions import MAXSIM, Interaction
from lateinteraction.adapters.neural.losses.objective import check_batch, check_number, teacher_of
from lateinteraction.adapters.neural.transfer import queued_to_device
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidExample
from lateinteraction.domain.reference.losses import AS_IS, PYLATE_STUDENT, Softening
from lateinteraction.domain.training import Targets

if TYPE_CHECKING:
    from lateinteraction.adapters.neural.losses.objective import Objective


class _Lists(NamedTuple):
    """Scores of own documents as (Q, most of a query), and which of these places hold one."""

    student: Tensor
    teacher: Tensor
    held: Tensor


def _lists(
    interaction: Interaction,
    queries: TokenEmbeddings[Tensor],
    documents: TokenEmbeddings[Tensor],
    targets: Targets[Tensor],
) -> _Lists:
    """A query's own documents, those without tokens left out: no student can tell anything of them."""
    check_batch(queries, documents, targets)
    own = documents if targets.others == 0 else documents.span(0, len(targets))
    student = interaction.grouped(queries, own, targets.groups)
    teacher = teacher_of(targets, student)
    lengths = np.diff(targets.groups)
    column = np.arange(lengths.max(initial=0))
    there = column < lengths[:, None]
    places = np.where(there, targets.groups[:-1, None] + column, 0)
    there &= own.lengths[places] > 0
    index = queued_to_device(places, student.device)
    held = queued_to_device(there, student.device)
    # Not −∞, of which gradients that are multiplied by 0 are not 0.
    return _Lists(student[index].masked_fill(~held, 0), teacher[index].masked_fill(~held, 0), held)


@final
@frozen(kw_only=True)
class Distillation:
    """KL divergence of the student's view of a query's own documents from the teacher's, times τ_S².

    See `domain.reference.losses.distillation`. In-batch negatives have no part in it; `Weighted` adds them.

    Args:
        student: how the scores of the model become a distribution.
        teacher: how the teacher's do. A teacher whose scores spread over more than some 80 τ_T is one-hot.
        interaction: how documents are scored.
    """

    student: Softening = AS_IS
    teacher: Softening = AS_IS
    interaction: Interaction = MAXSIM

    @classmethod
    def pylate(cls) -> Distillation:
        """As PyLate 1.6 does by default: student scores from 0 to 1, teacher scores as they are, no temperatures."""
        return cls(student=PYLATE_STUDENT)

    @property
    def learned(self) -> tuple[nn.Module, ...]:
        return ()

    @property
    def settings(self) -> Mapping[str, object]:
        softening = {"student": asdict(self.student), "teacher": asdict(self.teacher)}
        return {"loss": "distillation", **softening, **self.interaction.settings}

    def __call__(
        self, queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor], targets: Targets[Tensor]
    ) -> Tensor:
        student, teacher, held = _lists(self.interaction, queries, documents, targets)
        log_student = _log_softmax(student, held, self.student)
        log_teacher = _log_softmax(teacher, held, self.teacher)
        differences = torch.where(held, log_teacher.exp() * (log_teacher - log_student), 0)
        return self.student.temperature**2 * differences.sum() / max(1, len(queries))


@final
@frozen(kw_only=True)
class MarginMse:
    """Squared error of the margins between a query's positive and its negatives (Hofstätter et al., arXiv 2010.02666).

    See `domain.reference.losses.margin_mse`.

    Args:
        teacher_scale: what brings the teacher's margins to the size of the student's.
        interaction: how documents are scored.
    """

    teacher_scale: float = field(default=1.0)
    interaction: Interaction = MAXSIM

    def __attrs_post_init__(self) -> None:
        check_number("teacher_scale", self.teacher_scale)

    @property
    def learned(self) -> tuple[nn.Module, ...]:
        return ()

    @property
    def settings(self) -> Mapping[str, object]:
        return {"loss": "margin_mse", "teacher_scale": self.teacher_scale, **self.interaction.settings}

    def __call__(
        self, queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor], targets: Targets[Tensor]
    ) -> Tensor:
        kept = np.add.reduceat((documents.lengths[: len(targets)] > 0).astype(np.int64), targets.groups[:-1])
        if np.any(kept < 2):
            raise InvalidExample(
                f"query {np.argmin(kept)} without a negative", "one that kept a token", "Give it one or drop it."
            )
        student, teacher, held = _lists(self.interaction, queries, documents, targets)
        negatives = held[:, 1:]
        margins = student[:, :1] - student[:, 1:]
        errors = torch.where(negatives, margins - self.teacher_scale * (teacher[:, :1] - teacher[:, 1:]), 0)
        return (errors.square().sum(dim=1) / negatives.sum(dim=1)).mean()


def _log_softmax(scores: Tensor, held: Tensor, softening: Softening) -> Tensor:
    """Logarithms of distributions over what is held; 0 elsewhere."""
    normalised = _normalised(scores, held, softening) / softening.temperature
    logarithms = normalised.masked_fill(~held, -math.inf).log_softmax(dim=1)
    return torch.where(held, logarithms, 0)


def _normalised(scores: Tensor, held: Tensor, softening: Softening) -> Tensor:
    """As `domain.reference.losses.Softening` says; of equal extremes, the first carries the gradient."""
    if softening.normalisation == "none":
        return scores
    if softening.normalisation == "minmax":
        least = scores.masked_fill(~held, math.inf).argmin(dim=1, keepdim=True)
        most = scores.masked_fill(~held, -math.inf).argmax(dim=1, keepdim=True)
        lowest = scores.gather(1, least)
        spread = scores.gather(1, most) - lowest + softening.epsilon
        return torch.where(held, (scores - lowest), 0) / torch.where(spread > 0, spread, 1)
    counts = held.sum(dim=1, keepdim=True)
    centred = torch.where(held, scores - (scores * held).sum(dim=1, keepdim=True) / counts, 0)
    variance = centred.square().sum(dim=1, keepdim=True) / counts
    width = scores.masked_fill(~held, -math.inf).amax(dim=1, keepdim=True) - scores.masked_fill(~held, math.inf).amin(
        dim=1, keepdim=True
    )
    some = (width > 0) & (variance > 0)
    deviation = torch.where(some, variance, 1).sqrt()
    return torch.where(some, centred, 0) / deviation


if TYPE_CHECKING:
    _distillation: type[Objective] = Distillation
    _margin_mse: type[Objective] = MarginMse
