"""Calls with one thread and with several, whatever the size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch

from lateinteraction.kernels.cpu import threads

Result = TypeVar("Result")
WithThreads = Callable[[Callable[[], Result]], list[Result]]


@pytest.fixture
def with_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[WithThreads]:
    """The results of a call with 1, 2 and 7 threads, each of which finds its share worth while."""
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    before = torch.get_num_threads()

    def results(call: Callable[[], Result]) -> list[Result]:
        found = []
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            found.append(call())
        return found

    yield results
    torch.set_num_threads(before)
