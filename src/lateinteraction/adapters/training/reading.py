"""ahead_of: the batches of a run, read and tokenised in threads before they are asked for, in order.

Threads suffice: tokenizers and Arrow leave Python's lock while they work. What is read does not depend on how many of
them there are, and an error comes up where its batch was due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

AHEAD = 2
"""Batches for each thread that are made and wait: one in work, one ready."""


def ahead_of(make: Callable[[int], Item], steps: range, threads: int) -> Generator[Item, None, None]:
    """`make(step)` for each step; in this thread where there are no others.

    Closing the iterator ends the threads when they are done with what they are at.
    """
    if not threads:
        yield from map(make, steps)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="reading") as pool:
        waiting: deque[Future[Item]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
