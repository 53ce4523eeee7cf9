"""What two processes make of the runs that a test makes with one. Usage: torchrun ... two_processes.py MODEL OUT"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch
import torch.distributed as distributed
from safetensors.torch import save_file
from torch import nn

from lateinteraction.adapters.huggingface.learning.learner import LearnerOptions
from lateinteraction.adapters.neural.losses import Contrastive, LearnableTemperature, MaxSim, Objective, learned_of
from lateinteraction.adapters.training.checkpoints import weights_of
from lateinteraction.adapters.training.loop import AccelerateTrainer, RunFolder
from lateinteraction.adapters.training.module import TrainedModule
from lateinteraction.adapters.training.options import TrainingOptions
from lateinteraction.adapters.training.plan import PlanOptions
from lateinteraction.adapters.training.strategies import Setting, cached
from lateinteraction.domain.errors import InvalidOption, TrainingFailed
from lateinteraction.domain.training import Targets
from tests.adapters.training.conftest import learner_of, pairs
from tests.adapters.training.stubs import StubNetwork, micro_batch

CASES: dict[str, dict[str, Any]] = {
    "direct": {},
    "cached": {"strategy": "cached", "tokens_per_rectangle": 60},
    "accumulated": {"accumulation": 2, "scope": "own"},
    "sharded": {"sharding": "sharded"},
    "sharded and cached": {"sharding": "sharded", "strategy": "cached", "tokens_per_rectangle": 60},
    "own": {"scope": "own"},
    "averaged": {"averaging": 0.9},
}
"""Of all but the named, each query is compared with the documents of both processes."""


def loss_of() -> Objective:
    return Contrastive(temperature=LearnableTemperature(0.1), interaction=MaxSim(mean=True))


def trained(
    model: Path, options: dict[str, Any], *, scope: str, folder: Path | None = None, stop_after: int | None = None
) -> dict[str, torch.Tensor]:
    """The weights after a run of five steps, or fewer, in float64, of lengths that differ."""
    learner = learner_of(model, LearnerOptions(), dtype=torch.float64)
    for module in learner.network.modules():  # what each process draws is its own
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loss = loss_of()
    taken = [0]

    def stop() -> bool:
        taken[0] += 1
        return taken[0] == stop_after

    trainer = AccelerateTrainer(
        PlanOptions(global_batch_size=8, steps=5, window=1),
        TrainingOptions(**({"learning_rate": 1e-3, "scope": scope} | options)),
        folder=RunFolder(path=folder),
        stop=stop,
    )
    trainer.fit(learner, loss, [pairs(40, negatives=2)])
    return weights_of(TrainedModule(learner.network, learned_of(loss)))


def reductions() -> list[int]:
    """How many times gradients of a step are reduced, by how many rectangles it has."""
    found = []
    for budget in (10**6, 7):
        module = nn.parallel.DistributedDataParallel(TrainedModule(StubNetwork()), broadcast_buffers=False)
        count = [0]

        def counted(state: list[int], bucket: Any) -> Any:
            state[0] += 1
            reduced = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
            return reduced.then(lambda done: done.value()[0] / distributed.get_world_size())

        counted.__annotations__ = {"bucket": distributed.GradBucket, "return": torch.futures.Future[torch.Tensor]}
        module.register_comm_hook(count, counted)
        batch = micro_batch([2, 2, 3], distributed.get_rank(), budget=budget)
        setting = Setting(module=module, device=torch.device("cpu"), unsynchronised=module.no_sync)
        cached(setting, batch, lambda q, d, batch=batch: Contrastive()(q, d, Targets(batch.groups)))
        found.append(count[0])
    return found


def failure(model: Path) -> str:
    """What each process is told when the loss of one of them is not finite."""

    class BrokenOnOne:
        learned, settings = (), {"loss": "broken"}

        def __call__(self, queries: Any, documents: Any, targets: Any) -> torch.Tensor:
            return Contrastive()(queries, documents, targets) * (float("nan") if distributed.get_rank() == 1 else 1)

    try:
        AccelerateTrainer(PlanOptions(global_batch_size=8, steps=2)).fit(
            learner_of(model, LearnerOptions()), BrokenOnOne(), [pairs(20)]
        )
    except TrainingFailed as error:
        return str(error)
    return "nothing"


def main(model: Path, out: Path) -> None:
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    for name, options in CASES.items():
        weights = trained(model, options, scope=options.get("scope", "gathered"))
        if distributed.get_rank() == 0:
            save_file(weights, out / f"{name}.safetensors")
    folder = out / "run"
    trained(model, {}, scope="gathered", folder=folder, stop_after=2)
    distributed.barrier()
    resumed = trained(model, {}, scope="gathered", folder=folder)
    if distributed.get_rank() == 0:
        save_file(resumed, out / "resumed.safetensors")
    results["reductions"] = reductions()
    results["failure"] = failure(model)
    try:
        AccelerateTrainer(PlanOptions(global_batch_size=9, steps=2)).fit(
            learner_of(model, LearnerOptions()), Contrastive(), [pairs(20)]
        )
    except InvalidOption as error:
        results["indivisible"] = str(error)
    (out / f"results-{distributed.get_rank()}.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
