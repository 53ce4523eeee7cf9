"""The adapters of torch tensors keep the contracts of their ports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.adapters.neural.scorer import MaxSimScorer
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.text import Document
from lateinteraction.testing.contracts import (
    Conversions,
    DocumentStoreContract,
    EmbeddingStoreContract,
    ExactIndexContract,
    MaxSimContract,
)


class Tensors(Conversions[Tensor]):
    def tensor(self, array: NDArray[np.floating]) -> Tensor:
        return torch.tensor(array)

    def array(self, tensor: Tensor) -> NDArray[np.floating]:
        return tensor.numpy()


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
