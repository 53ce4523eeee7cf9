"""The optimiser of a run, and the norm that its gradients are clipped to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lateinteraction.adapters.encoding.learning import Learner
from lateinteraction.adapters.training.module import TrainedModule
from lateinteraction.adapters.training.options import TrainingOptions
from lateinteraction.domain.errors import InvalidOption


def optimiser_of(
    learner: Learner, module: TrainedModule, options: TrainingOptions
) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), and the highest rate of each of its groups.

    Raises:
        InvalidOption: rates of groups that the model does not have.
    """
    groups = {**learner.groups, "loss": list(module.loss.parameters())}
    unknown = set(options.rates) - set(groups)
    if unknown:
        raise InvalidOption(
            f"rates of {', '.join(sorted(map(repr, unknown)))}",
            f"of {', '.join(map(repr, groups))}",
            "Correct the names.",
        )
    own: list[dict[str, Any]] = []
    rates: list[float] = []
    for name, parameters in groups.items():
        # Biases, norms and temperatures shift or scale; nothing is gained by drawing them to 0.
        matrices, rest = [each for each in parameters if each.ndim > 1], [each for each in parameters if each.ndim <= 1]
        for decay, part in ((options.weight_decay, matrices), (0.0, rest)):
            if part:
                own.append({"params": part, "weight_decay": decay})
                rates.append(options.learning_rate * options.rates.get(name, 1.0))
    return torch.optim.AdamW(own, lr=options.learning_rate), rates


def clipped_norm(module: nn.Module, clip: float | None) -> float:
    """The norm of the whole gradient, which is scaled down to `clip` afterwards; waits for the device.

    As `torch.nn.utils.clip_grad_norm_` (Pascanu et al., ICML 2013), which takes no mixture of gradients and shards.
    """
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    norms = [torch.linalg.vector_norm(each) for each in gradients]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = float(torch.linalg.vector_norm(torch.stack(whole)))
    if clip is not None and norm > clip and math.isfinite(norm):
        for each in gradients:
            each.mul_(clip / norm)
    return norm
