"""Files of PyLate and sentence-transformers that cannot be honoured are refused, with their place and a remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.errors import InvalidModel

CONFIG = "config_sentence_transformers.json"
SENTENCE = "sentence_bert_config.json"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def modules_are(kinds: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "modules.json").write_text(kinds if isinstance(kinds, str) else json.dumps(kinds))

    return change


def entry(kind: str, path: Any = "") -> dict[str, Any]:
    return {"idx": 0, "name": "0", "path": path, "type": kind}


TRANSFORMER = entry("sentence_transformers.models.Transformer")


def dense_is(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "1_Dense" / "config.json", **settings)


def tensors_are(**tensors: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        named = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
        save_file(named, folder / "1_Dense" / "model.safetensors", {"format": "pt"})

    return change


def config_is(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / CONFIG, **settings)


def sentence_is(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / SENTENCE, **settings)


def transformer_is(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **settings)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "model arguments are a list": (sentence_is(model_args=["x"]), "Error: "),
    "code is a number": (transformer_is(auto_map=5), "Error: "),
    "modules are no JSON": (modules_are("["), "JSONDecodeError"),
    "modules are no list": (modules_are({}), "list of modules"),
    "no modules": (modules_are([]), "list of modules"),
    "a module without a type": (modules_are([{"path": ""}]), "without a type"),
    "a module without a path": (modules_are([{"type": TRANSFORMER["type"]}]), "without a type or a path"),
    "a module that is no object": (modules_are([7]), "without a type"),
    "code of its own": (modules_are([TRANSFORMER, entry("own.Dense", "1_Dense")]), "the module 'own.Dense'"),
    "a class outside": (modules_are([TRANSFORMER, entry("os.system", "1_Dense")]), "the module 'os.system'"),
    "an unknown module": (
        modules_are([TRANSFORMER, entry("sentence_transformers.models.LSTM", "1_LSTM")]),
        "modules ['LSTM']",
    ),
    "no transformer": (modules_are([entry("pylate.models.Dense.Dense", "1_Dense")]), "one Transformer, the first"),
    "two transformers": (modules_are([TRANSFORMER, TRANSFORMER]), "one Transformer, the first"),
    "a path upwards": (modules_are([TRANSFORMER, entry("pylate.models.Dense.Dense", "../1_Dense")]), "points to"),
    "a path through itself": (modules_are([TRANSFORMER, entry("pylate.models.Dense.Dense", "a/../b")]), "points to"),
    "an absolute path": (modules_are([TRANSFORMER, entry("pylate.models.Dense.Dense", "/etc")]), "points to '/etc'"),
    "a path with a wild card": (modules_are([TRANSFORMER, entry("pylate.models.Dense.Dense", "*")]), "points to '*'"),
    "a path that is none": (modules_are([TRANSFORMER, entry("pylate.models.Dense.Dense", 7)]), "points to 7"),
    "a folder that is not there": (
        modules_are([TRANSFORMER, entry("pylate.models.Dense.Dense", "2_Dense")]),
        "no 2_Dense/config.json",
    ),
    "another model type": (config_is(model_type="SparseEncoder"), "model_type = 'SparseEncoder'"),
    "settings are a list": (lambda it: (it / CONFIG).write_text("[]"), "a JSON object"),
    "prompts are a list": (config_is(prompts=["a"]), "prompts"),
    "a prompt that is a number": (config_is(prompts={"query": 7}), "query_prompt"),
    "a flag that is a word": (config_is(do_query_expansion="no"), "do_query_expansion = 'no'"),
    "a length that is a word": (config_is(query_length="long"), "query_length"),
    "a skiplist that is a word": (config_is(skiplist_words="abc"), "skiplist"),
    "a marker of several tokens": (config_is(query_prefix="the fox"), "query_prefix = 'the fox' is 2 tokens"),
    "a marker the tokenizer lacks": (config_is(document_prefix="[X] "), "document_prefix = '[X] ' is"),
    "no dense settings": (lambda it: (it / "1_Dense" / "config.json").unlink(), "no 1_Dense/config.json"),
    "no dense weights": (lambda it: (it / "1_Dense" / "model.safetensors").unlink(), "1_Dense/model.safetensors"),
    "dense weights cut short": (
        lambda it: (it / "1_Dense" / "model.safetensors").write_bytes(
            (it / "1_Dense" / "model.safetensors").read_bytes()[:100]
        ),
        "SafetensorError",
    ),
    "an activation outside the list": (dense_is(activation_function="os.system"), "'os.system' in 1_Dense/config.json"),
    "an activation that looks around": (
        dense_is(activation_function="torch.nn.modules.activation.Softmax"),
        "Softmax",
    ),
    "no activation": (dense_is(activation_function=None), "activation_function = None"),
    "widths that are no numbers": (dense_is(in_features="32"), "in_features"),
    "a width the tensor lacks": (dense_is(out_features=8), "a weight of shape (8, 32)"),
    "a bias the tensors lack": (dense_is(bias=True), "linear.bias"),
    "a residual the tensors lack": (dense_is(use_residual=True), "residual.weight"),
    "a bias the settings deny": (
        tensors_are(linear_weight=torch.zeros(16, 32), linear_bias=torch.zeros(16)),
        "linear.bias",
    ),
    "a bias of another width": (
        lambda it: (
            dense_is(bias=True)(it),
            tensors_are(linear_weight=torch.zeros(16, 32), linear_bias=torch.zeros(8))(it),
        ),
        "shapes",
    ),
    "an activation with weights": (
        tensors_are(linear_weight=torch.zeros(16, 32), activation_function_weight=torch.zeros(1)),
        "activation.function.weight",
    ),
    "whole numbers for weights": (
        tensors_are(linear_weight=torch.zeros((16, 32), dtype=torch.int8)),
        "floating point",
    ),
    "a layer for another model": (
        lambda it: (dense_is(in_features=24)(it), tensors_are(linear_weight=torch.zeros(16, 24))(it)),
        "dense layer 1, which takes 24 dimensions; expected the 32",
    ),
    "trust in its own code": (
        sentence_is(model_args={"trust_remote_code": True}),
        "trust_remote_code in sentence_bert_config.json",
    ),
    "arguments for the model": (sentence_is(config_args={"is_causal": False}), "['is_causal']"),
    "another task": (sentence_is(transformer_task="fill-mask"), "'fill-mask'"),
    "pictures": (sentence_is(modality_config={"text": {}, "image": {}}), "['image']"),
    "a chat template": (sentence_is(modality_config={"message": {}}), "['message']"),
    "settings for a processor": (sentence_is(processing_kwargs={"text": {"max_length": 8}}), "processing_kwargs"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_cannot_be_honoured_are_refused_with_their_place_and_a_remedy(checkpoints: Any, damage: str) -> None:
    folder = checkpoints.pylate()
    do, reason = DAMAGE[damage]
    do(folder)
    with pytest.raises(InvalidModel) as refused:
        read_checkpoint(folder)
    assert reason in str(refused.value)
    assert refused.value.given
    assert refused.value.expected
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("multi_vector", {"module_input_name": "sentence_embedding"}),
        ("multi_vector", {"module_output_name": "elsewhere"}),
        ("single_vector", {"module_input_name": "all_layers"}),
    ],
)
def test_a_dense_layer_beside_the_embeddings_is_refused(checkpoints: Any, kind: str, names: dict[str, str]) -> None:
    with pytest.raises(InvalidModel, match="a dense layer from"):
        read_checkpoint(getattr(checkpoints, kind)(modules=[("Dense", checkpoints.dense(more=names))]))


def test_nothing_of_a_checkpoint_is_imported(checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = checkpoints.pylate()
    edit(folder / "1_Dense" / "config.json", activation_function="own.Activation")
    with pytest.raises(InvalidModel):
        read_checkpoint(folder, options=CheckpointOptions(trust_remote_code=True))
