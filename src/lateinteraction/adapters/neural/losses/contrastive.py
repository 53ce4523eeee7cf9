"""Contrastive: the positive among all documents of the batch, with any number of hard negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from lateinteraction.adapters.neural.losses.interactions import MAXSIM, Interaction
from lateinteraction.adapters.neural.losses.objective import check_batch, check_number
from lateinteraction.adapters.neural.transfer import queued_to_device
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.training import Targets

if TYPE_CHECKING:
    from lateinteraction.adapters.neural.losses.objective import Objective

LARGEST_SCALE = 100.0
"""1/τ at most, where it is learned: Radford et al. (CLIP), arXiv 2103.00020, §2.5."""


@final
class LearnableTemperature(nn.Module):
    """τ = 1 / exp(s), with s learned and 1/τ ≤ 100.

    Args:
        initial: τ to start from, at least 0.01.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        check_number("initial", initial)
        if initial < 1 / LARGEST_SCALE:
            raise InvalidOption(
                f"initial = {initial!r}",
                f"at least {1 / LARGEST_SCALE}",
                "Divide scores by the query's length instead.",
            )
        self.initial = initial
        self.scale = nn.Parameter(torch.tensor(-math.log(initial)))

    def forward(self) -> Tensor:
        """1/τ, a scalar."""
        return self.scale.clamp(max=math.log(LARGEST_SCALE)).exp()

    def extra_repr(self) -> str:
        return f"initial={self.initial}"


Temperature = float | Mapping[str, float] | LearnableTemperature


def _temperature(given: Temperature) -> Temperature:
    if isinstance(given, LearnableTemperature):
        return given
    for each in given.values() if isinstance(given, Mapping) else [given]:
        check_number("temperature", each)
    return MappingProxyType(dict(given)) if isinstance(given, Mapping) else given


def _said(temperature: Temperature) -> object:
    """As JSON."""
    if isinstance(temperature, LearnableTemperature):
        return {"learned_from": temperature.initial}
    return dict(temperature) if isinstance(temperature, Mapping) else temperature


@final
@frozen(kw_only=True, eq=False)
class Contrastive:
    """InfoNCE: −log of the positive's share among what a query is compared with (arXiv 1807.03748, §2.3).

        L = 1/Q Σ_i [ −S_i,i+ / τ + log Σ_j exp(S_ij / τ) ],   j over the compared documents of query i

    By default all documents of the batch are compared but those that the targets exclude; each process may add others.

    Args:
        temperature: τ: one, one for each source by name, or learned.
        interaction: how documents are scored.
        own_negatives: whether a query's own negatives are compared too. Not beside distillation, which grades them
            (Santhanam et al., NAACL 2022, as the authors' code has it).
        symmetric: whether the positive is to find its query among all queries as well; the loss is the mean of both.
    """

    temperature: Temperature = field(default=1.0, converter=_temperature)
    interaction: Interaction = MAXSIM
    own_negatives: bool = True
    symmetric: bool = False

    @property
    def learned(self) -> tuple[nn.Module, ...]:
        return (self.temperature,) if isinstance(self.temperature, LearnableTemperature) else ()

    @property
    def settings(self) -> Mapping[str, object]:
        return {
            "loss": "contrastive",
            "temperature": _said(self.temperature),
            **self.interaction.settings,
            "own_negatives": self.own_negatives,
            "symmetric": self.symmetric,
        }

    def __call__(
        self, queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor], targets: Targets[Tensor]
    ) -> Tensor:
        check_batch(queries, documents, targets)
        scores = self.interaction.matrix(queries, documents)
        others = queued_to_device(~self._compared(documents, targets), scores.device)
        # A learned scale would have a gradient of 0 · ∞ by documents without tokens, so that these are 0 before it.
        logits = (scores.masked_fill(others, 0) * self._scale(targets.source)).masked_fill(others, -math.inf)
        positives = queued_to_device(np.ascontiguousarray(targets.positives), logits.device)
        loss = nn.functional.cross_entropy(logits, positives)
        if not self.symmetric:
            return loss
        backwards = logits.index_select(1, positives).mT
        return (loss + nn.functional.cross_entropy(backwards, torch.arange(len(backwards), device=logits.device))) / 2

    def _compared(self, documents: TokenEmbeddings[Tensor], targets: Targets[Tensor]) -> NDArray[np.bool_]:
        """Bool (Q, columns): without what has no token, which no query finds."""
        compared = targets.compared_pairs & (documents.lengths > 0)
        if not self.own_negatives:
            compared &= ~targets.own_pairs
            compared[np.arange(len(compared)), targets.positives] = True
        return compared

    def _scale(self, source: str | None) -> Tensor | float:
        if isinstance(self.temperature, LearnableTemperature):
            return self.temperature()
        if not isinstance(self.temperature, Mapping):
            return 1 / self.temperature
        if source is None or source not in self.temperature:
            raise InvalidOption(
                f"a batch of source {source!r}, and temperatures for {', '.join(map(repr, self.temperature))}",
                "a temperature for each source",
                "Name it too, or give one for all.",
            )
        return 1 / self.temperature[source]


if TYPE_CHECKING:
    _: type[Objective] = Contrastive
