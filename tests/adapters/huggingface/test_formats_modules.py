"""PyLate's and sentence-transformers' files: what they say is what the recipe says, or the checkpoint is refused."""

from __future__ import annotations

import json
import string
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.reading import read_checkpoint
from lateinteraction.domain.errors import InvalidModel
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
from lateinteraction.domain.text import Document, DocumentId

CONFORMANCE = Path(__file__).parents[2] / "conformance" / "tiny-colbert"
CONFIG = "config_sentence_transformers.json"
SENTENCE = "sentence_bert_config.json"
TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
TEXT = "the quick brown fox"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def spec(checkpoints: Any) -> Callable[..., Any]:
    """Makes the description of a dense layer."""
    return checkpoints.dense


def hidden_of(folder: Path) -> torch.Tensor:
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]])
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(input_ids=ids)[0][0]


def recipe_of(folder: Path) -> EncodingRecipe:
    return read_checkpoint(folder).recipe


# ── PyLate ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_of_pylate_itself_has_its_settings_and_its_tensors() -> None:
    checkpoint = read_checkpoint(CONFORMANCE)
    assert checkpoint.format == "pylate"
    assert checkpoint.recipe == EncodingRecipe(
        query_length=16,
        document_length=40,
        query_prefix="[Q] ",
        document_prefix="[D] ",
        expansion="fixed",
        skiplist=tuple(string.punctuation),
    )
    assert checkpoint.tokenizer.pad_token == "[MASK]"
    (layer,) = checkpoint.projection.layers
    stored = load_file(CONFORMANCE / "1_Dense" / "model.safetensors")
    assert torch.equal(layer.weight, stored["linear.weight"])
    ours = checkpoint.transformer.state_dict()
    for name, tensor in load_file(CONFORMANCE / "model.safetensors").items():
        modern = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        assert torch.equal(ours[modern], tensor)


def test_every_setting_of_pylate_becomes_one_of_the_recipe(checkpoints: Any) -> None:
    folder = checkpoints.pylate(
        query_prefix="[unused0]",
        document_prefix="",
        query_length=20,
        document_length=50,
        attend_to_expansion_tokens=True,
        skiplist_words=["fox"],
        prompts={"query": "q: ", "document": "d: "},
    )
    assert recipe_of(folder) == EncodingRecipe(
        query_prefix="[unused0]",
        document_prefix=None,
        query_length=20,
        document_length=50,
        expansion="fixed",
        attend_to_expansion=True,
        skiplist=("fox",),
        query_prompt="q: ",
        document_prompt="d: ",
    )


def test_settings_that_pylate_did_not_write_are_its_defaults(checkpoints: Any) -> None:
    markers_and_lengths = ("query_prefix", "document_prefix", "query_length", "document_length")
    others = ("attend_to_expansion_tokens", "skiplist_words", "do_query_expansion", "prompts", "similarity_fn_name")
    absent = dict.fromkeys((*markers_and_lengths, *others))
    folder = checkpoints.pylate("roberta", **absent)  # of bytes, so that it knows all punctuation
    edit(folder / "config.json", max_position_embeddings=258)
    tensors = load_file(folder / "model.safetensors")
    name = "embeddings.position_embeddings.weight"
    save_file({**tensors, name: torch.randn(258, 32)}, folder / "model.safetensors", {"format": "pt"})
    assert recipe_of(folder) == EncodingRecipe(
        query_prefix="[Q] ",
        document_prefix="[D] ",
        query_length=32,
        document_length=180,
        expansion="fixed",
        skiplist=tuple(string.punctuation),
    )


def test_expansion_that_is_off_attends_to_nothing(checkpoints: Any) -> None:
    recipe = recipe_of(checkpoints.pylate(do_query_expansion=False, attend_to_expansion_tokens=True))
    assert (recipe.expansion, recipe.attend_to_expansion) == ("none", False)


@pytest.mark.parametrize(
    "marks", [{"model_type": None}, {"model_type": "SentenceTransformer"}, {"model_type": "ColBERT"}]
)
def test_pylate_is_known_by_its_marks_whatever_the_model_type(checkpoints: Any, marks: dict[str, Any]) -> None:
    assert read_checkpoint(checkpoints.pylate(**marks)).format == "pylate"


def test_pylate_without_a_settings_file_is_known_by_its_dense_layer(checkpoints: Any) -> None:
    folder = checkpoints.pylate("bert")
    (folder / CONFIG).unlink()
    recipe = {"document_length": 40, "skiplist": ()}
    checkpoint = read_checkpoint(folder, recipe=recipe)
    assert checkpoint.format == "pylate"
    assert checkpoint.recipe.query_prefix == "[Q] "


def test_dense_layers_run_in_order_with_bias_activation_and_residual(
    checkpoints: Any, spec: Callable[..., Any]
) -> None:
    layers = [
        spec(32, 32, bias=True, activation="torch.nn.modules.activation.Tanh", residual=True),
        spec(24, 32, bias=True, activation="torch.nn.modules.activation.GELU"),
        spec(16, 24, residual=True),
    ]
    folder = checkpoints.pylate(dense=layers)
    first, second, third = (load_file(folder / f"{number}_Dense" / "model.safetensors") for number in (1, 2, 3))
    x = hidden_of(folder)
    x = torch.tanh(x @ first["linear.weight"].T + first["linear.bias"]) + x
    x = torch.nn.functional.gelu(x @ second["linear.weight"].T + second["linear.bias"])
    x = x @ third["linear.weight"].T + x @ third["residual.weight"].T
    checkpoint = read_checkpoint(folder)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.projection(hidden_of(folder)), x, rtol=0, atol=1e-5)
    assert checkpoint.dimension == 16


def test_a_dense_layer_that_changes_nothing_costs_nothing(checkpoints: Any, spec: Callable[..., Any]) -> None:
    folder = checkpoints.pylate(dense=[spec(32, 32)])
    save_file({"linear.weight": torch.eye(32)}, folder / "1_Dense" / "model.safetensors", {"format": "pt"})
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.projection.width, checkpoint.dimension) == (None, 32)


def test_a_checkpoint_in_two_formats_at_once_must_say_the_same_twice(checkpoints: Any) -> None:
    both = checkpoints.stanford()
    pylate = checkpoints.pylate()
    for name in ("modules.json", CONFIG, SENTENCE, "1_Dense"):
        (pylate / name).rename(both / name)
    with pytest.raises(InvalidModel, match="one projection"):
        read_checkpoint(both)
    weight = load_file(both / "model.safetensors")["linear.weight"]
    save_file({"linear.weight": weight}, both / "1_Dense" / "model.safetensors", {"format": "pt"})
    checkpoint = read_checkpoint(both)
    assert checkpoint.format == "pylate"
    assert torch.equal(checkpoint.projection.layers[0].weight, weight)


def test_words_that_the_tokenizer_does_not_know_are_left_out_with_one_warning(checkpoints: Any) -> None:
    folder = checkpoints.pylate(skiplist_words=[",", "漢字漢字", "%", "."])
    with pytest.warns(UserWarning, match="skips 2 words") as told:
        recipe = recipe_of(folder)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert recipe.skiplist == (",", ".")
    unknown = HuggingFaceEncoder(read_checkpoint(folder, recipe={"skiplist": recipe.skiplist}))
    assert unknown.encode_documents([Document(DocumentId("a"), "¤ ¤")]).lengths[0] == 5  # [UNK] is not skipped


def test_where_expansion_goes_in_a_decoder_that_pads_on_the_left_is_said(checkpoints: Any) -> None:
    with pytest.warns(UserWarning, match="pads on the left"):
        recipe_of(checkpoints.pylate("qwen2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe_of(checkpoints.pylate("qwen2", do_query_expansion=False))
        read_checkpoint(checkpoints.pylate("qwen2"), recipe={"expansion": "none"})


# ── our own settings beside PyLate's ────────────────────────────────────────────────────────────────────────────────


def test_settings_under_our_own_key_are_read_back(checkpoints: Any) -> None:
    own = {
        "version": 1,
        "keep_special_tokens": False,
        "normalise": True,
        "query_skiplist": ["fox"],
        "expansion_token": "the",
        "pooling": {"factor": 1.5, "protected": 2, "flavour": "pylate"},
    }
    recipe = recipe_of(checkpoints.pylate(lateinteraction=own))
    assert recipe.pooling == TokenPooling(1.5, 2, "pylate")
    assert (recipe.query_skiplist, recipe.expansion_token) == (("fox",), "the")
    assert (recipe.keep_special_tokens, recipe.normalise) == (False, True)
    recipe = recipe_of(checkpoints.pylate(lateinteraction={"version": 1, "normalise": False}))
    assert not recipe.normalise


@pytest.mark.parametrize(
    "own",
    [
        {"version": 2},
        {},
        [],
        "yes",
        {"version": 1, "novelty": 3},
        {"version": 1, "pooling": 2},
        {"version": 1, "pooling": {"factor": 0.5}},
        {"version": 1, "query_skiplist": "fox"},
    ],
)
def test_settings_of_a_later_version_are_refused_and_not_passed_over(checkpoints: Any, own: Any) -> None:
    with pytest.raises(InvalidModel):
        recipe_of(checkpoints.pylate(lateinteraction=own))


# ── single-vector models ────────────────────────────────────────────────────────────────────────────────────────────


def test_late_interaction_takes_the_place_of_pooling(checkpoints: Any) -> None:
    checkpoint = read_checkpoint(checkpoints.single_vector())
    assert checkpoint.format == "sentence-transformers"
    assert checkpoint.projection.width is None
    assert checkpoint.recipe == EncodingRecipe(query_length=48, document_length=48)


def test_the_dense_layer_of_a_sentence_is_applied_to_every_token(checkpoints: Any, spec: Callable[..., Any]) -> None:
    layer = spec(16, 32, bias=True, activation="torch.nn.modules.activation.Tanh")
    folder = checkpoints.single_vector(modules=[("Pooling", {}), ("Dense", layer), ("Normalize", {})])
    tensors = load_file(folder / "2_Dense" / "model.safetensors")
    expected = torch.tanh(hidden_of(folder) @ tensors["linear.weight"].T + tensors["linear.bias"])
    with torch.no_grad():
        torch.testing.assert_close(read_checkpoint(folder).projection(hidden_of(folder)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"query": "q: ", "document": "d: "}, "q: ", "d: "),
        ({"query": "q: ", "passage": "p: "}, "q: ", "p: "),
        ({"query": "q: ", "corpus": "c: ", "passage": "p: "}, "q: ", "p: "),
        ({"query": "", "document": ""}, "", ""),
        ({"query": None, "document": None}, "", ""),
        ({"clustering": "c: "}, "", ""),
        ({}, "", ""),
        (None, "", ""),
    ],
)
def test_prompts_are_those_of_the_roles(checkpoints: Any, prompts: Any, query: str, document: str) -> None:
    recipe = recipe_of(checkpoints.single_vector(prompts=prompts))
    assert (recipe.query_prompt, recipe.document_prompt) == (query, document)


def test_the_default_prompt_is_for_roles_without_one(checkpoints: Any) -> None:
    recipe = recipe_of(checkpoints.single_vector(prompts={"all": "a: ", "query": "q: "}, default_prompt_name="all"))
    assert (recipe.query_prompt, recipe.document_prompt) == ("q: ", "a: ")


@pytest.mark.parametrize(
    ("sentence", "limit", "length"),
    [
        ({"max_seq_length": 32}, 500, 32),
        ({"max_seq_length": 512}, 500, 64),  # the model's positions
        ({"max_seq_length": None}, 40, 40),
        ({"transformer_task": "feature-extraction"}, 40, 40),
        ({"do_lower_case": False}, 10**30, 64),  # our default, bounded
    ],
)
def test_the_length_is_that_of_the_file_or_the_tokenizer_within_the_positions(
    checkpoints: Any, sentence: dict[str, Any], limit: int, length: int
) -> None:
    folder = checkpoints.single_vector(sentence=sentence)
    edit(folder / "tokenizer_config.json", model_max_length=limit)
    recipe = recipe_of(folder)
    assert (recipe.query_length, recipe.document_length) == (length, length)


def test_a_transformer_in_a_folder_of_its_own_is_found(checkpoints: Any) -> None:
    folder = checkpoints.single_vector()
    expected = read_checkpoint(folder)
    (folder / "0_Transformer").mkdir()
    for file in [each for each in folder.iterdir() if each.is_file() and each.name not in ("modules.json", CONFIG)]:
        file.rename(folder / "0_Transformer" / file.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.recipe == expected.recipe
    documents = [Document(DocumentId("a"), TEXT)]
    both = [HuggingFaceEncoder(each).encode_documents(documents).tokens for each in (checkpoint, expected)]
    torch.testing.assert_close(*both, rtol=0, atol=0)


def test_texts_are_lower_cased_where_the_file_says_so(checkpoints: Any) -> None:
    folder = checkpoints.single_vector("roberta", sentence={"max_seq_length": 48, "do_lower_case": True})
    encoder = HuggingFaceEncoder(read_checkpoint(folder))
    loud, low = (encoder.encode_documents([Document(DocumentId("a"), text)]).tokens for text in ("FoX", "fox"))
    assert torch.equal(loud, low)
    edit(folder / SENTENCE, do_lower_case=False)
    assert len(HuggingFaceEncoder(read_checkpoint(folder)).encode_documents([Document(DocumentId("a"), "FoX")])[0]) > 3
