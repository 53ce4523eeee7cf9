# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""What the workers of peers' indexes share: a corpus read from arrays, an index built of it, then only queried.

Runs with the interpreter of a peer. Documents are named by their places in the corpus. Before anything is measured the
embeddings lie in memory as float32, from which each library gets what it takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from benchmarks.peers.serving import Answer, memory_growth, read_texts, serve

Rows = list[Any]  # tensors (tokens, dimension) of an item each
Parameters = Mapping[str, Any]


class Items(NamedTuple):
    """Embeddings of documents or queries, in memory before anything is measured.

    Args:
        tokens: float32 tensor (T, D) of all items, one after the other.
        lengths: of each item.
        texts: of each document, for whoever keeps them.
    """

    tokens: Any
    lengths: list[int]
    texts: list[str]

    def each(self) -> Rows:
        """A tensor for each item: views, no copies."""
        return list(self.tokens.split(self.lengths))

    def first(self, count: int) -> Items:
        """So many of them, in memory of their own."""
        lengths = self.lengths[:count]
        return Items(self.tokens[: sum(lengths)].clone(), lengths, self.texts[:count])

    @classmethod
    def read(cls, corpus: str, kind: str) -> Items:
        """Those of a corpus; documents without texts have empty ones."""
        tokens = torch.from_numpy(np.load(Path(corpus) / f"{kind}.tokens.npy")).float()
        lengths: list[int] = np.diff(np.load(Path(corpus) / f"{kind}.offsets.npy")).tolist()
        file = Path(corpus) / f"{kind}.texts.json"
        return cls(tokens, lengths, read_texts(str(file)) if file.exists() else [""] * len(lengths))


class OpenIndex(Protocol):
    """An index that is loaded."""

    def __call__(self, queries: Rows, k: int, parameters: Parameters) -> list[list[int]]:
        """The k best documents of each query, best first, found with these parameters and otherwise the defaults."""
        ...


class Library(Protocol):
    """A library as a person uses it who follows its front page."""

    def build(self, folder: str, documents: Items) -> None:
        """Make an index in this folder; each document's id is its place."""
        ...

    def open(self, folder: str, threads: int) -> OpenIndex:
        """Load it, to be searched by so many threads."""
        ...


def serve_library(library: Library, more: Mapping[str, Callable[..., Answer]] = MappingProxyType({})) -> None:
    """Answer requests about one library's indexes, and what else it can do."""
    worker = _Worker(library)
    serve({"build": worker.build, "open": worker.open, "find": worker.find, "time": worker.time, **more})


class _Worker:
    def __init__(self, library: Library) -> None:
        self._library = library
        self._search: OpenIndex | None = None
        self._queries: Rows = []

    def build(self, corpus: str, folder: str, warm: str | None = None) -> Answer:
        """Build an index; wall and CPU seconds of it, and the bytes by which it raised the peak above the inputs.

        Args:
            corpus: the folder of its arrays.
            folder: of the new index, which is not there.
            warm: a folder for an index of the first 64 documents that is built before, so that imports and first calls
                are paid for.
        """
        documents = Items.read(corpus, "documents")
        if warm is not None:
            self._library.build(warm, documents.first(64))
        taken: dict[str, float] = {}

        def build() -> None:
            began, cpu = time.perf_counter(), _cpu_seconds()
            self._library.build(folder, documents)
            taken.update(seconds=time.perf_counter() - began, cpu_seconds=_cpu_seconds() - cpu)

        growth = memory_growth(build)["growth"]
        return {**taken, "growth": growth, "documents": len(documents.lengths), "bytes": _size(Path(folder))}

    def open(self, corpus: str, folder: str, threads: int) -> Answer:
        """Load an index and the queries; seconds of the first."""
        torch.set_num_threads(threads)
        self._queries = Items.read(corpus, "queries").each()
        began, cpu = time.perf_counter(), _cpu_seconds()
        self._search = self._library.open(folder, threads)
        return {"seconds": time.perf_counter() - began, "cpu_seconds": _cpu_seconds() - cpu}

    def find(self, parameters: Parameters, k: int, queries: int) -> Answer:
        """The k best documents of each of the first so many queries, asked at once, and the seconds of that."""
        found: list[list[int]] = []
        answer = self._timed(lambda: found.extend(self._found(self._queries[:queries], k, parameters)))
        return {**answer, "found": found}

    def time(self, parameters: Parameters, k: int, query: int) -> Answer:
        """Seconds of one query by itself."""
        return self._timed(lambda: self._found([self._queries[query]], k, parameters))

    def _found(self, queries: Rows, k: int, parameters: Parameters) -> list[list[int]]:
        assert self._search is not None, "open an index first"
        return self._search(queries, k, parameters)

    def _timed(self, call: Callable[[], object]) -> Answer:
        cpu, wall = _cpu_seconds(), time.perf_counter()
        call()
        seconds, cpu_seconds = time.perf_counter() - wall, _cpu_seconds() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def _cpu_seconds() -> float:
    """Of this process, all its threads, and the children it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
