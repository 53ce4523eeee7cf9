"""Exported models give what torch gives, and a folder is there whole or not at all."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.projection import DenseLayer, Projection
from lateinteraction.adapters.onnx import export
from lateinteraction.adapters.onnx.encoder import OnnxEncoder, OnnxOptions
from lateinteraction.adapters.onnx.export import export_onnx
from lateinteraction.adapters.onnx.folder import read_description
from lateinteraction.domain.errors import InvalidModel, InvalidOption
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
from lateinteraction.domain.text import Document, DocumentId, Query

TEXTS = [
    "late interaction",
    "",
    "The quick brown fox jumps over the lazy dog, again and again; why?",
    "A score is a sum of maxima (one for each token of the query). " * 3,
    "naïve café — 漢字",
]
DOCUMENTS = [Document(DocumentId(str(number)), text) for number, text in enumerate(TEXTS)]
QUERIES = [Query(text) for text in TEXTS[:3]]
COLBERT: dict[str, Any] = {"query_length": 24, "document_length": 40, "expansion": "fixed"}
EXPANDED = EncodingRecipe(**COLBERT)


def projection(width: int, dimension: int = 16, *, bias: bool = False) -> Projection:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn((dimension, width), generator=generator) / width**0.5
    return Projection([DenseLayer(weight, bias=torch.randn(dimension, generator=generator) / 4 if bias else None)])


def encoded(encoder: OnnxEncoder | HuggingFaceEncoder) -> tuple[Any, Any]:
    """Embeddings of the queries and of the documents, as NumPy arrays."""
    queries, _ = encoder.encode_queries_with_report(QUERIES)
    documents, _ = encoder.encode_documents_with_report(DOCUMENTS)
    return np.asarray(queries.tokens), np.asarray(documents.tokens)


def largest_difference(first: OnnxEncoder | HuggingFaceEncoder, second: OnnxEncoder | HuggingFaceEncoder) -> float:
    pairs = list(zip(encoded(first), encoded(second), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def mean_cosine(first: OnnxEncoder | HuggingFaceEncoder, second: OnnxEncoder | HuggingFaceEncoder) -> float:
    return float(
        np.mean(np.concatenate([np.sum(a * b, 1) for a, b in zip(encoded(first), encoded(second), strict=True)]))
    )


@pytest.fixture
def family(
    transformers: Mapping[str, PreTrainedModel], tokenizers: Mapping[str, PreTrainedTokenizerFast]
) -> Callable[..., Checkpoint]:
    """Makes a checkpoint of a family's small random model."""

    def make(name: str, recipe: EncodingRecipe = EXPANDED, layers: Projection | None = None) -> Checkpoint:
        return Checkpoint(
            transformer=transformers[name],
            tokenizer=tokenizers[name],
            projection=layers or Projection(),
            recipe=recipe,
            source=name,
            format="plain",
        )

    return make


FAMILIES = [
    pytest.param(name, marks=[] if name in ("modernbert", "qwen2") else pytest.mark.deep)
    for name in ("bert", "distilbert", "roberta", "mpnet", "xlm-roberta", "modernbert", "qwen2")
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_what_it_gives_in_torch(name: str, family: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = family(name, layers=projection(32, bias=True))
    export_onnx(checkpoint, tmp_path / "model")
    exported = OnnxEncoder(tmp_path / "model")
    assert largest_difference(exported, HuggingFaceEncoder(checkpoint)) <= 1e-5
    seen = checkpoint.recipe.merge({"attend_to_expansion": True})
    assert largest_difference(exported.with_recipe(seen), HuggingFaceEncoder(checkpoint.with_recipe(seen))) <= 1e-5


@pytest.mark.deep
@pytest.mark.parametrize("name", ["roberta", "mpnet", "modernbert", "qwen2"])
def test_bytes_are_near_for_every_family(name: str, family: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = family(name, layers=projection(32))
    export_onnx(checkpoint, tmp_path / "model", weights="int8")
    assert mean_cosine(OnnxEncoder(tmp_path / "model"), HuggingFaceEncoder(checkpoint)) > 0.98


@pytest.mark.parametrize(
    "settings",
    [
        {},
        COLBERT,
        {**COLBERT, "attend_to_expansion": True, "query_prefix": "[unused0]", "skiplist": (".", ",")},
        {"keep_special_tokens": False, "dimension": 40, "document_prompt": "passage: "},
        {"normalise": False, "query_length": 16},
        {"pooling": TokenPooling(2)},
    ],
)
def test_a_trained_model_gives_what_it_gives_in_torch(
    settings: dict[str, Any], trained: Checkpoint, exported: Path
) -> None:
    recipe = EncodingRecipe().merge(settings)
    ours, theirs = OnnxEncoder(exported, OnnxOptions(recipe=settings)), HuggingFaceEncoder(trained.with_recipe(recipe))
    lengths = 1 if recipe.normalise else np.linalg.norm(encoded(theirs)[1], axis=1).max()
    assert ours.recipe == recipe
    assert largest_difference(ours, theirs) <= 1e-5 * lengths


def test_bytes_of_a_trained_model_are_near_and_small(trained: Checkpoint, exported: Path, exported_bytes: Path) -> None:
    near = OnnxEncoder(exported_bytes)
    assert mean_cosine(near, HuggingFaceEncoder(trained)) > 0.99
    assert largest_difference(near, OnnxEncoder(exported)) > 1e-4, "these weights are not bytes"
    sizes = [(folder / "model.onnx").stat().st_size for folder in (exported_bytes, exported)]
    assert sizes[0] < 0.3 * sizes[1]


def test_the_folder_says_what_it_holds(trained: Checkpoint, exported: Path, exported_bytes: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["encoder.json", "model.onnx", "tokenizer.json"]
    description = read_description(exported)
    assert description.recipe == trained.recipe
    assert (description.dimension, description.positions) == (128, 512)
    assert (description.specials.padding, description.specials.mask, description.specials.unknown) == (0, 103, 100)
    assert description.source == trained.source
    assert description.weights == "float32"
    assert read_description(exported_bytes).weights == "int8"
    assert {"torch", "onnxruntime"} <= set(description.versions)


def test_the_tokenizer_neither_cuts_nor_pads(exported: Path) -> None:
    content = json.loads((exported / "tokenizer.json").read_text(encoding="utf-8"))
    assert content["truncation"] is None
    assert content["padding"] is None


@pytest.mark.parametrize("weights", ["exported", "exported_bytes"])
def test_no_path_of_this_machine_is_in_the_graph(weights: str, request: pytest.FixtureRequest) -> None:
    graph = (request.getfixturevalue(weights) / "model.onnx").read_bytes()
    for trace in (b"site-packages", b"stack_trace", os.fsencode(Path(export.__file__).parent), b'.py"'):
        assert trace not in graph


def test_an_export_says_nothing_and_leaves_the_checkpoint_and_the_host_as_they_were(
    family: Callable[..., Checkpoint], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = family("distilbert")
    before = {name: tensor.clone() for name, tensor in checkpoint.transformer.state_dict().items()}
    attributes = (
        checkpoint.transformer.training,
        checkpoint.transformer.dtype,
        checkpoint.transformer.config.to_dict(),
    )
    filters = list(warnings.filters)
    levels = {name: logging.getLogger(name).filters[:] for name in ("torch", "torch.onnx")}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        export_onnx(checkpoint, tmp_path / "model")
    assert said == []
    output = capfd.readouterr()
    assert (output.out.strip(), output.err.strip()) == ("", "")
    assert warnings.filters == filters
    assert levels == {name: logging.getLogger(name).filters for name in levels}
    after = checkpoint.transformer.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    transformer = checkpoint.transformer
    assert (transformer.training, transformer.dtype, transformer.config.to_dict()) == attributes
    assert all(parameter.requires_grad for parameter in transformer.parameters())


@pytest.mark.deep
def test_half_precision_is_exported_as_float32(
    family: Callable[..., Checkpoint], transformers: Mapping[str, PreTrainedModel], tmp_path: Path
) -> None:
    half = copy.deepcopy(transformers["bert"]).bfloat16()
    widened = evolve(family("bert"), transformer=copy.deepcopy(half).float())
    export_onnx(evolve(family("bert"), transformer=half), tmp_path / "model")
    assert half.dtype == torch.bfloat16
    assert largest_difference(OnnxEncoder(tmp_path / "model"), HuggingFaceEncoder(widened)) <= 1e-5


class Contrary(nn.Module):
    """Gives something else while it is exported."""

    width = None

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * 2 + 1 if torch.compiler.is_exporting() else hidden


class Undecided(nn.Module):
    """Does what its values say, which a graph cannot."""

    width = None

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden if float(hidden.sum()) > 0 else -hidden


class Loose(nn.Module):
    """A last layer with one column that dwarfs what bytes leave of its others' inputs."""

    width = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32, 32) + torch.randn(32, 32, generator=torch.Generator()) * 1e-4)

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden * torch.tensor([1e4, *[1.0] * 31])) @ self.weight - 1e4 * hidden[..., :1] * self.weight[0]


@pytest.mark.parametrize(
    ("layers", "weights", "reason"),
    [
        (Contrary(), "float32", "differs from it"),
        (Undecided(), "float32", "cannot be exported"),
        pytest.param(Loose(), "int8", "mean cosine", marks=pytest.mark.deep),
    ],
)
def test_a_graph_that_gives_something_else_is_refused_and_nothing_is_left(
    layers: nn.Module, weights: Any, reason: str, family: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(InvalidModel, match=reason):
        export_onnx(evolve(family("bert"), projection=layers), tmp_path / "model", weights=weights)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_refused(family: Callable[..., Checkpoint], tmp_path: Path) -> None:
    layers = projection(32)
    with torch.no_grad():
        layers.layers[0].weight[3, 3] = torch.nan
    with pytest.raises(InvalidModel, match="not finite"):
        export_onnx(family("bert", layers=layers), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_unknown_weights_are_refused_before_anything_is_done(trained: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="int4"):
        export_onnx(trained, tmp_path / "model", weights="int4")  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_holds_something_else_is_never_touched(
    overwrite: bool, trained: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidOption, match="holds something else"):
        export_onnx(trained, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_exported_model_is_replaced_only_on_request_here_by_one_whose_last_layer_is_bytes(
    family: Callable[..., Checkpoint], changed: Callable[..., Path]
) -> None:
    folder, checkpoint = changed(), family("bert", layers=projection(32))
    before = (folder / "model.onnx").read_bytes()
    with pytest.raises(InvalidOption, match="overwrite=True"):
        export_onnx(checkpoint, folder)
    assert (folder / "model.onnx").read_bytes() == before
    export_onnx(checkpoint, folder, weights="int8", overwrite=True)
    replaced = OnnxEncoder(folder)
    assert replaced.model.description.dimension == 16
    assert mean_cosine(replaced, HuggingFaceEncoder(checkpoint)) > 0.98
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_place_that_cannot_be_written_to_is_named(trained: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="cannot be written"):
        export_onnx(trained, tmp_path / "file" / "model")
