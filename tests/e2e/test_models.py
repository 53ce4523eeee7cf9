"""What a person does with a model: load, encode in four forms, stream, trace, save, export, share the work."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve

import lateinteraction as li
from lateinteraction import wiring
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.domain.errors import InvalidModel, InvalidOption, InvalidRecipe, InvalidText, WorkerFailed

TEXTS = ["the quick brown fox", "", "late interaction, of tokens", "a"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> li.Model:
    return li.load_model(tiny_model, device="cpu")


# ── what comes out ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", ["queries", "documents"])
def test_four_forms_hold_the_same_items(model: li.Model, role: str) -> None:
    encode = getattr(model, f"encode_{role}")
    exact = encode(TEXTS)
    assert isinstance(exact.tokens, torch.Tensor)
    array, int8, binary = (encode(TEXTS, output=output) for output in ("numpy", "int8", "binary"))
    assert isinstance(array.tokens, np.ndarray)
    assert np.array_equal(array.tokens, exact.tokens.numpy())
    for other in (array, int8.restored(), binary.restored()):
        assert other.offsets.tolist() == exact.offsets.tolist()
    assert int8.codes.tokens.nbytes == array.tokens.nbytes // 4
    assert binary.bits.tokens.nbytes == array.tokens.nbytes // 32
    assert np.abs(int8.restored().tokens - array.tokens).max() < 1 / 127
    assert np.mean(np.sum(binary.restored().tokens * array.tokens, axis=1)) > 0.6


def test_an_unknown_form_is_refused(model: li.Model) -> None:
    for encode in (model.encode_queries, model.encode_documents):
        with pytest.raises(InvalidOption, match="output = 'float16'"):
            encode(["a"], output="float16")


def test_a_stream_takes_texts_and_documents_and_numbers_the_former(model: li.Model) -> None:
    def texts() -> Iterator[Any]:
        yield from ("one", li.Document("named", "two"), "three")

    pieces = list(model.stream_documents(texts(), documents_per_piece=2))
    assert [[document.id for document in piece.documents] for piece in pieces] == [["0", "named"], ["1"]]
    expected = model.encode_documents(["one", "two", "three"], output="numpy")
    assert np.allclose(np.concatenate([piece.embeddings.tokens for piece in pieces]), expected.tokens, atol=1e-5)


def test_a_stream_takes_texts_by_their_ids_and_gives_tensors_on_request(model: li.Model) -> None:
    (piece,) = model.stream_documents({"fox": "a fox", "dog": "a dog"}, output="torch")
    assert [document.id for document in piece.documents] == ["fox", "dog"]
    assert torch.equal(piece.embeddings.tokens, model.encode_documents(["a fox", "a dog"]).tokens)
    with pytest.raises(InvalidOption, match="output = 'int8'"):
        model.stream_documents(["a"], output="int8")


def test_a_text_is_no_stream(model: li.Model) -> None:
    with pytest.raises(InvalidText, match="documents as a str"):
        model.stream_documents("one text")


def test_traces_say_where_each_embedding_comes_from(model: li.Model) -> None:
    trace = model.trace_documents(TEXTS)
    assert trace.offsets.tolist() == model.encode_documents(TEXTS).offsets.tolist()
    words = [TEXTS[0][slice(*trace.characters(token))] for token in range(int(trace.offsets[1]))]
    assert words == ["", "the", "quick", "brown", "fox", ""]
    assert len(model.trace_queries(["the fox"])) == 1


def test_long_texts_are_split_where_that_is_asked_for(tiny_model: Path) -> None:
    split = li.load_model(tiny_model, recipe={"document_length": 8}, encoding=li.EncodingOptions(on_too_long="split"))
    embeddings, report = split.encoder.encode_documents_with_report([li.Document("0", "fox " * 12)])
    assert embeddings.lengths.tolist() == [12 + 2 * 2]
    assert report.split.tolist() == [0]


def test_pooling_is_a_setting_of_the_recipe(tiny_model: Path, model: li.Model) -> None:
    text = ["the quick brown fox jumps over the lazy dog"]
    pooled = li.load_model(tiny_model, recipe={"pooling": li.TokenPooling(2)})
    assert pooled.recipe.pooling == li.TokenPooling(2)
    assert pooled.encode_documents(text).lengths.tolist() == [1 + (model.encode_documents(text).lengths[0] - 1) // 2]


# ── a projection is asked for, never drawn in silence ───────────────────────────────────────────────────────────────


def test_a_plain_encoder_has_no_projection_unless_it_is_asked_for(tiny_model: Path, model: li.Model) -> None:
    assert model.encode_queries(["fox"]).dimension == 128
    drawn = [
        li.load_model(tiny_model, checkpoint=li.CheckpointOptions(projection=li.RandomProjection(16, seed)))
        for seed in (1, 1, 2)
    ]
    first, again, other = (each.encode_queries(["fox"]).tokens for each in drawn)
    assert first.shape[1] == 16
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_projection_fitted_to_texts_keeps_more_than_a_drawn_one(tiny_model: Path, model: li.Model) -> None:
    texts = [f"the {word} fox jumps over {word} dogs" for word in ("quick", "lazy", "brown", "late", "new", "old")]
    ways = (li.PcaProjection(32, texts), li.RandomProjection(32, 0))
    exact = model.encode_documents(texts).tokens
    errors = []
    for way in ways:
        small = li.load_model(tiny_model, checkpoint=li.CheckpointOptions(projection=way))
        tokens = small.encode_documents(texts).tokens
        errors.append(float((tokens @ tokens.T - exact @ exact.T).abs().mean()))
    assert errors[0] < 0.2 * errors[1]


# ── where it is kept, and where it runs ─────────────────────────────────────────────────────────────────────────────


def test_a_saved_model_is_the_same_model(tiny_model: Path, tmp_path: Path, model: li.Model) -> None:
    recipe = {"document_length": 20, "query_prefix": "[unused0]", "skiplist": [","]}
    own = li.load_model(tiny_model, recipe=recipe)
    folder = own.save(tmp_path / "model")
    read = li.load_model(folder)
    assert read.recipe == own.recipe
    assert torch.allclose(read.encode_documents(TEXTS).tokens, own.encode_documents(TEXTS).tokens, atol=1e-6)
    with pytest.raises(InvalidOption, match="new or empty"):
        own.save(folder)
    own.save(folder, overwrite=True)


def test_an_exported_model_gives_the_same_results(tiny_model: Path, tmp_path: Path, model: li.Model) -> None:
    exported = li.load_model(model.export_onnx(tmp_path / "onnx"), runtime="onnx")
    expected = model.encode_documents(TEXTS)
    assert torch.allclose(exported.encode_documents(TEXTS).tokens, expected.tokens, atol=1e-5)
    index = li.Index(exported)
    index.add({"fox": "the quick brown fox", "token": "an embedding for every token"})
    assert index.search("a brown fox", 1)[0].id == "fox"
    assert exported.rerank("fox", ["a dog", "a fox"])[0].text == "a fox"
    assert exported.explain("fox", "a fox").matches
    shared = li.load_model(tmp_path / "onnx", runtime="onnx", device=["cpu", "cpu"])
    assert np.allclose(shared.encode_documents(TEXTS, output="numpy").tokens, expected.tokens.numpy(), atol=1e-5)
    for keep in (exported.save, exported.export_onnx):
        with pytest.raises(InvalidOption, match="ONNX Runtime or in other processes"):
            keep(tmp_path / "again")


def test_weights_that_were_narrowed_for_a_device_are_not_kept(tiny_model: Path, tmp_path: Path) -> None:
    own = wiring.encoder(tiny_model)
    narrow = HuggingFaceEncoder(evolve(own.checkpoint, narrowed=True))
    model = li.Model(wiring.Encoders(narrow, lambda: narrow, narrow))  # type: ignore[arg-type]
    for keep in (model.save, model.export_onnx, model.push_to_hub):
        with pytest.raises(InvalidOption, match="narrowed to bfloat16"):
            keep(str(tmp_path / "model"))
    assert not own.checkpoint.narrowed


def test_a_model_on_several_devices_ends_its_processes(tiny_model: Path) -> None:
    with li.load_model(tiny_model, device=["cpu", "cpu"], recipe={"skiplist": {".", ","}}) as shared:
        assert set(shared.recipe.skiplist) == {".", ","}
        assert shared.encode_queries(["a fox"]).dimension == 128
    with pytest.raises(WorkerFailed, match="ended"):
        shared.encode_queries(["a fox"])
    with li.load_model(tiny_model, device="cpu") as alone:
        alone.encode_queries(["a fox"])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"runtime": "tensorrt"}, InvalidOption, "'torch' or 'onnx'"),
        ({"runtime": "onnx", "checkpoint": li.CheckpointOptions()}, InvalidOption, "checkpoint options"),
        ({"runtime": "onnx", "device": "cuda"}, InvalidOption, "device 'cuda'"),
        ({"runtime": "onnx"}, InvalidModel, "encoder.json"),
        ({"device": []}, InvalidOption, "no device"),
        ({"device": ["cpu", "abacus"]}, InvalidOption, "abacus"),
        ({"device": ["cpu", "cpu"], "recipe": {"query_length": 1}}, InvalidRecipe, "query_length"),
    ],
)
def test_options_that_cannot_be_had_are_refused(
    tiny_model: Path, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        li.load_model(tiny_model, **arguments)


def test_a_model_in_onnx_needs_a_folder() -> None:
    with pytest.raises(InvalidOption, match="no folder"):
        li.load_model(runtime="onnx")


def test_a_new_projection_is_not_made_in_several_processes(tiny_model: Path) -> None:
    options = li.CheckpointOptions(projection=li.RandomProjection(8, 0))
    with pytest.raises(InvalidOption, match="save it, load that"):
        li.load_model(tiny_model, device=["cpu", "cpu"], checkpoint=options)


# ── progress for people ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_line_says_how_far_how_fast_and_how_long_still() -> None:
    written, seconds = io.StringIO(), iter([0.0, 1.0, 2.0])
    line = li.ProgressLine(written, lambda: next(seconds))
    for done in (0, 10, 40):
        line(done, 40)
    assert written.getvalue().split("\r")[1:] == [
        "0 of 40\x1b[K",
        "10 of 40 · 10.0/s · 0:00:03 left\x1b[K",
        "40 of 40 · 20.0/s · 0:00:00 left\x1b[K\n",
    ]


def test_the_line_is_written_to_standard_error(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    li.load_model(tiny_model, device="cpu", progress=li.ProgressLine()).encode_documents(TEXTS)
    captured = capsys.readouterr()
    assert "4 of 4" in captured.err
    assert captured.out == ""
