"""Readers keep what they opened, see what was acknowledged, and never what may still be taken back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.manifests import file_name, manifest_name
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.errors import (
    CorruptIndex,
    IndexLocked,
    InvalidOption,
    StorageFailed,
    UnreadableFile,
)
from lateinteraction.testing.storage import FaultyStorage, MemoryStorage


def test_an_empty_folder_holds_no_index() -> None:
    generations = Generations(MemoryStorage())
    assert not generations.exists()
    for ask in (generations.read, generations.writer):
        with pytest.raises(UnreadableFile, match="holds no index"):
            ask()
    assert generations.verify().damages == ()


def test_the_first_generation_is_empty_and_has_the_settings() -> None:
    generations = Generations(MemoryStorage())
    manifest = generations.create({"dimension": 128, "codec": "exact"})
    assert (manifest.generation, manifest.segments) == (1, ())
    assert generations.exists()
    with generations.read() as opened:
        assert opened.manifest == manifest
        assert opened.manifest.settings == {"dimension": 128, "codec": "exact"}


def test_an_index_is_not_created_over_another(book: Any) -> None:
    book.close()
    with pytest.raises(InvalidOption, match="holds generation 3"):
        book.generations.create({})
    assert book.generations.read().generation == 3


def test_a_commit_is_seen_by_the_next_reader_and_not_by_those_before(ledger: ModuleType, book: Any) -> None:
    before = book.generations.read()
    book.replace(1, 3)
    after = book.generations.read()
    assert ledger.content_of(before) == {1, 2}
    assert ledger.content_of(after) == {2, 3}
    assert after.manifest == book.writer.base


def test_settings_and_shared_files_stay_unless_they_are_given(book: Any) -> None:
    with book.writer.new_file("codebook") as file:
        record = file.close()
    with_codebook = book.writer.commit(segments=book.writer.base.segments, shared={"codebook": record}, note="trained")
    assert with_codebook.note == "trained"
    later = book.writer.commit(segments=())
    assert (later.settings, later.shared, later.note) == ({"dimension": 4}, {"codebook": record}, "")
    changed = book.writer.commit(segments=(), shared={}, settings={"dimension": 8})
    assert (changed.settings, changed.shared) == ({"dimension": 8}, {})
    with book.generations.read() as opened:
        assert opened.manifest == changed


def test_refreshing_costs_one_look_where_nothing_was_committed(book: Any) -> None:
    storage = FaultyStorage(book.storage)
    generations = Generations(storage)
    opened = generations.read()
    storage.journal.clear()
    assert generations.refresh(opened) is opened
    assert storage.journal == ["identity commits"]


def test_refreshing_opens_only_what_is_new(ledger: ModuleType, book: Any) -> None:
    storage = FaultyStorage(book.storage)
    generations = Generations(storage)
    opened = generations.read()
    book.add(3)
    storage.journal.clear()
    fresh = generations.refresh(opened)
    assert ledger.content_of(fresh) == {1, 2, 3}
    assert [each for each in storage.journal if each.startswith("map")] == [f"map {file_name(3, 0)}"]
    assert ledger.content_of(opened) == {1, 2}
    assert generations.refresh(fresh) is fresh


def test_numbers_and_names_are_never_used_again(book: Any) -> None:
    """Also not those of a commit that failed, nor by the next writer."""
    seen = {name for name in book.storage.names() if name.startswith("s-")}
    abandoned = book.writer.new_file("segment").close().name
    book.writer.abandon()
    number = book.writer.number()
    names = [book.writer.new_file("segment", number).close().name for _ in range(3)]
    assert names == [file_name(number, part) for part in range(3)]
    assert len({abandoned, *names, *seen}) == len(seen) + 4
    book.close()
    book.storage.append(file_name(40, 1), b"left by a commit that a crash cut short")
    book.open()
    assert book.writer.number() == 41


def test_a_commit_names_files_of_the_base_or_its_own(book: Any) -> None:
    segment = book.writer.base.segments[0]
    for record in (
        segment.files[0].__class__(file_name(77, 0), 10, "00" * 16),
        segment.files[0].__class__(segment.files[0].name, 11, segment.files[0].digest),
    ):
        with pytest.raises(InvalidOption, match="a file of the base, or of this writer"):
            book.writer.commit(segments=[], shared={"codebook": record})
    assert book.generations.read().generation == 3
    with pytest.raises(InvalidOption, match="a number of this commit"):
        book.writer.new_file("segment", segment.number)
    number = book.writer.number()
    book.add(3)
    with pytest.raises(InvalidOption, match="a number of this commit"):
        book.writer.new_file("segment", number)


def test_files_that_no_commit_names_are_given_up(book: Any) -> None:
    for end in (lambda: book.add(3), book.writer.abandon, book.close):
        file = book.writer.new_file("segment")
        assert file.temporary in book.storage.names()
        end()
        assert file.temporary not in book.storage.names()


def test_a_second_writer_is_told_who_has_the_lock(book: Any) -> None:
    began = time.monotonic()
    with pytest.raises(IndexLocked, match=rf"process {os.getpid()} on \S+ writes to; expected one writer at a time"):
        book.generations.writer()
    assert time.monotonic() - began < 1.0
    book.close()
    book.generations.writer().close()


def test_a_writer_that_is_closed_refuses(book: Any) -> None:
    book.close()
    book.close()
    for call in (book.collect, lambda: book.add(3), book.writer.number, lambda: book.writer.new_file("segment")):
        with pytest.raises(StorageFailed, match="a writer that is closed"):
            call()


def test_a_writer_notices_that_somebody_wrote_in_spite_of_the_lock(ledger: ModuleType, book: Any) -> None:
    """As on a file system whose locks do not reach other machines."""
    other = ledger.Ledger(book.storage.after_death(), acknowledged=book.acknowledged)
    other.open()
    other.add(3)
    for name, content in other.storage.contents().items():
        if name not in book.storage.names():
            book.storage.append(name, content)
    with pytest.raises(IndexLocked, match="in spite of the lock"):
        book.add(4)  # the other's manifest is there, its record not yet
    with pytest.raises(StorageFailed, match="Open the index anew"):
        book.add(4)
    assert book.generations.verify(ledger.told).content == "1 2 3"


def test_a_writer_notices_that_the_log_was_written_or_cut(ledger: ModuleType, book: Any) -> None:
    files = book.storage.contents()
    for content, error in ((files["commits"] + bytes(64), IndexLocked), (files["commits"][:-64], CorruptIndex)):
        storage = MemoryStorage({**files, "commits": b""})
        storage.append("commits", files["commits"])
        other = ledger.Ledger(storage, acknowledged=book.acknowledged)
        other.open()
        storage.unlink("commits")
        storage.append("commits", content)
        there = storage.names()
        with pytest.raises(error):
            other.collect()
        with pytest.raises(StorageFailed):
            other.add(4)
        assert storage.names() == there


class Halting:
    """A storage that stops before it appends to the log, until it is told to go on, and then fails if it is told to."""

    def __init__(self, inner: MemoryStorage, *, fails: bool) -> None:
        self._inner, self._fails = inner, fails
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def append(self, name: str, data: bytes) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(30)
            if self._fails:
                raise StorageFailed("an append", "a disk that works", "Try again.")
        self._inner.append(name, data)


def committing(ledger: ModuleType, book: Any, *, fails: bool) -> tuple[Halting, threading.Thread]:
    """A commit of 3 by another thread, halted after it has published its manifest."""
    book.close()
    halting = Halting(book.storage, fails=fails)
    other = ledger.Ledger(halting, acknowledged=book.acknowledged)
    other.open()

    def commit() -> None:
        try:
            other.add(3)
        except StorageFailed:
            assert fails
        finally:
            other.close()

    thread = threading.Thread(target=commit)
    thread.start()
    assert halting.reached.wait(30)
    assert manifest_name(4) in book.storage.names()
    return halting, thread


@pytest.mark.parametrize("fails", [False, True])
def test_a_reader_waits_for_the_fate_of_a_commit_that_is_under_way(ledger: ModuleType, book: Any, fails: bool) -> None:
    halting, thread = committing(ledger, book, fails=fails)
    timer = threading.Timer(0.1, halting.go_on.set)
    timer.start()
    with Generations(book.storage, patience=30).read() as opened:
        assert ledger.content_of(opened) == ({1, 2} if fails else {1, 2, 3})
        assert opened.manifest.generation == (3 if fails else 4)
    thread.join()
    timer.join()


def test_a_reader_that_waited_long_enough_takes_the_record_for_lost(ledger: ModuleType, book: Any) -> None:
    """A writer that has the lock and does nothing, and a log whose end was cut off: never the older state."""
    book.add(3)
    files = book.storage.contents()
    cut = MemoryStorage({**files, "commits": files["commits"][:-64]})
    lock = cut.lock("lock", b"somebody")
    assert lock is not None
    began = time.monotonic()
    assert ledger.read(cut) == {1, 2, 3}
    assert time.monotonic() - began >= ledger.PATIENCE
    lock.release()
    began = time.monotonic()
    assert ledger.read(cut) == {1, 2, 3}
    assert time.monotonic() - began < ledger.PATIENCE


def test_an_interrupted_commit_is_taken_back(ledger: ModuleType, book: Any) -> None:
    class Interrupting(Halting):
        def append(self, name: str, data: bytes) -> None:
            if not self.reached.is_set():
                self.reached.set()
                raise KeyboardInterrupt
            self._inner.append(name, data)

    book.close()
    other = ledger.Ledger(Interrupting(book.storage, fails=False), acknowledged=book.acknowledged)
    other.open()
    with pytest.raises(KeyboardInterrupt):
        other.add(3)
    assert ledger.read(book.storage) == {1, 2}
    other.add(4)
    assert ledger.read(book.storage) == {1, 2, 4}
    other.close()


class Meanwhile:
    """A storage in which something happens before an operation on a file, a few times."""

    def __init__(self, inner: MemoryStorage, operation: str, prefix: str, act: Callable[[], None]) -> None:
        self._inner, self._operation, self._prefix, self._act = inner, operation, prefix, act
        self.times = 0

    def __getattr__(self, name: str) -> Any:
        called = getattr(self._inner, name)
        if name != self._operation:
            return called

        def call(file: str, *rest: Any) -> Any:
            if file.startswith(self._prefix) and self.times < 3:
                self.times += 1
                self._act()
            return called(file, *rest)

        return call


def writes_and_collects(book: Any) -> Callable[[], None]:
    """Somebody adds the next number, merges twice and collects."""

    def act() -> None:
        book.add(10 + len(book.acknowledged))
        book.merge()
        book.merge()
        book.collect()

    return act


@pytest.mark.parametrize(("operation", "prefix"), [("lock", "lease-"), ("read", "g-"), ("read", "commits")])
def test_a_reader_whose_generation_is_collected_before_its_lease_opens_a_later_one(
    ledger: ModuleType, book: Any, operation: str, prefix: str
) -> None:
    storage = Meanwhile(book.storage, operation, prefix, writes_and_collects(book))
    assert ledger.read(storage) == {1, 2, 12, 13, 14}
    assert storage.times == 3


def test_a_lease_keeps_the_files_that_its_reader_has_yet_to_open(ledger: ModuleType, book: Any) -> None:
    storage = Meanwhile(book.storage, "map", "s-", writes_and_collects(book))
    assert ledger.read(storage) == {1, 2}
    assert storage.times == 2  # both files were opened after a collection


def test_a_reader_forgets_a_generation_that_is_taken_back_while_it_looks(ledger: ModuleType, book: Any) -> None:
    book.add(3)
    files = book.storage.contents()
    unlogged = MemoryStorage({**files, "commits": files["commits"][:-64]})
    storage = Meanwhile(unlogged, "read", manifest_name(4), lambda: unlogged.unlink(manifest_name(4)) and None)
    assert ledger.read(storage) == {1, 2}


def test_a_reader_that_may_not_touch_the_lock_reads(ledger: ModuleType, book: Any) -> None:
    """It belongs to another user, say."""
    book.add(3)
    files = book.storage.contents()
    unlogged = MemoryStorage({**files, "commits": files["commits"][:-64]})

    def refuse() -> None:
        raise StorageFailed("locking", "permission", "Ask for it.")

    storage = Meanwhile(unlogged, "lock", "lock", refuse)
    storage.times = -100
    assert ledger.read(storage) == {1, 2, 3}


def test_a_commit_that_was_interrupted_as_it_returned_took_place(ledger: ModuleType, book: Any) -> None:
    """The writer does not know what it has, so it refuses."""

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code.co_name == "_commit":
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            book.add(3)
    finally:
        sys.setprofile(None)
    assert ledger.read(book.storage) == {1, 2, 3}
    with pytest.raises(StorageFailed, match=r"a writer that was interrupted; .* Open the index anew"):
        book.add(4)
    book.close()
    book.open()
    book.acknowledged = frozenset({1, 2, 3})
    book.add(4)
    assert ledger.read(book.storage) == {1, 2, 3, 4}


def test_opening_an_index_loads_no_torch(tmp_path: Path) -> None:
    FolderStorage(tmp_path / "index", create=True)
    program = (
        "import sys; from pathlib import Path\n"
        "from lateinteraction.adapters.index.generations import Generations\n"
        "from lateinteraction.adapters.index.storage import FolderStorage\n"
        f"generations = Generations(FolderStorage(Path({str(tmp_path / 'index')!r})))\n"
        "generations.create({}); generations.writer().close(); generations.read().close()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numba', 'pyarrow')))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
