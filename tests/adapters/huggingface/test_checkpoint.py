"""A plain encoder is read whole or refused with a reason, and reading leaves the host as it was."""

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
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM

from lateinteraction.adapters.huggingface.checkpoint import EncoderOptions, load_plain_encoder
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.domain.errors import InvalidModel, InvalidOption, InvalidRecipe
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, DocumentId

SHORT = EncodingRecipe(query_length=16, document_length=48)
DOCUMENTS = [Document(DocumentId("1"), "the quick brown fox"), Document(DocumentId("2"), "again, why?")]


@pytest.fixture
def folder(families: Mapping[str, Path], tmp_path: Path) -> Path:
    """A small BERT to damage."""
    return Path(shutil.copytree(families["bert"], tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ── what loads ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "mpnet", "xlm-roberta", "modernbert", "qwen2"])
def test_a_folder_loads_as_transformers_loads_it(families: Mapping[str, Path], family: str) -> None:
    loaded = load_plain_encoder(families[family], recipe=SHORT)
    model, tokenizer = AutoModel.from_pretrained(families[family]), AutoTokenizer.from_pretrained(families[family])
    expected = HuggingFaceEncoder(model, tokenizer, SHORT).encode_documents(DOCUMENTS)
    torch.testing.assert_close(loaded.encode_documents(DOCUMENTS).tokens, expected.tokens)


def test_the_recipe_of_a_plain_encoder_is_the_default_one(tiny_model: Path) -> None:
    assert load_plain_encoder(tiny_model).recipe == EncodingRecipe()


def test_a_folder_may_be_given_as_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert load_plain_encoder("model", recipe=SHORT).recipe == SHORT
    assert load_plain_encoder(str(folder), recipe=SHORT).recipe == SHORT


def test_a_task_head_is_left_aside(folder: Path) -> None:
    model = BertForMaskedLM.from_pretrained(folder)
    plain = load_plain_encoder(folder, recipe=SHORT).encode_documents(DOCUMENTS)
    model.save_pretrained(folder)
    torch.testing.assert_close(
        load_plain_encoder(folder, recipe=SHORT).encode_documents(DOCUMENTS).tokens, plain.tokens
    )


def test_pooling_and_normalising_modules_change_no_token_embedding(folder: Path) -> None:
    kinds = ("Transformer", "Pooling", "Normalize")
    (folder / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in kinds])
    )
    assert len(load_plain_encoder(folder, recipe=SHORT).encode_documents(DOCUMENTS)) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_come_in_the_asked_precision_and_embeddings_in_float32(folder: Path, dtype: Any) -> None:
    low = load_plain_encoder(folder, recipe=SHORT, options=EncoderOptions(dtype=dtype)).encode_documents(DOCUMENTS)
    full = load_plain_encoder(folder, recipe=SHORT).encode_documents(DOCUMENTS)
    assert low.tokens.dtype == torch.float32
    assert 1e-6 < (low.tokens - full.tokens).abs().max() < 0.2


def test_options_reach_the_encoder(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    options = EncoderOptions(device="cpu", tokens_per_batch=48, progress=lambda done, total: told.append((done, total)))
    load_plain_encoder(folder, recipe=SHORT, options=options).encode_documents(DOCUMENTS * 20)
    assert len(told) > 3
    assert told[-1] == (40, 40)


def test_a_name_loads_from_the_local_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache" / "models--someone--something"
    shutil.copytree(folder, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    for options in (EncoderOptions(), EncoderOptions(local_files_only=True)):
        loaded = load_plain_encoder("someone/something", recipe=SHORT, options=options)
        expected = load_plain_encoder(folder, recipe=SHORT).encode_documents(DOCUMENTS)
        torch.testing.assert_close(loaded.encode_documents(DOCUMENTS).tokens, expected.tokens)


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


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda it: (it / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda it: (it / "config.json").write_text("{"), "JSON"),
    "config is a list": (lambda it: (it / "config.json").write_text("[]"), "TypeError"),
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
    "a projection module": (
        lambda it: (it / "modules.json").write_text(
            json.dumps([{"type": "sentence_transformers.models.Transformer"}, {"type": "pylate.models.Dense.Dense"}])
        ),
        "Dense",
    ),
    "modules are no JSON": (lambda it: (it / "modules.json").write_text("["), "JSONDecodeError"),
    "modules without a type": (lambda it: (it / "modules.json").write_text('[{"path": ""}]'), "KeyError"),
    "custom code": (
        lambda it: edit(it / "config.json", model_type="zork", auto_map={"AutoConfig": "a.B", "AutoModel": "a.C"}),
        "custom code",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_with_its_name_and_the_reason(folder: Path, damage: str) -> None:
    do, reason = DAMAGE[damage]
    do(folder)
    with pytest.raises(InvalidModel) as refused:
        load_plain_encoder(folder, recipe=SHORT)
    assert reason in str(refused.value)
    assert refused.value.remedy
    assert str(folder) in str(refused.value)


def test_code_beside_the_weights_is_never_run(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('run')")
    edit(folder / "config.json", auto_map={"AutoModel": "own.Model", "AutoConfig": "own.Config"})
    assert len(load_plain_encoder(folder, recipe=SHORT).encode_documents(DOCUMENTS)) == 2


@pytest.mark.parametrize("source", ["", "no such folder", "./missing", "/nowhere/at/all", "a/b/c", Path("missing")])
def test_what_is_neither_folder_nor_name_is_refused(source: str | Path) -> None:
    with pytest.raises(InvalidModel, match="no folder here"):
        load_plain_encoder(source)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(InvalidModel, match="no folder"):
        load_plain_encoder(folder / "config.json")
    with pytest.raises(InvalidModel, match="no folder"):
        load_plain_encoder(str(folder / "config.json"))


@pytest.mark.parametrize("local", [False, True])
def test_a_name_that_cannot_be_reached_is_refused_by_that_name(local: bool) -> None:
    with pytest.raises(InvalidModel, match=r"'nobody/nothing'.*hf download nobody/nothing"):
        load_plain_encoder("nobody/nothing", options=EncoderOptions(local_files_only=local))


def test_a_recipe_the_model_cannot_hold_is_refused_and_not_clipped(folder: Path) -> None:
    with pytest.raises(InvalidRecipe, match="at most 64"):
        load_plain_encoder(folder)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidOption, match="float8"):
        EncoderOptions(dtype="float8")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("device", ["cuda:99", "zork"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(InvalidOption, match=device):
        load_plain_encoder(folder, recipe=SHORT, options=EncoderOptions(device=device))


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
    load_plain_encoder(tiny_model)
    drop_layer(folder)
    with pytest.raises(InvalidModel):
        load_plain_encoder(folder, recipe=SHORT)
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
        loader = threading.Thread(target=load_plain_encoder, args=(folder,), kwargs={"recipe": SHORT}, name="ours")
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
    threads = [
        threading.Thread(target=lambda: loaded.append(load_plain_encoder(folder, recipe=SHORT))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert host() == before
