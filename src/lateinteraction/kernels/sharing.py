"""How many threads a call of a kernel may take: as many as torch computes with, or fewer where a caller says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_most: ContextVar[int | None] = ContextVar("lateinteraction_threads", default=None)


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Kernels inside, in this thread or task alone, share their work among no more threads: for who has several calls.

    Forty-eight queries over 20,000 documents on two cores, each thread with kernels of two threads: 0.76 s; with
    kernels of one: 0.44.
    """
    token = _most.set(threads)
    try:
        yield
    finally:
        _most.reset(token)


def threads() -> int:
    """The most that a call may take now."""
    return min(torch.get_num_threads(), _most.get() or torch.get_num_threads())
