"""What a second thread gives: the time on the clock of one thread over that of two, in turn. Reported only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.cases.kernels import compressed, training
from benchmarks.cases.kernels.inputs import Sizes, quantised, queries_of, ragged, threads, unit_rows
from benchmarks.harness import Bench, Figure, Seconds, clocked
from benchmarks.peers.our_scoring_worker import training_step
from lateinteraction import kernels

NAMES = ("fp32, 1 query", "fp32, 4 queries", "int8, 1 query", "residual MaxSim, 2 bits", "training, B = 64")
FIGURES = tuple(Figure(f"second thread: {name}", "×") for name in NAMES)
REPEATS = 7


def measure(bench: Bench, sizes: Sizes) -> None:
    """Each call with one thread and with two."""
    contestants = {
        f"{name}, {count} threads": _in_threads(call, count) for name, call in _calls(sizes).items() for count in (1, 2)
    }
    for contestant in contestants.values():
        contestant()
    timings = bench.in_turn(contestants, min(REPEATS, sizes.repeats))
    for name in NAMES:
        one, two = (timings[f"{name}, {count} threads"].p50 for count in (1, 2))
        bench.report(f"second thread: {name}", one / two, f"{one * 1e3:.2f} and {two * 1e3:.2f} ms")


def _calls(sizes: Sizes) -> dict[str, Callable[[], object]]:
    generator = np.random.default_rng(4)
    one, four, documents = queries_of(generator, 1), queries_of(generator, 4), ragged(generator, sizes.documents)
    small_query, small_documents = quantised(one), quantised(documents)
    centroids = unit_rows(generator, sizes.reduced(compressed.CENTROIDS, 32))
    stored = compressed.store(generator, sizes, one, centroids, 2)
    batch = training.batch_of(sizes.reduced(64, 2))
    calls: tuple[Callable[[], object], ...] = (
        lambda: kernels.maxsim_all_pairs(one, documents),
        lambda: kernels.maxsim_all_pairs(four, documents),
        lambda: kernels.maxsim_all_pairs(small_query, small_documents),
        lambda: stored.score(stored.scores),
        lambda: training_step(*batch, training.DOCUMENTS),
    )
    return dict(zip(NAMES, calls, strict=True))


def _in_threads(call: Callable[[], object], count: int) -> Callable[[], Seconds]:
    def measured() -> Seconds:
        with threads(count):
            return clocked(call)()

    return measured
