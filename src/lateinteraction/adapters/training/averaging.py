"""WeightAverage: an exponential moving average of the trained weights, and a way to look through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import nn


@final
class WeightAverage:
    """The moving average of a module's trained weights, beside them and sharded as they are.

    After step n (from 1) it moves by 1 − min(decay, (1 + n) / (10 + n)) of the way to the weights, so that the first
    steps, whose weights are far from the last, are soon forgotten; as Tarvainen and Valpola, arXiv 1703.01780, §3.

    Args:
        module: whose parameters are trained; the average starts with them.
        decay: between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = [each for each in module.parameters() if each.requires_grad]
        self._averages = [each.detach().clone() for each in self._parameters]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter.detach(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A block in which the module has the averages for weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
