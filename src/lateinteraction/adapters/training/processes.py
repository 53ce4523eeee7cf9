"""Processes: how those of a run share a model, its gradients, and what they have found, on Accelerate.

Accelerate starts the group of processes, finds each its device and wraps the model for DDP. Precision, accumulation and
the shards of FSDP2 are our own: Accelerate's settings of them are one for a whole program, which may hold other models.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as distributed
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from lateinteraction.adapters.neural.transfer import to_device
from lateinteraction.adapters.training.checkpoints import Ranks
from lateinteraction.adapters.training.module import TrainedModule
from lateinteraction.adapters.training.options import Precision, Sharding

if TYPE_CHECKING:
    from collections.abc import Iterator

Tracker = str | GeneralTracker
"""A name that Accelerate knows, such as "tensorboard" or "wandb", or one of your own."""

_NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@final
class Processes:
    """The processes of a run, seen from one of them.

    Args:
        device: where the model is; with several processes Accelerate gives each its own of that kind.
        trackers: none by default.
    """

    def __init__(self, device: torch.device, trackers: Sequence[Tracker] = ()) -> None:
        self._accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",
            log_with=list(trackers) or None,
            # Networks see several sheets in one pass and have no buffers that training changes.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.device: torch.device = self._accelerator.device if self.world > 1 else device

    @property
    def rank(self) -> int:
        return int(self._accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self._accelerator.num_processes)

    @property
    def ranks(self) -> Ranks:
        """For checkpoints."""
        return Ranks(rank=self.rank, world=self.world, wait=self._accelerator.wait_for_everyone)

    def wrapped(self, module: TrainedModule, layers: Sequence[nn.Module], sharding: Sharding) -> nn.Module:
        """The module as the processes share it: whole on each, or each layer of its network and the rest in parts.

        What a loss learns is whole in any case; `complete_gradients` is for that.
        """
        for tensor in chain(module.parameters(), module.buffers()):
            tensor.data = to_device(tensor.data, self.device)
        if sharding == "sharded" and self.world > 1:
            mesh = distributed.device_mesh.init_device_mesh(self.device.type, (self.world,))
            for layer in layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(module, mesh=mesh, ignored_params=set(module.loss.parameters()))
            return module
        return module if self.world == 1 else self._accelerator.prepare_model(module)

    def complete_gradients(self, wrapped: nn.Module, module: TrainedModule) -> None:
        """Average what sharding leaves to us: gradients of the loss's own parameters."""
        if isinstance(wrapped, FSDPModule):
            for parameter in module.loss.parameters():
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.world

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager[object]:
        """A context in which gradients stay on this process."""
        if isinstance(module, FSDPModule):
            return _unsynchronised(module)
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()

    def passes(self, wrapped: nn.Module, count: int) -> int:
        """How often the module is to be run where this process has so many rectangles.

        Shards are brought together by all processes at once: each runs it as often as the one with most.
        """
        if not isinstance(wrapped, FSDPModule):
            return count
        most = torch.tensor([count], device=self.device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        return int(most)

    def autocast(self, precision: Precision) -> AbstractContextManager[object]:
        """A context in which products are made in this precision, whatever that of the caller is."""
        if precision == "float32":
            return torch.autocast(self.device.type, enabled=False)
        return self._narrowed(_NARROW[precision])

    @contextmanager
    def _narrowed(self, dtype: torch.dtype) -> Iterator[None]:
        """Casts of weights are shared in the block and forgotten with it.

        PyTorch keeps them until the outermost context ends: where that is around the run, or the caller's, a step would
        find those of the step before.
        """
        torch.clear_autocast_cache()
        try:
            with torch.autocast(self.device.type, dtype=dtype):
                yield
        finally:
            torch.clear_autocast_cache()

    def sum(self, values: Tensor) -> Tensor:
        """Of all processes."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def told(self, words: Sequence[str]) -> list[str]:
        """What all processes have to say, by rank."""
        return list(words) if self.world == 1 else list(gather_object(list(words)))

    def of_first(self, value: Any) -> Any:
        """What the first process has."""
        return value if self.world == 1 else broadcast_object_list([value])[0]

    def start_trackers(self, name: str, settings: dict[str, Any]) -> None:
        """Let trackers know of a run."""
        self._accelerator.init_trackers(name, config=settings)

    def track(self, values: dict[str, float], step: int) -> None:
        """Tell trackers of a step."""
        self._accelerator.log(values, step=step)

    def end_trackers(self) -> None:
        """Let trackers write what they hold. Not `end_training`, which ends the group of processes too."""
        for tracker in self._accelerator.trackers:
            tracker.finish()


@contextmanager
def _unsynchronised(module: FSDPModule) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)
