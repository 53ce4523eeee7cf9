"""The fingerprint of a run: equal where two compute the same, so that one may go on from the other's checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from attrs import asdict
from torch import Tensor

from lateinteraction.adapters.encoding.learning import Learner
from lateinteraction.adapters.neural.losses import Objective
from lateinteraction.adapters.neural.transfer import to_host
from lateinteraction.adapters.training.options import TrainingOptions
from lateinteraction.adapters.training.plan import PlanOptions
from lateinteraction.domain.ports import ExampleSource

_QUIET = ("log_every", "watch_every", "patience", "checkpoint_every", "keep", "workers")
"""Options that a run may be gone on with changed."""
SAMPLED = 1_024
"""Values of a frozen parameter that stand for all of it: reading billions would take longer than a step."""


def fingerprint_of(
    plan: PlanOptions, options: TrainingOptions, loss: Objective, learner: Learner, sources: Sequence[ExampleSource]
) -> str:
    """SHA-256 of all that decides a run: data, plan, options, loss, and the model but for weights that are trained."""
    said = {
        "plan": asdict(plan, recurse=False) | {"weights": dict(plan.weights or {})},
        "options": {
            name: value for name, value in asdict(options, recurse=False).items() if name not in (*_QUIET, "rates")
        },
        "rates": dict(options.rates),
        "loss": dict(loss.settings),
        "recipe": repr(learner.recipe),
        "parameters": [
            [name, list(each.shape), None if each.requires_grad else _sample(each)]
            for name, each in learner.network.named_parameters()
        ],
        "sources": [[source.name, len(source), _digest(source)] for source in sources],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _digest(source: ExampleSource) -> str:
    digest = hashlib.sha256()
    for column in (source.positives(), source.lengths()):
        digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def _sample(parameter: Tensor) -> str:
    """A digest of values spread over a parameter: of another model's it is another, whatever their shape."""
    flat = parameter.detach().flatten()
    values = to_host(flat[:: max(1, len(flat) // SAMPLED)].float())
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
