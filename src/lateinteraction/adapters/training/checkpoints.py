"""Checkpoints of a run: folders that appear whole or not at all, from which it goes on bit for bit.

A folder `step-00000120` holds the trained weights, the optimiser's moments, averages, and for each process the state of
its random numbers, as safetensors; and `state.json`, with the step, the digests of these files, and the fingerprint of
all that decides the run. There is no pickle. What a run does is left to `loop`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from attrs import field, frozen
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lateinteraction.adapters.publication import published
from lateinteraction.domain.errors import InvalidOption, UnreadableFile

FORMAT = 1
"""Raised when a reader of the last one would go wrong."""
_NAME = re.compile(r"step-(\d{8,})")
_STATE, _WEIGHTS, _OPTIMISER, _AVERAGES = "state.json", "weights.safetensors", "optimiser.safetensors", "averages"

Tensors = Mapping[str, Tensor]


@frozen(eq=False, kw_only=True)
class RunState:
    """What a run has come to after some steps.

    Args:
        step: how many were taken.
        fingerprint: of all that decides the run.
        progress: what the loop counts, as JSON.
        weights: of the trained parameters, by name, on the host.
        optimiser: `name/moment`.
        averages: likewise of the averaged weights; empty where nothing is averaged.
        random: states of this process.
    """

    step: int
    fingerprint: str
    progress: Mapping[str, Any]
    weights: Tensors
    optimiser: Tensors
    averages: Tensors = field(factory=dict)
    random: Tensors = field(factory=dict)


@frozen(kw_only=True)
class Ranks:
    """The processes of a run, as far as files are concerned.

    Args:
        rank: of this one.
        world: how many there are.
        wait: for all of them.
    """

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = lambda: None


ALONE = Ranks()


@frozen
class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        path: made with the first checkpoint.
        keep: how many of the newest are kept.
    """

    path: Path = field(converter=Path)
    keep: int = 2

    def steps(self) -> list[int]:
        """Steps that there are checkpoints of, rising."""
        if not self.path.is_dir():
            return []
        found = (_NAME.fullmatch(each.name) for each in self.path.iterdir() if each.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.path / f"step-{step:08d}"

    def write(self, state: RunState, ranks: Ranks = ALONE, *, protected: Iterable[int] = ()) -> Path:
        """Keep a state; every process calls it. Older ones beyond `keep` go, but for the protected.

        The folder is there for all processes when this returns.
        """
        target = self.at(state.step)
        shared = self.path / f".ranks-{state.step:08d}"
        if ranks.rank == 0:
            self._clear()
            shared.mkdir(parents=True)
        ranks.wait()
        _write(shared / _rank_file(ranks.rank), state.random)
        ranks.wait()
        if ranks.rank == 0:
            with published(target, marks=(_STATE,), overwrite=True) as draft:
                for each in sorted(shared.iterdir()):
                    shutil.copy(each, draft)
                _write_state(draft, state, ranks.world)
            shutil.rmtree(shared)
            self._forget({*self.steps()[-self.keep :], *protected})
        ranks.wait()
        return target

    def read(self, step: int, fingerprint: str, ranks: Ranks = ALONE) -> RunState:
        """The state after `step` steps, with the random numbers of this process.

        Raises:
            InvalidOption: a checkpoint of another run, or of another number of processes.
            UnreadableFile: one that is damaged, not there, or of a newer format.
        """
        folder = self.at(step)
        described = _described(folder)
        if described["fingerprint"] != fingerprint:
            raise InvalidOption(
                f"{folder}, a checkpoint of another configuration ({described['fingerprint'][:12]})",
                f"one of this configuration ({fingerprint[:12]}): the same data, options, loss and model",
                "Go on with the configuration that it was made with, or train into a new folder.",
            )
        if described["world"] != ranks.world:
            raise InvalidOption(
                f"{folder}, a checkpoint of {described['world']} processes",
                f"one of {ranks.world}, as many as there are now",
                "Start as many processes as before.",
            )
        names = (_WEIGHTS, _OPTIMISER, f"{_AVERAGES}.safetensors", _rank_file(ranks.rank))
        weights, optimiser, averages, random = (_read(folder, name, described["files"]) for name in names)
        return RunState(
            step=described["step"],
            fingerprint=fingerprint,
            progress=MappingProxyType(described["progress"]),
            weights=weights,
            optimiser=optimiser,
            averages=averages,
            random=random,
        )

    def _clear(self) -> None:
        """Take away what writers that were killed have left; a folder is one run's, which writes one at a time."""
        for pattern in (".step-*", ".ranks-*"):
            for each in self.path.glob(pattern):
                shutil.rmtree(each, ignore_errors=True)

    def _forget(self, kept: set[int]) -> None:
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.at(step), ignore_errors=True)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained parameters, on the host; of sharded ones the whole, so that every process must call it."""
    return {name: _whole(parameter) for name, parameter in _trained(module)}


def load_weights(module: nn.Module, weights: Tensors) -> None:
    """Put trained parameters back.

    Raises:
        InvalidOption: others than the module has.
    """
    parameters = dict(_trained(module))
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if given != shapes:
        odd = sorted(name for name in {*given, *shapes} if given.get(name) != shapes.get(name))
        raise InvalidOption(
            f"weights that differ from the model's in {', '.join(odd[:3])}",
            "the same model",
            "Train into a new folder.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_like(weights[name], parameter))


def moments_of(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of the optimiser's state, as `name/moment`, on the host."""
    return {
        f"{name}/{moment}": _whole(value)
        for name, parameter in _trained(module)
        for moment, value in optimiser.state.get(parameter, {}).items()
    }


def load_moments(module: nn.Module, optimiser: torch.optim.Optimizer, moments: Tensors) -> None:
    """Put the optimiser's state back."""
    parameters = dict(_trained(module))
    for key, value in moments.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        # Counters stay on the host and whole, as the optimiser makes them.
        placed = value.clone() if value.ndim == 0 else _like(value, parameter)
        optimiser.state[parameter][moment] = placed


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """By the names that they have before anything is wrapped."""
    return [
        (name.removeprefix("module.").replace("_orig_mod.", ""), parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]


def _whole(value: Tensor) -> Tensor:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().cpu().clone()


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """On the parameter's device, and in its shards."""
    there = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return cast("Tensor", distribute_tensor(there, parameter.device_mesh, parameter.placements))
    return there.clone()


def _rank_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _write(path: Path, tensors: Tensors) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def _write_state(draft: Path, state: RunState, world: int) -> None:
    _write(draft / _WEIGHTS, state.weights)
    _write(draft / _OPTIMISER, state.optimiser)
    _write(draft / f"{_AVERAGES}.safetensors", state.averages)
    described = {
        "format": FORMAT,
        "step": state.step,
        "world": world,
        "fingerprint": state.fingerprint,
        "progress": dict(state.progress),
        "files": {each.name: _digest(each) for each in sorted(draft.iterdir())},
    }
    (draft / _STATE).write_text(json.dumps(described, indent=2), encoding="utf-8")


def _described(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        found = int(described["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableFile(
            f"{folder}, which is no checkpoint of a run ({error})", "a folder that training wrote", "Name another."
        ) from error
    if found > FORMAT:
        raise UnreadableFile(
            f"{folder}, a checkpoint of format {found}", f"format {FORMAT} or older", "Use a newer lateinteraction."
        )
    return described


def _read(folder: Path, name: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        if _digest(folder / name) != digests[name]:
            raise ValueError("its digest is another")
        return load_file(folder / name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UnreadableFile(
            f"{folder / name}, which is damaged ({error})", "the file that was written", "Resume from another step."
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
