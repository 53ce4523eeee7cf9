"""Every loss keeps the promises of the port."""

from __future__ import annotations

from torch import Tensor

from lateinteraction.adapters.neural.losses import (
    Contrastive,
    Distillation,
    MarginMse,
    Matryoshka,
    MaxSim,
    Objective,
    Pooled,
    Weighted,
)
from lateinteraction.domain.recipe import TokenPooling
from lateinteraction.domain.reference import Softening
from lateinteraction.testing.contracts import LossContract
from tests.contracts.torch_arrays import Tensors


class TestContrastive(Tensors, LossContract[Tensor]):
    def make_loss(self) -> Objective:
        return Contrastive()


class TestContrastiveBothWaysByMeans(Tensors, LossContract[Tensor]):
    def make_loss(self) -> Objective:
        return Contrastive(symmetric=True, interaction=MaxSim(mean=True))


class TestDistillation(Tensors, LossContract[Tensor]):
    needs_teacher = True

    def make_loss(self) -> Objective:
        return Distillation(student=Softening(temperature=0.25), teacher=Softening(temperature=0.25))


class TestMarginMse(Tensors, LossContract[Tensor]):
    needs_teacher = True

    def make_loss(self) -> Objective:
        return MarginMse()


class TestWeighted(Tensors, LossContract[Tensor]):
    needs_teacher = True

    def make_loss(self) -> Objective:
        return Weighted([(1, Distillation()), (0.5, Contrastive(own_negatives=False))])


class TestMatryoshka(Tensors, LossContract[Tensor]):
    def make_loss(self) -> Objective:
        return Matryoshka(Contrastive(), (1,))


class TestPooled(Tensors, LossContract[Tensor]):
    def make_loss(self) -> Objective:
        return Pooled(Contrastive(), TokenPooling(factor=1))
