"""How the learning rate goes: a pure function of the step, so that a resumed run needs no state of it."""

from __future__ import annotations

import math

from lateinteraction.adapters.training.options import Schedule


def rate_at(step: int, steps: int, *, warmup: float, schedule: Schedule) -> float:
    """The share of the highest learning rate that step `step` (from 0) of `steps` is taken with.

    It rises in a line over the first ⌈warmup · steps⌉ steps, none of which is taken with 0, is 1 at the step after
    them, and then falls: `linear` reaches 0 one step beyond the last, `cosine` does so along half a period
    (Loshchilov and Hutter, arXiv 1608.03983, §3), `constant` does not fall.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - rising) / max(1, steps - rising)
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
