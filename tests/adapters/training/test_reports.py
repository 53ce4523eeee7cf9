"""A run that is likely not what was meant is told of, once."""

from __future__ import annotations

import warnings

import pytest

from lateinteraction.adapters.training.reports import STEPS_SEEN, TrainingWarning, Watchman


def see(*, clipped: bool, accuracy: float) -> None:
    watchman = Watchman()
    for _ in range(3 * STEPS_SEEN):
        watchman.saw_step(clipped=clipped)
        watchman.saw_accuracy(accuracy)


def test_gradients_that_are_nearly_always_clipped_are_told_of_once() -> None:
    with pytest.warns(TrainingWarning, match="clipped") as told:
        see(clipped=True, accuracy=0.5)
    assert len(told) == 1


def test_batches_that_are_too_easy_are_told_of_once() -> None:
    with pytest.warns(TrainingWarning, match="too easy") as told:
        see(clipped=False, accuracy=0.97)
    assert len(told) == 1


def test_a_run_as_it_should_be_is_left_in_peace() -> None:
    watchman = Watchman()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3 * STEPS_SEEN):
            watchman.saw_step(clipped=step % 5 > 0)
            watchman.saw_accuracy(0.9)
        for _ in range(STEPS_SEEN - 10):  # the first steps of a run are clipped as a rule
            Watchman().saw_step(clipped=True)
