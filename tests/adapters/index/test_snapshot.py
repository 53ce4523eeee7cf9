"""A snapshot: small segments searched as one, ties, kept vectors, a codebook that has grown."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lateinteraction.adapters.index import codebook as codebooks
from lateinteraction.adapters.index import folding, joining, payloads
from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.payloads import Vectors
from lateinteraction.adapters.index.reading import OpenGeneration
from lateinteraction.adapters.index.search import SearchOptions
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings, Keep
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.adapters.index.writing import Writer
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import CorruptIndex
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import MemoryStorage

WIDTH = 8
seeds = st.integers(0, 2**32 - 1)


def unit(generator: np.random.Generator, rows: int) -> Tensor:
    drawn = generator.standard_normal((rows, WIDTH)).astype(np.float32)
    return torch.nn.functional.normalize(torch.from_numpy(drawn), dim=1)


def packed(generator: np.random.Generator, lengths: Any) -> TokenEmbeddings[Tensor]:
    return TokenEmbeddings(unit(generator, int(np.sum(lengths))), offsets_of(lengths))


def made(codec: Codec = "float16", keep: Keep = "nothing") -> StoredIndex:
    return StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions(codec, keep=keep)))


def documents(first: int, count: int) -> list[Document]:
    return [Document(DocumentId(f"{n:04}"), f"text {n}", {"third": n % 3}) for n in range(first, first + count)]


def fragmented(generator: np.random.Generator, sizes: list[int], codec: Codec = "float16") -> StoredIndex:
    """An index that has grown by additions of these sizes."""
    index, first = made(codec), 0
    for size in sizes:
        index.add(documents(first, size), packed(generator, generator.integers(0, 4, size)))
        first += size
    return index


def scores(ranking: Ranking) -> list[tuple[str, float]]:
    return [(hit.document, round(hit.score, 5)) for hit in ranking]


# ── Small segments ──────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=15)
@given(
    seed=seeds,
    sizes=st.lists(st.sampled_from([1, 1, 1, 2, 9, 70]), min_size=1, max_size=7),
    codec=st.sampled_from(["float16", "int8"]),
    k=st.integers(1, 30),
)
def test_many_small_segments_answer_as_one(seed: int, sizes: list[int], codec: Codec, k: int) -> None:
    generator = np.random.default_rng(seed)
    index = fragmented(generator, sizes, codec)
    gone = [f"{n:04}" for n in range(sum(sizes)) if generator.random() < 0.3]
    if gone:
        index.remove([DocumentId(each) for each in gone])
    queries = packed(generator, [2, 0, 3])
    where = Comparison("third", "==", 1)
    candidates = [DocumentId(f"{n:04}") for n in generator.integers(0, sum(sizes), 5)]
    asked: list[dict[str, Any]] = [{}, {"where": where}, {"candidates": candidates}, {"candidates": []}]
    many = [index.snapshot().search(queries, k, **each) for each in asked]
    index.compact()
    assert len(index.snapshot().segments) <= 1
    for before, each in zip(many, asked, strict=True):
        assert list(map(scores, before)) == list(map(scores, index.snapshot().search(queries, k, **each)))


def test_small_segments_are_scored_together_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MOST_DOCUMENTS", 20)
    monkeypatch.setattr(joining, "JOINED_APART", 8)
    index = fragmented(np.random.default_rng(0), [40, 30, 9, 8, 1, 1, 1])
    calls: list[int] = []
    inner = Vectors.score

    def counted(self: Vectors, query: Any, rows: Any = None) -> Any:
        calls.append(len(self))
        return inner(self, query, rows)

    monkeypatch.setattr(Vectors, "score", counted)
    index.snapshot().search(packed(np.random.default_rng(1), [2]), 3)
    assert sorted(calls) == [3, 17, 30, 40]


def test_what_was_joined_is_joined_no_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    joinings: list[int] = []
    inner = payloads.joined

    def counted(parts: Any) -> Any:
        joinings.append(sum(map(len, parts)))
        return inner(parts)

    monkeypatch.setattr(payloads, "joined", counted)
    monkeypatch.setattr(joining, "JOINED_APART", 8)
    generator = np.random.default_rng(0)
    index, query = fragmented(generator, [9, 9, 1, 1]), packed(np.random.default_rng(1), [2])
    for _ in range(3):
        index.snapshot().search(query, 3)
    assert sorted(joinings) == [2, 18]
    index.add(documents(50, 1), packed(generator, [2]))
    index.remove([DocumentId("0000")])
    index.update({DocumentId("0001"): {"third": 7}})
    assert "0000" not in index.snapshot().search(query, 30)[0].documents
    assert sorted(joinings) == [2, 3, 18]


def test_no_more_is_joined_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    index = made()
    generator = np.random.default_rng(0)
    for number in range(6):
        index.add(documents(number, 1), packed(generator, [10]))
    before = index.snapshot().search(packed(np.random.default_rng(1), [2]), 6)
    monkeypatch.setattr(joining, "JOINED_TOKENS", 30)
    groups = joining.Joined(index.snapshot().segments).groups
    assert [list(map(int, group.places)) for group in groups] == [[0], [1], [2], [3, 4, 5]]
    monkeypatch.setattr(joining, "MOST_TOKENS", 9)
    assert all(len(group.places) == 1 for group in joining.Joined(index.snapshot().segments).groups)
    reopened = index.snapshot().search(packed(np.random.default_rng(1), [2]), 6)
    assert list(map(scores, before)) == list(map(scores, reopened))


# ── Ties ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("k", [1, 7, 64, 150])
def test_of_documents_that_tie_those_with_the_lowest_ids_are_found(k: int) -> None:
    generator = np.random.default_rng(0)
    names = [f"{n}" for n in generator.permutation(600)]
    index = made()
    for first, last in ((0, 500), (500, 590), (590, 600)):
        own = [Document(DocumentId(name), "word" if int(name) % 2 else "other") for name in names[first:last]]
        index.add(own, TokenEmbeddings(torch.ones(last - first, 2) / 2**0.5, offsets_of([1] * (last - first))))
    (hits,) = index.search(TokenEmbeddings(torch.ones(1, 2), offsets_of([1])), k)
    assert list(hits.documents) == sorted(names)[:k]
    (hits,) = index.search(TokenEmbeddings(torch.ones(0, 2), offsets_of([0])), k)
    assert list(hits.documents) == sorted(names)[:k]
    (hits,) = index.snapshot().search_text(["word"], k)
    assert list(hits.documents) == sorted(name for name in names if int(name) % 2)[:k]


# ── Kept vectors ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def compressing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few tokens are compressed, and have lists."""
    monkeypatch.setattr(folding, "COMPRESS_AT", 200)
    monkeypatch.setattr(folding, "SCANNED_TOKENS", 200)


@pytest.mark.usefixtures("compressing")
@pytest.mark.parametrize(("keep", "tolerance"), [("float16", 1e-3), ("int8", 2e-2)])
def test_kept_vectors_are_fetched_and_have_the_last_word(keep: Keep, tolerance: float) -> None:
    generator = np.random.default_rng(0)
    tokens, queries = packed(generator, [5] * 300), packed(generator, [4] * 5)
    index = made("residual4", keep)
    index.add(documents(0, 300), tokens)
    snapshot = index.snapshot()
    assert [segment.kind for segment in snapshot.segments] == ["residual"]
    fetched = snapshot.fetch([DocumentId("0007"), DocumentId("0003")])
    assert float((fetched.tokens - torch.cat([tokens[7], tokens[3]])).abs().max()) < tolerance
    truth = _exact(queries, tokens, 5)
    found = snapshot.search(queries, 5, options=SearchOptions(candidates=300))
    stored = snapshot.search(queries, 5, options=SearchOptions(candidates=300, rescore=False))
    assert _error(found, truth) < 2 * tolerance
    assert _error(found, truth) < 0.5 * _error(stored, truth)
    assert _shared(found, truth) > (0.99 if keep == "float16" else 0.9)


def _error(found: list[Ranking], truth: list[Ranking]) -> float:
    return max(float(np.abs(one.scores - other.scores).max()) for one, other in zip(found, truth, strict=True))


def _exact(queries: TokenEmbeddings[Tensor], tokens: TokenEmbeddings[Tensor], k: int, first: int = 0) -> list[Ranking]:
    own = [TokenEmbeddings(each.tokens.numpy(), each.offsets) for each in (queries, tokens)]
    names = [DocumentId(f"{n:04}") for n in range(first, first + len(tokens))]
    return [Ranking.from_scores(names, row, k) for row in reference.maxsim_all_pairs(*own)]


def _shared(found: list[Ranking], truth: list[Ranking]) -> float:
    shared = [len({*one.documents} & {*other.documents}) for one, other in zip(found, truth, strict=True)]
    return sum(shared) / sum(map(len, truth))


# ── A codebook that has grown ───────────────────────────────────────────────────────────────────────────────────────


def _topical(generator: np.random.Generator, topics: Any, length: int) -> TokenEmbeddings[Tensor]:
    """For each topic, so many of its words with noise."""
    words = unit(np.random.default_rng(9), 40 * 6).view(40, 6, WIDTH)
    chosen = words[topics][torch.arange(len(topics))[:, None], generator.integers(0, 6, (len(topics), length))]
    tokens = chosen.flatten(0, 1) + 0.15 * unit(generator, len(topics) * length)
    return TokenEmbeddings(torch.nn.functional.normalize(tokens, dim=1), offsets_of([length] * len(topics)))


@pytest.mark.usefixtures("compressing")
def test_what_was_encoded_before_the_codebook_grew_is_found_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebooks, "TOKENS_PER_CENTROID", 10)
    monkeypatch.setattr(folding, "MOST_TOKENS", 1_500)
    generator = np.random.default_rng(0)
    index, parts = made("residual4"), []
    for first in range(0, 1_200, 240):
        parts.append(_topical(generator, generator.integers(0, 40, 240), 5))
        index.add(documents(first, 240), parts[-1])
    snapshot = index.snapshot()
    assert snapshot.codebook is not None
    listed = [segment.lists_for(snapshot.codebook) for segment in snapshot.segments]
    known = [0 if lists is None else lists.centroids for lists in listed]
    assert len(known) == 5
    assert 0 < known[0] < 0.5 * known[-1]
    assert known[-1] == len(snapshot.codebook)
    tokens = TokenEmbeddings(torch.cat([part.tokens for part in parts]), offsets_of([5] * 1_200))
    queries = _topical(generator, np.arange(40), 5)
    truth = _exact(queries, tokens, 5)
    options = SearchOptions(candidates=150, probe=16)
    assert _shared(snapshot.search(queries, 5, options=options), truth) > 0.9
    for first in range(0, 1_200, 240):  # and none of the segments is worse off than the others
        own = [DocumentId(f"{n:04}") for n in range(first, first + 240)]
        expected = _exact(queries, tokens.span(first, first + 240), 3, first)
        found = snapshot.search(queries, 3, candidates=own, options=SearchOptions(candidates=40, probe=16))
        assert _shared(found, expected) > 0.85


def test_a_reader_notices_that_its_folder_was_restored_and_written_again(tmp_path: Path) -> None:
    def some(first: int, seed: int) -> tuple[list[Document], TokenEmbeddings[Tensor]]:
        return documents(first, 20), packed(np.random.default_rng(seed), [5] * 20)

    for updated in (False, True):  # a log of the same length, and a longer one with segments of the same numbers
        live, aside, copy = (tmp_path / f"{name}-{updated}" for name in ("live", "aside", "copy"))
        with StoredIndex.create(FolderStorage(live, create=True)) as index:
            index.add(*some(0, 1))
            if not updated:
                index.copy_to(copy)
            index.add(*some(20, 2))
            if updated:
                index.copy_to(copy)
            index.add(*some(100, 3))
        query = some(100, 3)[1].span(0, 1)
        reader = StoredIndex(FolderStorage(live))
        assert reader.search(query, 1)[0].documents == ("0100",)
        live.rename(aside)
        copy.rename(live)
        with StoredIndex(FolderStorage(live)) as index:
            index.add(*some(100, 4))
            while (live / "commits").stat().st_size < (aside / "commits").stat().st_size:
                index.update({DocumentId("0100"): {"a": 1}})
            if updated:
                index.update({DocumentId("0100"): {"a": 2}})
        reader.refresh()
        with StoredIndex(FolderStorage(live)) as fresh:
            assert reader.snapshot().generation == fresh.snapshot().generation
            (found,), (expected,) = reader.search(query, 60), fresh.search(query, 60)
            assert found.documents == expected.documents
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        reader.close()


@pytest.mark.parametrize("error", [MemoryError("x"), OSError("x"), RuntimeError("x"), ValueError("x")])
def test_what_is_committed_is_acknowledged_also_where_it_cannot_be_opened(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, calls = made(), list[int]()
    inner = Generations.refresh

    def failing(self: Generations, opened: OpenGeneration) -> OpenGeneration:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return inner(self, opened)

    monkeypatch.setattr(Generations, "refresh", failing)
    assert index.add(documents(0, 2), packed(np.random.default_rng(0), [3, 3])).added == ("0000", "0001")
    assert len(calls) == 2
    assert len(index.snapshot()) == 2


def test_a_log_that_was_cut_short_fails_no_call_that_was_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: Writer, keep: int) -> None:
        raise CorruptIndex("a log", "a longer one", "Verify the index.")

    monkeypatch.setattr(Writer, "collect", cut)
    assert made().add(documents(0, 1), packed(np.random.default_rng(0), [3])).added == ("0000",)


# ── Many threads, many segments ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("compressing")
def test_threads_that_ask_first_get_one_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    index = made("residual4")
    index.add(documents(0, 300), packed(np.random.default_rng(0), [5] * 300))
    snapshot = index.snapshot()
    read, both = codebooks.Codebook.read, threading.Barrier(2, timeout=5)

    def together(arrays: Any) -> codebooks.Codebook:
        both.wait()
        return read(arrays)

    monkeypatch.setattr(codebooks.Codebook, "read", together)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: snapshot.codebook, range(2))
    assert first is not None
    assert first is second is snapshot.codebook


def test_what_is_fetched_of_many_segments_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each segment."""
    monkeypatch.setattr(folding, "FANOUT", 1000)
    index = fragmented(np.random.default_rng(0), [2] * 50)
    snapshot = index.snapshot()
    assert len(snapshot.segments) == 50
    asked = list(reversed(snapshot.ids()))
    looked_at = 0

    class Counted(tuple[int, int]):
        row = property(lambda self: self[1])

        @property
        def segment(self) -> int:
            nonlocal looked_at
            looked_at += 1
            return self[0]

    places = [Counted(place) for place in snapshot.all_places(asked)]
    monkeypatch.setattr(snapshot, "all_places", lambda _: places)
    assert [document.id for document in snapshot.get(asked)] == asked
    assert looked_at <= 2 * len(asked)
