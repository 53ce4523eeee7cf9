"""Every loss keeps the promises of the port."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
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


class Tensors(LossContract[Tensor]):
    def tensor(self, array: NDArray[np.floating]) -> Tensor:
        return torch.tensor(array)

    def array(self, tensor: Tensor) -> NDArray[np.floating]:
        return tensor.detach().numpy()


class TestContrastive(Tensors):
    def make_loss(self) -> Objective:
        return Contrastive()


class TestContrastiveBothWaysByMeans(Tensors):
    def make_loss(self) -> Objective:
        return Contrastive(symmetric=True, interaction=MaxSim(mean=True))


class TestDistillation(Tensors):
    needs_teacher = True

    def make_loss(self) -> Objective:
        return Distillation(student=Softening(temperature=0.25), teacher=Softening(temperature=0.25))


class TestMarginMse(Tensors):
    needs_teacher = True

    def make_loss(self) -> Objective:
        return MarginMse()


class TestWeighted(Tensors):
    needs_teacher = True

    def make_loss(self) -> Objective:
        return Weighted([(1, Distillation()), (0.5, Contrastive(own_negatives=False))])


class TestMatryoshka(Tensors):
    def make_loss(self) -> Objective:
        return Matryoshka(Contrastive(), (1,))


class TestPooled(Tensors):
    def make_loss(self) -> Objective:
        return Pooled(Contrastive(), TokenPooling(factor=1))
