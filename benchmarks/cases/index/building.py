"""Building: time and memory beside PLAID's, a stream's memory, opening, and what a token takes on the disk.

Everybody builds in a fresh process with two threads, which has built something tiny before; memory is what the call
adds to the peak above embeddings in float32 that lie there already. PLAID was built by `make peers-index`, at another
hour: so the ratio is one of CPU time, and both wall times stand beside it.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benchmarks.cases.index.contestants import (
    KEPT,
    OURS,
    RESIDUAL2,
    RESIDUAL4,
    Configuration,
    build_ours,
    opened,
    own_worker,
)
from benchmarks.cases.index.prepared import Prepared
from benchmarks.cases.index.sizes import Sizes
from benchmarks.harness import Bench, Figure, Seconds, Timing
from benchmarks.peers.indexes import Built, IndexPeer
from benchmarks.peers.process import THREADS
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.storage import FolderStorage

AGAINST_PLAID, ABOVE = "building: CPU time against PyLate PLAID", "building: memory above the inputs"
GROWTH, OPENING = "building a stream: memory of three times the documents", "opening"
TOKEN = {RESIDUAL4: 72.0, RESIDUAL2: 40.0}
PARTS = ("kept vectors", "codebook")
STREAMED = 10_000
OPENINGS = 5

FIGURES = (
    Figure(AGAINST_PLAID, "×", ">=", 15.0),
    Figure("building: documents/s", "documents/s"),
    Figure(ABOVE, "GB", "<=", 1.0),
    Figure(GROWTH, "×", "<=", 1.25),
    Figure("building a stream: memory", "GB", "<=", 1.0),
    Figure("building a stream: documents/s", "documents/s"),
    Figure(OPENING, "ms", "<=", 100.0),
    Figure("opening and the first query", "ms"),
    *(Figure(f"bytes a token: {configuration.name}", "B", "<=", most) for configuration, most in TOKEN.items()),
    *(Figure(f"bytes a token: {part}", "B") for part in PARTS),
)


def measure(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """All of it, of the synthetic corpus."""
    corpus = Prepared(f"synthetic-{sizes.documents}").prepare()
    own = {configuration: build_ours(corpus, configuration, scratch) for configuration in (RESIDUAL4, KEPT, RESIDUAL2)}
    for configuration, (_, answer) in own.items():
        taken = Timing.of([Seconds(answer["seconds"], answer["cpu_seconds"])])
        beside = f"{answer['growth'] / 1e9:.2f} GB above the inputs, {answer['bytes'] / 1e6:.0f} MB on disk"
        bench.row(
            f"build, {corpus.name}: {configuration.name}",
            timing=taken,
            value=answer["growth"] / 1e9,
            unit="GB",
            note=beside,
        )
    folder, answer = own[RESIDUAL4]
    _report_building(bench, corpus, answer)
    _measure_streams(bench, sizes, scratch)
    _measure_opening(bench, corpus, folder)
    _measure_bytes(bench, {configuration: path for configuration, (path, _) in own.items()})


def _report_building(bench: Bench, corpus: Prepared, answer: dict[str, float]) -> None:
    documents = len(corpus.documents)
    own = f"{answer['seconds']:.1f} s, {answer['cpu_seconds']:.1f} s of CPU time"
    bench.report("building: documents/s", documents / answer["seconds"], own)
    bench.report(ABOVE, answer["growth"] / 1e9, f"{documents:,} documents")
    built = Built.find(IndexPeer.read("plaid"), corpus)
    if built is None or built.failure is not None:
        bench.skip(AGAINST_PLAID, "no index of theirs: `make peers-index` builds it")
        return
    theirs = built.about["build"]
    wall = f"{theirs['seconds']:.0f} s at nice {built.about.get('nice', 0)}"
    beside = f"{own}; theirs {wall}, {theirs['cpu_seconds']:.0f} s, {theirs['growth'] / 1e9:.2f} GB"
    bench.report(AGAINST_PLAID, theirs["cpu_seconds"] / answer["cpu_seconds"], beside)


def _measure_streams(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """The same stream, and one three times as long."""
    growths: list[float] = []
    for documents in (sizes.reduced(STREAMED, 1_000), sizes.reduced(3 * STREAMED, 3_000)):
        folder = str(scratch / f"stream-{documents}")
        with own_worker("a stream", OURS, *RESIDUAL4.stored, threads=THREADS) as worker:
            answer = worker.ask("stream", folder=folder, documents=documents, warm=f"{folder}-warm")
        growths.append(answer["growth"])
        taken = Timing.of([Seconds(answer["seconds"], answer["cpu_seconds"])])
        beside = f"{answer['growth'] / 1e9:.2f} GB, {answer['files']} files"
        bench.row(
            f"stream of {documents:,} documents", timing=taken, value=answer["growth"] / 1e9, unit="GB", note=beside
        )
    short, long = growths
    beside = f"{short / 1e9:.2f} and {long / 1e9:.2f} GB, blocks of the corpus included"
    bench.report(GROWTH, long / short, beside)
    bench.report("building a stream: memory", long / 1e9, f"{documents:,} documents")
    bench.report("building a stream: documents/s", documents / answer["seconds"], "the corpus made on the way")


def _measure_opening(bench: Bench, corpus: Prepared, folder: Path) -> None:
    """Of an index on the disk, in a process that has imported everything."""
    with own_worker("opening", OURS, *RESIDUAL4.stored, threads=1) as worker:
        contestants = [opened(worker, corpus, folder, 1, {}) for _ in range(OPENINGS)]
        first = contestants[-1].opening + contestants[-1].time(0).wall
    bench.report(OPENING, 1e3 * median(each.opening for each in contestants), f"{len(corpus.documents):,} documents")
    bench.report("opening and the first query", 1e3 * first, "tables that searches share are made on the way")


def _measure_bytes(bench: Bench, folders: dict[Configuration, Path]) -> None:
    for configuration in TOKEN:
        with StoredIndex(FolderStorage(folders[configuration])) as index:
            stats = index.snapshot().stats()
            bench.report(
                f"bytes a token: {configuration.name}",
                stats.bytes["embeddings"] / stats.tokens,
                f"{stats.tokens:,} tokens; segments {dict(stats.segments)}",
            )
    with StoredIndex(FolderStorage(folders[KEPT])) as index:
        snapshot = index.snapshot()
        kept = sum(segment.kept_bytes for segment in snapshot.segments)
        centroids = 0 if snapshot.codebook is None else snapshot.codebook.centroids.nbytes // 2
        for part, size in zip(PARTS, (kept, centroids), strict=True):
            bench.report(f"bytes a token: {part}", size / snapshot.stats().tokens, f"{size / 1e6:.1f} MB")
