"""Ours answering the requests about indexes, in a process like those of the peers.

`python -m benchmarks.peers.our_index_worker residual4` names the codec; a second word what is kept beside it, such as
`float16`. One more request than peers answer, `stream`, builds an index of a corpus from its seed, block by block.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.cases.index.corpora import BLOCK, Corpus
from benchmarks.harness import cpu_seconds
from benchmarks.peers.index_serving import Items, OpenIndex, Parameters, Rows, serve_library
from benchmarks.peers.serving import Answer, memory_growth
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.search import SearchOptions
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings, Keep
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.filters import filter_from_json
from lateinteraction.domain.text import Document, DocumentId

SHARES = 100
"""Each document's metadata name one of so many equal shares."""
BLOCKS_PER_ADD = 4


class Ours:
    """A stored index with its defaults, but for how embeddings are stored."""

    def __init__(self, options: IndexOptions) -> None:
        self._options = options

    def create(self, folder: str) -> StoredIndex:
        """A new index without documents."""
        return StoredIndex.create(FolderStorage(folder, create=True), IndexSettings(self._options))

    def build(self, folder: str, documents: Items) -> None:
        """See `Library`."""
        embeddings = TokenEmbeddings(documents.tokens, offsets_of(documents.lengths))
        with self.create(folder) as index:
            index.add(numbered(0, documents.texts), embeddings)

    def open(self, folder: str, threads: int) -> OpenIndex:
        """See `Library`. Threads are torch's, which the worker has set."""
        snapshot = StoredIndex(FolderStorage(folder)).snapshot()

        def find(queries: Rows, k: int, parameters: Parameters) -> list[list[int]]:
            given: dict[str, Any] = dict(parameters)
            share = given.pop("share", None)
            where = None if share is None else filter_from_json({"field": "share", "operator": "==", "value": share})
            asked = TokenEmbeddings(torch.cat(queries), offsets_of([len(each) for each in queries]))
            ranked = snapshot.search(asked, k, where=where, options=SearchOptions(**given))
            return [[int(hit.document) for hit in each] for each in ranked]

        return find

    def stream(self, folder: str, documents: int, warm: str) -> Answer:
        """Build an index of so many synthetic documents; seconds, and bytes by which the peak rose."""
        self._add_blocks(warm, Corpus(BLOCK))
        taken: dict[str, float] = {}

        def build() -> None:
            began, cpu = time.perf_counter(), cpu_seconds()
            self._add_blocks(folder, Corpus(documents))
            taken.update(seconds=time.perf_counter() - began, cpu_seconds=cpu_seconds() - cpu)

        growth = memory_growth(build)["growth"]
        files = list(Path(folder).iterdir())
        return {**taken, "growth": growth, "files": len(files), "bytes": sum(file.stat().st_size for file in files)}

    def _add_blocks(self, folder: str, corpus: Corpus) -> None:
        with self.create(folder) as index:
            added = 0
            for piece in _pieces(corpus):
                index.add(numbered(added, [""] * len(piece)), piece)
                added += len(piece)


def numbered(first: int, texts: list[str]) -> list[Document]:
    """Documents whose ids are their places, each in a share of its own."""
    return [
        Document(DocumentId(str(place)), text, {"share": place % SHARES}) for place, text in enumerate(texts, first)
    ]


def _pieces(corpus: Corpus) -> Iterator[TokenEmbeddings[torch.Tensor]]:
    """Some blocks at a time: each becomes a commit."""
    blocks = corpus.blocks()
    for first in blocks:
        joined = [first, *islice(blocks, BLOCKS_PER_ADD - 1)]
        lengths = list(chain.from_iterable(block.lengths for block in joined))
        yield TokenEmbeddings(torch.cat([block.tokens for block in joined]), offsets_of(lengths))


def options_of(words: list[str]) -> IndexOptions:
    """A codec, and what is kept beside it."""
    codec: Codec = next(each for each in get_args(Codec) if each == words[0])
    keep: Keep = next(each for each in get_args(Keep) if each == (words[1:] or ["nothing"])[0])
    return IndexOptions(codec=codec, keep=keep)


if __name__ == "__main__":
    ours = Ours(options_of(sys.argv[1:]))
    serve_library(ours, {"stream": ours.stream})
