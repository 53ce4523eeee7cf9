"""The best of what is offered, in a heap per query: its root is the worst that is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.memory import float32s, int64s, numbers

_heaps_at = numbers(4)


@part
def _better(score: float, place: int, other_score: float, other_place: int) -> bool:
    """Whether one hit comes before another: by score, NaN last, then by place."""
    if score > other_score:
        return True
    if score < other_score:
        return False
    if score == other_score or (np.isnan(score) and np.isnan(other_score)):
        return place < other_place
    return np.isnan(other_score)


@part
def _sink(scores: int, places: int, size: int, score: float, place: int) -> None:
    """Put a hit where the root was, below everything that is worse."""
    best, where = float32s(scores), int64s(places)
    node = 0
    while 2 * node + 1 < size:
        child = 2 * node + 1
        if child + 1 < size and _better(best[child], where[child], best[child + 1], where[child + 1]):
            child += 1
        if not _better(score, place, best[child], where[child]):
            break
        best[node], where[node] = best[child], where[child]
        node = child
    best[node], where[node] = score, place


@part
def _rise(scores: int, places: int, node: int, score: float, place: int) -> None:
    """Put a hit at a new leaf, above everything that is better."""
    best, where = float32s(scores), int64s(places)
    while node > 0:
        parent = (node - 1) // 2
        if not _better(best[parent], where[parent], score, place):
            break
        best[node], where[node] = best[parent], where[parent]
        node = parent
    best[node], where[node] = score, place


@part
def _offer(size: int, score: float, place: int, heap: Any) -> int:
    """Offer a hit to a heap of room k that holds so many; how many it holds then."""
    best, where, k = heap
    if size < k:
        _rise(best, where, size, score, place)
        return size + 1
    if _better(score, place, float32s(best)[0], int64s(where)[0]):
        _sink(best, where, k, score, place)
    return size


def offer(scores: int, query_step: int, first: int, count: int, heaps: int, kept: int) -> None:
    """Offer places first … first + count − 1 to every query.

    Args:
        scores: float32, side by side; those of the next query are query_step bytes further.
        heaps: float32 (Q, k), int64 (Q, k), Q, k.
        kept: hits in each heap before.
    """
    best, where, queries, k = _heaps_at(heaps)
    for query in range(queries):
        offered, size = float32s(scores + query * query_step), kept
        heap = best + query * k * 4, where + query * k * 8, k
        for number in range(count):
            size = _offer(size, offered[number], first + number, heap)


def unite(heaps: int, kept: int, others: int, other_kept: int) -> None:
    """Offer every hit of other heaps, of the same shape, to heaps."""
    best, where, queries, k = _heaps_at(heaps)
    other_best, other_where, _, _ = _heaps_at(others)
    for query in range(queries):
        size, heap = kept, (best + query * k * 4, where + query * k * 8, k)
        for number in range(query * k, query * k + other_kept):
            size = _offer(size, float32s(other_best)[number], int64s(other_where)[number], heap)


def sort(heaps: int) -> None:
    """Turn full heaps into lists, best first."""
    best, where, queries, k = _heaps_at(heaps)
    for query in range(queries):
        own, places = best + query * k * 4, where + query * k * 8
        for size in range(k - 1, 0, -1):
            score, place = float32s(own)[size], int64s(places)[size]
            float32s(own)[size], int64s(places)[size] = float32s(own)[0], int64s(places)[0]
            _sink(own, places, size, score, place)
