"""A checkpoint is whole or not there, goes back bit for bit, and is never taken for that of another run."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from lateinteraction.adapters.training.checkpoints import (
    CheckpointFolder,
    Ranks,
    RunState,
    load_moments,
    load_weights,
    moments_of,
    weights_of,
)
from lateinteraction.adapters.training.randomness import random_state, set_random_state
from lateinteraction.domain.errors import InvalidOption, UnreadableFile

MARK = "f" * 64


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small module after two steps."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2)
    step(module, optimiser, 2)
    return module, optimiser


def step(module: nn.Module, optimiser: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimiser.zero_grad()
        module(torch.randn(5, 3)).square().sum().backward()
        optimiser.step()


def state_of(module: nn.Module, optimiser: torch.optim.Optimizer, number: int = 2) -> RunState:
    return RunState(
        step=number,
        fingerprint=MARK,
        progress={"best": 0.5},
        weights=weights_of(module),
        optimiser=moments_of(module, optimiser),
        random=random_state(torch.device("cpu")),
    )


def test_what_goes_on_from_a_checkpoint_is_bit_for_bit_what_would_have_gone_on(tmp_path: Path) -> None:
    module, optimiser = trained()
    folder = CheckpointFolder(tmp_path / "run")
    folder.write(state_of(module, optimiser))
    step(module, optimiser, 3)
    expected = weights_of(module)

    other, fresh = trained(seed=9)
    state = folder.read(2, MARK)
    load_weights(other, state.weights)
    load_moments(other, fresh, state.optimiser)
    set_random_state(state.random, torch.device("cpu"))
    step(other, fresh, 3)
    found = weights_of(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert state.progress == {"best": 0.5}


def test_a_state_is_a_copy_that_training_does_not_change() -> None:
    module, optimiser = trained()
    weights, moments = weights_of(module), moments_of(module, optimiser)
    before = {name: value.clone() for name, value in {**weights, **moments}.items()}
    step(module, optimiser, 1)
    assert all(torch.equal(before[name], value) for name, value in {**weights, **moments}.items())


def test_parameters_that_are_not_trained_are_not_kept() -> None:
    module, _ = trained()
    module[0].weight.requires_grad_(False)
    assert "0.weight" not in weights_of(module)


def test_names_are_those_before_anything_was_wrapped() -> None:
    module, _ = trained()
    wrapped = nn.Module()
    wrapped.module = module
    assert weights_of(wrapped).keys() == weights_of(module).keys()


def test_the_newest_are_kept_and_the_protected(tmp_path: Path) -> None:
    module, optimiser = trained()
    folder = CheckpointFolder(tmp_path, keep=2)
    for number in (1, 2, 3, 4, 5):
        folder.write(state_of(module, optimiser, number), protected=[1])
    assert folder.steps() == [1, 4, 5]


def test_a_step_may_be_written_again(tmp_path: Path) -> None:
    module, optimiser = trained()
    folder = CheckpointFolder(tmp_path)
    folder.write(state_of(module, optimiser))
    step(module, optimiser, 1)
    folder.write(state_of(module, optimiser))
    assert torch.equal(folder.read(2, MARK).weights["0.weight"], weights_of(module)["0.weight"])


def test_each_process_gets_its_own_random_numbers_back(tmp_path: Path) -> None:
    module, optimiser = trained()
    barrier = threading.Barrier(2)
    states = [state_of(module, optimiser) for _ in range(2)]
    states[1].random["cpu"].add_(1)

    def write(rank: int) -> None:
        CheckpointFolder(tmp_path).write(states[rank], Ranks(rank=rank, world=2, wait=barrier.wait))

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(2)]
    [each.start() for each in threads]
    [each.join() for each in threads]
    for rank in range(2):
        found = CheckpointFolder(tmp_path).read(2, MARK, Ranks(rank=rank, world=2))
        assert torch.equal(found.random["cpu"], states[rank].random["cpu"])


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).write(state_of(*trained()))
    with pytest.raises(InvalidOption, match="1 processes"):
        CheckpointFolder(tmp_path).read(2, MARK, Ranks(rank=0, world=2))


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).write(state_of(*trained()))
    with pytest.raises(InvalidOption, match="another configuration"):
        CheckpointFolder(tmp_path).read(2, "e" * 64)


@pytest.mark.parametrize("name", ["weights", "optimiser", "averages", "rank-0"])
def test_a_flipped_bit_is_seen(tmp_path: Path, name: str) -> None:
    folder = CheckpointFolder(tmp_path)
    path = folder.write(state_of(*trained())) / f"{name}.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UnreadableFile, match=name):
        folder.read(2, MARK)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = folder.write(state_of(*trained())) / "state.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"format": 2}))
    with pytest.raises(UnreadableFile, match="format 2"):
        folder.read(2, MARK)


def test_a_folder_without_a_state_is_no_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.at(3).mkdir()
    with pytest.raises(UnreadableFile):
        folder.read(3, MARK)


def test_what_a_killed_writer_left_is_no_checkpoint_and_in_nobodys_way(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    (tmp_path / ".step-00000002.abc").mkdir()
    (tmp_path / ".ranks-00000002").mkdir()
    assert folder.steps() == []
    folder.write(state_of(*trained()))
    assert folder.steps() == [2]
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000002"]


def test_weights_of_another_model_are_refused() -> None:
    module, _ = trained()
    with pytest.raises(InvalidOption, match=r"0\.weight"):
        load_weights(module, weights_of(module) | {"0.weight": torch.zeros(1)})
