"""Every check of the storage suite fails on a storage with the fault it is there to find."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lateinteraction.domain.errors import InvalidOption, StorageFailed
from lateinteraction.testing.contracts import checks_of
from lateinteraction.testing.contracts.storage import StorageContract, holding
from lateinteraction.testing.storage import MemoryStorage


class Altered:
    """A memory of which some operations are done by other functions: of the memory and the operation's arguments."""

    def __init__(self, changes: dict[str, Callable[..., Any]]) -> None:
        self.memory = MemoryStorage()
        self.changes = changes

    def __getattr__(self, name: str) -> Any:
        change = self.changes.get(name)
        if name == "writable" and change:
            return change(self.memory)
        return (lambda *given: change(self.memory, *given)) if change else getattr(self.memory, name)


def suite(**changes: Callable[..., Any]) -> StorageContract:
    class Suite(StorageContract):
        def make_storage(self) -> Any:
            return Altered(changes)

    return Suite()


class AlteredFile:
    """A new file of which some operations are others'."""

    def __init__(self, file: Any, **changes: Callable[..., Any]) -> None:
        self.file, self.changes = file, changes

    def __enter__(self) -> AlteredFile:
        return self

    def __exit__(self, *error: object) -> None:
        if "__exit__" in self.changes:
            self.changes["__exit__"](self.file, *error)
        else:
            self.file.close()

    def __getattr__(self, name: str) -> Any:
        change = self.changes.get(name)
        return (lambda *given: change(self.file, *given)) if change else getattr(self.file, name)


def files(**changes: Callable[..., Any]) -> StorageContract:
    return suite(create=lambda memory, name: AlteredFile(memory.create(name), **changes))


class AlteredLock:
    """A lock that says and does other things."""

    def __init__(self, lock: Any, release: Callable[[Any], None]) -> None:
        self.lock, self._release = lock, release

    @property
    def held(self) -> bool:
        return True

    def release(self) -> None:
        self._release(self.lock)


class FreeLock:
    """A lock that nobody has."""

    held = True

    def release(self) -> None:
        self.held = False


def create_over(memory: MemoryStorage, name: str) -> Any:
    memory.unlink(name)
    return memory.create(name)


def copies(memory: MemoryStorage, temporary: str, name: str) -> None:
    holding(memory, name, memory.read(temporary))


def replaces(memory: MemoryStorage, temporary: str, name: str) -> None:
    if memory.unlink(name):
        memory.publish(temporary, name)


def meet(memory: MemoryStorage) -> None:
    """Wait, as one of several threads, until another has come as far: what is a race is lost, on any machine."""
    if threading.current_thread() is threading.main_thread():
        return
    come: list[int] = memory.__dict__.setdefault("come", [])
    come.append(threading.get_ident())
    patience = time.monotonic() + 20
    while len(set(come)) < 2 and time.monotonic() < patience:
        time.sleep(0.001)


def replaces_in_a_race(memory: MemoryStorage, temporary: str, name: str) -> None:
    if name in memory.names():
        raise FileExistsError(name)
    meet(memory)
    replaces(memory, temporary, name)


def anything_goes(operation: str) -> Callable[..., Any]:
    """Names that cannot be are mended."""

    def operate(memory: MemoryStorage, name: str, *given: Any) -> Any:
        try:
            return getattr(memory, operation)(name, *given)
        except InvalidOption:
            return None

    return operate


def makes_what_is_missing(memory: MemoryStorage, name: str) -> bytes:
    memory.append(name, b"")
    return memory.read(name)


def tells_of_the_missing_otherwise(memory: MemoryStorage, name: str) -> int:
    try:
        return memory.size(name)
    except FileNotFoundError as error:
        raise StorageFailed("a", "b", "c") from error


def live(memory: MemoryStorage, name: str) -> Any:
    """Bytes that change when the file does."""

    class Live(np.ndarray):
        def tobytes(self, *_: Any) -> bytes:
            return memory.read(name)

    return memory.map(name).view(Live)


def vanishing(memory: MemoryStorage, name: str) -> Any:
    """Bytes that go with the name."""

    class Vanishing(np.ndarray):
        def tobytes(self, *_: Any) -> bytes:
            return super().tobytes() if name in memory.names() else b""

    return memory.map(name).view(Vanishing)


def lock_by_folder(memory: MemoryStorage, name: str, note: bytes) -> Any:
    return name and memory.lock("the-lock", note)


def lock_without_note(memory: MemoryStorage, name: str, _: bytes) -> Any:
    return memory.lock(name, b"")


def lock_with_the_first_note(memory: MemoryStorage, name: str, note: bytes) -> Any:
    return memory.lock(name, memory.read(name) if name in memory.names() else note)


def note_before_the_lock(memory: MemoryStorage, name: str, note: bytes) -> Any:
    lock = memory.lock(name, note)
    if lock is None:
        memory._there[name].content = bytearray(note)
    return lock


def lock_by_looking(memory: MemoryStorage, name: str, note: bytes) -> Any:
    """Whether the lock is free is seen first, and remembered later."""
    holders = memory.__dict__.setdefault("holders", {})
    if name in holders and holders[name].held:
        return None
    meet(memory)
    memory.unlink(name)
    holders[name] = memory.lock(name, note)
    return holders[name]


def lock_by_name(memory: MemoryStorage, name: str, note: bytes) -> Any:
    """Who releases a lock frees the name, whoever has it now."""
    lock = memory.lock(name, note)
    if lock is None:
        return None

    def release(lock: Any) -> None:
        lock.release()
        file = memory._there.get(name)
        if file is not None and file.lock.locked():
            file.lock.release()

    return AlteredLock(lock, release)


def releases_nothing(memory: MemoryStorage, name: str, note: bytes) -> Any:
    lock = memory.lock(name, note)
    return lock and AlteredLock(lock, lambda _: None)


def link_over(memory: MemoryStorage, name: str, folder: Path) -> None:
    memory.read(name)
    (folder / name).unlink(missing_ok=True)
    memory.link_into(name, folder)


def soft_link(memory: MemoryStorage, name: str, folder: Path) -> None:
    memory.read(name)
    (folder / name).symlink_to(folder / "elsewhere")


def one_reader_at_a_time(memory: MemoryStorage, name: str, offset: int = 0, length: int | None = None) -> bytes:
    state = memory.__dict__
    state["place"] = offset
    meet(memory)
    return memory.read(name, state["place"], length)


NAMES_REFUSED = ["what_can_be_no_name_is_refused"]
FAULTS: dict[str, tuple[StorageContract, list[str]]] = {
    "read-only": (
        suite(writable=lambda memory: False),
        ["an_empty_folder_has_no_names_and_can_be_written"],
    ),
    "loses the last piece": (
        files(write=lambda file, data: file.write(bytes(data)[:-1])),
        [
            "a_file_holds_what_was_written_piece_by_piece", "a_linked_file_lives_on_in_the_other_folder",
            "all_kinds_of_buffers_are_written_as_they_lie", "mapped_bytes_are_those_of_the_moment",
            "mapped_bytes_outlive_the_name_or_keep_it", "names_are_sorted_and_tell_all_that_is_there",
            "no_file_is_made_over_another", "one_of_many_publishers_wins", "publishing_replaces_nothing",
            "threads_read_at_once", "what_is_published_has_its_name_and_no_other",
            "what_is_unlinked_is_gone_and_so_is_what_never_was", "a_part_is_as_much_of_it_as_there_is",
        ],
    ),
    "appends lines": (
        suite(append=lambda memory, name, data: memory.append(name, bytes(data) + b"\n")),
        [
            "a_file_grows_by_what_is_appended", "all_kinds_of_buffers_are_written_as_they_lie",
            "mapped_bytes_are_those_of_the_moment",
        ],
    ),
    "counts items, not bytes": (
        files(write=lambda file, data: file.write(memoryview(data).cast("B")[: len(data)])),
        ["all_kinds_of_buffers_are_written_as_they_lie"],
    ),
    "reads from the end": (
        suite(read=lambda memory, name, offset=0, length=None: memory.read(name)[-offset:][:length]),
        ["a_part_is_as_much_of_it_as_there_is", "threads_read_at_once"],
    ),
    "creates over": (suite(create=create_over), ["no_file_is_made_over_another"]),
    "never closes": (
        files(close=lambda file: None, __exit__=lambda *_: None),
        ["a_file_that_is_closed_takes_nothing_more", "a_block_closes_the_file_also_after_an_error"],
    ),
    "closes after success only": (
        files(__exit__=lambda file, error, *_: error or file.close()),
        ["a_block_closes_the_file_also_after_an_error"],
    ),
    "knows files by their size": (
        suite(identity=lambda memory, name: (memory.size(name),)),
        ["a_file_is_known_again_until_it_grows_or_another_has_its_name"],
    ),
    "copies what it publishes": (
        suite(publish=copies),
        ["what_is_published_has_its_name_and_no_other"],
    ),
    "publishes over": (suite(publish=replaces), ["one_of_many_publishers_wins", "publishing_replaces_nothing"]),
    "publishes over in a race": (suite(publish=replaces_in_a_race), ["one_of_many_publishers_wins"]),
    "lists in no order": (
        suite(names=lambda memory: memory.names()[::-1]),
        ["names_are_sorted_and_tell_all_that_is_there", "publishing_replaces_nothing"],
    ),
    "takes any name": (suite(unlink=anything_goes("unlink")), NAMES_REFUSED),
    "takes any name for a log": (suite(append=anything_goes("append")), NAMES_REFUSED),
    "makes what is missing": (
        suite(note=makes_what_is_missing),
        ["a_file_that_is_not_there_is_told_as_python_tells_it"],
    ),
    "tells of the missing otherwise": (
        suite(size=tells_of_the_missing_otherwise),
        ["a_file_that_is_not_there_is_told_as_python_tells_it"],
    ),
    "unlinks once": (
        suite(unlink=lambda memory, name: name in memory.names() and memory.unlink(name)),
        [
            "mapped_bytes_outlive_the_name_or_keep_it", "what_can_be_no_name_is_refused",
            "what_is_unlinked_is_gone_and_so_is_what_never_was",
        ],
    ),
    "maps to write": (
        suite(map=lambda memory, name: memory.map(name).copy()),
        ["mapped_bytes_cannot_be_written"],
    ),
    "maps what changes": (
        suite(map=live),
        ["mapped_bytes_are_those_of_the_moment", "mapped_bytes_outlive_the_name_or_keep_it"],
    ),
    "maps what vanishes": (suite(map=vanishing), ["mapped_bytes_outlive_the_name_or_keep_it"]),
    "locks nobody out": (
        suite(lock=lambda memory, name, note: (memory.lock(name, note), FreeLock())[1]),
        [
            "a_lock_has_one_holder_at_a_time", "a_lock_that_was_unlinked_stands_for_nothing",
            "anybody_reads_what_the_last_holder_noted", "locks_of_different_names_know_nothing_of_each_other",
            "one_of_many_threads_gets_a_lock",
        ],
    ),
    "one lock for all": (
        suite(lock=lock_by_folder),
        [
            "a_lock_that_was_unlinked_stands_for_nothing", "anybody_reads_what_the_last_holder_noted",
            "locks_of_different_names_know_nothing_of_each_other", "what_can_be_no_name_is_refused",
        ],
    ),
    "locks by looking": (
        suite(lock=lock_by_looking),
        ["a_lock_that_was_unlinked_stands_for_nothing", "one_of_many_threads_gets_a_lock"],
    ),
    "releases whoever has it": (
        suite(lock=lock_by_name),
        ["a_lock_has_one_holder_at_a_time", "a_lock_that_was_unlinked_stands_for_nothing"],
    ),
    "releases nothing": (
        suite(lock=releases_nothing),
        ["a_lock_has_one_holder_at_a_time", "anybody_reads_what_the_last_holder_noted"],
    ),
    "notes nothing": (
        suite(lock=lock_without_note),
        ["a_lock_that_was_unlinked_stands_for_nothing", "anybody_reads_what_the_last_holder_noted"],
    ),
    "keeps the first note": (
        suite(lock=lock_with_the_first_note),
        ["anybody_reads_what_the_last_holder_noted"],
    ),
    "notes before it has the lock": (
        suite(lock=note_before_the_lock),
        ["a_lock_that_was_unlinked_stands_for_nothing", "anybody_reads_what_the_last_holder_noted"],
    ),
    "links softly": (suite(link_into=soft_link), ["a_linked_file_lives_on_in_the_other_folder"]),
    "links over": (suite(link_into=link_over), ["linking_replaces_nothing"]),
    "one place for all readers": (suite(read=one_reader_at_a_time), ["threads_read_at_once"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_these_checks_and_no_others(fault: str, failing: Any) -> None:
    contract, names = FAULTS[fault]
    expected = {f"test_{name}" for name in names}
    assert failing(contract, expected) == expected


def test_every_check_finds_a_fault() -> None:
    checks = {name for name, _ in checks_of(suite())}
    assert {f"test_{name}" for _, names in FAULTS.values() for name in names} == checks


def test_a_storage_without_a_fault_fails_no_check(failing: Any) -> None:
    contract = suite()
    assert failing(contract, {name for name, _ in checks_of(contract)}) == set()
