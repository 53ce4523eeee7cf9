"""What the loop does over any engine, here one in NumPy whose memory can be made scarce."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from attrs import define
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from lateinteraction.adapters.encoding import encoder as loop
from lateinteraction.adapters.encoding.batches import Batch
from lateinteraction.adapters.encoding.encoder import EncodingOptions, TextEncoder
from lateinteraction.adapters.huggingface.encoder import tokeniser_of
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import OutOfMemory
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
from lateinteraction.domain.text import Document, DocumentId

RECIPE = EncodingRecipe(query_length=16, document_length=48, pooling=TokenPooling(2))
Rows = NDArray[np.float32]


@define
class Ids:
    """Each token's id is its embedding. `scarce` names the step that has no memory."""

    scarce: str = ""
    freed: int = 0

    tokens_per_batch = 64

    def allocate(self, rows: int) -> Rows:
        self._spend("allocate")
        return np.zeros((rows, 1), dtype=np.float32)

    def fill(self, embeddings: Rows, batch: Batch) -> None:
        ids, _, source, destination = np.split(batch.sheet, np.cumsum(batch.parts)[:-1])
        embeddings[destination, 0] = ids[source]
        self._spend("fill")

    def joined(self, parts: list[Rows]) -> Rows:
        self._spend("join")
        return np.concatenate(parts)

    def pool(self, embeddings: TokenEmbeddings[Rows], pooling: TokenPooling) -> TokenEmbeddings[Rows]:
        self._spend("pool")
        return embeddings

    def ran_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, MemoryError)

    def free(self) -> None:
        self.freed += 1

    def _spend(self, step: str) -> None:
        if step == self.scarce:
            raise MemoryError


def encoder_over(engine: Any, tokenizers: Mapping[str, PreTrainedTokenizerFast]) -> TextEncoder[Rows]:
    options = EncodingOptions()
    return TextEncoder(engine, tokeniser_of(tokenizers["bert"], RECIPE, options), RECIPE, options)


def documents(count: int) -> list[Document]:
    return [Document(DocumentId(str(row)), f"the fox {'again ' * (row % 5)}") for row in range(count)]


@pytest.mark.parametrize("step", ["allocate", "join", "pool"])
def test_embeddings_that_do_not_fit_in_one_piece_are_an_error_that_says_what_to_do(
    tokenizers: Mapping[str, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(loop, "TEXTS_PER_WINDOW", 4)
    assert len(encoder_over(Ids(), tokenizers).encode_documents(documents(10))) == 10
    with pytest.raises(OutOfMemory, match=r"embeddings in one piece.*stream_documents"):
        encoder_over(Ids(step), tokenizers).encode_documents(documents(10))


@pytest.mark.parametrize("step", ["allocate", "join", "pool"])
def test_another_error_there_passes_through(
    tokenizers: Mapping[str, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Broken(Ids):
        def _spend(self, step: str) -> None:
            if step == self.scarce:
                raise RuntimeError("broken")

    monkeypatch.setattr(loop, "TEXTS_PER_WINDOW", 4)
    with pytest.raises(RuntimeError, match="broken"):
        encoder_over(Broken(step), tokenizers).encode_documents(documents(10))


def test_what_is_held_is_given_back_before_a_smaller_batch(
    tokenizers: Mapping[str, PreTrainedTokenizerFast],
) -> None:
    class Narrow(Ids):
        def fill(self, embeddings: Rows, batch: Batch) -> None:
            if batch.sequences > 3:
                raise MemoryError
            super().fill(embeddings, batch)

    engine = Narrow()
    assert len(encoder_over(engine, tokenizers).encode_documents(documents(20))) == 20
    assert engine.freed > 0
