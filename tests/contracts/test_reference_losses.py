"""The reference losses keep the contract of `Loss`, with and without a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.training import Targets
from lateinteraction.testing.contracts import LossContract

Floats = NDArray[np.floating]


def over_own_documents(loss: Callable[[Any, Targets[Any]], Any]) -> Callable[..., Floats]:
    def value(queries: TokenEmbeddings[Floats], documents: TokenEmbeddings[Floats], targets: Targets[Floats]) -> Floats:
        scores = reference.maxsim_grouped(queries, documents, targets.groups)
        return np.array(loss(scores, targets)[0], dtype=np.float32)

    return value


class TestDistillation(LossContract[Floats]):
    needs_teacher = True

    def make_loss(self) -> Any:
        return over_own_documents(reference.distillation)


class TestMarginMSE(LossContract[Floats]):
    needs_teacher = True

    def make_loss(self) -> Any:
        return over_own_documents(reference.margin_mse)
