"""Folders that other tools wrote, and indexes to fill."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.text import Document
from lateinteraction.testing.storage import MemoryStorage

PEERS = Path(__file__).with_name("peers")


@pytest.fixture
def peer_folder(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder that a peer wrote, beside what its own reader makes of it."""

    def unpacked(name: str) -> Path:
        with zipfile.ZipFile(PEERS / f"{name}.zip") as archive:
            archive.extractall(tmp_path / name)
        return tmp_path / name / "idx"

    return unpacked


@pytest.fixture
def new_index() -> Callable[..., StoredIndex]:
    def made(codec: Codec = "float16", encoder: dict[str, str] | None = None) -> StoredIndex:
        return StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions(codec, "none"), encoder))

    return made


@pytest.fixture
def embeddings_of() -> Callable[..., TokenEmbeddings[torch.Tensor]]:
    """Embeddings of so many tokens each, from a seed."""

    def made(lengths: Sequence[int], dimension: int = 8, seed: int = 0) -> TokenEmbeddings[torch.Tensor]:
        values = np.random.default_rng(seed).standard_normal((sum(lengths), dimension)).astype(np.float32)
        return TokenEmbeddings(torch.tensor(values), offsets_of(lengths))

    return made


def documents_named(ids: Sequence[str]) -> list[Document]:
    return [Document(each, f"text of {each}") for each in ids]
