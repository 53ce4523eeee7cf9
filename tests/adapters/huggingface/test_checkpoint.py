"""A checkpoint is read whole or refused with a reason, and reading leaves the host as it was."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.utils.logging as transformers_logging
from attrs import evolve
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.projection import PcaProjection, Projection, RandomProjection
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidModel, InvalidOption, InvalidRecipe
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
from lateinteraction.domain.text import Document, DocumentId

SHORT = {"query_length": 16, "document_length": 48}
TEXTS = ["the quick brown fox", "again, why?"]
DOCUMENTS = [Document(DocumentId(str(number)), text) for number, text in enumerate(TEXTS)]
FAMILIES = ["bert", "distilbert", "roberta", "mpnet", "xlm-roberta", "modernbert", "qwen2"]


@pytest.fixture
def folder(families: Mapping[str, Path], tmp_path: Path) -> Path:
    """A small BERT to damage."""
    return Path(shutil.copytree(families["bert"], tmp_path / "model"))


def read(source: str | Path, **options: Any) -> Checkpoint:
    return read_checkpoint(source, recipe=SHORT, options=CheckpointOptions(**options))


def embedded(checkpoint: Checkpoint) -> TokenEmbeddings[torch.Tensor]:
    return HuggingFaceEncoder(checkpoint).encode_documents(DOCUMENTS)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ── what loads ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_folder_loads_as_transformers_loads_it(families: Mapping[str, Path], family: str) -> None:
    checkpoint = read(families[family])
    assert (checkpoint.format, checkpoint.projection.width, checkpoint.dimension) == ("plain", None, 32)
    model, tokenizer = AutoModel.from_pretrained(families[family]), AutoTokenizer.from_pretrained(families[family])
    by_hand = evolve(checkpoint, transformer=model, tokenizer=tokenizer, projection=Projection())
    torch.testing.assert_close(embedded(checkpoint).tokens, embedded(by_hand).tokens, rtol=0, atol=0)
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        hidden = model.eval()(input_ids=ids)[0]
        torch.testing.assert_close(checkpoint.transformer(input_ids=ids)[0], hidden, rtol=0, atol=0)
    expected = torch.nn.functional.normalize(hidden[0], dim=-1)
    torch.testing.assert_close(embedded(checkpoint)[0], expected, rtol=0, atol=1e-5)


def test_the_recipe_of_a_plain_encoder_is_the_default_one(tiny_model: Path) -> None:
    checkpoint = read_checkpoint(tiny_model)
    assert checkpoint.recipe == EncodingRecipe()
    assert checkpoint.source == str(tiny_model)


def test_a_folder_may_be_given_as_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert read("model").recipe == read(str(folder)).recipe == EncodingRecipe().merge(SHORT)
    assert read("model").source == "model"


def test_a_task_head_is_left_aside(folder: Path) -> None:
    model = BertForMaskedLM.from_pretrained(folder)
    plain = embedded(read(folder))
    model.save_pretrained(folder)
    torch.testing.assert_close(embedded(read(folder)).tokens, plain.tokens, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_come_in_the_asked_precision_and_embeddings_in_float32(checkpoints: Any, dtype: Any) -> None:
    folder = checkpoints.pylate()
    low, full = read(folder, dtype=dtype), read(folder)
    assert {each.dtype for each in (*low.transformer.parameters(), *low.projection.parameters())} == {
        getattr(torch, dtype)
    }
    assert embedded(low).tokens.dtype == torch.float32
    assert 1e-6 < (embedded(low).tokens - embedded(full).tokens).abs().max() < 0.2


def test_weights_are_float32_on_the_cpu_unless_asked_otherwise(folder: Path) -> None:
    read(folder, dtype="bfloat16").transformer.save_pretrained(folder)
    assert read(folder, device="cpu").transformer.dtype == torch.float32


def test_a_model_comes_ready_to_encode_and_not_to_train(checkpoints: Any) -> None:
    checkpoint = read(checkpoints.pylate())
    assert not checkpoint.transformer.training
    assert not any(module.training for module in checkpoint.transformer.modules())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_asked_for_is_the_one_that_runs(folder: Path, attention: str) -> None:
    assert read(folder, attention=attention).transformer.config._attn_implementation == attention


def test_sharded_weights_are_read_whole(folder: Path) -> None:
    whole = embedded(read(folder))
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(embedded(read(folder)).tokens, whole.tokens, rtol=0, atol=0)
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(InvalidModel, match=r"has no model-0000"):
        read(folder)


def test_settings_given_replace_those_of_the_files(checkpoints: Any) -> None:
    folder = checkpoints.pylate()
    given = {"document_length": 24, "skiplist": (), "pooling": TokenPooling(2), "dimension": 8}
    assert read_checkpoint(folder, recipe=given).recipe == read_checkpoint(folder).recipe.merge(given)


def test_expansion_turned_off_needs_no_word_about_attending_to_it(checkpoints: Any) -> None:
    folder = checkpoints.pylate(attend_to_expansion_tokens=True)
    recipe = read_checkpoint(folder, recipe={"expansion": "none"}).recipe
    assert (recipe.expansion, recipe.attend_to_expansion) == ("none", False)


def test_another_recipe_shares_the_weights(checkpoints: Any) -> None:
    checkpoint = read_checkpoint(checkpoints.pylate())
    longer = checkpoint.with_recipe(checkpoint.recipe.merge({"document_length": 50}))
    assert longer.transformer is checkpoint.transformer
    assert (longer.recipe.document_length, checkpoint.recipe.document_length) == (50, 40)


def test_a_decoder_without_a_padding_token_pads_with_its_end(checkpoints: Any) -> None:
    folder = checkpoints.plain("qwen2")
    edit(folder / "tokenizer_config.json", pad_token=None)
    checkpoint = read(folder)
    assert checkpoint.tokenizer.pad_token == "<|endoftext|>"
    torch.testing.assert_close(embedded(checkpoint).tokens, embedded(read(checkpoints.plain("qwen2"))).tokens)


# ── new projections ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_random_projection_is_there_only_when_asked_for_and_is_its_seed(folder: Path) -> None:
    first, again, other = (read(folder, projection=RandomProjection(8, seed)) for seed in (1, 1, 2))
    assert first.projection.width == first.dimension == 8
    assert embedded(first).tokens.shape[1] == 8
    assert torch.equal(embedded(first).tokens, embedded(again).tokens)
    assert not torch.equal(embedded(first).tokens, embedded(other).tokens)


def test_a_fitted_projection_keeps_similarities_that_a_random_one_loses(folder: Path) -> None:
    texts = tuple(f"the quick fox {word}" for word in ("jumps", "again", "interaction", "score", "token", "lazy"))
    raw = {**SHORT, "normalise": False}
    whole, fitted, random = (
        HuggingFaceEncoder(read_checkpoint(folder, recipe=raw, options=CheckpointOptions(projection=choice)))
        for choice in (None, PcaProjection(16, texts), RandomProjection(16, 0))
    )
    documents = [Document(DocumentId(text), text) for text in texts]
    products = [
        (tokens @ tokens.T)
        for tokens in (encoder.encode_documents(documents).tokens for encoder in (whole, fitted, random))
    ]
    errors = [float((products[0] - each).norm() / products[0].norm()) for each in products[1:]]
    assert errors[0] < 0.05 < errors[1]


def test_a_projection_is_fitted_on_the_tokens_that_the_recipe_keeps(folder: Path) -> None:
    texts = ("the quick brown fox jumps over the lazy dog",)
    recipe = {**SHORT, "normalise": False, "keep_special_tokens": False}
    tokens = HuggingFaceEncoder(read_checkpoint(folder, recipe=recipe)).encode_documents(
        [Document(DocumentId("a"), texts[0])]
    )
    fitted = read_checkpoint(folder, recipe=recipe, options=CheckpointOptions(projection=PcaProjection(4, texts)))
    largest = torch.linalg.svd(tokens.tokens.double(), full_matrices=False).Vh[:4]
    weight = fitted.projection.layers[0].weight.detach().double()
    torch.testing.assert_close((weight @ largest.T).abs(), torch.eye(4).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("choice", [RandomProjection(8, 1), PcaProjection(8, ("a",))])
def test_a_model_with_a_projection_gets_no_other(checkpoints: Any, choice: Any) -> None:
    for folder in (checkpoints.pylate(), checkpoints.stanford()):
        with pytest.raises(InvalidOption, match="has its own"):
            read_checkpoint(folder, options=CheckpointOptions(projection=choice))


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def drop_layer(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def add_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.zeros(2, 2)}, folder / "model.safetensors", {"format": "pt"})


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def add_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[Q] "])
    tokenizer.save_pretrained(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda it: (it / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda it: (it / "config.json").write_text("{"), "JSON"),
    "config is no text": (lambda it: (it / "config.json").write_bytes(b"\xff\xfe{"), "UnicodeDecodeError"),
    "config is a list": (lambda it: (it / "config.json").write_text("[]"), "a JSON object"),
    "config is too deep": (lambda it: (it / "config.json").write_text("[" * 100_000), "RecursionError"),
    "config says nothing": (lambda it: (it / "config.json").write_text("{}"), "model_type"),
    "unknown architecture": (lambda it: edit(it / "config.json", model_type="zork"), "zork"),
    "a width that is no number": (lambda it: edit(it / "config.json", hidden_size="wide"), "hidden_size"),
    "another width": (lambda it: edit(it / "config.json", hidden_size=64), "RuntimeError"),
    "no weights": (lambda it: (it / "model.safetensors").unlink(), "model.safetensors"),
    "only pickled weights": (
        lambda it: (it / "model.safetensors").rename(it / "pytorch_model.bin"),
        "model.safetensors",
    ),
    "weights cut short": (lambda it: cut(it / "model.safetensors", 20_000), "SafetensorError"),
    "empty weights": (lambda it: cut(it / "model.safetensors", 0), "SafetensorError"),
    "a layer without weights": (drop_layer, "lack 16 tensors, encoder.layer.1"),
    "more layers than the config says": (
        lambda it: edit(it / "config.json", num_hidden_layers=1),
        "no place for, encoder.layer.1",
    ),
    "a projection among the weights": (lambda it: add_tensor(it, "linear.weight"), "linear.weight"),
    "no tokenizer": (remove_tokenizer, "tokenizer"),
    "tokenizer is no JSON": (lambda it: (it / "tokenizer.json").write_text("{"), "JSONDecodeError"),
    "tokenizer is empty": (lambda it: (it / "tokenizer.json").write_text("{}"), "KeyError"),
    "tokenizer of an unknown kind": (
        lambda it: edit(it / "tokenizer.json", model={"type": "Zork", "vocab": {"a": 1}}),
        "tokenizer.json",
    ),
    "a tokenizer that knows more tokens than the model": (add_token, "token embeddings"),
    "an adapter to another model": (
        lambda it: (it / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}'),
        "adapter",
    ),
    "a model of pictures": (
        lambda it: edit(it / "config.json", architectures=["ColPaliForRetrieval"]),
        "ColPaliForRetrieval",
    ),
    "custom code for an unknown model": (
        lambda it: edit(it / "config.json", model_type="zork", auto_map={"AutoConfig": "a.B", "AutoModel": "a.C"}),
        "custom code as AutoConfig, AutoModel",
    ),
    "custom code for a tokenizer": (
        lambda it: edit(it / "tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]}),
        "custom code as AutoTokenizer",
    ),
    "a file for weights that leaves the folder": (
        lambda it: (
            (it / "model.safetensors").rename(it / "model.safetensors.index.json")
            and (it / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
        ),
        "points to '../other/model.safetensors'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_with_its_name_and_the_reason(folder: Path, damage: str) -> None:
    do, reason = DAMAGE[damage]
    do(folder)
    with pytest.raises(InvalidModel) as refused:
        read(folder)
    assert reason in str(refused.value)
    assert refused.value.remedy
    assert str(folder) in str(refused.value)


def with_own_code(folder: Path) -> Path:
    """A checkpoint whose code leaves a trace when it runs."""
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertModel\n"
        f"Path({str(folder / 'it-ran')!r}).touch()\n"
        "class Model(BertModel):\n"
        "    pass\n"
    )
    edit(folder / "config.json", auto_map={"AutoModel": "own.Model"})
    return folder


def test_code_beside_the_weights_is_never_run_unasked(folder: Path) -> None:
    with pytest.raises(InvalidModel, match="custom code as AutoModel") as refused:
        read(with_own_code(folder))
    assert "trust_remote_code" in refused.value.remedy
    assert not (folder / "it-ran").exists()


def test_code_beside_the_weights_runs_when_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    expected = embedded(read(folder))
    trusted = read(with_own_code(folder), trust_remote_code=True)
    assert (folder / "it-ran").exists()
    assert type(trusted.transformer).__module__.endswith(".own")
    torch.testing.assert_close(embedded(trusted).tokens, expected.tokens, rtol=0, atol=0)


@pytest.mark.parametrize("source", ["", "no such folder", "./missing", "/nowhere/at/all", "a/b/c", Path("missing")])
def test_what_is_neither_folder_nor_name_is_refused(source: str | Path) -> None:
    with pytest.raises(InvalidModel, match="no folder here"):
        read_checkpoint(source)


@pytest.mark.parametrize("source", [None, 7, b"model", ["model"]])
def test_what_is_no_path_at_all_is_refused(source: Any) -> None:
    with pytest.raises(InvalidModel, match="Give a str or a Path"):
        read_checkpoint(source)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(InvalidModel, match="no folder"):
        read(folder / "config.json")
    with pytest.raises(InvalidModel, match="no folder"):
        read(str(folder / "config.json"))


def test_a_recipe_the_model_cannot_hold_is_refused_and_not_clipped(folder: Path) -> None:
    with pytest.raises(InvalidRecipe, match="at most 64"):
        HuggingFaceEncoder(read_checkpoint(folder, recipe={"document_length": 65}))


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ({"query_lenght": 16}, "query_lenght"),
        ({"query_length": "x"}, "query_length"),
        ({"attend_to_expansion": True}, "attend_to_expansion"),
    ],
)
def test_settings_that_contradict_themselves_are_the_callers_and_said_to_be(
    folder: Path, recipe: dict[str, object], match: str
) -> None:
    with pytest.raises(InvalidRecipe, match=match):
        read_checkpoint(folder, recipe={**SHORT, **recipe})


def test_the_callers_own_markers_and_skiplists_are_taken_strictly(folder: Path) -> None:
    for recipe in ({"query_prefix": "[NO] "}, {"skiplist": ["漢字漢字"]}):
        with pytest.raises(InvalidRecipe):
            HuggingFaceEncoder(read_checkpoint(folder, recipe={**SHORT, **recipe}))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"dtype": "float8"}, "float8"), ({"weights_sha256": "abc"}, "64 hex"), ({"weights_sha256": "g" * 64}, "64 hex")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidOption, match=match):
        CheckpointOptions(**options)


def test_a_token_is_not_shown() -> None:
    assert "hf_secret" not in repr(CheckpointOptions(token="hf_secret"))
    assert "hf_secret" not in repr(CheckpointOptions(token="hf_secret").hub)


@pytest.mark.parametrize("device", ["cuda:99", "zork"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(InvalidOption, match=device):
        read(folder, device=device)


# ── the host stays as it was ────────────────────────────────────────────────────────────────────────────────────────


def host() -> tuple[object, ...]:
    """Settings of transformers and logging that loading could leave changed."""
    logger = logging.getLogger("transformers.modeling_utils")
    hook = transformers_logging.set_tqdm_hook(None)
    transformers_logging.set_tqdm_hook(hook)
    return (
        hook,
        logger.filters[:],
        logger.level,
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )


def test_loading_prints_nothing_and_changes_no_setting(
    tiny_model: Path, folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = host()
    read_checkpoint(tiny_model)
    drop_layer(folder)
    with pytest.raises(InvalidModel):
        read(folder)
    assert host() == before
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_transformers_alone_would_print(
    tiny_model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    AutoModel.from_pretrained(tiny_model)
    assert "Loading weights" in capfd.readouterr().err
    assert "LOAD REPORT" in caplog.text


def test_bars_of_other_threads_go_through_the_hook_that_was_there(folder: Path) -> None:
    seen: list[str] = []

    def theirs(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        seen.append(threading.current_thread().name)
        return factory(*arguments, **{**options, "disable": True})

    previous = transformers_logging.set_tqdm_hook(theirs)
    try:
        loader = threading.Thread(target=read, args=(folder,), name="ours")
        loader.start()
        turns = 0
        while loader.is_alive() or not turns:
            turns += len(list(transformers_logging.tqdm([1])))
        loader.join()
    finally:
        transformers_logging.set_tqdm_hook(previous)
    assert seen == [threading.current_thread().name] * turns


def test_models_may_be_loaded_from_several_threads(folder: Path) -> None:
    before, loaded = host(), []
    threads = [threading.Thread(target=lambda: loaded.append(read(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert host() == before


def test_lengths_nobody_set_are_bounded_by_the_positions(families: Mapping[str, Path]) -> None:
    recipe = read_checkpoint(families["bert"]).recipe
    assert (recipe.query_length, recipe.document_length) == (64, 64)
    assert read_checkpoint(families["bert"], recipe={"document_length": 20}).recipe.document_length == 20
