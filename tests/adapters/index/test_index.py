"""The index in a folder as a whole: what stays, who sees what, what a call that fails leaves behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lateinteraction.adapters.index import codebook, encoding, folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage, Storage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import (
    DuplicateDocument,
    IndexLocked,
    InvalidEmbeddings,
    InvalidOption,
    InvalidText,
    StorageFailed,
    UnknownDocument,
    UnreadableFile,
)
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import FaultyStorage, Killed, MemoryStorage

WIDTH = 8
TOPICS = ("apples", "boats", "clouds", "drums", "engines")


def document(number: int) -> Document:
    return Document(DocumentId(str(number)), f"text {number} about {TOPICS[number % 5]}", {"number": number})


def embeddings(*numbers: int, width: int = WIDTH) -> TokenEmbeddings[Tensor]:
    """Document n has n % 4 tokens, drawn from its number."""
    lengths = [number % 4 for number in numbers]
    items = [
        np.random.default_rng(number).standard_normal((length, width))
        for number, length in zip(numbers, lengths, strict=True)
    ]
    tokens = torch.from_numpy(np.concatenate([np.empty((0, width)), *items]).astype(np.float32))
    return TokenEmbeddings(torch.nn.functional.normalize(tokens, dim=1), offsets_of(lengths))


def add(index: StoredIndex, *numbers: int) -> None:
    index.add([document(number) for number in numbers], embeddings(*numbers))


def made(storage: Storage | None = None, codec: Codec = "auto") -> StoredIndex:
    return StoredIndex.create(storage or MemoryStorage(), IndexSettings(IndexOptions(codec)))


def content(index: StoredIndex) -> str | None:
    return index.verify().content


QUERY = embeddings(3)


def test_what_was_added_is_there_for_whoever_opens_the_folder(tmp_path: Path) -> None:
    with made(FolderStorage(tmp_path / "index", create=True)) as index:
        add(index, *range(20))
        before = index.search(QUERY, 5)
        index.update({DocumentId("7"): {"colour": "red"}})
        index.remove([DocumentId("0")])
    opened = StoredIndex(FolderStorage(tmp_path / "index"))
    assert len(opened) == 19
    assert opened.search(QUERY, 5) == before
    assert opened.get([DocumentId("7")])[0] == Document(DocumentId("7"), document(7).text, {"colour": "red"})
    assert torch.allclose(opened.fetch([DocumentId("3")]).tokens, QUERY.tokens, atol=1e-3)
    assert opened.snapshot().search_text(["cloud"], 3)[0].documents == ("12", "17", "2")
    assert opened.settings.dimension == WIDTH


def test_an_empty_folder_holds_no_index(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="holds no index"):
        StoredIndex(FolderStorage(tmp_path))


def test_a_folder_holds_one_index() -> None:
    storage = MemoryStorage()
    made(storage)
    with pytest.raises(InvalidOption, match="without an index"):
        made(storage)


def test_a_snapshot_stays_as_it_was_whatever_is_written() -> None:
    index = made()
    add(index, *range(1, 30))
    before = index.snapshot()
    where = Comparison("number", ">", 10)

    def seen() -> object:
        return (
            before.search(QUERY, 7),
            before.search(QUERY, 7, where=where),
            before.search_text(["boat text"], 7),
            before.get([DocumentId("11")]),
            len(before),
        )

    first = seen()
    index.remove(Comparison("number", "<", 15))
    index.update({DocumentId("20"): {}})
    add(index, *range(30, 60))
    index.compact()
    assert seen() == first
    assert len(index) == 45


def test_many_small_additions_leave_few_files_and_the_same_answers(tmp_path: Path) -> None:
    index = made(FolderStorage(tmp_path / "index", create=True))
    for number in range(150):
        add(index, number)
    assert len(os.listdir(tmp_path / "index")) <= 30
    whole = made()
    add(whole, *range(150))
    assert index.search(QUERY, 20) == whole.search(QUERY, 20)
    assert index.snapshot().search_text(["text drum"], 20) == whole.snapshot().search_text(["text drum"], 20)
    assert content(index) == content(whole)


def test_compaction_changes_no_answer_and_frees_what_was_removed() -> None:
    index = made()
    for first in range(0, 60, 3):
        add(index, first, first + 1, first + 2)
    index.remove(Comparison("number", "<", 30))
    index.update({DocumentId("31"): {"number": -1}})
    before = index.search(QUERY, 9), index.snapshot().search_text(["engine"], 9), content(index)
    index.compact()
    assert (index.search(QUERY, 9), index.snapshot().search_text(["engine"], 9), content(index)) == before
    stats = index.snapshot().stats()
    assert (stats.removed, stats.documents, sum(stats.segments.values())) == (0, 30, 1)
    generation = stats.generation
    index.compact()
    assert index.snapshot().generation == generation, "there was nothing left to do"


def test_replacing_takes_the_place_of_text_metadata_and_embeddings() -> None:
    index = made()
    add(index, 1, 2, 3)
    new = Document(DocumentId("2"), "another text", {"new": True})
    report = index.add([new, document(5)], embeddings(3, 5), on_duplicate="replace")
    assert (report.added, report.replaced) == (("5",), ("2",))
    assert index.get([DocumentId("2")]) == [new]
    assert len(index) == 4
    ranking = index.search(QUERY, 2)[0]
    assert set(ranking.documents) == {"2", "3"}
    assert index.snapshot().search_text(["another"], 3)[0].documents == ("2",)
    assert not index.snapshot().search_text(["cloud"], 3)[0].documents


def test_skipping_leaves_what_is_there() -> None:
    index = made()
    add(index, 1, 2)
    report = index.add([document(2), document(3)], embeddings(1, 3), on_duplicate="skip")
    assert (report.added, report.skipped) == (("3",), ("2",))
    generation = index.snapshot().generation
    assert index.add([document(2)], embeddings(1), on_duplicate="skip").skipped == ("2",)
    assert index.snapshot().generation == generation, "nothing changed, so nothing was committed"
    assert torch.allclose(index.fetch([DocumentId("2")]).tokens, embeddings(2).tokens, atol=1e-3)


FAULTS = {
    "an id that is there": (lambda index: add(index, 9, 1), DuplicateDocument),
    "an id twice": (lambda index: add(index, 9, 9), DuplicateDocument),
    "another width": (lambda index: index.add([document(9)], embeddings(9, width=4)), InvalidEmbeddings),
    "another count": (lambda index: index.add([document(9)], embeddings(9, 10)), InvalidEmbeddings),
    "an id that is not there": (lambda index: index.remove([DocumentId("1"), DocumentId("77")]), UnknownDocument),
    "a lone id": (lambda index: index.remove("1"), InvalidOption),
    "an update of nothing": (lambda index: index.update({DocumentId("77"): {}}), UnknownDocument),
    "no metadata": (lambda index: index.update({DocumentId("1"): {"list": [1]}}), InvalidText),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_is_refused_changes_nothing(fault: str) -> None:
    call, error = FAULTS[fault]
    index = made()
    add(index, 1, 2, 3)
    before = content(index), index.snapshot().generation
    with pytest.raises(error):
        call(index)
    assert (content(index), index.snapshot().generation) == before
    add(index, 50)
    assert len(index) == 4


def test_a_refused_write_changes_nothing_and_can_be_tried_again() -> None:
    """At whatever operation of the storage it is refused."""
    at = done = 0
    while not done:
        at += 1
        inner = MemoryStorage()
        with made(inner) as index:
            add(index, 1, 2, 3)
            before = content(index)
        faulty = StoredIndex(FaultyStorage(inner, at=10**9))
        storage = FaultyStorage(inner, at=at, fault="enospc")
        try:
            with StoredIndex(storage) as index:
                add(index, 4, 5)
                done = 1
            unknown = False
        except StorageFailed as error:
            unknown = "may or may not" in str(error)
        faulty.close()
        with StoredIndex(inner) as again:
            assert len(again) in ((3, 5) if unknown or done else (3,))
            if len(again) == 3:
                assert content(again) == before
            again.add([document(4), document(5)], embeddings(4, 5), on_duplicate="skip")
            assert len(again) == 5
    assert at > 10


def test_a_second_writer_is_refused_and_reads_on(tmp_path: Path) -> None:
    first = made(FolderStorage(tmp_path / "index", create=True))
    add(first, 1)
    second = StoredIndex(FolderStorage(tmp_path / "index"))
    with pytest.raises(IndexLocked, match=str(os.getpid())):
        add(second, 2)
    add(first, 3)
    assert (len(second), len(second.refresh())) == (1, 2)
    first.close()
    add(second, 2)
    assert set(second.ids()) == {"1", "2", "3"}


def test_readers_in_threads_see_whole_commits() -> None:
    """Every commit adds two documents that are found together or not at all."""
    index, stop = made(), threading.Event()
    add(index, 1, 2)
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            snapshot = index.snapshot()
            if len(snapshot) % 2 or len(snapshot.search(QUERY, 100)[0].documents) != len(snapshot):
                wrong.append(len(snapshot))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(3, 43, 2):
        add(index, number, number + 1)
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(index) == 42


def test_large_segments_are_compressed_and_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 500)
    monkeypatch.setattr(encoding, "TOKENS_AT_A_TIME", 200)
    index, exact = made(codec="residual4"), made(codec="float16")
    numbers = [4 * number + 3 for number in range(400)]
    for target in (index, exact):
        for first in range(0, 400, 50):
            add(target, *numbers[first : first + 50])
    stats = index.snapshot().stats()
    assert stats.segments["residual"] >= 1
    assert stats.centroids > 0
    same = 0
    for number in numbers[::20]:
        query = embeddings(number)
        best, expected = index.search(query, 1)[0], exact.search(query, 1)[0]
        same += best.documents == expected.documents == (str(number),)
        assert abs(best.scores[0] - expected.scores[0]) < 0.1
    assert same >= 19
    assert content(index) == content(exact)
    index.remove(Comparison("number", "<", 1000))
    index.compact()
    assert len(index) == len(index.search(QUERY, 1000)[0].documents)


def test_opening_and_looking_after_an_index_loads_no_torch(tmp_path: Path) -> None:
    with made(FolderStorage(tmp_path / "index", create=True)) as index:
        add(index, *range(10))
    script = (
        "import sys; from lateinteraction.wiring import indexes\n"
        "from lateinteraction.domain.filters import Comparison\n"
        "index = indexes.stored_index(sys.argv[1])\n"
        "assert len(index) == 10 and index.get(['3'])[0].text.startswith('text 3')\n"
        "assert index.snapshot().search_text(['drum'], 1)[0].documents == ('3',)\n"
        "assert index.verify().sound\n"
        "index.update({'4': {'new': 1}})\n"
        "assert index.remove(Comparison('number', '<', 3)) == 3\n"
        "print([name for name in ('torch', 'numba', 'pyarrow') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path / "index")], capture_output=True, text=True)
    assert (found.stdout.strip(), found.stderr) == ("[]", "")
    assert len(StoredIndex(FolderStorage(tmp_path / "index"))) == 7


def test_compaction_gives_room_back_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with made(FolderStorage(folder, create=True)) as index:
        add(index, *range(200))
        before = sum(each.stat().st_size for each in folder.iterdir())
        index.remove(Comparison("number", ">=", 10))
        index.compact()
        assert sum(each.stat().st_size for each in folder.iterdir()) < before / 4


def test_files_of_other_people_stay(tmp_path: Path) -> None:
    """Even where they are called as ours are."""
    folder = tmp_path / "index"
    index = made(FolderStorage(folder, create=True))
    for name in ("tmp-notes", "tmp-7-abc", "notes", "s-1"):
        (folder / name).write_text("mine")
    for number in range(20):
        add(index, number)
    assert all((folder / name).read_text() == "mine" for name in ("tmp-notes", "tmp-7-abc", "notes", "s-1"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_during_a_write_reads_on_and_leaves_its_parent_alone(tmp_path: Path) -> None:
    script = (
        "import os, sys, threading\n"
        "from lateinteraction.wiring import indexes\n"
        "index = indexes.stored_index(sys.argv[1])\n"
        "stop = threading.Event()\n"
        "def write():\n"
        "    number = 0\n"
        "    while not stop.is_set():\n"
        "        index.update({'3': {'n': number}})\n"
        "        number += 1\n"
        "writer = threading.Thread(target=write)\n"
        "writer.start()\n"
        "codes = []\n"
        "for _ in range(20):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if len(index.refresh()) == 10 and index.get(['5'])[0].id == '5' else 1)\n"
        "    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "stop.set(); writer.join()\n"
        "index.update({'4': {'n': 0}})\n"
        "print(codes == [0] * 20, index.verify().sound)\n"
    )
    with made(FolderStorage(tmp_path / "index", create=True)) as index:
        add(index, *range(10))
    own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    command = [sys.executable, "-c", script, str(tmp_path / "index")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=own)
    assert (found.stdout.strip(), found.stderr) == ("True True", "")


def test_a_codebook_grows_with_documents_unlike_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it has encoded keeps its meaning, without being encoded again."""
    monkeypatch.setattr(folding, "COMPRESS_AT", 200)
    index = made(codec="residual4")

    def cluster(name: str, centre: int, count: int) -> None:
        generator = np.random.default_rng(centre)
        tokens = np.zeros((count * 4, 32), np.float32)
        tokens[:, 8 * centre : 8 * centre + 8] = generator.standard_normal((count * 4, 8))
        items = TokenEmbeddings(torch.nn.functional.normalize(torch.from_numpy(tokens), dim=1), offsets_of([4] * count))
        index.add([Document(DocumentId(f"{name}{number}"), "") for number in range(count)], items)
        known[name] = items

    known: dict[str, TokenEmbeddings[Tensor]] = {}
    cluster("a", 0, 500)
    before = index.snapshot().stats().centroids
    first = index.fetch([DocumentId("a7")]).tokens
    cluster("b", 3, 500)
    assert index.snapshot().stats().centroids > before
    assert torch.equal(index.fetch([DocumentId("a7")]).tokens, first)
    for name, items in known.items():
        stored = index.fetch([DocumentId(f"{name}{number}") for number in range(500)]).tokens
        assert float((stored * items.tokens).sum(dim=1).mean()) > 0.97


def test_one_long_document_can_begin_a_compressed_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 50)
    monkeypatch.setattr(codebook, "DRIFT_SAMPLE", 10)
    index = made()
    tokens = torch.nn.functional.normalize(torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    for name in ("one", "two"):
        index.add([Document(DocumentId(name), "")], TokenEmbeddings(tokens, offsets_of([300])))
    assert index.snapshot().stats().segments == {"residual": 1}
    assert set(index.search(QUERY, 2)[0].documents) == {"one", "two"}


def test_a_lone_id_is_no_list_of_candidates() -> None:
    index = made()
    add(index, 1, 2, 3)
    with pytest.raises(InvalidOption, match="a sequence of ids"):
        index.search(QUERY, 2, candidates="12")
    with pytest.raises(InvalidOption, match="a sequence of ids"):
        index.snapshot().search_text(["boats"], 2, candidates="12")
    with pytest.raises(InvalidOption, match="a sequence of ids"):
        index.get("12")


def test_what_an_index_is_made_of_is_told_without_reading_its_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 50)
    storage = MemoryStorage()
    with made(storage) as index:
        add(index, *range(100))
        known = len(index.snapshot().codebook or ())
    monkeypatch.delattr("lateinteraction.adapters.index.codebook.Codebook.read")
    assert StoredIndex(storage).snapshot().stats().centroids == known > 0


def test_a_stream_leaves_no_long_tail_that_is_scored_exactly() -> None:
    sizes: list[folding.Size] = []
    for _ in range(40):
        incoming = folding.Size(500, 30_000)
        count = folding.folded(sizes, incoming, compress_at=folding.COMPRESS_AT)
        gone = sizes[len(sizes) - count :]
        whole = folding.Size(500 + sum(each.documents for each in gone), 30_000 + sum(each.tokens for each in gone))
        sizes = [*sizes[: len(sizes) - count], whole]
        assert sum(each.tokens for each in sizes if each.tokens < folding.COMPRESS_AT) < folding.COMPRESS_AT


@pytest.mark.parametrize("at", range(8, 20))
def test_an_index_whose_making_was_cut_short_is_sound_or_is_not_there(at: int) -> None:
    inner = MemoryStorage()
    with contextlib.suppress(Killed):
        made(FaultyStorage(inner, at=at, fault="kill"))
    left = inner.after_death()
    try:
        index = StoredIndex(left)
    except UnreadableFile:
        made(left)
        return
    assert len(index) == 0
    assert index.verify().sound
    add(index, 1)
    assert index.verify().sound
