"""What a run tells while it goes: a report now and then, and warnings of what is likely a mistake."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from typing import final

from attrs import frozen

CLIPPED_SHARE, EASY_ACCURACY = 0.9, 0.95
"""Beyond these, clipping sets the step's length and not the gradient, or batches teach little any more."""
STEPS_SEEN = 50
"""Steps, or reports, that a warning is based on."""


class TrainingWarning(UserWarning):
    """A run that goes, but hardly as it was meant to."""


@frozen(kw_only=True)
class StepReport:
    """How a run stands after a step.

    Args:
        step, steps: taken, and in all.
        loss: of the global batch.
        rate: the learning rate of the transformer.
        gradient_norm: before it was clipped.
        clipped: whether it was.
        tokens: that the model has seen since the last report, on all processes, padding left out.
        padding: share of what it computed that was padding.
        seconds: since the last report.
        accuracy: share of queries whose positive scored highest of the documents of their micro-batch.
        gap: mean score of the positives above that of the best other document.
    """

    step: int
    steps: int
    loss: float
    rate: float
    gradient_norm: float
    clipped: bool
    tokens: int
    padding: float
    seconds: float
    accuracy: float
    gap: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


Reporter = Callable[[StepReport], object]


@final
class Watchman:
    """Warns once of each thing that is likely a mistake."""

    def __init__(self) -> None:
        self._clipped: deque[bool] = deque(maxlen=STEPS_SEEN)
        self._accuracies: deque[float] = deque(maxlen=STEPS_SEEN)
        self._told: set[str] = set()

    def saw_step(self, *, clipped: bool) -> None:
        """A step was taken."""
        self._clipped.append(clipped)
        if len(self._clipped) == STEPS_SEEN and sum(self._clipped) > CLIPPED_SHARE * STEPS_SEEN:
            self._tell(
                "clipping",
                f"{sum(self._clipped)} of the last {STEPS_SEEN} gradients were clipped, so that their size has no part "
                "in training: raise `clip`, or look for a loss that is scaled up.",
            )

    def saw_accuracy(self, accuracy: float) -> None:
        """A batch was looked at."""
        self._accuracies.append(accuracy)
        mean = sum(self._accuracies) / len(self._accuracies)
        if len(self._accuracies) == STEPS_SEEN and mean > EASY_ACCURACY:
            self._tell(
                "accuracy",
                f"the positive scored highest for {mean:.0%} of the queries of the last {STEPS_SEEN} reports: batches "
                "are too easy to learn from. Mine negatives, or make batches larger.",
            )

    def _tell(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            warnings.warn(text, TrainingWarning, stacklevel=4)
