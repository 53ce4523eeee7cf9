"""Ours alone, larger and larger: synthetic documents streamed from their seed into an index of 4 bits.

Each index is built in a process of its own with two threads, a few thousand documents a commit, and then asked with one
thread and the defaults, which follow its size. Recall is against exact search for the first twenty queries: the corpus
goes by once more for that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cases.index.contestants import OURS, RESIDUAL4, Contestant, own_worker
from benchmarks.cases.index.corpora import Corpus
from benchmarks.cases.index.prepared import Embedded, K
from benchmarks.cases.index.sizes import Sizes
from benchmarks.harness import Bench, Figure, Seconds, Timing
from benchmarks.peers.process import THREADS
from lateinteraction.adapters.neural.scorer import MaxSimScorer

DOCUMENTS = (10_000, 30_000, 100_000, 300_000)
QUERIES = 40
JUDGED = 20

FIGURES = tuple(
    Figure(f"{documents:,} documents: {what}", unit)
    for documents in DOCUMENTS
    for what, unit in (("p50", "ms"), ("recall@10", ""), ("documents/s", "documents/s"), ("memory", "GB"))
)


def measure(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """One size after the other."""
    for documents in DOCUMENTS:
        grow(bench, documents, sizes.reduced(documents, 1_000), scratch)


def grow(bench: Bench, named: int, documents: int, scratch: Path) -> tuple[Timing, dict[str, float]]:
    """Build, ask and judge one index, report it under a size; timing of its queries, and what building took."""
    folder = scratch / f"scaling-{documents}"
    corpus = Corpus(documents)
    queries = corpus.queries(QUERIES)
    given = _hand_over(scratch / f"queries-{documents}", queries)
    with own_worker("ours", OURS, *RESIDUAL4.stored, threads=THREADS) as builder:
        built = builder.ask("stream", folder=str(folder), documents=documents, warm=f"{folder}-warm")
    with own_worker("ours", OURS, *RESIDUAL4.stored, threads=1) as worker:
        worker.ask("open", corpus=str(given), folder=str(folder), threads=1)
        contestant = Contestant(worker, {})
        found, _ = contestant.find(JUDGED)
        contestant.time(0)
        turns = iter(range(QUERIES))
        name = f"{documents:,} documents"
        timing = bench.in_turn({name: lambda: contestant.time(next(turns))}, QUERIES)[name]
    best = best_of(corpus, queries.span(0, JUDGED))
    recall = float(np.mean([len(set(own) & set(map(int, truth))) / K for own, truth in zip(found, best, strict=True)]))
    beside = f"{built['bytes'] / 1e6:.0f} MB in {built['files']} files"
    bench.row(f"stream of {documents:,} documents", timing=Timing.of([Seconds(built["seconds"], built["cpu_seconds"])]))
    bench.report(f"{named:,} documents: p50", timing.p50 * 1e3, f"p80 {timing.quantiles[2] * 1e3:.1f} ms")
    bench.report(f"{named:,} documents: recall@10", recall, f"{JUDGED} queries")
    bench.report(f"{named:,} documents: documents/s", documents / built["seconds"], beside)
    bench.report(
        f"{named:,} documents: memory", built["growth"] / 1e9, "that building adds, blocks of the corpus included"
    )
    shutil.rmtree(folder)
    return timing, built


def best_of(corpus: Corpus, queries: Embedded) -> NDArray[np.int64]:
    """Places (Q, 10) of the exactly best documents of a corpus that goes by block by block."""
    scores: list[torch.Tensor] = []
    with torch.inference_mode():
        for block in corpus.blocks():
            halves = block.tokens.half().float()
            scores.append(MaxSimScorer().matrix(queries, type(block)(halves, block.offsets)))
        return torch.cat(scores, dim=1).topk(K, dim=1).indices.numpy()


def _hand_over(folder: Path, queries: Embedded) -> Path:
    """A folder from which a worker reads these queries."""
    folder.mkdir()
    np.save(folder / "queries.tokens.npy", queries.tokens.numpy())
    np.save(folder / "queries.offsets.npy", queries.offsets)
    return folder
