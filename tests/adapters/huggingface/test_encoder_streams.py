"""Windows, streams and scarce memory change no embedding; projection and pooling change it as they should."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lateinteraction.adapters.encoding import encoder as loop
from lateinteraction.adapters.encoding.encoder import EncodingOptions
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.projection import DenseLayer, Projection
from lateinteraction.adapters.neural.transfer import to_numpy
from lateinteraction.domain.errors import (
    InvalidOption,
    InvalidRecipe,
    OutOfMemory,
    TruncatedTextWarning,
)
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
from lateinteraction.domain.reference import pool
from lateinteraction.domain.text import Document, DocumentId, Query

Tokenizers = Mapping[str, PreTrainedTokenizerFast]
Models = Mapping[str, PreTrainedModel]
FAMILIES = ("bert", "distilbert", "roberta", "mpnet", "xlm-roberta", "modernbert", "qwen2")
RECIPE = EncodingRecipe(query_length=16, document_length=48)
Over = Callable[..., HuggingFaceEncoder]
Make = Callable[..., HuggingFaceEncoder]
TEXTS = (
    "the fox",
    "",
    "The quick brown fox jumps over the lazy dog, again and again; why?",
    "a",
    "nul \x00 😀👩‍👩‍👧‍👦 שלום 漢字 e\u0301",
    "the fox",
    " ".join(["late interaction keeps an embedding for every token"] * 3)[:120],
    " ",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2,
)


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(DocumentId(f"d{row}"), text) for row, text in enumerate(texts)]


def queries(texts: Sequence[str]) -> list[Query]:
    return [Query(text) for text in texts]


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


@contextmanager
def truncation_aside() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)
        yield


# ── long calls and streams ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TEXTS_PER_WINDOW", 4)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("role", ["documents", "queries"])
def test_windows_give_what_one_call_gives(make: Make, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    given = documents(TEXTS) if role == "documents" else queries(TEXTS)
    embeddings, report = getattr(make(), f"encode_{role}_with_report")(given)
    monkeypatch.setattr(loop, "TEXTS_PER_WINDOW", 1000)
    expected, whole = getattr(make(), f"encode_{role}_with_report")(given)
    assert embeddings.offsets.tolist() == expected.offsets.tolist()
    torch.testing.assert_close(embeddings.tokens, expected.tokens, rtol=0, atol=1e-5)
    assert report.truncated.tolist() == whole.truncated.tolist() != []
    assert report.lost.tolist() == whole.lost.tolist()
    assert (report.texts, report.tokens, report.kept) == (whole.texts, whole.tokens, whole.kept)


@pytest.mark.usefixtures("small_windows")
def test_progress_counts_across_windows(make: Make) -> None:
    told: list[tuple[int, int | None]] = []
    with truncation_aside():
        make(progress=lambda done, total: told.append((done, total))).encode_documents(documents(TEXTS * 2))
    assert told[-1] == (18, 18)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("size", [1, 4, 9, 100])
def test_a_stream_gives_what_one_call_gives_in_order(make: Make, size: int) -> None:
    with truncation_aside():
        expected = make().encode_documents(documents(TEXTS))
        pieces = list(make().stream_documents(iter(documents(TEXTS)), documents_per_piece=size))
    assert [document for piece in pieces for document in piece.documents] == documents(TEXTS)
    assert all(len(piece.documents) == len(piece.embeddings) == piece.report.texts <= size for piece in pieces)
    rows = [row for piece in pieces for row in piece.embeddings]
    for row, item in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, item, rtol=0, atol=1e-5)


def test_a_stream_draws_only_a_piece_ahead_in_the_callers_thread(make: Make) -> None:
    drawn: list[str] = []

    def endless() -> Iterator[Document]:
        for number in count():
            drawn.append(threading.current_thread().name)
            yield Document(DocumentId(str(number)), f"the fox {number}")

    stream = make().stream_documents(endless(), documents_per_piece=3)
    for finished in range(1, 5):
        next(stream)
        assert len(drawn) <= 3 * (finished + 1)
    stream.close()
    assert set(drawn) == {threading.current_thread().name}


def test_a_stream_tells_how_many_are_done_of_nobody_knows_how_many(make: Make) -> None:
    told: list[tuple[int, int | None]] = []
    encoder = make(progress=lambda done, total: told.append((done, total)))
    with truncation_aside():
        list(encoder.stream_documents(documents(TEXTS), documents_per_piece=2))
    assert told[-1] == (len(TEXTS), None)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_empty_stream_gives_nothing(make: Make) -> None:
    assert list(make().stream_documents([])) == []


def test_a_stream_warns_once_of_all_that_was_cut(make: Make) -> None:
    with pytest.warns(TruncatedTextWarning, match="4 of 6 documents") as caught:
        list(make().stream_documents(documents(["a " * 90, "a", "a " * 60] * 2)[:6], documents_per_piece=2))
    assert len(caught) == 1


def test_a_piece_of_nothing_is_refused_at_once(make: Make) -> None:
    for size in (0, -1, "2"):
        with pytest.raises(InvalidOption, match="documents_per_piece"):
            make().stream_documents([], documents_per_piece=size)


def test_an_error_in_the_stream_is_the_callers(make: Make) -> None:
    def broken() -> Iterator[Document]:
        yield from documents(["a", "b", "c"])
        raise OSError("the disk is gone")

    pieces = make().stream_documents(broken(), documents_per_piece=2)
    with pytest.raises(OSError, match="the disk is gone"):
        list(pieces)


# ── texts that are too long ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_split_text_has_the_tokens_of_its_parts(make: Make) -> None:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again"] * 11
    encoder = make(on_too_long="split")
    embeddings, report = encoder.encode_documents_with_report(documents(["a", " ".join(words), "b"]))
    ids = encoder.trace_documents(documents([" ".join(words)])).token_ids
    assert len(embeddings) == 3
    assert len(embeddings[1]) == len(ids) > 2 * 48
    assert (report.split.tolist(), report.truncated.tolist()) == ([1], [])
    alone_again = encoder.encode_documents(documents([" ".join(words)]))
    torch.testing.assert_close(embeddings[1], alone_again[0], rtol=0, atol=1e-5)
    first = make().encode_documents_with_report(documents([" ".join(words)]))[0][0]
    torch.testing.assert_close(embeddings[1][: len(first) - 1], first[:-1], rtol=0, atol=1e-5)


def test_progress_counts_texts_and_not_their_parts(make: Make) -> None:
    told: list[tuple[int, int | None]] = []
    encoder = make(on_too_long="split", progress=lambda done, total: told.append((done, total)))
    encoder.encode_documents(documents(["the fox " * 80, "a", ""]))
    assert told[0][0] >= 1
    assert told[-1] == (3, 3)


def test_an_unknown_way_with_long_texts_is_refused() -> None:
    with pytest.raises(InvalidOption, match="on_too_long = 'drop'"):
        EncodingOptions(on_too_long="drop")  # pyright: ignore[reportArgumentType]


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def narrow(model: PreTrainedModel, tokens: int, error: Exception) -> Iterator[list[int]]:
    """A model that takes no more than so many tokens at once; the sizes of all batches it was asked for."""
    asked: list[int] = []

    def refuse(_: object, __: object, given: Mapping[str, Tensor]) -> None:
        asked.append(given["input_ids"].numel())
        if asked[-1] > tokens:
            raise error

    hook = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield asked
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_batches_are_halved_until_they_fit_and_stay_so(make: Make, transformers: Models, error: Exception) -> None:
    with truncation_aside():
        expected = make().encode_documents(documents(TEXTS * 4))
        encoder = make()
        with narrow(transformers["bert"], 100, error) as asked:
            embeddings = encoder.encode_documents(documents(TEXTS * 4))
            refused = sum(size > 100 for size in asked)
            again = encoder.encode_documents(documents(TEXTS * 4))
    assert 0 < refused < 6
    assert sum(size > 100 for size in asked) == refused
    torch.testing.assert_close(embeddings.tokens, expected.tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.tokens, expected.tokens, rtol=0, atol=1e-5)


def test_one_text_that_does_not_fit_is_an_error_that_says_so(make: Make, transformers: Models) -> None:
    with (
        truncation_aside(),
        narrow(transformers["bert"], 20, torch.OutOfMemoryError("CUDA out of memory")),
        pytest.raises(OutOfMemory, match="a text of 48 tokens"),
    ):
        make().encode_documents(documents(TEXTS))


def test_other_errors_of_the_model_pass_through(make: Make, transformers: Models) -> None:
    for said in ("shapes differ", "the tensor has a non-zero number of elements, but its data is not allocated yet"):
        with narrow(transformers["bert"], 0, RuntimeError(said)), pytest.raises(RuntimeError, match=said[:12]):
            make().encode_documents(documents(["fox"]))


class _Syncs(TorchDispatchMode):
    """Counts operations for whose result the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if any(waits in name for waits in ("_local_scalar_dense", "nonzero", "equal.default", "masked_select")):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "xlm-roberta", "modernbert"])
def test_no_batch_waits_for_the_device(make: Make, family: str) -> None:
    encoder = make(family, tokens_per_batch=100, skiplist=["a"])
    with truncation_aside(), _Syncs() as syncs:
        encoder.encode_documents(documents(TEXTS * 3))
        torch.ones(1).item()
    assert syncs.seen == ["aten._local_scalar_dense.default"]


# ── projection and pooling ──────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_projected_before_they_are_cut_and_normalised(make: Make) -> None:
    weight = torch.linspace(-1, 1, 12 * 32).reshape(12, 32)
    raw = make(normalise=False).encode_documents(documents(TEXTS[:4])).tokens
    projected = make(projection=Projection([DenseLayer(weight)])).encode_documents(documents(TEXTS[:4]))
    torch.testing.assert_close(projected.tokens, unit(raw @ weight.T), rtol=0, atol=1e-5)
    cut = make(projection=Projection([DenseLayer(weight)]), dimension=5).encode_documents(documents(TEXTS[:4]))
    torch.testing.assert_close(cut.tokens, unit((raw @ weight.T)[:, :5]), rtol=0, atol=1e-5)
    with pytest.raises(InvalidRecipe, match="at most 12"):
        make(projection=Projection([DenseLayer(weight)]), dimension=13)


@pytest.mark.parametrize("pooling", [TokenPooling(2), TokenPooling(1.5, 2), TokenPooling(3, 0, "pylate")])
def test_documents_are_pooled_and_queries_are_not(make: Make, pooling: TokenPooling) -> None:
    texts = TEXTS[:4]
    plain = make().encode_documents(documents(texts))
    encoder = make(pooling=pooling)
    expected = pool(to_numpy(plain), pooling.factor, protected=pooling.protected, flavour=pooling.flavour)
    pooled = encoder.encode_documents(documents(texts))
    assert pooled.offsets.tolist() == expected.offsets.tolist()
    np.testing.assert_allclose(pooled.tokens.numpy(), expected.tokens, atol=1e-5)
    asked = queries(["the fox", "a"])
    assert encoder.encode_queries(asked).offsets.tolist() == make().encode_queries(asked).offsets.tolist()
    streamed = next(encoder.stream_documents(documents(texts)))
    assert streamed.embeddings.offsets.tolist() == expected.offsets.tolist()


def test_pooled_documents_have_no_trace(make: Make) -> None:
    with pytest.raises(InvalidRecipe, match="pooled"):
        make(pooling=TokenPooling(2)).trace_documents(documents(["fox"]))
    assert len(make(pooling=TokenPooling(1)).trace_documents(documents(["fox"]))) == 1
