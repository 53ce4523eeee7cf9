"""Reading an exported folder and encoding with it: settings, threads, memory, and what a damaged folder is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from attrs import evolve
from numpy.typing import NDArray
from onnxscript import ir

from lateinteraction.adapters.encoding.encoder import EncodingOptions
from lateinteraction.adapters.onnx.encoder import OnnxEncoder, OnnxOptions, read_model
from lateinteraction.adapters.onnx.session import open_session
from lateinteraction.domain.errors import (
    InvalidModel,
    InvalidOption,
    InvalidRecipe,
    MissingExtra,
    ModelMismatch,
    OutOfMemory,
)
from lateinteraction.domain.text import Document, DocumentId, Query

WORDS = ["late", "interaction", "keeps", "an", "embedding", "for", "every", "token", "of", "a", "document"]
DOCUMENTS = [Document(DocumentId(str(n)), " ".join(WORDS[: n % 9] * (1 + n % 5))) for n in range(40)]
QUERIES = [Query(" ".join(WORDS[:n])) for n in range(1, 5)]


@pytest.fixture(scope="module")
def encoder(exported: Path) -> OnnxEncoder:
    return OnnxEncoder(exported)


def with_settings(encoder: OnnxEncoder, **settings: Any) -> OnnxEncoder:
    return OnnxEncoder(encoder.model, OnnxOptions(recipe=settings))


def of_batches(encoder: OnnxEncoder, tokens: int) -> OnnxEncoder:
    return OnnxEncoder(encoder.model, OnnxOptions(encoding=EncodingOptions(tokens_per_batch=tokens)))


def test_settings_replace_the_folders_own(encoder: OnnxEncoder) -> None:
    changed = with_settings(encoder, query_length=16, expansion="fixed", dimension=20)
    assert encoder.recipe.query_length == 256
    assert changed.recipe == encoder.recipe.merge({"query_length": 16, "expansion": "fixed", "dimension": 20})
    embeddings = changed.encode_queries(QUERIES)
    assert embeddings.tokens.shape == (16 * len(QUERIES), 20)
    assert embeddings.tokens.dtype == np.float32


def test_the_leading_dimensions_are_kept_before_normalising(encoder: OnnxEncoder) -> None:
    whole = with_settings(encoder, normalise=False).encode_queries(QUERIES).tokens[:, :20]
    cut = with_settings(encoder, dimension=20).encode_queries(QUERIES).tokens
    assert np.allclose(cut, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)


def test_another_recipe_shares_the_session(encoder: OnnxEncoder) -> None:
    recipe = encoder.recipe.merge({"document_length": 32})
    other = encoder.with_recipe(recipe)
    assert other.recipe == recipe
    assert other.model.session is encoder.model.session
    assert other.options is encoder.options
    assert encoder.recipe.document_length == 256


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"query_length": 513}, "query_length = 513; expected at most 512"),
        ({"document_length": 100_000}, "document_length"),
        ({"dimension": 129}, "dimension = 129; expected at most 128"),
        ({"query_prefix": "[no such token]"}, "query_prefix"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_settings_the_model_cannot_honour_are_refused(
    encoder: OnnxEncoder, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        with_settings(encoder, **settings)
    assert reason in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1, True, "two", 1.5])
def test_a_number_of_threads_that_is_none_is_refused(threads: Any) -> None:
    with pytest.raises(InvalidOption, match="threads"):
        OnnxOptions(threads=threads)


def test_the_number_of_threads_changes_no_embedding(encoder: OnnxEncoder, exported: Path) -> None:
    one = OnnxEncoder(exported, OnnxOptions(threads=1))
    assert one.model.session.inference.get_session_options().intra_op_num_threads == 1
    first, second = (each.encode_documents(DOCUMENTS).tokens for each in (one, encoder))
    assert np.allclose(first, second, atol=1e-5)


def test_batches_change_no_embedding(encoder: OnnxEncoder) -> None:
    expected = encoder.encode_documents(DOCUMENTS)
    for tokens in (256, 4_096):
        found = of_batches(encoder, tokens).encode_documents(DOCUMENTS)
        assert np.array_equal(found.offsets, expected.offsets)
        assert np.allclose(found.tokens, expected.tokens, atol=1e-5)


def test_a_long_call_is_joined_from_its_windows(encoder: OnnxEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encoder.encode_documents(DOCUMENTS)
    monkeypatch.setattr("lateinteraction.adapters.encoding.encoder.TEXTS_PER_WINDOW", 7)
    found = encoder.encode_documents(DOCUMENTS)
    assert np.array_equal(found.offsets, expected.offsets)
    assert np.allclose(found.tokens, expected.tokens, atol=1e-5)


def test_a_stream_gives_what_one_call_gives(encoder: OnnxEncoder) -> None:
    pieces = list(encoder.stream_documents(iter(DOCUMENTS), documents_per_piece=7))
    together = np.concatenate([piece.embeddings.tokens for piece in pieces])
    assert np.allclose(together, encoder.encode_documents(DOCUMENTS).tokens, atol=1e-5)


def test_threads_that_call_at_once_get_what_one_gets(encoder: OnnxEncoder) -> None:
    expected = [encoder.encode_documents(DOCUMENTS[n:]).tokens for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda n: encoder.encode_documents(DOCUMENTS[n:]).tokens, range(4)))
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_embeddings_belong_to_the_caller(encoder: OnnxEncoder) -> None:
    first = encoder.encode_queries(QUERIES).tokens
    kept = first.copy()
    encoder.encode_queries(QUERIES[::-1])
    assert np.array_equal(first, kept)
    assert first.flags.writeable
    assert first.flags.c_contiguous


FIRST_EMBEDDING = """
import sys
from lateinteraction.adapters.onnx.encoder import OnnxEncoder
from lateinteraction.domain.text import Document, DocumentId, Query

encoder = OnnxEncoder(sys.argv[1])
assert len(encoder.encode_queries([Query("late interaction")]).tokens) == 4
assert len(encoder.encode_documents([Document(DocumentId("1"), "late interaction")]).tokens) == 4
assert len(next(encoder.stream_documents([Document(DocumentId("1"), "late")])).embeddings) == 1
print(*{name.partition(".")[0] for name in sys.modules})
"""
SHORT_OF_MEMORY = """
import os, resource, sys
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would take address space, and abort where there is none
from lateinteraction.adapters.encoding.encoder import EncodingOptions
from lateinteraction.adapters.onnx.encoder import OnnxEncoder, OnnxOptions
from lateinteraction.domain.text import Document, DocumentId

documents = [Document(DocumentId(str(n)), "late interaction " * 100) for n in range(256)]
batches = []
tell = lambda done, total: batches.append(done)
options = OnnxOptions(threads=1, encoding=EncodingOptions(tokens_per_batch=2**20, progress=tell))
encoder = OnnxEncoder(sys.argv[1], options)
whole = encoder.encode_documents(documents[:1]).tokens
batches.clear()
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[2]) * 2**20,) * 2)
embeddings, report = encoder.encode_documents_with_report(documents)
assert len(embeddings) == 256 and abs(embeddings[255] - whole).max() <= 1e-5
print("encoded", report.kept, len(batches) > 1)
"""


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_neither_torch_nor_transformers_is_loaded(exported: Path) -> None:
    done = run(FIRST_EMBEDDING, exported)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert {"onnxruntime", "tokenizers"} <= loaded
    assert loaded & {"torch", "transformers", "onnx", "onnxscript", "scipy", "huggingface_hub"} == set()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_batches_are_halved_until_they_fit_into_memory(exported: Path) -> None:
    done = run(SHORT_OF_MEMORY, exported, 100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["encoded", str(256 * 202), "True"]


class Small:
    """A session with memory for so many tokens, which gives what it is told to."""

    file, dimension = Path("model.onnx"), 128

    def __init__(self, tokens: int = 2**20, value: float = 1.0) -> None:
        self.tokens, self.value = tokens, value

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        if ids.size > self.tokens:
            raise MemoryError("Failed to allocate memory for requested buffer")
        return np.full((*ids.shape, self.dimension), self.value, np.float32)


def over(encoder: OnnxEncoder, session: Small) -> OnnxEncoder:
    return OnnxEncoder(evolve(encoder.model, session=session))


def test_a_text_that_does_not_fit_alone_is_named(encoder: OnnxEncoder) -> None:
    assert len(over(encoder, Small(60)).encode_documents(DOCUMENTS)) == len(DOCUMENTS)
    with pytest.raises(OutOfMemory, match="alone in its batch"):
        over(encoder, Small(4)).encode_documents(DOCUMENTS)


def test_embeddings_that_are_no_numbers_are_an_error(encoder: OnnxEncoder) -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(InvalidModel, match="not finite"):
            over(encoder, Small(value=value)).encode_queries(QUERIES)


def test_a_zero_row_stays_zero(encoder: OnnxEncoder) -> None:
    assert not over(encoder, Small(value=0)).encode_queries(QUERIES).tokens.any()


def test_without_onnx_runtime_the_extra_is_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"lateinteraction\[onnx\]"):
        read_model(exported)


def test_nothing_is_logged_and_the_hosts_sessions_keep_their_own_level(
    encoder: OnnxEncoder, capfd: pytest.CaptureFixture[str]
) -> None:
    session = encoder.model.session
    with pytest.raises(InvalidModel, match="ONNX Runtime fails"):
        session.run(np.full((1, 3), 10**6), np.ones((1, 3), np.int64))
    assert capfd.readouterr().err == ""
    assert onnxruntime.SessionOptions().log_severity_level == -1


def broken(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def emptied(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_was_changed_is_named_with_both_digests(name: str, changed: Callable[..., Path]) -> None:
    with pytest.raises(ModelMismatch) as caught:
        OnnxEncoder(changed(broken(name)))
    assert name in caught.value.given
    assert len(caught.value.expected.partition(",")[0]) == 64


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_is_missing_is_named(name: str, changed: Callable[..., Path]) -> None:
    with pytest.raises(InvalidModel, match=name):
        OnnxEncoder(changed(gone(name)))


def test_a_file_that_may_not_be_read_is_named(changed: Callable[..., Path]) -> None:
    def replace_by_folder(folder: Path) -> None:
        (folder / "model.onnx").unlink()
        (folder / "model.onnx").mkdir()

    with pytest.raises(InvalidModel, match=r"model\.onnx .*directory"):
        OnnxEncoder(changed(replace_by_folder))


def test_a_graph_that_onnx_runtime_cannot_read_is_refused(changed: Callable[..., Path]) -> None:
    with pytest.raises(InvalidModel, match="ONNX Runtime fails"):
        OnnxEncoder(changed(emptied("model.onnx"), truthful=True))


def test_a_graph_of_another_kind_is_refused(tmp_path: Path) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3]))
    tape = ir.tape.Tape()
    y = tape.op("Neg", [x])
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    ir.save(ir.Model(ir.Graph([x], [y], nodes=list(tape.nodes), opset_imports={"": 23}), ir_version=10), tmp_path / "g")
    with pytest.raises(InvalidModel, match=r"inputs \['x'\]"):
        open_session(tmp_path / "g")


@pytest.mark.parametrize(
    ("fields", "reason"), [({"vocabulary": 100}, "token ids up to"), ({"dimension": 64}, "rows of")]
)
def test_files_of_several_models_are_refused(fields: dict[str, Any], reason: str, changed: Callable[..., Path]) -> None:
    with pytest.raises(InvalidModel, match=reason):
        OnnxEncoder(changed(**fields))


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_folder_that_is_no_export_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"encoder\.json"):
        OnnxEncoder(tmp_path / path)
