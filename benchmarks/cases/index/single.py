"""One query by itself, ours alone or against a few lines of NumPy: small indexes, filters, ids.

- 2,000 documents are searched exactly by default; the baseline is one product of all tokens and `maximum.reduceat`.
- A filter that one document in a hundred passes is asked of the same index as no filter.
- Ids: rows to ids for ten hits, and ids to rows for a hundred candidates, in a column of a million.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.cases.index.contestants import (
    BRUTE_FORCE,
    OURS,
    RESIDUAL4,
    Configuration,
    Contestant,
    build_ours,
    opened,
    own_worker,
)
from benchmarks.cases.index.prepared import QUERIES, Prepared
from benchmarks.cases.index.sizes import Sizes
from benchmarks.harness import Bench, Figure, Seconds, Timing, clocked
from lateinteraction.adapters.index import ids
from lateinteraction.adapters.index.arrays import InMemory

DEFAULT = Configuration("ours, as it comes", ("auto",))
SMALL, MILLION = 2_000, 1_000_000
AGAINST_NUMPY, FILTERED = "2,000 documents: p50 against NumPy", "filter that 1 % pass: p50 against none"
IDS = "ids of 10 hits and rows of 100 ids, of 1,000,000"
CALLS = 5

FIGURES = (
    Figure(AGAINST_NUMPY, "×", ">=", 4.0),
    Figure("2,000 documents: recall@10", "", ">=", 0.99),
    Figure(FILTERED, "×", "<=", 1.0),
    Figure(IDS, "ms", "<=", 1.0),
)


def measure(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """All three."""
    _measure_small(bench, sizes, scratch)
    _measure_filter(bench, sizes, scratch)
    _measure_ids(bench, sizes)


def _measure_small(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    corpus = Prepared(f"synthetic-{sizes.reduced(SMALL, 100)}").prepare()
    folder, _ = build_ours(corpus, DEFAULT, scratch)
    plain = scratch / f"{corpus.name}-numpy"
    with own_worker("NumPy", BRUTE_FORCE, threads=1) as numpy, own_worker("ours", OURS, "auto", threads=1) as ours:
        numpy.ask("build", corpus=str(corpus.folder), folder=str(plain))
        both = {
            "2,000 documents: ours": opened(ours, corpus, folder, 1, {}),
            "2,000 documents: NumPy": opened(numpy, corpus, plain, 1, {}),
        }
        found = {name: each.find(len(corpus.queries))[0] for name, each in both.items()}
        recalls = {name: corpus.recall(each) for name, each in found.items()}
        assert recalls["2,000 documents: NumPy"] > 0.99, recalls
        timings = bench.in_turn({name: _Turns(each).take for name, each in both.items()}, sizes.repeats)
    own, theirs = (timing.p50 for timing in timings.values())
    bench.report(AGAINST_NUMPY, theirs / own, f"{own * 1e3:.2f} and {theirs * 1e3:.2f} ms")
    bench.report("2,000 documents: recall@10", recalls["2,000 documents: ours"], "tokens in 16 bits")


def _measure_filter(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    corpus = Prepared(f"synthetic-{sizes.documents}").prepare()
    folder, _ = build_ours(corpus, RESIDUAL4, scratch / "filtered")
    with own_worker("ours", OURS, *RESIDUAL4.stored, threads=1) as worker:
        opened(worker, corpus, folder, 1, {})
        both = {
            "filter that 1 % pass": Contestant(worker, {"share": 7}),
            "no filter": Contestant(worker, {}),
        }
        found, _ = both["filter that 1 % pass"].find(CALLS)
        assert all(place % 100 == 7 for own in found for place in own), "a document that does not pass"
        assert all(found), "nothing passes"
        timings = bench.in_turn({name: _Turns(each).take for name, each in both.items()}, sizes.repeats)
    filtered, plain = (timing.p50 for timing in timings.values())
    bench.report(FILTERED, filtered / plain, f"{filtered * 1e3:.2f} and {plain * 1e3:.2f} ms")


def _measure_ids(bench: Bench, sizes: Sizes) -> None:
    count = sizes.reduced(MILLION, 10_000)
    column = ids.Ids(InMemory(ids.build(f"document-{number:07d}" for number in range(count))))
    generator = np.random.default_rng(0)

    def look_up() -> None:
        rows = generator.integers(0, count, 100)
        asked = [f"document-{row:07d}" for row in map(int, rows)]
        assert np.array_equal(column.rows_of(asked), rows)
        column.at(rows[:10])

    look_up()
    timing = bench.in_turn({IDS: clocked(look_up, CALLS)}, sizes.repeats)[IDS]
    bench.report(IDS, timing.p50 * 1e3, f"{count:,} ids")


class _Turns:
    """A contestant's queries one after the other, a few at each turn."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant, self._next = contestant, 0

    def take(self) -> Seconds:
        """The median of the next few."""
        first, self._next = self._next, self._next + CALLS
        taken = Timing.of([self._contestant.time(query % QUERIES) for query in range(first, self._next)])
        return Seconds(median(taken.wall), median(taken.cpu))
