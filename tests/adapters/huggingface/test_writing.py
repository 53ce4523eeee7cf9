"""What is written reads back as the same model, is what PyLate and sentence-transformers expect, and is whole."""

from __future__ import annotations

import json
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.projection import DenseLayer, Projection, RandomProjection
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.adapters.huggingface.writing import FolderStore, write_checkpoint
from lateinteraction.domain.errors import InvalidOption, InvalidRecipe
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
from lateinteraction.domain.text import Document, DocumentId, Query

FAMILIES = ["bert", "distilbert", "roberta", "mpnet", "xlm-roberta", "modernbert", "qwen2"]
SHORT = {"query_length": 16, "document_length": 40}
CONFIG = "config_sentence_transformers.json"
TEXTS = ["the quick brown fox, again", "a score is a sum of maxima.", "why?"]
TANH, GELU = "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.GELU"
PEERS_CANNOT: dict[str, Any] = {
    "keep_special_tokens": False,
    "normalise": False,
    "query_skiplist": ("fox",),
    "expansion_token": "the",
    "pooling": TokenPooling(1.5, 2),
}


def read(folder: Path, **recipe: Any) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders: where an expansion goes has a test of its own
        return read_checkpoint(folder, recipe=recipe)


def embedded(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    encoder = HuggingFaceEncoder(checkpoint)
    documents = [Document(DocumentId(str(number)), text) for number, text in enumerate(TEXTS)]
    return encoder.encode_queries([Query(text) for text in TEXTS]).tokens, encoder.encode_documents(documents).tokens


def written(checkpoint: Checkpoint, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_checkpoint(checkpoint, folder)
    return folder


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.recipe == expected.recipe.merge({"dimension": None})
    for ours, theirs in zip(embedded(found), embedded(expected), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def listed(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


# ── there and back ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_reads_back_as_the_same_model(checkpoints: Any, tmp_path: Path, family: str) -> None:
    checkpoint = read(checkpoints.pylate(family))
    found = read(written(checkpoint, tmp_path / "out"))
    assert found.format == "pylate"
    assert_same(found, checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_a_projection_reads_back_without_one(checkpoints: Any, tmp_path: Path, family: str) -> None:
    checkpoint = read(checkpoints.plain(family), **SHORT)
    found = read(written(checkpoint, tmp_path / "out"))
    assert found.projection.width is None
    assert_same(found, checkpoint)


@pytest.mark.parametrize("kind", ["single_vector", "multi_vector", "stanford"])
def test_every_format_is_written_as_one(checkpoints: Any, tmp_path: Path, kind: str) -> None:
    checkpoint = read(getattr(checkpoints, kind)())
    found = read(written(checkpoint, tmp_path / "out"))
    assert found.format == "pylate"
    assert_same(found, checkpoint)


@pytest.mark.parametrize("dimension", [1, 9, 16])
@pytest.mark.parametrize("layers", ["one", "two", "square with residual", "residual", "none"])
def test_the_recipes_dimension_becomes_that_of_the_last_layer(
    checkpoints: Any, tmp_path: Path, layers: str, dimension: int
) -> None:
    make = checkpoints.dense
    dense = {
        "one": [make()],
        "two": [make(24, 32, bias=True, activation=TANH), make(16, 24, bias=True, activation=GELU)],
        "square with residual": [make(32, 32, bias=True, activation=TANH, residual=True)],
        "residual": [make(16, 32, residual=True)],
        "none": [],
    }[layers]
    checkpoint = read(checkpoints.pylate(dense=dense), dimension=dimension)
    found = read(written(checkpoint, tmp_path / "out"))
    assert found.projection.width == found.dimension == dimension
    assert_same(found, checkpoint)


@pytest.mark.parametrize("missing", ["normalise", "pooling"])  # pooling wants unit vectors
def test_every_setting_reads_back(checkpoints: Any, tmp_path: Path, missing: str) -> None:
    recipe = EncodingRecipe(
        query_length=20,
        document_length=50,
        query_prefix="[unused0]",
        document_prefix="[D] ",
        query_prompt="late ",
        document_prompt="score: “",
        expansion="fixed",
        attend_to_expansion=True,
        skiplist=(",", "?"),
        **{name: value for name, value in PEERS_CANNOT.items() if name != missing},
    )
    checkpoint = read(checkpoints.pylate(), **{name: getattr(recipe, name) for name in recipe.settings()})
    assert checkpoint.recipe == recipe
    with pytest.warns(UserWarning, match="will not honour"):
        write_checkpoint(checkpoint, tmp_path / "out")
    assert_same(read(tmp_path / "out"), checkpoint)


def test_writing_twice_gives_the_same_files(checkpoints: Any, tmp_path: Path) -> None:
    first = written(read(checkpoints.pylate()), tmp_path / "first")
    second = written(read(first), tmp_path / "second")
    names = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
    assert names == sorted(file.relative_to(second) for file in second.rglob("*") if file.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_keep_their_precision(checkpoints: Any, tmp_path: Path, dtype: Any) -> None:
    for number, folder in enumerate((checkpoints.pylate(), checkpoints.plain())):
        options = CheckpointOptions(dtype=dtype)
        checkpoint = read_checkpoint(folder, recipe=SHORT, options=options)
        out = written(checkpoint, tmp_path / str(number))
        for file in (out / "model.safetensors", out / "1_Dense" / "model.safetensors"):
            assert {tensor.dtype for tensor in load_file(file).values()} == {getattr(torch, dtype)}
        assert_same(read_checkpoint(out, options=options), checkpoint)


def test_writing_leaves_the_model_as_it_was(checkpoints: Any, tmp_path: Path) -> None:
    checkpoint = read(checkpoints.pylate("qwen2"), dimension=8)
    before = embedded(checkpoint)
    state = (checkpoint.tokenizer.pad_token, checkpoint.tokenizer.padding_side, checkpoint.projection.width)
    written(checkpoint, tmp_path / "out")
    assert state == (checkpoint.tokenizer.pad_token, checkpoint.tokenizer.padding_side, checkpoint.projection.width)
    for first, second in zip(before, embedded(checkpoint), strict=True):
        assert torch.equal(first, second)


def test_a_projection_in_training_is_written_as_it_is_now(checkpoints: Any, tmp_path: Path) -> None:
    checkpoint = read(checkpoints.pylate())
    with torch.no_grad():
        checkpoint.projection.layers[0].weight.mul_(2).add_(0.1)
    assert_same(read(written(checkpoint, tmp_path / "out")), checkpoint)


# ── what the others expect of the files ─────────────────────────────────────────────────────────────────────────────


def test_the_files_are_those_that_pylate_writes(checkpoints: Any, tmp_path: Path) -> None:
    out = written(read(checkpoints.pylate(prompts={"query": "q: ", "document": "d: "})), tmp_path / "out")
    config = listed(out, CONFIG)
    assert config.pop("__version__").keys() == {"lateinteraction", "transformers", "pytorch"}
    assert config == {
        "model_type": "ColBERT",
        "prompts": {"query": "q: ", "document": "d: "},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 16,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": [",", "."],
        "do_query_expansion": True,
    }
    assert listed(out, "sentence_bert_config.json") == {"max_seq_length": 40, "do_lower_case": False}
    assert [(each["path"], each["type"]) for each in listed(out, "modules.json")] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Dense", "sentence_transformers.models.Dense"),
    ]
    assert listed(out, "1_Dense/config.json") == {
        "in_features": 32,
        "out_features": 16,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    assert set(load_file(out / "1_Dense" / "model.safetensors")) == {"linear.weight"}
    AutoModel.from_pretrained(out)  # as it is, for those who want the transformer alone


def test_a_layer_with_a_residual_has_the_type_that_knows_one(checkpoints: Any, tmp_path: Path) -> None:
    make = checkpoints.dense
    dense = [make(32, 32, residual=True), make(16, 32)]
    out = written(read(checkpoints.pylate(dense=dense)), tmp_path / "out")
    assert [each["type"] for each in listed(out, "modules.json")][1:] == [
        "pylate.models.Dense.Dense",
        "sentence_transformers.models.Dense",
    ]
    assert listed(out, "1_Dense/config.json")["use_residual"] is True
    assert "use_residual" not in listed(out, "2_Dense/config.json")


def test_a_model_without_a_projection_is_written_with_one_that_changes_nothing(
    checkpoints: Any, tmp_path: Path
) -> None:
    out = written(read(checkpoints.plain(), **SHORT), tmp_path / "out")
    assert torch.equal(load_file(out / "1_Dense" / "model.safetensors")["linear.weight"], torch.eye(32))
    assert (listed(out, CONFIG)["query_prefix"], listed(out, CONFIG)["document_prefix"]) == ("", "")


@pytest.mark.parametrize(("family", "filler"), [("bert", "[MASK]"), ("roberta", "<mask>"), ("qwen2", "<|endoftext|>")])
def test_the_tokenizer_pads_as_pylate_saves_it(checkpoints: Any, tmp_path: Path, family: str, filler: str) -> None:
    out = written(read(checkpoints.pylate(family)), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.pad_token, tokenizer.padding_side) == (filler, "right")
    assert tokenizer.convert_tokens_to_ids("[Q] ") == len(tokenizer) - 2
    assert not {"is_local", "local_files_only", "name_or_path"} & set(listed(out, "tokenizer_config.json"))


def test_a_chat_template_is_left_behind_because_texts_would_be_put_through_it(checkpoints: Any, tmp_path: Path) -> None:
    folder = checkpoints.pylate("qwen2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    checkpoint = read(folder)
    out = written(checkpoint, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    assert checkpoint.tokenizer.chat_template is not None
    assert_same(read(out), checkpoint)


@pytest.mark.parametrize("setting", PEERS_CANNOT)
def test_a_setting_the_others_have_no_words_for_is_kept_and_told_of(
    checkpoints: Any, tmp_path: Path, setting: str
) -> None:
    checkpoint = read(checkpoints.pylate(), **{setting: PEERS_CANNOT[setting]})
    with pytest.warns(UserWarning, match=f"will not honour: {setting}") as told:
        write_checkpoint(checkpoint, tmp_path / "out")
    assert len(told) == 1
    assert set(listed(tmp_path / "out", CONFIG)["lateinteraction"]) == {"version", setting}
    assert f"- {setting} = " in (tmp_path / "out" / "README.md").read_text()


def test_a_recipe_the_others_can_follow_is_written_without_a_word(checkpoints: Any, tmp_path: Path) -> None:
    checkpoint = read(checkpoints.pylate())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_checkpoint(checkpoint, tmp_path / "out")
    assert "lateinteraction" not in listed(tmp_path / "out", CONFIG)


def test_markers_that_pylate_would_put_elsewhere_are_told_of(checkpoints: Any, tmp_path: Path) -> None:
    checkpoint = read(checkpoints.pylate("qwen2"))
    with pytest.warns(UserWarning, match="PyLate puts them after its first token"):
        write_checkpoint(checkpoint, tmp_path / "out")


def test_a_marker_that_is_no_token_is_refused_before_anything_is_written(checkpoints: Any, tmp_path: Path) -> None:
    checkpoint = read(checkpoints.pylate())
    unknown = checkpoint.with_recipe(checkpoint.recipe.merge({"query_prefix": "[X] "}))
    with pytest.raises(InvalidRecipe, match=r"\[X\]"):
        write_checkpoint(unknown, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ── the card ────────────────────────────────────────────────────────────────────────────────────────────────────────


def card(checkpoint: Checkpoint, folder: Path) -> str:
    return (written(checkpoint, folder) / "README.md").read_text()


def test_the_card_says_how_three_libraries_load_it_and_what_the_recipe_is(checkpoints: Any, tmp_path: Path) -> None:
    text = card(read(checkpoints.pylate()), tmp_path / "out")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert "library_name: lateinteraction" in head
    assert "- ColBERT" in head
    for line in ('li.load_model("FOLDER")', 'models.ColBERT("FOLDER")', 'MultiVectorEncoder("FOLDER")'):
        assert line in body
    assert "| `document_length` | `40` |" in body
    assert "`BertModel`, projected to 16 dimensions; weights in float32." in body
    assert f"- torch {torch.__version__}" in body
    assert "do not honour" not in body


def test_the_card_names_what_it_was_made_of_only_where_others_can_find_it(checkpoints: Any, tmp_path: Path) -> None:
    checkpoint = read(checkpoints.pylate())
    assert "base_model" not in card(checkpoint, tmp_path / "folder")
    assert str(tmp_path) not in (tmp_path / "folder" / "README.md").read_text()
    named = evolve(checkpoint, source="someone/something")
    assert "\nbase_model: someone/something\n" in card(named, tmp_path / "named")


def test_the_card_tells_pylates_users_of_prompts_they_must_ask_for(checkpoints: Any, tmp_path: Path) -> None:
    prompts = {"query": "q: ", "document": ""}
    text = card(read(checkpoints.pylate(prompts=prompts)), tmp_path / "out")
    assert 'is_query=True, prompt_name="query")' in text
    assert "is_query=False)" in text


def test_the_recipe_table_survives_signs_that_mean_something_in_markdown(checkpoints: Any, tmp_path: Path) -> None:
    text = card(read(checkpoints.pylate(), query_prompt="a|b`c``\n| x | y |"), tmp_path / "out")
    row = next(line for line in text.splitlines() if line.startswith("| `query_prompt`"))
    assert row == r'| `query_prompt` | ```"a\|b`c``\n\| x \| y \|"``` |'


# ── all or nothing ──────────────────────────────────────────────────────────────────────────────────────────────────


def left_behind(parent: Path) -> list[str]:
    return sorted(each.name for each in parent.iterdir())


@pytest.fixture
def checkpoint(checkpoints: Any) -> Checkpoint:
    return read(checkpoints.pylate())


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A folder with nothing else in it."""
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent"


def test_a_folder_is_made_with_what_is_above_it(checkpoint: Checkpoint, parent: Path) -> None:
    write_checkpoint(checkpoint, parent / "a" / "b" / "model")
    assert_same(read(parent / "a" / "b" / "model"), checkpoint)
    assert left_behind(parent / "a" / "b") == ["model"]


def test_an_empty_folder_is_filled(checkpoint: Checkpoint, parent: Path) -> None:
    (parent / "model").mkdir()
    write_checkpoint(checkpoint, parent / "model")
    assert_same(read(parent / "model"), checkpoint)
    assert left_behind(parent) == ["model"]


def test_a_folder_may_be_given_as_text_and_from_here(
    checkpoint: Checkpoint, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parent)
    write_checkpoint(checkpoint, "model")
    assert left_behind(parent) == ["model"]


def test_everybody_who_may_read_the_folder_may_read_its_files(checkpoint: Checkpoint, parent: Path) -> None:
    (parent / "usual").write_text("")
    expected = stat.S_IMODE((parent / "usual").stat().st_mode)
    write_checkpoint(checkpoint, parent / "model")
    files = [each for each in (parent / "model").rglob("*") if each.is_file()]
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {expected}


def test_a_checkpoint_that_is_there_is_replaced_only_when_asked(
    checkpoint: Checkpoint, checkpoints: Any, parent: Path
) -> None:
    dense = [checkpoints.dense(24, 32), checkpoints.dense(8, 24)]
    write_checkpoint(read(checkpoints.pylate(dense=dense)), parent / "model")
    with pytest.raises(InvalidOption, match="overwrite=True"):
        write_checkpoint(checkpoint, parent / "model")
    assert read(parent / "model").dimension == 8
    write_checkpoint(checkpoint, parent / "model", overwrite=True)
    assert_same(read(parent / "model"), checkpoint)
    assert not (parent / "model" / "2_Dense").exists()
    assert left_behind(parent) == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_checkpoint_is_never_replaced(checkpoint: Checkpoint, parent: Path, overwrite: bool) -> None:
    (parent / "folder").mkdir()
    (parent / "folder" / "letter.txt").write_text("dear")
    (parent / "file").write_text("dear")
    (parent / "link").symlink_to(parent / "nowhere")
    for name in ("folder", "file", "link"):
        with pytest.raises(InvalidOption, match="Name another folder"):
            write_checkpoint(checkpoint, parent / name, overwrite=overwrite)
    assert (parent / "folder" / "letter.txt").read_text() == (parent / "file").read_text() == "dear"
    assert left_behind(parent) == ["file", "folder", "link"]


def test_a_model_may_replace_the_one_it_was_read_from(checkpoints: Any) -> None:
    folder = checkpoints.pylate()
    checkpoint = read(folder)
    shorter = checkpoint.with_recipe(checkpoint.recipe.merge({"document_length": 20}))
    write_checkpoint(shorter, folder, overwrite=True)
    assert_same(read(folder), shorter)


class Failure(Exception):
    """Something goes wrong half-way."""


@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_fails_leaves_everything_as_it_was(
    checkpoint: Checkpoint, parent: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        write_checkpoint(checkpoint, parent / "model")
    shorter = checkpoint.with_recipe(checkpoint.recipe.merge({"document_length": 20}))

    def fail(*_: object, **__: object) -> None:
        raise Failure

    for broken in ("os.fsync", "pathlib.Path.rename", "pathlib.Path.replace", "safetensors.torch.save_file"):
        with monkeypatch.context() as patched:
            patched.setattr(broken if "torch" not in broken else f"{FolderStore.__module__}.save_file", fail)
            used = broken != ("pathlib.Path.replace" if there else "pathlib.Path.rename")
            if used:
                with pytest.raises(Failure):
                    write_checkpoint(shorter, parent / "model", overwrite=True)
        assert left_behind(parent) == (["model"] if there else [])
    if there:
        assert_same(read(parent / "model"), checkpoint)


def test_the_old_checkpoint_is_put_back_where_the_new_one_cannot_take_its_place(
    checkpoint: Checkpoint, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(checkpoint, parent / "model")
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr("pathlib.Path.rename", second_fails)
    with pytest.raises(InvalidOption, match="Input/output error"):
        write_checkpoint(checkpoint, parent / "model", overwrite=True)
    monkeypatch.undo()
    assert_same(read(parent / "model"), checkpoint)
    assert left_behind(parent) == ["model"]


def test_a_place_below_a_file_is_refused(checkpoint: Checkpoint, parent: Path) -> None:
    (parent / "file").write_text("")
    with pytest.raises(InvalidOption, match="cannot be written"):
        write_checkpoint(checkpoint, parent / "file" / "model")


def test_a_store_keeps_a_model_and_says_where(checkpoint: Checkpoint, parent: Path) -> None:
    assert FolderStore(parent / "model").save(checkpoint) == str(parent / "model")
    assert FolderStore(str(parent / "model"), overwrite=True).save(checkpoint) == str(parent / "model")
    assert_same(read(parent / "model"), checkpoint)
    with pytest.raises(InvalidOption):
        FolderStore(parent / "model").save(checkpoint)


def test_writing_prints_nothing(
    checkpoint: Checkpoint, parent: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(checkpoint, parent / "model")
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_a_projection_made_by_hand_is_written_like_any_other(checkpoint: Checkpoint, parent: Path) -> None:
    layer = DenseLayer(torch.ones(4, 32), bias=torch.arange(4.0), activation=TANH)
    by_hand = evolve(checkpoint, projection=Projection([layer]))
    write_checkpoint(by_hand, parent / "model")
    assert_same(read(parent / "model"), by_hand)


def test_a_new_projection_is_saved_with_its_model(checkpoints: Any, parent: Path) -> None:
    options = CheckpointOptions(projection=RandomProjection(8, 1))
    checkpoint = read_checkpoint(checkpoints.plain(), recipe=SHORT, options=options)
    write_checkpoint(checkpoint, parent / "model")
    assert_same(read(parent / "model"), checkpoint)
