"""The adapters of torch tensors keep the contracts of their ports."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.adapters.neural.scorer import MaxSimScorer
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.text import Document
from lateinteraction.testing.contracts import (
    DocumentStoreContract,
    EmbeddingStoreContract,
    ExactIndexContract,
    MaxSimContract,
)
from tests.contracts.torch_arrays import Tensors


class TestMaxSimScorer(Tensors, MaxSimContract[Tensor]):
    def make_scorer(self) -> MaxSimScorer:
        return MaxSimScorer()


class TestFlatIndex(Tensors, ExactIndexContract[Tensor], EmbeddingStoreContract[Tensor], DocumentStoreContract[Tensor]):
    def make_index(self) -> FlatIndex:
        return FlatIndex()

    def document_store(self, index: FlatIndex) -> FlatIndex:
        return index

    def make_embedding_store(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor]) -> FlatIndex:
        index = FlatIndex()
        index.add(documents, embeddings)
        return index

    make_document_store = make_embedding_store
