"""Every byte of log and manifests is flipped, cut off, added: an error or the newest state, never an older one."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.manifests import manifest_name
from lateinteraction.domain.errors import CorruptIndex, InvalidOption, LateInteractionError
from lateinteraction.testing.storage import FaultyStorage, MemoryStorage

KEPT = [1, 2, 100]
"""Generations that collection leaves: the answer must not depend on what older ones are still there."""


def folder_of(ledger: ModuleType, keep: int, *, aborted: bool = False) -> dict[str, bytes]:
    """The files of an index of five generations, of which the last but one may be an abort."""
    folder = MemoryStorage()
    book = ledger.Ledger(folder)
    book.create()
    book.open()
    book.add(1)
    book.add(2)
    if aborted:
        abort_one(ledger, folder, book)
    book.replace(1, 3)
    book.writer.collect(keep)
    book.close()
    return folder.contents()


def abort_one(ledger: ModuleType, folder: MemoryStorage, book: Any) -> None:
    """A commit that reaches the log and is taken back there."""
    book.close()
    failing = ledger.Ledger(FailingLog(folder), acknowledged=book.acknowledged)
    failing.open()
    failing.storage.armed = True
    with pytest.raises(LateInteractionError):
        failing.add(99)
    failing.close()
    book.open()


class FailingLog:
    """A storage that fails to sync the log once it is told to, one time."""

    def __init__(self, inner: MemoryStorage) -> None:
        self._inner, self.armed = inner, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sync(self, name: str) -> None:
        if self.armed and name == "commits":
            self.armed = False
            FaultyStorage(self._inner, at=1).sync(name)
        self._inner.sync(name)


def damaged(content: bytes) -> Iterator[bytes]:
    """Each byte changed in one bit; cut off at each length; longer."""
    for place in range(len(content)):
        yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        yield content[:place]
    for more in (b"\0", bytes(64), b"x" * 100, content[:64], content[-64:], content):
        yield content + more


def answers(ledger: ModuleType, files: dict[str, bytes]) -> str:
    """What a reader answers, and then a writer and another reader: the same, or `CorruptIndex` of either."""
    folder = MemoryStorage(files)
    found = []
    for ask in (ledger.read, wrote, ledger.read):
        try:
            found.append(str(sorted(ask(folder))))
        except CorruptIndex:
            found.append("corrupt")
    assert len(set(found)) == 1, found
    return found[0]


def wrote(folder: MemoryStorage) -> frozenset[int]:
    """What a writer finds."""
    with Generations(folder).writer() as writer, Generations(folder).read() as opened:
        assert writer.base == opened.manifest
        return frozenset(
            int(number)
            for segment in writer.base.segments
            for number in opened.file(segment.files[0]).whole("numbers")
            if "gone" not in segment.deltas or number not in opened.file(segment.deltas["gone"]).whole("numbers")
        )


@pytest.mark.parametrize(("keep", "aborted"), [(1, False), (2, False), (100, False), (2, True)])
def test_a_damaged_log_gives_an_error_or_the_newest_state(ledger: ModuleType, keep: int, aborted: bool) -> None:
    files = folder_of(ledger, keep, aborted=aborted)
    found = [answers(ledger, {**files, "commits": content}) for content in damaged(files["commits"])]
    assert set(found) <= {"[2, 3]", "corrupt"}
    assert found.count("[2, 3]") > len(found) / 3  # one damaged record is survived
    assert "corrupt" in found


def test_a_damaged_log_that_ends_with_an_abort_gives_an_error_or_the_newest_state(ledger: ModuleType) -> None:
    folder = MemoryStorage()
    book = ledger.Ledger(folder)
    book.create()
    book.open()
    book.add(1)
    book.add(2)
    abort_one(ledger, folder, book)
    book.close()
    files = folder.contents()
    found = [answers(ledger, {**files, "commits": content}) for content in damaged(files["commits"])]
    assert set(found) == {"[1, 2]", "corrupt"}


@pytest.mark.parametrize("keep", KEPT)
def test_without_a_log_there_is_an_error(ledger: ModuleType, keep: int) -> None:
    files = folder_of(ledger, keep)
    for content in (None, b"", b"\0", bytes(64)):
        left = {name: each for name, each in files.items() if name != "commits"}
        assert answers(ledger, left if content is None else {**left, "commits": content}) == "corrupt"


@pytest.mark.parametrize("keep", KEPT)
def test_a_damaged_manifest_of_the_newest_generation_is_an_error(ledger: ModuleType, keep: int) -> None:
    files = folder_of(ledger, keep)
    name = manifest_name(4)
    for content in damaged(files[name]):
        assert answers(ledger, {**files, name: content}) == "corrupt"
    assert answers(ledger, {each: content for each, content in files.items() if each != name}) == "corrupt"


def test_a_damaged_manifest_of_an_older_generation_leaves_the_newest(ledger: ModuleType) -> None:
    files = folder_of(ledger, 100)
    for name in map(manifest_name, (1, 2, 3)):
        for content in (*list(damaged(files[name]))[::7], b""):
            assert answers(ledger, {**files, name: content}) == "[2, 3]"
        assert answers(ledger, {each: content for each, content in files.items() if each != name}) == "[2, 3]"


def test_the_manifest_of_an_older_generation_does_not_stand_for_the_newest(ledger: ModuleType) -> None:
    files = folder_of(ledger, 100)
    for older in (1, 2, 3):
        assert answers(ledger, {**files, manifest_name(4): files[manifest_name(older)]}) == "corrupt"


@pytest.mark.parametrize("keep", KEPT)
def test_an_older_log_is_an_error_or_gives_the_newest_state(ledger: ModuleType, keep: int) -> None:
    """As when one file is restored from a copy. One commit may be missing from it, not two."""
    files = folder_of(ledger, keep)
    found = [answers(ledger, {**files, "commits": files["commits"][: 64 * records]}) for records in (1, 2, 3, 4)]
    assert found == ["corrupt", "corrupt", "[2, 3]", "[2, 3]"]


def test_the_first_generation_needs_no_log(ledger: ModuleType) -> None:
    """Its writer may have died before it wrote one."""
    folder = MemoryStorage()
    ledger.Ledger(folder).create()
    files = folder.contents()
    for content in damaged(files["commits"]):
        assert answers(ledger, {**files, "commits": content}) in ("[]", "corrupt")
    assert answers(ledger, {name: each for name, each in files.items() if name != "commits"}) == "[]"


@pytest.mark.parametrize("keep", KEPT)
def test_a_missing_or_shortened_data_file_is_an_error_that_names_it(ledger: ModuleType, keep: int) -> None:
    files = folder_of(ledger, keep)
    with Generations(MemoryStorage(files)).read() as opened:
        names = [record.name for record in opened.manifest.records()]
    for name in names:
        for folder in (
            {each: content for each, content in files.items() if each != name},
            {**files, name: files[name][:-1]},
            {**files, name: files[name] + b"\0"},
            {**files, name: b""},
        ):
            with pytest.raises(CorruptIndex, match=name):
                ledger.read(MemoryStorage(folder))


def test_a_torn_record_whose_generation_lacks_a_file_is_an_error(ledger: ModuleType) -> None:
    """All names were on the disk before the record was begun, so a file is lost; the commit may be acknowledged."""
    files = folder_of(ledger, 100)
    with Generations(MemoryStorage(files)).read() as opened:
        name = opened.manifest.segments[-1].files[0].name
    left = {each: content for each, content in files.items() if each != name}
    for torn in (files["commits"][:-1], files["commits"][:-63], files["commits"][:-1] + b"\xff"):
        assert answers(ledger, {**files, "commits": torn}) == "[2, 3]"
        assert answers(ledger, {**left, "commits": torn}) == "corrupt"


@given(data=st.data())
def test_any_damage_to_several_files_is_an_error_or_gives_the_newest_state(ledger: ModuleType, data: Any) -> None:
    """Garbage anywhere in one manifest, or the log and any one file."""
    files = folder_of(ledger, data.draw(st.sampled_from(KEPT)))
    name = data.draw(st.sampled_from(sorted(files.keys() - {"lock"})))
    content = bytearray(files[name])
    first = data.draw(st.integers(0, len(content)))
    garbage = data.draw(st.binary(max_size=200))
    content[first : first + data.draw(st.integers(0, 200))] = garbage
    found = answers(ledger, {**files, name: bytes(content)})
    assert found in ("[2, 3]", "corrupt")


def test_a_damaged_index_is_not_created_anew(ledger: ModuleType) -> None:
    files = folder_of(ledger, 1)
    for content in (b"", bytes(128)):
        with pytest.raises(CorruptIndex):
            Generations(MemoryStorage({**files, "commits": content})).create({})
    with pytest.raises(InvalidOption, match="generation 4"):
        Generations(MemoryStorage(files)).create({})


def test_errors_of_damage_say_which_file_and_what_to_do(ledger: ModuleType) -> None:
    files = folder_of(ledger, 2)
    name = manifest_name(4)
    with pytest.raises(CorruptIndex, match=rf"^{name} of digest [0-9a-f]{{32}}; expected .* that commits names\. Rest"):
        ledger.read(MemoryStorage({**files, name: files[name] + b"x"}))
    with pytest.raises(CorruptIndex, match=rf"^{name}, which is missing; .*`repair`"):
        ledger.read(MemoryStorage({each: content for each, content in files.items() if each != name}))
    with pytest.raises(CorruptIndex, match=rf"^{name}, and commits of 0 bytes that ends with generation 0; .*`repair`"):
        ledger.read(MemoryStorage({**files, "commits": b""}))
