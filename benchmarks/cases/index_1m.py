"""A million synthetic documents, sixty million tokens, streamed from their seed into an index of 4 bits.

Beside it ten thousand of the same, for what a hundred times the documents cost a query. DOCUMENTS=10000 is a trial of a
hundredth; it records nothing.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.cases.index import scaling
from benchmarks.harness import Bench, Figure, end_trial

LARGE, SMALL = 1_000_000, 10_000

FIGURES = (
    Figure("building", "min", "<=", 60.0),
    Figure("p50 against a hundredth of the documents", "×", "<=", 5.0),
    *(
        Figure(f"{documents:,} documents: {what}", unit)
        for documents in (SMALL, LARGE)
        for what, unit in (("p50", "ms"), ("recall@10", ""), ("documents/s", "documents/s"), ("memory", "GB"))
    ),
)


def run(bench: Bench) -> None:
    """The small one first, then the large one."""
    given = os.environ.get("DOCUMENTS")
    large = int(given) if given else LARGE
    with tempfile.TemporaryDirectory() as folder:
        few, _ = scaling.grow(bench, SMALL, max(1_000, large * SMALL // LARGE), Path(folder))
        many, built = scaling.grow(bench, LARGE, large, Path(folder))
    bench.report("building", built["seconds"] / 60, f"{built['cpu_seconds'] / 60:.0f} min of CPU time")
    beside = f"{many.p50 * 1e3:.1f} and {few.p50 * 1e3:.1f} ms"
    bench.report("p50 against a hundredth of the documents", many.p50 / few.p50, beside)
    if given:
        end_trial(bench, "DOCUMENTS")
