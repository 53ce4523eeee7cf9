"""The index in a folder keeps every promise of an index, by each codec, in memory and on the disk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings, Keep, Tier
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.text import Document
from lateinteraction.testing.contracts import (
    DocumentStoreContract,
    EmbeddingStoreContract,
    ExactIndexContract,
    IndexContract,
)
from lateinteraction.testing.storage import MemoryStorage
from lateinteraction.wiring.indexes import WatchedIndex
from tests.contracts.torch_arrays import Tensors


def stored(codec: Codec, keep: Keep = "nothing", tier: Tier = "auto") -> StoredIndex:
    return StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions(codec, keep=keep, tier=tier)))


class TestStoredIndex(
    Tensors, ExactIndexContract[Tensor], EmbeddingStoreContract[Tensor], DocumentStoreContract[Tensor]
):
    tolerance = 2e-3  # float16
    stored_tolerance = 1e-3

    def make_index(self) -> StoredIndex:
        return stored("float16")

    def document_store(self, index: StoredIndex) -> StoredIndex:
        return index

    def make_embedding_store(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor]) -> StoredIndex:
        index = stored("float16")
        index.add(documents, embeddings)
        return index

    make_document_store = make_embedding_store


class TestStoredInEightBits(Tensors, IndexContract[Tensor]):
    def make_index(self) -> StoredIndex:
        return stored("int8")

    def document_store(self, index: StoredIndex) -> StoredIndex:
        return index


class TestWatched(Tensors, IndexContract[Tensor]):
    """An index whose additions tell what they are at is that index."""

    def make_index(self) -> WatchedIndex:
        return WatchedIndex(stored("int8"), lambda stage, done, total: None)

    def document_store(self, index: WatchedIndex) -> StoredIndex:
        return index.stored


class TestKeptBesideResiduals(Tensors, IndexContract[Tensor]):
    """Every segment compressed, however small; the originals kept beside it decide."""

    def make_index(self) -> StoredIndex:
        return stored("residual4", keep="float16", tier="compressed")

    def document_store(self, index: StoredIndex) -> StoredIndex:
        return index


class TestResidualsAlone(Tensors, IndexContract[Tensor], EmbeddingStoreContract[Tensor], DocumentStoreContract[Tensor]):
    """Nothing but four bits, from the first token on."""

    loss = 1e-3  # of the scale, which is float16
    stored_tolerance = 0.5  # of a few tokens the codebook has one centroid; 1,200 corpora: half 1e-4, the worst .26

    def make_index(self) -> StoredIndex:
        return stored("residual4", tier="compressed")

    def document_store(self, index: StoredIndex) -> StoredIndex:
        return index

    def make_embedding_store(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor]) -> StoredIndex:
        index = self.make_index()
        index.add(documents, embeddings)
        return index

    make_document_store = make_embedding_store


class TestOneBitAndInvertedLists(Tensors, IndexContract[Tensor]):
    """The least that can be stored, found by lists first."""

    loss = 1e-3

    def make_index(self) -> StoredIndex:
        return stored("residual1", tier="listed")

    def document_store(self, index: StoredIndex) -> StoredIndex:
        return index
