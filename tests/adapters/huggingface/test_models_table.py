"""Each row of the README's table of models loads, encodes and is told what it is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lateinteraction as li

README = Path(__file__).parents[3] / "README.md"
TEXTS = ["the quick brown fox", "", "late interaction keeps an embedding for every token"]
FAMILIES = {"BERT": "bert", "DistilBERT": "distilbert", "RoBERTa": "roberta", "XLM-R": "xlm-roberta", "MPNet": "mpnet"}
FAMILIES |= {"ModernBERT": "modernbert"}
SHORT = {"query_length": 16, "document_length": 40}


def rows() -> dict[str, str]:
    section = README.read_text(encoding="utf-8").partition("\n## Models\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)
    return {first: second for first, second in lines if set(first) != {"-"} and first != "checkpoint"}


def loaded(folder: Path, width: int, **arguments: object) -> li.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a checkpoint is read with is another test's business
        model = li.load_model(folder, **arguments)  # type: ignore[arg-type]
    embeddings = model.encode_documents(TEXTS, output="numpy")
    assert embeddings.dimension == width
    assert embeddings.lengths[1] == 0
    assert np.allclose(np.linalg.norm(embeddings.tokens, axis=1), 1, atol=1e-5)
    assert len(model.encode_queries(["the fox"])) == 1
    return model


def sentence_transformers(folder: Path) -> Path:
    """A single-vector model with a dense layer: [Transformer, Pooling, Dense]."""
    layer = folder / "2_Dense"
    layer.mkdir()
    (layer / "config.json").write_text(
        '{"in_features": 32, "out_features": 8, "bias": false,'
        ' "activation_function": "torch.nn.modules.activation.Tanh"}'
    )
    save_file({"linear.weight": torch.linspace(-1, 1, 256).reshape(8, 32)}, layer / "model.safetensors")
    listed = (folder / "modules.json").read_text().rstrip().removesuffix("]")
    (folder / "modules.json").write_text(
        listed + ', {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]'
    )
    return folder


class Rows:
    """A check for each row, named after its first words."""

    def __init__(self, checkpoints: object, families: Mapping[str, Path], scratch: Path) -> None:
        self.checkpoints, self.families, self.scratch = checkpoints, families, scratch

    def pylate(self) -> None:
        model = loaded(self.checkpoints.pylate("bert"), 16)  # type: ignore[attr-defined]
        assert (model.recipe.query_prefix, model.recipe.expansion, model.recipe.query_length) == ("[Q] ", "fixed", 16)

    def multi_vector(self) -> None:
        model = loaded(self.checkpoints.multi_vector("bert"), 16)  # type: ignore[attr-defined]
        assert (model.recipe.query_prefix, model.recipe.skiplist) == ("[Q] ", (",", "."))

    def with_dense(self) -> None:
        pooling = (("Pooling", {}),)
        loaded(sentence_transformers(self.checkpoints.single_vector("bert", pooling)), 8)  # type: ignore[attr-defined]

    def without_dense(self) -> None:
        model = loaded(self.checkpoints.single_vector("bert", prompts={"query": "find: "}), 32)  # type: ignore[attr-defined]
        assert model.recipe.query_prompt == "find: "

    def stanford(self) -> None:
        model = loaded(self.checkpoints.stanford("bert"), 16)  # type: ignore[attr-defined]
        assert (model.recipe.document_prefix, model.recipe.document_length) == ("[D] ", 40)

    def plain(self) -> None:
        named = rows()["plain encoder"]
        assert [name for name in FAMILIES if name in named] == list(FAMILIES)
        for family in FAMILIES.values():
            loaded(self.families[family], 32, recipe=SHORT)
        for projection in (li.RandomProjection(8, 1), li.PcaProjection(8, TEXTS[::2] * 4)):
            options = li.CheckpointOptions(projection=projection)
            loaded(self.families["bert"], 8, recipe=SHORT, checkpoint=options)

    def decoder(self) -> None:
        model = loaded(self.families["qwen2"], 32, recipe={**SHORT, "expansion": "fixed"})
        assert model.encode_queries(["fox"]).lengths.tolist() == [16]

    def onnx(self) -> None:
        model = li.load_model(self.families["bert"], recipe=SHORT)
        for weights in ("float32", "int8"):
            folder = model.export_onnx(self.scratch / weights, weights=weights)  # type: ignore[arg-type]
            loaded(Path(folder), 32, runtime="onnx")


CHECKS: Mapping[str, Callable[[Rows], None]] = {
    "PyLate, up to 1.6": Rows.pylate,
    "sentence-transformers 6, `MultiVectorEncoder`": Rows.multi_vector,
    "sentence-transformers 5, with Dense": Rows.with_dense,
    "sentence-transformers 5, without Dense": Rows.without_dense,
    "Stanford ColBERT": Rows.stanford,
    "plain encoder": Rows.plain,
    "decoder embedder": Rows.decoder,
    "ONNX folder": Rows.onnx,
}


def test_every_row_has_its_check() -> None:
    assert list(rows()) == list(CHECKS)


@pytest.mark.parametrize("row", CHECKS)
def test_a_row_says_what_can_be_loaded(
    checkpoints: object, families: Mapping[str, Path], tmp_path: Path, row: str
) -> None:
    CHECKS[row](Rows(checkpoints, families, tmp_path / "onnx"))
