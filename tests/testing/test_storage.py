"""The storages for tests: they keep the port's contract, and their faults are those they promise."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index import storage as real
from lateinteraction.domain.errors import InvalidOption, StorageFailed
from lateinteraction.testing.contracts.storage import StorageContract, holding
from lateinteraction.testing.storage import FaultyStorage, Killed, MemoryStorage, RefusingStorage, port
from lateinteraction.testing.storage.memory import SECTOR

SEEDS = range(300)


class TestMemoryStorage(StorageContract):
    def make_storage(self) -> MemoryStorage:
        return MemoryStorage()


class TestFaultyStorageWithoutFault(StorageContract):
    def make_storage(self) -> FaultyStorage:
        return FaultyStorage(MemoryStorage())


class TestRefusingStorage(StorageContract):
    def make_storage(self) -> RefusingStorage:
        return RefusingStorage(MemoryStorage())


@pytest.mark.parametrize("name", ["NewFile", "Lock", "Storage"])
def test_the_port_is_written_here_as_it_is_there(name: str) -> None:
    here, there = getattr(port, name), getattr(real, name)
    members = [member for member in vars(there) if not member.startswith("_") or member in ("__enter__", "__exit__")]
    assert members == [each for each in vars(here) if not each.startswith("_") or each in ("__enter__", "__exit__")]
    for member in members:
        ours, theirs = vars(here)[member], vars(there)[member]
        if isinstance(theirs, property):
            ours, theirs = ours.fget, theirs.fget
        assert inspect.signature(ours) == inspect.signature(theirs)


def test_what_a_memory_begins_with_is_safe() -> None:
    files = {"a": b"content", "b": b""}
    assert MemoryStorage(files).contents() == files
    assert all(MemoryStorage(files).after_power_cut(seed).contents() == files for seed in range(20))
    with pytest.raises(InvalidOption):
        MemoryStorage({"A": b""})


def synced(storage: MemoryStorage, name: str, content: bytes) -> MemoryStorage:
    with storage.create(name) as file:
        file.write(content)
        file.sync()
    return storage


def after_cuts(storage: MemoryStorage, seeds: range = SEEDS) -> list[dict[str, bytes]]:
    return [storage.after_power_cut(seed).contents() for seed in seeds]


def test_what_is_synced_with_its_name_survives_every_power_cut() -> None:
    storage = synced(MemoryStorage(), "tmp", b"content" * 1000)
    storage.publish("tmp", "final")
    storage.append("log", b"line")
    storage.sync("log")
    storage.sync_folder()
    expected = {"final": b"content" * 1000, "log": b"line"}
    assert all(found == expected for found in after_cuts(storage))


def test_a_name_that_is_not_synced_may_be_there_or_not() -> None:
    storage = MemoryStorage()
    for name in ("a", "b", "c"):
        synced(storage, name, b"content")
    found = {tuple(each) for each in after_cuts(storage)}
    assert found == {(), ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")}


def test_a_published_name_and_its_temporary_survive_apart() -> None:
    storage = synced(MemoryStorage(), "tmp", b"content")
    storage.sync_folder()
    storage.publish("tmp", "final")
    found = after_cuts(storage)
    assert {tuple(each) for each in found} == {(), ("tmp",), ("final",), ("final", "tmp")}
    assert all(content == b"content" for each in found for content in each.values())


def test_an_unlinked_file_may_come_back() -> None:
    storage = MemoryStorage({"a": b"old"})
    storage.unlink("a")
    synced(storage, "a", b"new")
    assert {each.get("a") for each in after_cuts(storage)} == {b"old", b"new", None}
    storage.sync_folder()
    assert {each.get("a") for each in after_cuts(storage)} == {b"new"}


def test_appended_bytes_that_are_not_synced_are_torn_at_sectors() -> None:
    safe = bytes(range(1, 101))
    storage = MemoryStorage({"log": safe})
    added = bytes([7]) * (3 * SECTOR)
    storage.append("log", added)
    found = [each["log"] for each in after_cuts(storage)]
    assert all(each[:100] == safe for each in found)
    assert {safe, safe + added} < set(found)
    for each in found:
        sectors = [each[start : start + SECTOR] for start in range(SECTOR, len(each), SECTOR)]
        assert all(set(sector) in ({7}, {0}) or len(set(sector)) > 2 for sector in sectors if len(sector) > 20)
    assert len(set(found)) > 100
    kinds = {tuple({7: "written", 0: "zero"}.get(place, "noise") for place in each[SECTOR::SECTOR]) for each in found}
    assert {("written",), ("written", "zero"), ("zero", "written"), ("noise", "written")} < {kind[:2] for kind in kinds}


def test_two_seeds_are_the_extremes() -> None:
    storage = synced(MemoryStorage({"log": b"safe"}), "new", b"content")
    storage.append("log", b" and more")
    storage.unlink("new")
    storage.append("new", b"again")
    assert storage.after_power_cut(0).contents() == {"log": b"safe"}
    assert storage.after_power_cut(1).contents() == {"log": b"safe and more", "new": b"again"}
    assert storage.contents() == {"log": b"safe and more", "new": b"again"}


def test_a_power_cut_is_the_same_for_the_same_seed() -> None:
    storage = MemoryStorage({"log": b"safe"})
    storage.append("log", bytes(5000))
    assert after_cuts(storage) == after_cuts(storage)


def test_a_file_is_torn_alike_under_all_its_names() -> None:
    storage = MemoryStorage({"tmp": b""})
    storage.append("tmp", bytes(range(250)) * 20)
    storage.publish("tmp", "final")
    both = [each for each in after_cuts(storage) if len(each) == 2]
    assert len({each["tmp"] for each in both}) > 10
    assert all(each["tmp"] == each["final"] for each in both)


operations = st.lists(
    st.tuples(
        st.sampled_from(["append", "sync", "sync_folder", "unlink", "publish"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=20,
)


@given(operations, st.integers(0, 50))
def test_whatever_was_done_what_was_safe_is_there(done: list[tuple[str, str, str]], seed: int) -> None:
    storage, safe = MemoryStorage(), {}
    content: dict[str, list[bytes]] = {}  # of each name: all of the file, and what of it was synced
    touched: set[str] = set()
    for operation, name, other in done:
        if operation == "append":
            content.setdefault(name, [b"", b""])[0] += b"line of %a" % name
            storage.append(name, b"line of %a" % name)
        elif operation == "sync" and name in content:
            content[name][1] = content[name][0]
            storage.sync(name)
        elif operation == "unlink":
            content.pop(name, None)
            storage.unlink(name)
        elif operation == "publish" and name in content and other not in content:
            content[other] = content.pop(name)
            storage.publish(name, other)
            touched.add(other)
        elif operation == "sync_folder":
            safe, touched = dict(content), set()
            storage.sync_folder()
            continue
        touched.add(name)
    assert storage.contents() == {name: whole for name, (whole, _) in content.items()}
    left = storage.after_power_cut(seed).contents()
    for name, (whole, kept) in safe.items():
        assert name in left or name in touched
        if name not in touched:
            assert left[name].startswith(kept)
            assert len(left[name]) <= len(whole)


def test_death_frees_locks_and_loses_nothing_but_keeps_it_in_danger() -> None:
    storage = MemoryStorage({"log": b"safe"})
    storage.append("log", b" and more")
    lock = storage.lock("lock", b"note")
    assert lock is not None
    heir = storage.after_death()
    assert heir.contents() == {"lock": b"note", "log": b"safe and more"}
    assert heir.lock("lock", b"heir") is not None
    assert lock.held
    assert {each["log"] for each in after_cuts(heir)} >= {b"safe", b"safe and more"}
    heir.append("log", b" of its own")
    heir.sync("log")
    assert storage.read("log") == b"safe and more"


# Faults at every operation of a small history.


def history(storage: Any, done: list[str]) -> None:
    """A commit in small: what was reached is noted in `done`."""
    lock = storage.lock("lock", b"me")
    with storage.create("tmp") as file:
        file.write(b"0123456789")
        file.sync()
    storage.publish("tmp", "final")
    done.append("published")
    storage.sync_folder()
    storage.append("log", b"abcdefgh")
    storage.sync("log")
    done.append("logged")
    assert (storage.names(), storage.size("log")) == (["final", "lock", "log"], 8)
    assert (storage.read("final", 2, 3), storage.note("lock")) == (b"234", b"me")
    assert storage.map("final").tobytes() == b"0123456789"
    assert storage.unlink("final")
    lock.release()


STEPS = [
    "lock lock", "create tmp", "write tmp", "sync tmp", "close tmp", "publish tmp final", "sync_folder", "append log",
    "sync log", "names", "size log", "read final", "note lock", "map final", "unlink final",
]  # fmt: skip


def faulty(at: int, fault: Any) -> tuple[MemoryStorage, FaultyStorage, list[str], BaseException | None]:
    """The history, failing at one operation: what is below, what failed, how far it came, what was raised."""
    memory, done = MemoryStorage(), []
    storage = FaultyStorage(memory, at=at, fault=fault)
    try:
        history(storage, done)
    except (StorageFailed, Killed) as error:
        return memory, storage, done, error
    return memory, storage, done, None


def test_without_a_fault_all_operations_are_noted() -> None:
    _, storage, _, error = faulty(0, "error")
    assert (error, storage.happened, storage.journal) == (None, False, STEPS)


@pytest.mark.parametrize("fault", ["error", "late", "short", "kill"])
@pytest.mark.parametrize("at", range(1, len(STEPS) + 1))
def test_the_operation_that_was_asked_for_fails(at: int, fault: Any) -> None:
    _, storage, done, error = faulty(at, fault)
    assert storage.happened
    assert isinstance(error, Killed if fault == "kill" else StorageFailed)
    assert storage.journal[:at] == STEPS[:at]
    assert done == ["published"][: at > 6] + ["logged"][: at > 9]
    assert storage.writable


def test_an_error_has_no_effect_unless_it_is_late() -> None:
    place = STEPS.index("publish tmp final") + 1
    assert faulty(place, "error")[0].contents() == {"lock": b"me", "tmp": b"0123456789"}
    assert faulty(place, "late")[0].contents() == {"lock": b"me", "final": b"0123456789"}
    assert "log" not in faulty(STEPS.index("append log") + 1, "error")[0].names()
    assert faulty(STEPS.index("append log") + 1, "late")[0].read("log") == b"abcdefgh"


@pytest.mark.parametrize("fault", ["short", "kill"])
def test_a_write_that_is_cut_short_leaves_a_half(fault: Any) -> None:
    assert faulty(STEPS.index("write tmp") + 1, fault)[0].contents()["tmp"] == b"01234"
    assert faulty(STEPS.index("append log") + 1, fault)[0].contents()["log"] == b"abcd"


def test_a_single_error_is_over_after_it() -> None:
    storage = FaultyStorage(MemoryStorage(), at=2)
    storage.append("log", b"one")
    with pytest.raises(StorageFailed, match="append log"):
        storage.append("log", b"two")
    storage.append("log", b"three")
    assert storage.read("log") == b"onethree"


def test_a_full_disk_stays_full_and_can_be_read() -> None:
    storage = FaultyStorage(holding(MemoryStorage(), "old", b"content"), at=2, fault="enospc")
    assert storage.read("old") == b"content"
    assert not storage.happened
    grow: list[Callable[[], object]] = [
        lambda: storage.create("new"), lambda: storage.append("old", b"x"), lambda: storage.publish("old", "new"),
        lambda: storage.lock("lock", b""), lambda: storage.append("old", b"x"),
    ]  # fmt: skip
    for each in grow:
        with pytest.raises(StorageFailed, match="No space left"):
            each()
    assert storage.happened
    assert storage.names() == ["old"]
    assert storage.unlink("old")


def test_after_death_nothing_is_done_any_more() -> None:
    memory = MemoryStorage({"old": b"content"})
    storage = FaultyStorage(memory, at=4, fault="kill")
    file, lock = storage.create("tmp"), storage.lock("lock", b"")
    assert lock is not None
    storage.append("log", b"line")
    with pytest.raises(Killed):
        storage.append("log", b"last")
    calls: list[Callable[[], object]] = [
        lambda: storage.unlink("old"), lambda: file.write(b"x"), file.sync, lambda: storage.read("old"),
        storage.sync_folder, lambda: storage.append("log", b"x"), lambda: storage.lock("lock", b""),
    ]  # fmt: skip
    for each in calls:
        with pytest.raises(Killed):
            each()
    assert memory.contents() == {"lock": b"", "log": b"linela", "old": b"content", "tmp": b""}
    assert len(storage.journal) == 4
    heir = memory.lock("lock", b"heir")
    assert heir is not None
    lock.release()
    assert not lock.held
    assert heir.held


def test_being_killed_is_no_error_that_anybody_catches() -> None:
    assert not issubclass(Killed, Exception)


def test_closing_that_fails_closes_all_the_same() -> None:
    memory = MemoryStorage()
    refusing = RefusingStorage(memory)
    file = FaultyStorage(refusing, at=2).create("tmp")
    with pytest.raises(StorageFailed, match="close tmp"):
        file.close()
    assert refusing.unlink("tmp")


# What Windows refuses.


def test_a_mapped_file_is_kept_as_long_as_any_view_of_it() -> None:
    storage = RefusingStorage(MemoryStorage({"file": b"content"}))
    mapped, other = storage.map("file"), storage.map("file")
    view = mapped[2:].view(np.int8).reshape(5, 1)
    del mapped
    for held in ("view", "other"):
        assert storage.in_use("file"), held
        assert storage.unlink("file") is False
        if held == "view":
            del view
    del other
    assert storage.unlink("file") is True
    assert storage.names() == []


def test_a_locked_file_is_kept_until_it_is_released() -> None:
    storage = RefusingStorage(MemoryStorage())
    lock = storage.lock("lock", b"")
    assert lock is not None
    assert storage.unlink("lock") is False
    lock.release()
    assert storage.unlink("lock") is True


def test_an_open_file_is_neither_removed_nor_published() -> None:
    storage = RefusingStorage(MemoryStorage())
    with storage.create("tmp") as file:
        assert storage.unlink("tmp") is False
        with pytest.raises(StorageFailed):
            storage.publish("tmp", "final")
        file.sync()
    storage.publish("tmp", "final")
    assert storage.unlink("final") is True
