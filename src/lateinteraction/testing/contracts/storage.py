"""The suite of the storage port: files appear whole, nothing is replaced, locks exclude, mapped bytes stay."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import strategies as st

from lateinteraction.domain.errors import InvalidOption, StorageFailed
from lateinteraction.testing.contracts.checks import holds_for
from lateinteraction.testing.storage.port import Storage

_NOT_NAMES = ["", ".", "..", "a.b", "a/b", "/a", "../a", "a\\b", "A", "a_b", "ä", "a\0", "a\n", " a", "a" * 81]
_NAMES = ["a", "7", "-", "a" * 80, "s-0000000000000001-00", "lease-1-2-0f"]
_pieces = st.lists(st.binary(max_size=40), max_size=8)
_ANY: dict[str, Callable[[Storage, str], object]] = {
    "create": lambda storage, name: storage.create(name),
    "publish": lambda storage, name: storage.publish("there", name),
    "publish from": lambda storage, name: storage.publish(name, "free"),
    "append": lambda storage, name: storage.append(name, b"a"),
    "sync": lambda storage, name: storage.sync(name),
    "size": lambda storage, name: storage.size(name),
    "identity": lambda storage, name: storage.identity(name),
    "read": lambda storage, name: storage.read(name),
    "map": lambda storage, name: storage.map(name),
    "unlink": lambda storage, name: storage.unlink(name),
    "lock": lambda storage, name: storage.lock(name, b""),
    "note": lambda storage, name: storage.note(name),
    "link_into": lambda storage, name: storage.link_into(name, Path("nowhere")),
}
_OF_WHAT_IS_THERE = ["publish from", "sync", "size", "identity", "read", "map", "note", "link_into"]


class StorageContract:
    """What every storage promises. `make_storage` gives an empty one at each call."""

    def make_storage(self) -> Storage:
        """An empty folder."""
        raise NotImplementedError

    def opened_again(self, storage: Storage) -> Storage:
        """The same folder, opened a second time; where that cannot be, the same object."""
        return storage

    def test_an_empty_folder_has_no_names_and_can_be_written(self) -> None:
        storage = self.make_storage()
        assert storage.names() == []
        assert storage.writable is True

    @holds_for(_pieces)
    def test_a_file_holds_what_was_written_piece_by_piece(self, pieces: list[bytes]) -> None:
        storage = self.make_storage()
        with storage.create("new") as file:
            for piece in pieces:
                file.write(piece)
            file.sync()
        _check_content(self.opened_again(storage), "new", b"".join(pieces))

    @holds_for(_pieces)
    def test_a_file_grows_by_what_is_appended(self, pieces: list[bytes]) -> None:
        storage = self.make_storage()
        storage.append("log", b"")
        for piece in pieces:
            storage.append("log", piece)
        storage.sync("log")
        _check_content(self.opened_again(storage), "log", b"".join(pieces))

    def test_all_kinds_of_buffers_are_written_as_they_lie(self) -> None:
        storage, numbers = self.make_storage(), array("q", [1, -2])
        with storage.create("new") as file:
            for data in (b"a", bytearray(b"b"), memoryview(numbers), memoryview(b"")):
                file.write(data)
                storage.append("log", data)
        _check_content(storage, "new", b"ab" + numbers.tobytes())
        _check_content(storage, "log", b"ab" + numbers.tobytes())

    @holds_for(st.binary(max_size=30), st.integers(0, 40), st.none() | st.integers(0, 40))
    def test_a_part_is_as_much_of_it_as_there_is(self, content: bytes, offset: int, length: int | None) -> None:
        storage = holding(self.make_storage(), "file", content)
        expected = content[offset:] if length is None else content[offset : offset + length]
        assert storage.read("file", offset, length) == expected

    def test_no_file_is_made_over_another(self) -> None:
        storage = holding(self.make_storage(), "file", b"old")
        with pytest.raises(FileExistsError):
            storage.create("file")
        _check_content(storage, "file", b"old")

    def test_a_file_that_is_closed_takes_nothing_more(self) -> None:
        file = self.make_storage().create("file")
        file.close()
        file.close()
        with pytest.raises(StorageFailed):
            file.write(b"late")
        with pytest.raises(StorageFailed):
            file.sync()

    def test_a_block_closes_the_file_also_after_an_error(self) -> None:
        file = self.make_storage().create("file")
        with pytest.raises(ZeroDivisionError), file:
            _ = 1 / 0
        with pytest.raises(StorageFailed):
            file.write(b"late")

    def test_what_is_published_has_its_name_and_no_other(self) -> None:
        storage = holding(self.make_storage(), "tmp", b"content")
        storage.publish("tmp", "final")
        storage.sync_folder()
        assert self.opened_again(storage).names() == ["final"]
        _check_content(storage, "final", b"content")

    def test_publishing_replaces_nothing(self) -> None:
        storage = holding(holding(self.make_storage(), "tmp", b"new"), "final", b"old")
        with pytest.raises(FileExistsError):
            storage.publish("tmp", "final")
        assert storage.names() == ["final", "tmp"]
        _check_content(storage, "final", b"old")
        _check_content(storage, "tmp", b"new")

    def test_one_of_many_publishers_wins(self) -> None:
        storage = self.make_storage()
        for number in range(16):
            holding(storage, f"tmp-{number}", b"%d" % number)

        def published(number: int) -> bool:
            try:
                storage.publish(f"tmp-{number}", "final")
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            winners = [number for number, won in enumerate(threads.map(published, range(16))) if won]
        assert len(winners) == 1
        _check_content(storage, "final", b"%d" % winners[0])

    def test_names_are_sorted_and_tell_all_that_is_there(self) -> None:
        storage = self.make_storage()
        for name in _NAMES:
            holding(storage, name, name.encode())
        assert storage.names() == sorted(_NAMES)
        assert [storage.read(name) for name in _NAMES] == [name.encode() for name in _NAMES]

    def test_what_can_be_no_name_is_refused(self) -> None:
        storage = holding(self.make_storage(), "there", b"")
        calls = [(operation, name) for operation in _ANY for name in _NOT_NAMES]
        assert [call for call in calls if not _raises(InvalidOption, storage, *call)] == []
        assert storage.names() == ["there"]

    def test_a_file_that_is_not_there_is_told_as_python_tells_it(self) -> None:
        storage = self.make_storage()
        calls = [(operation, "missing") for operation in _OF_WHAT_IS_THERE]
        assert [call for call in calls if not _raises(FileNotFoundError, storage, *call)] == []
        assert storage.names() == []

    def test_what_is_unlinked_is_gone_and_so_is_what_never_was(self) -> None:
        storage = holding(self.make_storage(), "file", b"old")
        assert storage.unlink("file") is True
        assert storage.unlink("file") is True
        assert storage.names() == []
        _check_content(holding(storage, "file", b"new"), "file", b"new")

    def test_a_file_is_known_again_until_it_grows_or_another_has_its_name(self) -> None:
        storage = holding(holding(self.make_storage(), "file", b"content"), "other", b"content")
        known = storage.identity("file")
        assert self.opened_again(storage).identity("file") == known != storage.identity("other")
        storage.unlink("file")
        storage.publish("other", "file")
        other = storage.identity("file")
        assert other != known
        storage.append("file", b"s")
        assert storage.identity("file") != other

    def test_mapped_bytes_cannot_be_written(self) -> None:
        mapped = holding(self.make_storage(), "file", b"content").map("file")
        with pytest.raises(ValueError, match="read-only"):
            mapped[0] = 0

    def test_mapped_bytes_are_those_of_the_moment(self) -> None:
        storage = holding(self.make_storage(), "file", b"content")
        mapped = storage.map("file")
        storage.append("file", b" and more")
        assert mapped.tobytes() == b"content"
        assert storage.map("file").tobytes() == b"content and more"

    def test_mapped_bytes_outlive_the_name_or_keep_it(self) -> None:
        storage = holding(self.make_storage(), "file", b"content")
        mapped = storage.map("file")[2:]
        gone = storage.unlink("file")
        assert mapped.tobytes() == b"ntent"
        assert storage.names() == ([] if gone else ["file"])
        del mapped
        assert storage.unlink("file") is True
        assert storage.names() == []

    def test_a_lock_has_one_holder_at_a_time(self) -> None:
        storage = self.make_storage()
        first = _taken(storage, "lock")
        assert storage.lock("lock", b"") is None
        assert self.opened_again(storage).lock("lock", b"") is None
        first.release()
        first.release()
        second = _taken(self.opened_again(storage), "lock")
        assert storage.lock("lock", b"") is None
        assert (first.held, second.held) == (False, True)
        first.release()
        assert storage.lock("lock", b"") is None
        second.release()

    def test_one_of_many_threads_gets_a_lock(self) -> None:
        storage = self.make_storage()
        with ThreadPoolExecutor(8) as threads:
            taken = list(threads.map(lambda number: storage.lock("lock", b"%d" % number), range(16)))
        assert len([lock for lock in taken if lock is not None]) == 1

    def test_locks_of_different_names_know_nothing_of_each_other(self) -> None:
        storage = self.make_storage()
        one, other = _taken(storage, "one"), _taken(storage, "other")
        one.release()
        assert storage.lock("other", b"") is None
        other.release()

    def test_anybody_reads_what_the_last_holder_noted(self) -> None:
        storage = self.make_storage()
        _taken(storage, "lock", b"a long note").release()
        lock = _taken(storage, "lock", b"short")
        assert storage.lock("lock", b"an intruder's") is None
        assert self.opened_again(storage).note("lock") == b"short"
        lock.release()
        assert storage.note("lock") == b"short"

    def test_a_lock_that_was_unlinked_stands_for_nothing(self) -> None:
        storage = self.make_storage()
        old = _taken(storage, "lock")
        if not storage.unlink("lock"):
            old.release()
            assert storage.unlink("lock") is True
        new = _taken(storage, "lock", b"new")
        old.release()
        assert self.opened_again(storage).lock("lock", b"") is None
        assert storage.names() == ["lock"]
        assert storage.note("lock") == b"new"
        new.release()

    def test_a_linked_file_lives_on_in_the_other_folder(self) -> None:
        storage = holding(self.make_storage(), "file", b"content")
        with TemporaryDirectory() as folder:
            storage.link_into("file", Path(folder))
            assert storage.unlink("file") is True
            assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == {"file": b"content"}

    def test_linking_replaces_nothing(self) -> None:
        storage = holding(self.make_storage(), "file", b"new")
        with TemporaryDirectory() as folder:
            place = Path(folder) / "file"
            place.write_bytes(b"old")
            with pytest.raises(FileExistsError):
                storage.link_into("file", Path(folder))
            assert place.read_bytes() == b"old"

    def test_threads_read_at_once(self) -> None:
        numbers = array("L", range(4096)).tobytes()
        storage = holding(self.make_storage(), "file", numbers)
        with ThreadPoolExecutor(8) as threads:
            parts = list(threads.map(lambda start: storage.read("file", start, 256), range(0, len(numbers), 256)))
        assert b"".join(parts) == numbers


def holding(storage: Storage, name: str, content: bytes) -> Storage:
    """The storage, with one file more."""
    with storage.create(name) as file:
        file.write(content)
    return storage


def _raises(error: type[Exception], storage: Storage, operation: str, name: str) -> bool:
    try:
        _ANY[operation](storage, name)
    except error:
        return True
    return False


def _taken(storage: Storage, name: str, note: bytes = b"") -> Any:
    lock = storage.lock(name, note)
    assert lock is not None
    assert lock.held
    return lock


def _check_content(storage: Storage, name: str, content: bytes) -> None:
    assert storage.size(name) == len(content)
    assert storage.read(name) == content
    assert storage.map(name).tobytes() == content
