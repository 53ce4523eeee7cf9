"""What a commit costs and leaves: nothing twice, nothing lost, and no more than is worth it rewritten."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lateinteraction.adapters.index import encoding, folding
from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings, Keep
from lateinteraction.adapters.index.storage import FolderStorage, Storage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import IndexLocked, InvalidOption, StorageFailed
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import MemoryStorage

WIDTH = 8


def add(index: StoredIndex, *numbers: int, tokens: int = 2, width: int = WIDTH) -> None:
    generator = torch.Generator().manual_seed(numbers[0])
    values = torch.nn.functional.normalize(torch.randn(tokens * len(numbers), width, generator=generator), dim=1)
    documents = [Document(DocumentId(str(number)), f"text {number}", {"n": number}) for number in numbers]
    index.add(documents, TokenEmbeddings(values, offsets_of([tokens] * len(numbers))), on_duplicate="skip")


def made(storage: Storage | None = None, codec: Codec = "float16", keep: Keep = "nothing") -> StoredIndex:
    return StoredIndex.create(storage or MemoryStorage(), IndexSettings(IndexOptions(codec, "none", keep)))


def ids(*numbers: int) -> list[DocumentId]:
    return [DocumentId(str(number)) for number in numbers]


def test_a_segment_of_which_half_is_gone_is_rewritten_by_the_commit_that_sees_to_it() -> None:
    index = made()
    add(index, *range(100))
    index.remove(ids(*range(50)))
    assert index.snapshot().stats().removed == 50
    index.remove(ids(50))
    stats = index.snapshot().stats()
    assert (stats.removed, stats.documents, stats.tokens) == (0, 49, 98)
    assert index.get(ids(51, 99))[1].metadata == {"n": 99}


def test_one_commit_rewrites_no_more_than_one_folding_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ones see to the others."""
    monkeypatch.setattr(folding, "MOST_TOKENS", 100)
    index = made()
    for first in range(0, 240, 40):
        add(index, *range(first, first + 40))
    assert index.snapshot().stats().segments == {"vectors": 6}
    index.remove(Comparison("n", "in", [number for number in range(240) if number % 40 > 15]))
    left = [index.snapshot().stats().removed]
    while left[-1] and len(left) < 10:
        index.update({DocumentId("0"): {"n": 0}})
        left.append(index.snapshot().stats().removed)
    assert left == [3 * 24, 0]
    assert len(index) == 6 * 16


def test_whoever_watches_a_compaction_is_told_of_every_document_that_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "TOKENS_AT_A_TIME", 20)
    index = made()
    add(index, *range(64))
    for number in range(64, 70):
        add(index, number)
    index.remove(ids(*range(10)))
    told: list[tuple[str, int, int | None]] = []
    index.compact(progress=lambda *state: told.append(state))
    assert told[-1] == ("writing", 60, 60)
    assert len(told) >= 6
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    index.compact(progress=lambda *state: told.append(state))
    assert told[-1] == ("writing", 60, 60), "there was nothing left to do"


def test_a_segment_with_much_metadata_beside_it_is_rewritten_with_that() -> None:
    index = made()
    add(index, *range(80))
    for number in range(10):
        index.update({DocumentId(str(number)): {"n": -number}})
    (segment,) = index.snapshot().segments
    assert segment.updates is not None
    assert len(segment.updates) == 10
    index.update({DocumentId("70"): {"m": 1}})
    (segment,) = index.snapshot().segments
    assert segment.updates is None
    assert [each.metadata for each in index.get(ids(0, 3, 70, 79))] == [{"n": 0}, {"n": -3}, {"m": 1}, {"n": 79}]


def test_an_update_and_a_folding_in_one_commit_are_both_done() -> None:
    index = made()
    for number in range(7):
        add(index, number)
    assert index.snapshot().stats().segments == {"vectors": 7}
    with index._writing() as changes:
        changes.update({place: {"n": 70} for place in changes.snapshot.all_places(["3"])})
        changes.remove(changes.snapshot.all_places(["4"]))
        embeddings = TokenEmbeddings(torch.ones(1, WIDTH), offsets_of([1]))
        changes.add([Document(DocumentId("7"), "")], embeddings, np.array([True]))
        for number in range(8, 10):
            with pytest.raises(AssertionError, match="one addition"):
                changes.add([Document(DocumentId(str(number)), "")], embeddings, np.array([True]))
        changes.commit()
    add(index, 8, 9)
    assert len(index.snapshot().segments) < 4
    assert index.get(ids(3))[0].metadata == {"n": 70}
    assert set(index.ids()) == {str(number) for number in range(10) if number != 4}


def test_what_did_not_change_is_not_opened_or_read_again() -> None:
    index = made()
    add(index, *range(20))
    add(index, *range(20, 24))
    first = index.snapshot()
    large, small = first.segments
    before = large.payload, large.texts, large.postings, large.offsets
    add(index, 30)
    assert index.snapshot().segments[:2] == (large, small)
    index.remove(ids(3))
    index.update({DocumentId("5"): {"n": 50}})
    after = index.snapshot().segments[0]
    again = after.payload, after.texts, after.postings, after.offsets
    assert after is not large
    assert all(one is other for one, other in zip(again, before, strict=True))
    assert (len(after), len(large), after.tokens, large.tokens) == (19, 20, 38, 40)
    assert first.get(ids(3, 5))[1].metadata == {"n": 5}


def test_folding_holds_some_tokens_at_a_time_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 MB of vectors are compacted with little more than two blocks of 1 MB."""
    monkeypatch.setattr(encoding, "TOKENS_AT_A_TIME", 2048)
    index = made(FolderStorage(tmp_path / "index", create=True))
    for first in range(0, 256, 64):
        add(index, *range(first, first + 64), tokens=128, width=256)
    index.remove(ids(*range(0, 256, 5)))
    tracemalloc.start()
    index.compact()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.snapshot().stats().bytes["embeddings"] > 13_000_000
    assert peak < 4_000_000


def error(index: StoredIndex, originals: dict[str, torch.Tensor]) -> float:
    """Mean cosine distance of what is stored as residuals from what came."""
    found: list[torch.Tensor] = []
    for segment in index.snapshot().segments:
        tokens = segment.payload.decode(segment.rows).tokens
        came = torch.cat([originals[identifier] for identifier in segment.ids.at(segment.rows)])
        found.append(1 - torch.nn.functional.cosine_similarity(tokens, came))
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("keep", ["float16", "int8", "nothing"])
def test_a_codebook_that_is_trained_anew_is_that_of_the_documents_there_are(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With vectors that were kept, as one that never knew any others; without them the old error comes on top."""
    monkeypatch.setattr(folding, "COMPRESS_AT", 200)
    monkeypatch.setattr(folding, "ALIKE", 0)  # the segments stay apart

    def cluster(seed: int, count: int) -> tuple[list[Document], TokenEmbeddings[torch.Tensor]]:
        generator = np.random.default_rng(seed)
        tokens = generator.standard_normal((count * 4, 32)) * np.linspace(0.05, 1, 32)[:: 1 if seed else -1]
        values = torch.nn.functional.normalize(torch.from_numpy(tokens.astype(np.float32)), dim=1)
        documents = [Document(DocumentId(f"{seed}-{number}"), "", {"seed": seed}) for number in range(count)]
        return documents, TokenEmbeddings(values, offsets_of([4] * count))

    index, fresh = made(codec="residual2", keep=keep), made(codec="residual2", keep=keep)
    documents, embeddings = cluster(1, 400)
    index.add(*cluster(0, 400))
    index.add(documents, embeddings)
    fresh.add(documents, embeddings)
    index.remove(Comparison("seed", "==", 0))
    originals = {document.id: tokens for document, tokens in zip(documents, embeddings, strict=True)}
    kept = [None if each.kept is None else each.kept.decode().tokens for each in index.snapshot().segments]
    centroids, before = index.snapshot().stats().centroids, index.snapshot()
    old = error(index, originals)
    index.compact(retrain=True)
    after = index.snapshot()
    assert after.stats().centroids == fresh.snapshot().stats().centroids < centroids
    allowed = error(fresh, originals) * 1.05 + (old if keep == "nothing" else 0.0)
    assert error(index, originals) < allowed
    for segment, vectors in zip(after.segments, kept, strict=True):
        assert (segment.kept is None) == (keep == "nothing")
        assert vectors is None or (segment.kept is not None and torch.equal(segment.kept.decode().tokens, vectors))
    assert before.search(TokenEmbeddings(embeddings.tokens[:3], offsets_of([3])), 3)[0].documents[0] == "1-0"
    assert after.search(TokenEmbeddings(embeddings.tokens[:3], offsets_of([3])), 3)[0].documents[0] == "1-0"


def test_only_a_codec_with_a_codebook_can_train_one_anew() -> None:
    index = made()
    add(index, 1, 2)
    with pytest.raises(InvalidOption, match="retrain"):
        index.compact(retrain=True)
    small = made(codec="residual4")
    add(small, 1, 2)
    small.compact(retrain=True)
    assert small.snapshot().stats().centroids == 0


# Threads, refusals, and the end.


class Held:
    """A storage whose new files wait until they are let go."""

    def __init__(self, inner: MemoryStorage) -> None:
        self._inner = inner
        self.waiting, self.let_go = threading.Event(), threading.Event()
        self.let_go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, name: str) -> Any:
        self.waiting.set()
        assert self.let_go.wait(20)
        return self._inner.create(name)


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


@pytest.fixture
def writing() -> Any:
    """An index, and a thread that is writing to it and waits."""
    storage = Held(MemoryStorage())
    index = made(storage)
    add(index, 1, 2)
    storage.waiting.clear()
    storage.let_go.clear()
    thread, raised = in_thread(lambda: add(index, 3, 4))
    assert storage.waiting.wait(20)
    yield storage, index, thread, raised
    storage.let_go.set()
    thread.join()


def test_nobody_who_reads_waits_for_who_writes(writing: Any) -> None:
    storage, index, thread, raised = writing
    for call in (index.refresh, index.snapshot, index.ids, index.verify, lambda: index.get(ids(1))):
        reader, wrong = in_thread(call)
        reader.join(10)
        assert not reader.is_alive()
        assert not wrong
    assert set(index.refresh().ids()) == {"1", "2"}
    storage.let_go.set()
    thread.join()
    assert not raised
    assert set(index.ids()) == {"1", "2", "3", "4"}


def test_closing_ends_what_is_being_written_which_changes_nothing(writing: Any) -> None:
    storage, index, thread, raised = writing
    closing, wrong = in_thread(index.close)
    while not index._closed:
        pass
    storage.let_go.set()
    thread.join()
    closing.join()
    assert not wrong
    assert [type(each) for each in raised] == [InvalidOption]
    with StoredIndex(storage) as again:
        assert set(again.ids()) == {"1", "2"}
        add(again, 5)
        assert again.verify().sound


def test_a_closed_index_is_read_and_not_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index = made(FolderStorage(folder, create=True))
    add(index, 1, 2)
    snapshot = index.snapshot()
    for _ in range(2):
        index.close()
    assert not [path for path in folder.iterdir() if path.name.startswith("lease-")]
    assert [each.text for each in index.get(ids(2, 1))] == ["text 2", "text 1"]
    assert len(snapshot.search(TokenEmbeddings(torch.ones(1, WIDTH), offsets_of([1])), 5)[0].documents) == 2
    calls: list[Callable[[], object]] = [
        lambda: add(index, 3),
        lambda: index.remove(ids(1)),
        lambda: index.update({}),
        lambda: index.compact(),
        lambda: index.copy_to(tmp_path / "copy"),
        index.refresh,
    ]
    for call in calls:
        with pytest.raises(InvalidOption, match="closed"):
            call()
    with StoredIndex(FolderStorage(folder)) as other:
        add(other, 3)


class Outage:
    """A storage of which some operations in a row fail, and none before or after."""

    def __init__(self, inner: MemoryStorage, first: int, count: int) -> None:
        self._inner, self._due, self.done = inner, range(first, first + count), 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            self.done += 1
            if self.done in self._due:
                raise StorageFailed(name, "a disk that works", "Wait.")
            return found(*arguments)

        return call


def test_whatever_was_refused_the_same_object_goes_on_when_the_storage_does() -> None:
    """Also where a commit may or may not have taken place."""
    unknown = 0
    inner = MemoryStorage()
    with made(inner) as index:
        add(index, 1, 2)
    for first in range(1, 60):
        storage = Outage(MemoryStorage(inner.contents()), 10**9, 0)
        index = StoredIndex(storage)
        add(index, 3)
        storage._due = range(storage.done + first, storage.done + first + 6)
        for attempt in range(8):
            try:
                add(index, 4, 5)
                break
            except StorageFailed as error:
                unknown += "may or may not" in str(error)
                assert attempt < 7
        reached, storage._due = storage.done >= storage._due.start, range(0)
        assert set(index.ids()) == {"1", "2", "3", "4", "5"}
        index.close()
        assert StoredIndex(storage).verify().sound
        if not reached:
            break
    assert unknown
    assert first < 59


class Unlocked:
    """A storage whose locks keep nobody out."""

    def __init__(self, inner: MemoryStorage) -> None:
        self._inner, self._count = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def lock(self, name: str, note: bytes) -> Any:
        self._count += 1
        return self._inner.lock(f"{name}-{self._count}" if name == "lock" else name, note)


def test_a_writer_beside_whom_somebody_wrote_says_so_and_loses_nothing() -> None:
    inner = MemoryStorage()
    first = made(Unlocked(inner))
    add(first, 1)
    second = StoredIndex(Unlocked(inner))
    add(second, 2)
    with pytest.raises(IndexLocked, match="in spite of the lock"):
        add(first, 3)
    add(first, 3)
    assert set(first.ids()) == {"1", "2", "3"}
    assert first.verify().sound


def test_a_writer_goes_on_from_no_other_state_than_the_one_that_is_read() -> None:
    storage = MemoryStorage()
    with made(storage) as index:
        add(index, 1)
        generation = index.snapshot().generation
    with Generations(storage).writer() as writer:
        writer.check_base(generation)
        assert not writer.refuses
        with pytest.raises(IndexLocked, match="in spite of the lock"):
            writer.check_base(generation - 1)
        assert writer.refuses
