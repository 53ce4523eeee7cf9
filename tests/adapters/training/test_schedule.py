"""The learning rate is a function of the step alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.training.options import Schedule, TrainingOptions
from lateinteraction.adapters.training.schedule import rate_at
from lateinteraction.domain.errors import InvalidOption

schedules = st.sampled_from(["linear", "cosine", "constant"])


@given(st.integers(1, 300), st.floats(0, 1), schedules)
def test_no_step_is_wasted_and_none_is_above_the_highest(steps: int, warmup: float, schedule: Schedule) -> None:
    rates = [rate_at(step, steps, warmup=warmup, schedule=schedule) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


@given(st.integers(3, 300), st.floats(0, 0.6), schedules)
def test_it_rises_and_then_never_rises_again(steps: int, warmup: float, schedule: Schedule) -> None:
    rates = [rate_at(step, steps, warmup=warmup, schedule=schedule) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_line_and_a_cosine_end_at_nothing() -> None:
    assert rate_at(10, 10, warmup=0, schedule="linear") == 0
    assert rate_at(10, 10, warmup=0, schedule="cosine") == pytest.approx(0)
    assert rate_at(5, 10, warmup=0, schedule="cosine") == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0}, {"learning_rate": float("nan")}, {"warmup": 1.5}, {"weight_decay": -1}, {"clip": 0},
        {"precision": "half"}, {"schedule": "step"}, {"scope": "world"}, {"strategy": "gradcache"}, {"accumulation": 0},
        {"accumulation": True}, {"averaging": 0}, {"averaging": 1.5}, {"negatives": -1}, {"workers": -1}, {"keep": 0},
        {"sharding": "zero3"}, {"rates": {"projection": -1}}, {"rates": {"projection": float("inf")}}, {"log_every": 0},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidOption, match=name):
        TrainingOptions(**wrong)
