"""Reading ahead changes nothing but when it is done."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.training.reading import AHEAD, ahead_of


@given(st.integers(0, 5), st.integers(0, 20), st.integers(0, 4))
def test_batches_come_in_order_however_many_threads_read(first: int, count: int, threads: int) -> None:
    steps = range(first, first + count)
    assert list(ahead_of(lambda step: step * step, steps, threads)) == [step * step for step in steps]


def test_an_error_comes_up_where_its_batch_was_due() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise ValueError("row 17")
        return step

    batches = ahead_of(make, range(9), 2)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 17"):
        next(batches)


def test_no_more_is_read_than_waits() -> None:
    read: list[int] = []
    batches = ahead_of(lambda step: read.append(step) or step, range(1000), 2)
    next(batches)
    time.sleep(0.05)
    assert len(read) <= 2 * AHEAD + 1


def test_nothing_is_left_running_when_nobody_asks_any_more() -> None:
    before = threading.active_count()
    batches = ahead_of(lambda step: step, range(1000), 3)
    next(batches)
    batches.close()
    assert threading.active_count() == before
