"""The index in a folder keeps every promise of an index, by each codec, in memory and on the disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.text import Document
from lateinteraction.testing.contracts import (
    Conversions,
    DocumentStoreContract,
    EmbeddingStoreContract,
    ExactIndexContract,
    IndexContract,
)
from lateinteraction.testing.storage import MemoryStorage


class Tensors(Conversions[Tensor]):
    def tensor(self, array: NDArray[np.floating]) -> Tensor:
        return torch.tensor(array)

    def array(self, tensor: Tensor) -> NDArray[np.floating]:
        return tensor.numpy()


def stored(codec: Codec) -> StoredIndex:
    return StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions(codec)))


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


class TestStoredInFourBits(Tensors, IndexContract[Tensor]):
    """Every segment compressed, however small; the originals kept beside it decide."""

    @pytest.fixture(autouse=True)
    def compressed_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folding, "COMPRESS_AT", 1)

    def make_index(self) -> StoredIndex:
        return StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions("residual4", keep="float16")))

    def document_store(self, index: StoredIndex) -> StoredIndex:
        return index
