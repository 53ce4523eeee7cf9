"""The index with a graph keeps every promise of an index: an exact one below its limit, and one in any case above."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.adapters.index.hnsw.graph import GraphOptions
from lateinteraction.adapters.index.hnsw.index import HnswIndex
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.text import Document
from lateinteraction.testing.contracts import (
    CandidateSourceContract,
    DocumentStoreContract,
    EmbeddingStoreContract,
    ExactIndexContract,
    IndexContract,
)
from tests.contracts.torch_arrays import Tensors

ALL_IN_THE_GRAPH = GraphOptions(exact_below=0)


class TestHnswIndex(
    Tensors,
    ExactIndexContract[Tensor],
    CandidateSourceContract[Tensor],
    EmbeddingStoreContract[Tensor],
    DocumentStoreContract[Tensor],
):
    def make_index(self) -> HnswIndex:
        return HnswIndex(FlatIndex())

    def document_store(self, index: HnswIndex) -> HnswIndex:
        return index

    def make_embedding_store(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor]) -> HnswIndex:
        index = self.make_index()
        index.add(documents, embeddings)
        return index

    make_document_store = make_embedding_store
    make_candidate_source = make_embedding_store


class TestHnswIndexWithEverythingInTheGraph(
    Tensors,
    ExactIndexContract[Tensor],
    CandidateSourceContract[Tensor],
):
    """So few tokens are all within the depth of a search, so that it must still be exact."""

    tolerance = 1e-4

    def make_index(self) -> HnswIndex:
        return HnswIndex(FlatIndex(), ALL_IN_THE_GRAPH)

    def document_store(self, index: HnswIndex) -> HnswIndex:
        return index

    def make_candidate_source(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor]) -> HnswIndex:
        index = self.make_index()
        index.add(documents, embeddings)
        return index


class TestHnswIndexByTokens(Tensors, IndexContract[Tensor]):
    def make_index(self) -> HnswIndex:
        return HnswIndex(FlatIndex(), ALL_IN_THE_GRAPH, interaction="xtr")

    def document_store(self, index: HnswIndex) -> HnswIndex:
        return index
