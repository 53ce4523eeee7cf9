"""Stanford's ColBERT: one weights file and artifact.metadata, read whole or refused."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.errors import InvalidModel
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, DocumentId

WEIGHTS = "model.safetensors"


def test_its_metadata_becomes_the_recipe(checkpoints: Any) -> None:
    folder = checkpoints.stanford(query_token_id="[unused0]", doc_token_id="[unused1]", attend_to_mask_tokens=True)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.format == "stanford"
    assert checkpoint.recipe == EncodingRecipe(
        query_prefix="[unused0]",
        document_prefix="[unused1]",
        query_length=16,
        document_length=40,
        expansion="fixed",
        attend_to_expansion=True,
    )


def test_punctuation_is_masked_unless_the_metadata_says_no(checkpoints: Any) -> None:
    for said, expected in ((True, True), (None, True), (False, False)):
        folder = checkpoints.stanford("roberta", mask_punctuation=said)
        assert read_checkpoint(folder).recipe.skiplist == (tuple(string.punctuation) if expected else ())


def test_without_metadata_the_defaults_of_colbert_hold_and_one_warning_says_so(checkpoints: Any) -> None:
    folder = checkpoints.stanford(metadata=False)
    with pytest.warns(UserWarning, match=r"artifact\.metadata") as told:
        checkpoint = read_checkpoint(folder, recipe={"document_length": 64, "skiplist": ()})
    assert len(told) == 1
    assert told[0].filename == __file__
    assert checkpoint.recipe == EncodingRecipe(
        query_prefix="[unused0]",
        document_prefix="[unused1]",
        query_length=32,
        document_length=64,
        expansion="fixed",
    )


def test_its_encoder_and_its_projection_are_the_tensors_of_the_file(checkpoints: Any) -> None:
    folder = checkpoints.stanford()
    stored = load_file(folder / WEIGHTS)
    checkpoint = read_checkpoint(folder)
    (layer,) = checkpoint.projection.layers
    assert torch.equal(layer.weight, stored["linear.weight"])
    assert layer.bias is None
    ours = checkpoint.transformer.state_dict()
    names = [name for name in stored if name != "linear.weight"]
    assert all(torch.equal(ours[name.removeprefix("bert.")], stored[name]) for name in names)
    assert len(names) > 30


def test_pickled_weights_are_read_only_when_allowed(checkpoints: Any) -> None:
    folder = checkpoints.stanford()
    documents = [Document(DocumentId("a"), "the quick brown fox")]
    expected = HuggingFaceEncoder(read_checkpoint(folder)).encode_documents(documents)
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InvalidModel, match="pickled_weights"):
        read_checkpoint(folder)
    allowed = read_checkpoint(folder, options=CheckpointOptions(pickled_weights=True))
    found = HuggingFaceEncoder(allowed).encode_documents(documents)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"similarity": "l2"}, "similarity = 'l2'"),
        ({"interaction": "flipr"}, "interaction = 'flipr'"),
        ({"dim": 128}, "dim = 128; expected 16"),
        ({"query_token_id": "[Q]"}, "query_prefix = '[Q]' is"),
        ({"doc_maxlen": "long"}, "document_length"),
        ({"mask_punctuation": "yes"}, "mask_punctuation = 'yes'"),
    ],
)
def test_metadata_that_cannot_be_honoured_is_refused(checkpoints: Any, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidModel) as refused:
        read_checkpoint(checkpoints.stanford(**settings))
    assert reason in str(refused.value)


def change_tensors(folder: Path, **tensors: torch.Tensor | None) -> None:
    stored: dict[str, Any] = {**load_file(folder / WEIGHTS), **{k.replace("__", "."): v for k, v in tensors.items()}}
    save_file({name: each for name, each in stored.items() if each is not None}, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"linear__weight": None}, "no linear.weight"),
        ({"linear__weight": torch.zeros(16, 24)}, "takes 24 dimensions; expected the 32"),
        ({"linear__weight": torch.zeros(16)}, "shapes"),
        ({"linear__bias": torch.zeros(16)}, "no place for, linear.bias"),
        ({"bert__embeddings__LayerNorm__weight": None}, "lack 1 tensors, embeddings.LayerNorm.weight"),
        ({"bert__encoder__layer__7__output__dense__bias": torch.zeros(4)}, "no place for, encoder.layer.7"),
    ],
)
def test_tensors_that_are_not_this_models_are_refused(
    checkpoints: Any, tensors: dict[str, torch.Tensor | None], reason: str
) -> None:
    folder = checkpoints.stanford()
    change_tensors(folder, **tensors)
    with pytest.raises(InvalidModel) as refused:
        read_checkpoint(folder)
    assert reason in str(refused.value)


def test_metadata_that_is_no_json_is_refused(checkpoints: Any) -> None:
    folder = checkpoints.stanford()
    for content in ("{", json.dumps([1])):
        (folder / "artifact.metadata").write_text(content)
        with pytest.raises(InvalidModel, match=r"JSONDecodeError|a JSON object"):
            read_checkpoint(folder)
