"""Weights are those that were asked for, and reading them runs nothing."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidModel, ModelMismatch
from lateinteraction.domain.text import Document, DocumentId

SHORT = {"query_length": 16, "document_length": 48}
DOCUMENTS = [Document(DocumentId(text), text) for text in ("the quick brown fox", "again, why?")]


@pytest.fixture
def folder(families: Mapping[str, Path], tmp_path: Path) -> Path:
    """A small BERT to damage."""
    return Path(shutil.copytree(families["bert"], tmp_path / "model"))


def read(source: Path, **options: Any) -> Checkpoint:
    return read_checkpoint(source, recipe=SHORT, options=CheckpointOptions(**options))


def embedded(checkpoint: Checkpoint) -> TokenEmbeddings[torch.Tensor]:
    return HuggingFaceEncoder(checkpoint).encode_documents(DOCUMENTS)


def test_weights_of_the_digest_asked_for_load(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert read(folder, weights_sha256=digest).recipe == read(folder, weights_sha256=digest.upper()).recipe


def test_weights_of_another_digest_are_refused_before_they_are_read(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ModelMismatch, match=f"sha256 {'0' * 64}"):
        read(folder, weights_sha256="0" * 64)


def test_one_digest_cannot_stand_for_several_files(folder: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(ModelMismatch, match="weights files"):
        read(folder, weights_sha256="0" * 64)


def pickled(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_read_only_when_allowed(checkpoints: Any) -> None:
    folder = checkpoints.pylate()
    expected = embedded(read(folder))
    pickled(pickled(folder) / "1_Dense")
    with pytest.raises(InvalidModel, match=r"has no model\.safetensors.*pickled_weights"):
        read(folder)
    torch.testing.assert_close(embedded(read(folder, pickled_weights=True)).tokens, expected.tokens, rtol=0, atol=0)


def test_safetensors_are_preferred_to_pickles_that_are_allowed(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert read(folder, pickled_weights=True).format == "plain"


class _Call:
    """What a hostile pickle holds: a call that is made while it is read."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("called"),)


def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (".", "1_Dense"):
        folder = checkpoints.pylate()
        torch.save({"linear.weight": _Call()}, folder / place / "pytorch_model.bin")
        (folder / place / "model.safetensors").unlink()
        with pytest.raises(InvalidModel):
            read(folder, pickled_weights=True)
    assert not (tmp_path / "called").exists()
