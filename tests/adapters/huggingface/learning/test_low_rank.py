"""Adapters and projection kept apart, over the same model beneath, are the trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lateinteraction.adapters.encoding.learning import Sheet
from lateinteraction.adapters.huggingface.learning.learner import HuggingFaceLearner, LearnerOptions
from lateinteraction.adapters.huggingface.learning.low_rank import LowRank, adapter_state, load_adapter_state
from lateinteraction.adapters.huggingface.projection import RandomProjection
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.errors import InvalidModel

State = dict[str, Tensor]
SHEET = Sheet(torch.tensor([[2, 9, 11, 3]]), torch.tensor([4]), torch.arange(4), full=True)


def learner_of(folder: Path, rank: int = 2, alpha: float = 4.0) -> HuggingFaceLearner:
    choice = CheckpointOptions(projection=RandomProjection(8, 1), dtype="float32", device="cpu")
    options = LearnerOptions(low_rank=LowRank(rank=rank, alpha=alpha))
    return HuggingFaceLearner(read_checkpoint(folder, options=choice), options)


def trained(folder: Path) -> HuggingFaceLearner:
    learner = learner_of(folder)
    with torch.no_grad():
        for parameter in learner.network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    learner.network.eval()
    return learner


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_state_makes_a_new_learner_the_trained_one(families: Mapping[str, Path], family: str) -> None:
    learner, fresh = trained(families[family]), learner_of(families[family])
    fresh.network.eval()
    expected = learner.network([SHEET])
    assert not torch.allclose(fresh.network([SHEET]), expected)
    load_adapter_state(fresh.network, adapter_state(learner.network))
    assert torch.equal(fresh.network([SHEET]), expected)


def test_a_state_holds_all_that_is_trained_and_is_a_copy(families: Mapping[str, Path]) -> None:
    learner = trained(families["bert"])
    state = adapter_state(learner.network)
    names = {name for name, each in learner.network.named_parameters() if each.requires_grad}
    assert {name for name in state if not name.endswith(".scale")} == names
    before = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for parameter in learner.network.parameters():
            parameter.add_(1)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def missing(state: State) -> State:
    return dict(list(state.items())[1:])


def more(state: State) -> State:
    return {**state, "transformer.other.up": torch.zeros(1)}


@pytest.mark.parametrize("change", [missing, more])
def test_a_state_of_other_names_is_refused(families: Mapping[str, Path], change: Callable[[State], State]) -> None:
    learner = trained(families["bert"])
    with pytest.raises(InvalidModel, match="only one of state and model"):
        load_adapter_state(learner.network, change(adapter_state(learner.network)))


@pytest.mark.parametrize(("rank", "alpha", "said"), [(3, 6.0, "shape"), (2, 5.0, "scale")])
def test_a_state_of_other_options_is_refused_and_nothing_written(
    families: Mapping[str, Path], rank: int, alpha: float, said: str
) -> None:
    state = adapter_state(trained(families["bert"]).network)
    other = learner_of(families["bert"], rank, alpha)
    before = adapter_state(other.network)
    with pytest.raises(InvalidModel, match=said):
        load_adapter_state(other.network, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state(other.network).items())
