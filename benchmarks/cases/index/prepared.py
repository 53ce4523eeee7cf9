"""Corpora as arrays on disk, the same for everyone: embeddings, queries, and what an exact search finds.

They lie below `.peers/indexes/` and are made when first asked for: synthetic ones from their seed, collections with
the default model behind a seeded random projection to 128 dimensions. Values are float16, so that nobody is given
more than another. Collections are encoded in blocks that are kept: an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

import lateinteraction as li
from benchmarks.cases.index.corpora import DIMENSION, Corpus
from benchmarks.collections import read_collection
from benchmarks.peers.process import ENVIRONMENTS
from lateinteraction.adapters.neural.scorer import MaxSimScorer
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import TruncatedTextWarning
from lateinteraction.domain.text import Document, DocumentId, Query

INDEXES = ENVIRONMENTS / "indexes"
QUERIES, JUDGED = 100, 50
"""Of a corpus, and of them those that recall is judged by."""
K = 10
DOCUMENT_LENGTH, QUERY_LENGTH = 180, 32
SEED = 0
BLOCK = 2_000
SYNTHETIC = "synthetic-"
SPLITS: Mapping[str, str] = MappingProxyType({"cranfield": "test", "vaswani": "test", "debian-descriptions": "test"})
"""Collections that are encoded, and whose queries are asked."""

Embedded = TokenEmbeddings[Tensor]


@frozen(eq=False)
class Prepared:
    """A corpus that lies in a folder.

    Args:
        name: `synthetic-<documents>`, or of a collection.
        parent: where the folders of all corpora lie.
    """

    name: str
    parent: Path = INDEXES

    @property
    def folder(self) -> Path:
        """Of its arrays, of the indexes that peers make of it, and of ours."""
        return self.parent / self.name

    @cached_property
    def documents(self) -> Embedded:
        """All documents, float32; the tokens are read when they are asked for."""
        return self._read("documents")

    @cached_property
    def queries(self) -> Embedded:
        """At most 100, float32."""
        return self._read("queries")

    @cached_property
    def best(self) -> NDArray[np.int64]:
        """Places (Q, 10) of the exactly best documents of each query."""
        return np.load(self.folder / "best.npy")

    def ids(self) -> list[DocumentId]:
        """Of the documents: their places."""
        return [DocumentId(str(place)) for place in range(len(self.documents))]

    def recall(self, found: Sequence[Sequence[int]]) -> float:
        """Share of the exactly best ten that are among the first ten found, over these first queries."""
        shares = [
            len(set(own[:K]) & set(map(int, truth))) / len(truth)
            for own, truth in zip(found, self.best[: len(found)], strict=True)
        ]
        return float(np.mean(shares))

    def prepare(self, progress: Callable[[str], object] = print) -> Prepared:
        """Make what is not there."""
        if not (self.folder / "best.npy").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            progress(f"{self.name}: preparing")
            documents, queries = self._made(progress)
            _write(self.folder, "queries", [queries])
            _write(self.folder, "documents", documents)
            np.save(self.folder / "best.npy", exact_best(self.documents, self.queries))
            shutil.rmtree(self.folder / "blocks", ignore_errors=True)
        return self

    def _made(self, progress: Callable[[str], object]) -> tuple[Iterator[Embedded], Embedded]:
        if self.name.startswith(SYNTHETIC):
            corpus = Corpus(int(self.name.removeprefix(SYNTHETIC)))
            return corpus.blocks(), corpus.queries(QUERIES)
        collection = read_collection(self.name, SPLITS[self.name])
        texts = [document.text for document in collection.documents]
        (self.folder / "documents.texts.json").write_text(json.dumps(texts), encoding="utf-8")
        model = encoder()
        blocks = _encoded(model, collection.documents, self.folder / "blocks", progress)
        return blocks, encode_queries(model, collection.queries[:QUERIES])

    def _read(self, kind: str) -> Embedded:
        tokens = np.load(self.folder / f"{kind}.tokens.npy")
        return TokenEmbeddings(torch.from_numpy(tokens).float(), np.load(self.folder / f"{kind}.offsets.npy"))


def exact_best(documents: Embedded, queries: Embedded, k: int = K) -> NDArray[np.int64]:
    """Places (Q, k) of the best documents, all of them scored in float32."""
    k = min(k, len(documents))
    with torch.inference_mode():
        scores = torch.cat(
            [
                MaxSimScorer().matrix(queries, documents.span(first, min(first + BLOCK, len(documents))))
                for first in range(0, len(documents), BLOCK)
            ],
            dim=1,
        )
        return scores.topk(k, dim=1).indices.numpy()


def encoder() -> li.Model:
    """The default model behind a random projection to 128 dimensions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a projection that is not trained
        return li.load_model(
            device="cpu",
            recipe={"document_length": DOCUMENT_LENGTH, "query_length": QUERY_LENGTH},
            checkpoint=li.CheckpointOptions(dtype="float32", projection=li.RandomProjection(DIMENSION, seed=SEED)),
        )


def encode_queries(model: li.Model, queries: Sequence[Query]) -> Embedded:
    """Embeddings of texts that may be cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)
        return model.encode_queries(list(queries), output="torch")


def _encoded(
    model: li.Model, documents: Sequence[Document], folder: Path, progress: Callable[[str], object]
) -> Iterator[Embedded]:
    """Blocks of documents, each kept in a file as soon as it is there."""
    folder.mkdir(exist_ok=True)
    left = iter(documents)
    for number in range(-(-len(documents) // BLOCK)):
        own = list(islice(left, BLOCK))
        file = folder / f"{number}.npz"
        if not file.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TruncatedTextWarning)
                made = model.encode_documents(own, output="numpy")
            unfinished = file.with_suffix(".part.npz")
            np.savez(unfinished, tokens=made.tokens.astype(np.float16), offsets=made.offsets)
            unfinished.rename(file)
            progress(f"  {min((number + 1) * BLOCK, len(documents)):,} of {len(documents):,} documents encoded")
        with np.load(file, allow_pickle=False) as arrays:
            yield TokenEmbeddings(torch.from_numpy(arrays["tokens"]), arrays["offsets"])


def _write(folder: Path, kind: str, blocks: Iterator[Embedded] | Sequence[Embedded]) -> None:
    """Tokens as one .npy of float16, appended to block by block, and the offsets beside it."""
    lengths: list[NDArray[np.int64]] = []
    raw = folder / f"{kind}.tokens.raw"
    width = DIMENSION
    with raw.open("wb") as file:
        for block in blocks:
            file.write(block.tokens.numpy().astype(np.float16).tobytes())
            lengths.append(block.lengths)
            width = block.dimension
    offsets = offsets_of(np.concatenate(lengths))
    shape = int(offsets[-1]), width
    target: Any = np.lib.format.open_memmap(folder / f"{kind}.tokens.npy", "w+", np.dtype(np.float16), shape)
    target[:] = np.memmap(raw, np.float16, "r", shape=shape)
    target.flush()
    raw.unlink()
    np.save(folder / f"{kind}.offsets.npy", offsets)
