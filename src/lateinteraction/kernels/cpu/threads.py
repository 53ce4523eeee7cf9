"""Work split over plain threads, made for one call.

None outlives the call and none is shared, so that nothing is left to break in a forked child and calls from several
threads do not wait for each other. How many there are is what `sharing.threads` says.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lateinteraction.kernels import sharing

LEAST_WORK = 20_000_000
"""Multiply-adds that make a thread worth while: 0.2 ms, where to start and join one takes 0.09 ms."""

FROM_MEMORY = 16
"""Multiply-adds in registers that take as long as one of numbers from memory, to memory (7 against 110 in a ns)."""


def shares(weights: NDArray[np.int64], work: float) -> list[tuple[int, int]]:
    """Ranges first … last − 1 that share out items of given weights, one for each thread that pays.

    Args:
        weights: (N,), of any unit.
        work: multiply-adds in all.
    """
    threads = max(1, min(sharing.threads(), int(work / LEAST_WORK), len(weights)))
    if threads == 1:
        return [(0, len(weights))]
    ends = np.cumsum(weights)
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, threads) / threads, side="left") + 1
    # Not np.unique: it imports a module when first called, and a child forked meanwhile would wait for that import.
    return list(itertools.pairwise(sorted({0, *map(int, cuts.clip(max=len(weights))), len(weights)})))


def run(task: Callable[[int, int], None], ranges: list[tuple[int, int]]) -> None:
    """Call task(first, last) for each range, the first of them in this thread and each other in one of its own.

    What a task raises is raised here, after all have ended.
    """
    if len(ranges) == 1:
        task(*ranges[0])
        return
    with ThreadPoolExecutor(len(ranges) - 1) as pool:
        others = [pool.submit(task, *each) for each in ranges[1:]]
        task(*ranges[0])
    for other in others:
        other.result()
