"""Words: the quality of BM25 on five collections, and what words alone and both together cost on the largest.

The reference is bm25s 0.3.16 with k1 = 0.9 and b = 0.4, Snowball's stemmer for English, pairs of characters for Chinese
and identifiers in their parts: its nDCG@10 for each collection. Indexes here hold no embeddings, but for the one of
Debian's descriptions that hybrid search is timed on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from attrs import frozen

from benchmarks.cases.index.contestants import RESIDUAL4, build_ours
from benchmarks.cases.index.prepared import K, Prepared
from benchmarks.cases.index.sizes import Sizes
from benchmarks.cases.kernels.inputs import threads
from benchmarks.collections import read_collection
from benchmarks.harness import Bench, Figure, Seconds, clocked
from lateinteraction.adapters.index.analysis import Language
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.search import SearchOptions
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.snapshot import IndexSnapshot
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.application.evaluation import evaluate
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.evaluation import EvaluationSet
from lateinteraction.domain.ranking import Fusion, Ranking
from lateinteraction.domain.text import Query

DIMENSION = 8


@frozen
class Known:
    """A collection with a split, and what the reference reaches on it."""

    name: str
    split: str
    ndcg: float
    language: Language = "english"


COLLECTIONS = (
    Known("cranfield", "test", 0.4040),
    Known("vaswani", "test", 0.4449),
    Known("cosqa", "dev", 0.3594),
    Known("debian-descriptions", "dev", 0.6933),
    Known("xquad-zh", "test", 0.9666, "none"),
)
LARGEST = "debian-descriptions"
WORDS, BOTH, DENSE = f"{LARGEST}: BM25", f"{LARGEST}: hybrid", f"{LARGEST}: embeddings"
PER_DOCUMENT = {"postings": ("lexical.",), "ids, texts and metadata": ("ids.", "texts.", "metadata.")}

FIGURES = (
    *(Figure(f"nDCG@10 above the reference, {known.name}", "", ">=", -0.01) for known in COLLECTIONS),
    Figure(f"{WORDS}, p50", "ms", "<=", 10.0),
    Figure(f"{BOTH}, p50 against embeddings alone", "×", "<=", 2.0),
    *(Figure(f"{LARGEST}: bytes a document, {part}", "B") for part in PER_DOCUMENT),
)


def measure(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """Quality first; then time, on one thread."""
    for known in COLLECTIONS:
        if sizes.trial and known.name == LARGEST:
            bench.skip(f"nDCG@10 above the reference, {known.name}", "a trial")
            continue
        collection = read_collection(known.name, known.split)
        with _of_words(collection, known.language, scratch / f"words-{known.name}") as index:
            found = evaluate(_by_words(index.snapshot()), collection, ("nDCG@10",))["nDCG@10"]
            bench.report(
                f"nDCG@10 above the reference, {known.name}", found - known.ndcg, f"{found:.4f} and {known.ndcg:.4f}"
            )
            if known.name == LARGEST:
                _measure_words(bench, sizes, index.snapshot(), collection)
    if sizes.trial:
        for figure in FIGURES:
            if figure.name.startswith(f"{LARGEST}:"):
                bench.skip(figure.name, "a trial")
    else:
        _measure_both(bench, sizes, scratch)


def _of_words(collection: EvaluationSet, language: Language, folder: Path) -> StoredIndex:
    """An index of texts whose documents have no tokens."""
    settings = IndexSettings(IndexOptions(codec="float16", language=language))
    index = StoredIndex.create(FolderStorage(folder, create=True), settings)
    nothing = TokenEmbeddings(torch.empty(0, DIMENSION), np.zeros(len(collection.documents) + 1, np.int64))
    index.add(collection.documents, nothing)
    return index


def _by_words(snapshot: IndexSnapshot) -> Callable[[Sequence[Query], int], list[Ranking]]:
    return lambda queries, k: snapshot.search_text([query.text for query in queries], k)


def _measure_words(bench: Bench, sizes: Sizes, snapshot: IndexSnapshot, collection: EvaluationSet) -> None:
    texts = [query.text for query in collection.queries[:100]]
    call = _each([lambda text=text: snapshot.search_text([text], K) for text in texts])
    timing = bench.in_turn({WORDS: call}, min(len(texts), 4 * sizes.repeats))[WORDS]
    bench.report(f"{WORDS}, p50", timing.p50 * 1e3, f"{len(collection.documents):,} documents")
    for part, prefixes in PER_DOCUMENT.items():
        size = bytes_of(snapshot, prefixes)
        beside = f"{size / 1e6:.1f} MB"
        bench.report(f"{LARGEST}: bytes a document, {part}", size / len(collection.documents), beside)


def _measure_both(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """The same queries by embeddings and by both, which ranks a hundred of each; what encodes them is not timed."""
    figure = f"{BOTH}, p50 against embeddings alone"
    corpus = Prepared(LARGEST)
    if not (corpus.folder / "best.npy").exists():
        bench.skip(figure, "not prepared: `make peers-index` does that")
        return
    folder, _ = build_ours(corpus, RESIDUAL4, scratch / "hybrid")
    texts = [query.text for query in read_collection(LARGEST, "test").queries[: len(corpus.queries)]]
    options, fusion = SearchOptions(), Fusion()
    with threads(1), StoredIndex(FolderStorage(folder)) as index:
        snapshot = index.snapshot()

        def dense(place: int, k: int) -> Ranking:
            return snapshot.search(corpus.queries.span(place, place + 1), k, options=options)[0]

        def both(place: int) -> Ranking:
            words = snapshot.search_text([texts[place]], fusion.depth)[0]
            return fusion.fuse(dense(place, fusion.depth), words, K)

        places = range(len(texts))
        calls = {
            DENSE: _each([lambda place=place: dense(place, K) for place in places]),
            BOTH: _each([lambda place=place: both(place) for place in places]),
        }
        for call in calls.values():
            call()
        timings = bench.in_turn(calls, min(len(texts) - 1, 4 * sizes.repeats))
    alone, fused = timings[DENSE].p50, timings[BOTH].p50
    bench.report(figure, fused / alone, f"{fused * 1e3:.1f} and {alone * 1e3:.1f} ms")


def _each(calls: Sequence[Callable[[], object]]) -> Callable[[], Seconds]:
    """The next of these calls at each turn, timed."""
    waiting = iter(calls)
    return lambda: clocked(next(waiting))()


def bytes_of(snapshot: IndexSnapshot, prefixes: tuple[str, ...]) -> int:
    """Of all arrays whose names begin so."""
    files = [snapshot.opened.file(record) for segment in snapshot.segments for record in segment.record.files]
    return sum(file.lazily(name).nbytes for file in files for name in file.names() if name.startswith(prefixes))
