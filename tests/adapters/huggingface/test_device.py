"""On an accelerator: the same embeddings, and no batch that waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lateinteraction as li

TEXTS = [f"the quick brown fox {'jumps again ' * (row % 17)}" for row in range(60)]
pytestmark = pytest.mark.gpu


@pytest.fixture
def refusing_to_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_embeddings_in_full_precision_are_those_of_the_cpu(tiny_model: Path) -> None:
    host = li.load_model(tiny_model, device="cpu").encode_documents(TEXTS)
    options = li.CheckpointOptions(dtype="float32")
    device = li.load_model(tiny_model, device="cuda", checkpoint=options).encode_documents(TEXTS)
    assert device.tokens.is_cuda
    torch.testing.assert_close(device.tokens.cpu(), host.tokens, rtol=0, atol=1e-4)


def test_bfloat16_is_the_default_there_and_stays_close(tiny_model: Path) -> None:
    host = li.load_model(tiny_model, device="cpu").encode_documents(TEXTS)
    device = li.load_model(tiny_model, device="cuda").encode_documents(TEXTS)
    assert (device.tokens.cpu() * host.tokens).sum(dim=1).min() > 0.98


def test_no_batch_waits_for_the_device(tiny_model: Path, refusing_to_wait: None) -> None:
    model = li.load_model(tiny_model, device="cuda", encoding=li.EncodingOptions(tokens_per_batch=1024))
    assert len(model.encode_documents(TEXTS)) == len(TEXTS)
