"""Cranfield with the default model, nothing trained: raw 384-d MaxSim beside the mean-pooled vector and BM25.

Title + text, up to 256 tokens. The whole job runs twice; the two must agree to 1e-6.
"""

from __future__ import annotations

import time

from benchmarks.collections import read_collection
from benchmarks.harness import Bench, Figure, previous
from lateinteraction import wiring
from lateinteraction.application.evaluation import evaluate

RANKERS = ("late interaction", "mean pooled", "BM25")
MEASURES = ("nDCG@10", "MRR@10", "Recall@100")
FIGURES = (
    *(Figure(f"{ranker} {measure}", "") for ranker in RANKERS for measure in MEASURES),
    Figure("largest difference between two runs", "", "<=", 1e-6),
    Figure("largest difference to the last recorded run", "", "<=", 1e-6),
    Figure("documents per second", "documents/s"),
)


def run(bench: Bench) -> None:
    """Encode, search and evaluate twice."""
    first, seconds, documents = _once()
    second, _, _ = _once()
    for name, value in first.items():
        earlier = previous("zero_shot", name)
        bench.report(name, value, f"before: {earlier[-1]['value']}" if earlier else "")
    bench.report("largest difference between two runs", max(abs(first[name] - second[name]) for name in first))
    recorded = {name: previous("zero_shot", name) for name in first}
    differences = [abs(first[name] - float(rows[-1]["value"])) for name, rows in recorded.items() if rows]
    bench.report("largest difference to the last recorded run", max(differences, default=0.0))
    bench.report("documents per second", documents / seconds)


def _once() -> tuple[dict[str, float], float, int]:
    collection = read_collection("cranfield")
    start = time.perf_counter()
    rankers = wiring.baselines(collection.documents)
    seconds = time.perf_counter() - start
    searches = (rankers.late_interaction.search, rankers.mean_pooled.search, rankers.bm25.search)
    values: dict[str, float] = {}
    for ranker, search in zip(RANKERS, searches, strict=True):
        report = evaluate(search, collection, MEASURES)
        values |= {f"{ranker} {measure}": report[measure] for measure in MEASURES}
    return values, seconds, len(collection.documents)
