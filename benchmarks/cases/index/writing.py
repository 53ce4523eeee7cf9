"""Small commits: what adding and removing one document takes beyond the disk's own time, and what many leave behind.

An acknowledged write waits for the disk: every `fsync` of a call is timed, and what is left of the call is ours. What
ten thousand commits leave does not depend on the disk, so they are made in memory (/dev/shm) where there is such a
folder.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from torch import Tensor

from benchmarks.cases.index.corpora import Corpus
from benchmarks.cases.index.prepared import K, Prepared
from benchmarks.cases.index.sizes import Sizes
from benchmarks.cases.kernels.inputs import threads
from benchmarks.harness import Bench, Figure, Seconds, Timing, clocked
from benchmarks.peers.our_index_worker import numbered
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.text import Document, DocumentId

STANDING = 2_000
WRITES = 60
COMMITS = 10_000
IN_MEMORY = Path("/dev/shm")  # noqa: S108 (a folder in memory, beneath which a new one is made)
TEXT = "A package that reads dates from texts and writes them into tables, one a line, as the standard asks."
ADD, REMOVE = "adding one document, above fsync", "removing one document, above fsync"
FILES, OPENING = f"after {COMMITS:,} commits: files", f"after {COMMITS:,} commits: opening"
COMPACTED = f"after {COMMITS:,} commits: p50 against compacted"

FIGURES = (
    Figure(ADD, "ms", "<=", 6.0),
    Figure(REMOVE, "ms", "<=", 6.0),
    Figure("fsync of an addition", "ms"),
    Figure(FILES, "files", "<=", 64.0),
    Figure(OPENING, "ms", "<=", 100.0),
    Figure(COMPACTED, "×", "<=", 1.5),
    Figure(f"{COMMITS:,} commits: each", "ms"),
)


def measure(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """Both."""
    with threads(1):
        _measure_one(bench, sizes, scratch)
        _measure_many(bench, sizes, scratch)


class Waits:
    """What a process has waited for the disk: how often, and seconds."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it every `os.fsync` is counted and timed."""
        sync = os.fsync

        def timed(descriptor: int) -> None:
            began = time.perf_counter()
            sync(descriptor)
            self.seconds += time.perf_counter() - began
            self.count += 1

        os.fsync = timed  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync = sync

    def taken_from(self, call: Callable[[], object]) -> tuple[Seconds, Seconds, int]:
        """One call: all of it, what it does not wait for the disk, and how often it waits."""
        count, seconds = self.count, self.seconds
        with self.watched():
            whole = clocked(call)()
        waited = self.seconds - seconds
        return whole, Seconds(whole.wall - waited, whole.cpu), self.count - count


def _measure_one(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """To an index with documents in it, one more and one less, in turn."""
    corpus = Corpus(max(1_000, sizes.reduced(STANDING)))
    block = corpus.block(0)
    storage, waits = FolderStorage(scratch / "writing", create=True), Waits()
    whole: dict[str, list[Seconds]] = {ADD: [], REMOVE: []}
    rest: dict[str, list[Seconds]] = {ADD: [], REMOVE: []}
    syncs: dict[str, int] = {}
    with StoredIndex.create(storage, IndexSettings(IndexOptions())) as index:
        for number, each in enumerate(corpus.blocks()):
            index.add(numbered(1_000 * number, [TEXT] * len(each)), each)
        index.compact()
        for place in range(sizes.reduced(WRITES, 5) + 1):
            document = Document(DocumentId(f"new-{place}"), TEXT, {"share": place})
            calls: dict[str, Callable[[], object]] = {
                ADD: partial(index.add, [document], block.span(place, place + 1)),
                REMOVE: partial(index.remove, [DocumentId(str(place))]),
            }
            for name, call in calls.items():
                all_of_it, ours, syncs[name] = waits.taken_from(call)
                if place:  # the first ones warm up
                    whole[name].append(all_of_it)
                    rest[name].append(ours)
    for name in whole:
        timing, above = Timing.of(whole[name]), Timing.of(rest[name])
        bench.row(name.partition(",")[0], timing=timing, note=f"{syncs[name]} syncs")
        times = f"{timing.p50 * 1e3:.1f} ms in all, {syncs[name]} syncs among them"
        bench.report(name, above.p50 * 1e3, f"{times}; {timing.cpu_p50 * 1e3:.1f} ms of CPU time")
    waited = Timing.of(whole[ADD]).p50 - Timing.of(rest[ADD]).p50
    bench.report("fsync of an addition", 1e3 * waited, f"{syncs[ADD]} syncs")


def _measure_many(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    commits = sizes.reduced(COMMITS, 100)
    corpus = Prepared(f"synthetic-{max(1_000, commits)}").prepare()
    with _in_memory(scratch) as parent:
        folder, copy = parent / "commits", parent / "compacted"
        with StoredIndex.create(FolderStorage(folder, create=True), IndexSettings(IndexOptions())) as index:
            taken = clocked(lambda: _commit_each(index, corpus.documents, commits))()
            index.copy_to(copy)
        files = len(list(folder.iterdir()))
        bench.report(FILES, files, f"{commits:,} documents, one by one")
        bench.report(f"{COMMITS:,} commits: each", 1e3 * taken.wall / commits, f"in {parent}")
        openings = [clocked(lambda: StoredIndex(FolderStorage(folder)).close())().wall for _ in range(5)]
        bench.report(OPENING, 1e3 * median(openings), f"{files} files")
        with StoredIndex(FolderStorage(copy)) as compacted, StoredIndex(FolderStorage(folder)) as index:
            compacted.compact()
            _compare_searches(bench, sizes, corpus, index, compacted)


def _commit_each(index: StoredIndex, documents: TokenEmbeddings[Tensor], commits: int) -> None:
    for place in range(commits):
        document = Document(DocumentId(str(place)), TEXT, {"share": place % 100})
        index.add([document], documents.span(place, place + 1))


def _compare_searches(bench: Bench, sizes: Sizes, corpus: Prepared, index: StoredIndex, compacted: StoredIndex) -> None:
    snapshots = {"many commits": index.snapshot(), "compacted": compacted.snapshot()}
    turns = {name: iter(np.arange(10_000) % len(corpus.queries)) for name in snapshots}

    def search(name: str) -> Seconds:
        place = int(next(turns[name]))
        return clocked(lambda: snapshots[name].search(corpus.queries.span(place, place + 1), K), 3)()

    for name in snapshots:
        search(name)
    timings = bench.in_turn({name: lambda name=name: search(name) for name in snapshots}, 2 * sizes.repeats)
    many, few = timings["many commits"].p50, timings["compacted"].p50
    segments = f"{dict(snapshots['many commits'].stats().segments)} and {dict(snapshots['compacted'].stats().segments)}"
    bench.report(COMPACTED, many / few, f"{many * 1e3:.2f} and {few * 1e3:.2f} ms; segments {segments}")


@contextmanager
def _in_memory(scratch: Path) -> Iterator[Path]:
    parent = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else scratch
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)
