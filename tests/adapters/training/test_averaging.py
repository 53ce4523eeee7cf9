"""An average of weights follows them, and is looked through without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lateinteraction.adapters.training.averaging import WeightAverage


def test_it_starts_with_the_weights_and_follows_them() -> None:
    module = nn.Linear(2, 2)
    start = module.weight.detach().clone()
    average = WeightAverage(module, 0.5)
    with torch.no_grad():
        module.weight.add_(1)
    average.update(1000)
    with average.in_place():
        assert torch.allclose(module.weight, start + 0.5)


def test_the_first_steps_are_soon_forgotten() -> None:
    module = nn.Linear(2, 2)
    average = WeightAverage(module, 0.9999)
    with torch.no_grad():
        module.weight.fill_(7)
    for step in range(1, 200):
        average.update(step)
    with average.in_place():
        assert torch.allclose(module.weight, torch.tensor(7.0), atol=0.01)


def test_weights_are_the_same_bits_after_a_look_even_where_it_failed() -> None:
    module = nn.Linear(3, 3)
    average = WeightAverage(module, 0.5)
    with torch.no_grad():
        module.weight.mul_(1 / 3)
    before = module.weight.detach().clone()
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    assert torch.equal(module.weight, before)


def test_what_is_not_trained_is_left_alone() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    average = WeightAverage(module, 0.5)
    with torch.no_grad():
        module.bias.fill_(3)
    with average.in_place():
        assert torch.equal(module.bias, torch.tensor([3.0, 3.0]))
