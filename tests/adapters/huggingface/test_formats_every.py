"""Each format of each family gives what transformers and its dense layers give, computed here by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.reading import read_checkpoint
from lateinteraction.domain.text import Document, DocumentId, Query

FAMILIES = ["bert", "distilbert", "roberta", "mpnet", "xlm-roberta", "modernbert", "qwen2"]
SENTENCE = {"max_seq_length": 48, "do_lower_case": False}
TEXT = "the quick brown fox jumps over the lazy dog"
FORMATS: dict[str, Callable[[Any, str], Path]] = {
    "plain": lambda make, family: make.plain(family),
    "pylate": lambda make, family: make.pylate(family),
    "sentence-transformers": lambda make, family: make.single_vector(family),
    "multi-vector": lambda make, family: make.multi_vector(family),
    "stanford": lambda make, family: make.stanford(family),
}
SHORT = {"plain": {"query_length": 16, "document_length": 40}}


def read(folder: Path, kind: str, **recipe: Any) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders: where an expansion goes has a test of its own
        return read_checkpoint(folder, recipe={**SHORT.get(kind, {}), **recipe})


def by_hand(folder: Path, ids: list[int]) -> Tensor:
    """Unit embeddings of ids, from the tensors of the files and nothing of ours."""
    with torch.no_grad():
        rows = AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids]))[0][0]
    inline = load_file(folder / "model.safetensors").get("linear.weight")
    if inline is not None:
        rows = rows @ inline.T
    for file in sorted(folder.glob("*_Dense/model.safetensors")):
        tensors = load_file(file)
        rows = rows @ tensors["linear.weight"].T
        assert set(tensors) == {"linear.weight"}
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_every_family_gives_its_transformer_and_its_projection(
    checkpoints: Any, kind: str, family: str
) -> None:
    folder = FORMATS[kind](checkpoints, family)
    checkpoint = read(folder, kind, query_prefix=None, document_prefix=None, query_prompt="", document_prompt="")
    assert checkpoint.format == kind
    ids = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    expected = by_hand(folder, ids)
    assert checkpoint.dimension == expected.shape[1]
    with torch.no_grad():
        rows = checkpoint.projection(checkpoint.transformer(input_ids=torch.tensor([ids]))[0][0])
    torch.testing.assert_close(torch.nn.functional.normalize(rows, dim=-1), expected, rtol=0, atol=1e-6)
    embeddings = HuggingFaceEncoder(checkpoint).encode_documents([Document(DocumentId("a"), TEXT)])
    torch.testing.assert_close(embeddings.tokens, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["pylate", "stanford", "multi-vector"])
def test_the_marker_of_a_format_stands_before_the_text_in_every_family(
    checkpoints: Any, kind: str, family: str
) -> None:
    folder = FORMATS[kind](checkpoints, family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    framed, bare = tokenizer(TEXT)["input_ids"], tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    first = framed.index(bare[0])
    marker = tokenizer.convert_tokens_to_ids("[D] ")
    expected = by_hand(folder, [*framed[:first], marker, *framed[first:]])
    embeddings = HuggingFaceEncoder(read(folder, kind)).encode_documents([Document(DocumentId("a"), TEXT)])
    torch.testing.assert_close(embeddings.tokens, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_of_a_format_are_filled_to_their_length(checkpoints: Any, family: str) -> None:
    queries = HuggingFaceEncoder(read(checkpoints.pylate(family), "pylate")).encode_queries([Query("fox"), Query(TEXT)])
    assert list(queries.lengths) == [16, 16]


def test_three_formats_of_one_model_give_the_same(checkpoints: Any) -> None:
    folders = {kind: FORMATS[kind](checkpoints, "bert") for kind in ("pylate", "multi-vector", "stanford")}
    stanford = load_file(folders["stanford"] / "model.safetensors")["linear.weight"]
    for kind in ("pylate", "multi-vector"):
        save_file({"linear.weight": stanford}, folders[kind] / "1_Dense" / "model.safetensors", {"format": "pt"})
    documents = [Document(DocumentId("a"), f"{TEXT}, again.")]
    queries = [Query("lazy fox?")]
    results = []
    for kind, folder in folders.items():
        encoder = HuggingFaceEncoder(read(folder, kind, skiplist=(",", ".")))
        results.append((encoder.encode_queries(queries).tokens, encoder.encode_documents(documents).tokens))
    for found in results[1:]:
        for ours, theirs in zip(found, results[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
