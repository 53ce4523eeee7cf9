"""Small checkpoints of every format, made by hand: no library that wrote the originals is needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import field, frozen
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

MARKERS = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
TRANSFORMER_TYPES = {
    "pylate": "sentence_transformers.models.Transformer",
    "single": "sentence_transformers.models.Transformer",
    "multi": "sentence_transformers.base.modules.transformer.Transformer",
}
MODULE_TYPES = {
    "MultiVectorMask": "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "HierarchicalTokenPooling": (
        "sentence_transformers.multi_vector_encoder.modules.token_pooling.HierarchicalTokenPooling"
    ),
    "Pooling": "sentence_transformers.models.Pooling",
}
DENSE_TYPES = {
    "pylate": "pylate.models.Dense.Dense",
    "single": "sentence_transformers.models.Dense",
    "multi": "sentence_transformers.base.modules.dense.Dense",
}


@frozen
class DenseSpec:
    """A dense layer to be written: PyLate's settings, and tensors by the name they have in the file."""

    width: int = 16
    input_width: int = 32
    bias: bool = False
    activation: str = "torch.nn.modules.linear.Identity"
    residual: bool = False
    more: Mapping[str, Any] = field(factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "in_features": self.input_width,
            "out_features": self.width,
            "bias": self.bias,
            "activation_function": self.activation,
            **({"use_residual": True} if self.residual else {}),
            **self.more,
        }

    def tensors(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.width, self.input_width)
        tensors = {"linear.weight": torch.randn(shape, generator=generator) / 4}
        if self.bias:
            tensors["linear.bias"] = torch.randn(self.width, generator=generator)
        if self.residual and self.width != self.input_width:
            tensors["residual.weight"] = torch.randn(shape, generator=generator) / 4
        return tensors


@frozen
class Builder:
    """Makes a folder with each call."""

    families: Mapping[str, Path]
    marked: Mapping[str, Path]
    scratch: Path
    numbers: Any = field(factory=count)

    def dense(self, *arguments: Any, **settings: Any) -> DenseSpec:
        return DenseSpec(*arguments, **settings)

    def plain(self, family: str = "bert") -> Path:
        return Path(shutil.copytree(self.families[family], self.new_folder()))

    def pylate(self, family: str = "bert", dense: Sequence[DenseSpec] = (DenseSpec(),), **settings: Any) -> Path:
        """As PyLate 1.6 writes it, a setting of None left out."""
        folder = self._with_modules("pylate", family, [("Dense", spec) for spec in dense])
        usual = {
            "model_type": "ColBERT",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            **MARKERS,
            "query_length": 16,
            "document_length": 40,
            "attend_to_expansion_tokens": False,
            "skiplist_words": [",", "."],
            "do_query_expansion": True,
        }
        write(folder / "config_sentence_transformers.json", without_nones({**usual, **settings}))
        write(folder / "sentence_bert_config.json", {"max_seq_length": 39, "do_lower_case": False})
        return folder

    def single_vector(
        self,
        family: str = "bert",
        modules: Sequence[tuple[str, DenseSpec | Mapping[str, Any]]] = (("Pooling", {}), ("Normalize", {})),
        sentence: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        """As sentence-transformers 5 writes an embedding model."""
        folder = self._with_modules("single", family, modules)
        usual = {"model_type": "SentenceTransformer", "prompts": {}, "similarity_fn_name": "cosine"}
        write(folder / "config_sentence_transformers.json", without_nones({**usual, **settings}))
        write(folder / "sentence_bert_config.json", sentence or {"max_seq_length": 48, "do_lower_case": False})
        return folder

    def multi_vector(
        self,
        family: str = "bert",
        modules: Sequence[tuple[str, DenseSpec | Mapping[str, Any]]] | None = None,
        sentence: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        """As sentence-transformers 6 writes a MultiVectorEncoder."""
        tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        mask = {"skiplist_words": [",", "."], "skiplist_tasks": ["document"], "keep_only_token_ids": None}
        usual_modules = (("Dense", DenseSpec(more=tokens)), ("MultiVectorMask", mask), ("Normalize", tokens))
        folder = self._with_modules("multi", family, usual_modules if modules is None else modules)
        usual = {
            "model_type": "MultiVectorEncoder",
            "prompts": {"query": "[Q] ", "document": "[D] "},
            "default_prompt_name": None,
            "similarity_fn_name": None,
        }
        usual_sentence = {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "document_length": 40,
            "query_expansion": {"strategy": "fixed", "attend": False, "token": None, "length": 16},
        }
        write(folder / "config_sentence_transformers.json", {**usual, **settings})
        write(folder / "sentence_bert_config.json", without_nones({**usual_sentence, **(sentence or {})}))
        return folder

    def stanford(self, family: str = "bert", width: int = 16, *, metadata: bool = True, **settings: Any) -> Path:
        """As Stanford's ColBERT writes it: one weights file, the encoder under its prefix."""
        folder = Path(shutil.copytree(self.marked[family], self.new_folder()))
        prefix = AutoModel.from_pretrained(folder).base_model_prefix
        tensors = load_file(folder / "model.safetensors")
        stored = {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
        stored["linear.weight"] = DenseSpec(width).tensors(5)["linear.weight"]
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        edit(folder / "config.json", architectures=["HF_ColBERT"])
        usual = {
            "query_token_id": "[Q] ",
            "doc_token_id": "[D] ",
            "query_maxlen": 16,
            "doc_maxlen": 40,
            "attend_to_mask_tokens": False,
            "mask_punctuation": False,
            "dim": width,
            "similarity": "cosine",
            "nbits": 1,
        }
        if metadata:
            write(folder / "artifact.metadata", without_nones({**usual, **settings}))
        return folder

    def new_folder(self) -> Path:
        return self.scratch / f"model-{next(self.numbers)}"

    def _with_modules(
        self, library: str, family: str, modules: Sequence[tuple[str, DenseSpec | Mapping[str, Any]]]
    ) -> Path:
        folder = Path(shutil.copytree(self.marked[family], self.new_folder()))
        listed = [{"idx": 0, "name": "0", "path": "", "type": TRANSFORMER_TYPES[library]}]
        for number, (kind, content) in enumerate(modules, start=1):
            path = f"{number}_{kind}"
            (folder / path).mkdir()
            if isinstance(content, DenseSpec):
                write(folder / path / "config.json", content.settings)
                save_file(content.tensors(number), folder / path / "model.safetensors", {"format": "pt"})
            else:
                write(folder / path / "config.json", content)
            listed.append(
                {
                    "idx": number,
                    "name": str(number),
                    "path": path,
                    "type": DENSE_TYPES[library] if kind == "Dense" else MODULE_TYPES[kind],
                }
            )
        write(folder / "modules.json", listed)
        return folder


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def edit(file: Path, **changes: Any) -> None:
    write(file, {**json.loads(file.read_text()), **changes})


def without_nones(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


@pytest.fixture(scope="session")
def marked_families(families: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The small models of every family, with a token for queries and one for documents added."""
    folders = {}
    for name, folder in families.items():
        folders[name] = tmp_path_factory.mktemp(f"marked-{name}")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(list(MARKERS.values()))
        model = AutoModel.from_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(23)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def checkpoints(families: Mapping[str, Path], marked_families: Mapping[str, Path], tmp_path: Path) -> Builder:
    """Makes small checkpoints of every format; each call a new folder, free to be damaged."""
    return Builder(families, marked_families, tmp_path)
