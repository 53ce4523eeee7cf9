"""Verification finds every damage, repair names what it would give up, a snapshot is an index of its own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.inspection import RepairReport, VerifyReport
from lateinteraction.adapters.index.manifests import manifest_name
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.errors import (
    CorruptIndex,
    IndexLocked,
    InvalidOption,
    StorageFailed,
    UnreadableFile,
)
from lateinteraction.testing.storage import FaultyStorage, MemoryStorage


@pytest.fixture(scope="module")
def files(ledger: ModuleType) -> dict[str, bytes]:
    """Generations 1 to 5: nothing, 1 2, then 3 4, 1 replaced by 5, then 6."""
    folder = MemoryStorage()
    book = ledger.Ledger(folder)
    book.create()
    book.open()
    book.add(1, 2)
    book.add(3, 4)
    book.replace(1, 5)
    book.add(6)
    book.close()
    return folder.contents()


def names(files: dict[str, bytes], generation: int) -> list[str]:
    """The data files of a generation."""
    cut = {name: content for name, content in files.items() if name <= manifest_name(generation) or name[0] != "g"}
    folder = MemoryStorage({**cut, "commits": files["commits"][: generation * 64]})
    with Generations(folder).read() as opened:
        assert opened.generation == generation
        return [record.name for record in opened.manifest.records()]


def without(files: dict[str, bytes], *gone: str) -> MemoryStorage:
    return MemoryStorage({name: content for name, content in files.items() if name not in gone})


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :]


def test_a_sound_index_is_sound(ledger: ModuleType, files: dict[str, bytes]) -> None:
    folder = MemoryStorage(files)
    report = Generations(folder).verify(ledger.told)
    assert report.sound
    assert report.damages == report.remarks == ()
    assert (report.generation, report.content, report.files, report.records) == (5, "2 3 4 5 6", 5, 5)
    assert report.bytes == sum(len(files[name]) for name in names(files, 5))
    assert folder.contents().keys() == files.keys() | {"lock"}
    assert {name: content for name, content in folder.contents().items() if name in files} == files


def test_the_same_content_is_told_whatever_its_generations(ledger: ModuleType, files: dict[str, bytes]) -> None:
    book = ledger.Ledger(MemoryStorage(files), acknowledged=frozenset({2, 3, 4, 5, 6}))
    before = book.generations.verify(ledger.told)
    book.open()
    book.merge()
    book.collect()
    after = book.generations.verify(ledger.told)
    assert after.content == before.content
    assert (after.generation, after.files) == (6, 1)
    assert after.digest != before.digest


@given(data=st.data())
def test_any_flipped_byte_of_the_newest_generation_is_found_and_named(
    ledger: ModuleType, files: dict[str, bytes], data: Any
) -> None:
    name = data.draw(st.sampled_from([*names(files, 5), manifest_name(5), "commits"]))
    place = data.draw(st.integers(0, len(files[name]) - 1))
    report = Generations(MemoryStorage({**files, name: flipped(files[name], place)})).verify(ledger.told)
    if name == "commits" and place >= len(files[name]) - 64:  # the last record: the generation after it is the newest
        assert report.generation == 5
        assert "no record" in report.remarks[0]
    else:
        assert not report.sound
        assert name in report.damages[0]
        assert report.content is None or name == "commits"


def test_every_damaged_file_is_listed(files: dict[str, bytes]) -> None:
    damaged = names(files, 5)[1:4]
    folder = MemoryStorage({**files, **{name: flipped(files[name], 90) for name in damaged}})
    report = Generations(folder).verify()
    assert len(report.damages) == 3
    assert all(name in damage for name, damage in zip(damaged, report.damages, strict=True))


def test_a_damaged_earlier_manifest_is_remarked_on(files: dict[str, bytes]) -> None:
    report = Generations(MemoryStorage({**files, manifest_name(3): b"x"})).verify()
    assert report.sound
    assert manifest_name(3) in report.remarks[0]


def test_a_file_that_the_system_does_not_let_us_read_is_listed_and_not_given_up(files: dict[str, bytes]) -> None:
    refused = names(files, 5)[2]

    class Refusing:
        def __init__(self) -> None:
            self._inner = without(files, names(files, 5)[-1])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def map(self, name: str) -> Any:
            if name == refused:
                raise StorageFailed(f"mapping {name}", "a disk that reads", "Look at the disk.")
            return self._inner.map(name)

    report = Generations(Refusing()).verify()
    assert [name in damage for name, damage in zip((refused, names(files, 5)[-1]), report.damages, strict=True)]
    with pytest.raises(StorageFailed, match=refused):
        Generations(Refusing()).repair(accept_loss=True)


def test_an_empty_folder_is_sound_and_needs_no_repair() -> None:
    assert Generations(MemoryStorage()).verify() == VerifyReport()
    assert Generations(MemoryStorage()).repair(accept_loss=True) == RepairReport(())


def test_what_only_the_content_shows_is_damage(files: dict[str, bytes]) -> None:
    def refuse(_: object) -> str:
        raise CorruptIndex("ids that are not sorted", "sorted ones", "Repair.")

    report = Generations(MemoryStorage(files)).verify(refuse)
    assert report.damages == ("ids that are not sorted; expected sorted ones. Repair.",)


def test_verification_goes_on_beside_a_writer_that_commits_and_collects(ledger: ModuleType, files: Any) -> None:
    folder = MemoryStorage(files)
    book = ledger.Ledger(folder, acknowledged=frozenset({2, 3, 4, 5, 6}))
    book.open()

    class Meanwhile:
        """The writer merges and collects whenever a lease is taken, three times."""

        times = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(folder, name)

        def lock(self, name: str, note: bytes) -> Any:
            if name.startswith("lease") and self.times < 3:
                self.times += 1
                book.merge()
                book.merge()
                book.collect()
            return folder.lock(name, note)

    report = Generations(Meanwhile()).verify(ledger.told)
    assert report.damages == ()
    assert report.content == "2 3 4 5 6"


def test_a_sound_index_needs_no_repair(files: dict[str, bytes]) -> None:
    folder = MemoryStorage(files)
    for accept in (False, True):
        assert Generations(folder).repair(accept_loss=accept).damages == ()
        assert {name for name in folder.names() if name != "lock"} == files.keys() - {"lock"}


def test_a_report_of_what_would_be_lost_changes_nothing(files: dict[str, bytes]) -> None:
    last = names(files, 5)[-1]
    folder = without(files, last)
    before = folder.contents()
    report = Generations(folder).repair()
    assert (report.newest, report.restored, report.written) == (5, 4, None)
    assert report.lost == ("segment 5 of 1 documents",)
    assert last in report.damages[0]
    assert {name: folder.contents()[name] for name in before} == before
    with pytest.raises(CorruptIndex):
        Generations(folder).read()


def test_repair_takes_the_newest_generation_that_is_sound(ledger: ModuleType, files: dict[str, bytes]) -> None:
    folder = without(files, names(files, 5)[-1])
    generations = Generations(folder)
    report = generations.repair(accept_loss=True)
    assert (report.restored, report.written) == (4, 6)
    assert ledger.read(folder) == {2, 3, 4, 5}
    after = generations.verify(ledger.told)
    assert after.sound
    assert after.remarks[0] == "Repaired from generation 4. Lost: segment 5 of 1 documents."
    goes_on(ledger, folder, frozenset({2, 3, 4, 5}))


def goes_on(ledger: ModuleType, folder: MemoryStorage, content: frozenset[int]) -> None:
    """More is written and collected, and the damage is forgotten."""
    book = ledger.Ledger(folder, acknowledged=content)
    book.open()
    book.add(9)
    book.merge()
    book.collect()
    book.close()
    report = book.generations.verify(ledger.told)
    assert report.damages == report.remarks == ()
    assert ledger.read(folder) == content | {9}


def test_repair_names_removals_that_come_back(ledger: ModuleType, files: dict[str, bytes]) -> None:
    tombstones = next(
        name for name in names(files, 5) if name not in names(files, 3) and name not in names(files, 5)[-2:]
    )
    folder = without(files, tombstones)
    report = Generations(folder).repair(accept_loss=True)
    assert report.restored == 3
    assert report.lost == (
        "removals and updates in segment 1 after generation 3",
        "segment 4 of 1 documents",
        "segment 5 of 1 documents",
        "changes of settings or codebooks after generation 3",
    )
    assert ledger.read(folder) == {1, 2, 3, 4}


def test_repair_names_what_the_damaged_manifest_would_have_told(ledger: ModuleType, files: dict[str, bytes]) -> None:
    folder = without(files, manifest_name(5))
    report = Generations(folder).repair(accept_loss=True)
    assert (report.newest, report.restored, report.written) == (5, 4, 6)
    assert report.lost == ("what was written after generation 4: the manifest of generation 5 is damaged",)
    goes_on(ledger, folder, frozenset({2, 3, 4, 5}))


def test_repair_drops_damaged_segments_where_no_generation_is_sound(
    ledger: ModuleType, files: dict[str, bytes]
) -> None:
    """The first segment is in all generations but the empty one, which is not on the disk any more."""
    folder = MemoryStorage(files)
    book = ledger.Ledger(folder, acknowledged=frozenset({2, 3, 4, 5, 6}))
    book.open()
    book.collect()
    book.close()
    first = names(files, 5)[0]
    folder = MemoryStorage({**folder.contents(), first: b""})
    report = Generations(folder).repair(accept_loss=True)
    assert (report.newest, report.restored, report.written) == (5, 5, 6)
    assert report.lost == ("segment 1 of 2 documents",)
    goes_on(ledger, folder, frozenset({3, 4, 5, 6}))


def test_repair_refuses_where_nothing_can_be_saved(ledger: ModuleType) -> None:
    folder = MemoryStorage()
    book = ledger.Ledger(folder)
    book.create()
    book.open()
    book.add(1)
    book.merge()
    book.writer.collect(1)
    book.close()
    folder = without(folder.contents(), *(name for name in folder.names() if name.startswith("s-")))
    assert Generations(folder).repair().lost == ("everything",)
    with pytest.raises(CorruptIndex, match=r"which is missing; .*Restore a snapshot"):
        Generations(folder).repair(accept_loss=True)
    assert folder.lock("lock", b"") is not None


@pytest.mark.parametrize("log", [None, b"", b"rubbish", bytes(640)])
def test_a_lost_log_is_begun_anew(ledger: ModuleType, files: dict[str, bytes], log: bytes | None) -> None:
    folder = without(files, "commits") if log is None else MemoryStorage({**files, "commits": log})
    with pytest.raises(CorruptIndex):
        ledger.read(folder)
    report = Generations(folder).repair(accept_loss=True)
    assert (report.newest, report.restored, report.written) == (5, 5, 6)
    goes_on(ledger, folder, frozenset({2, 3, 4, 5, 6}))


def test_a_log_damaged_in_the_middle_is_vouched_for_no_more(ledger: ModuleType, files: dict[str, bytes]) -> None:
    folder = MemoryStorage({**files, "commits": flipped(files["commits"], 100)})
    assert ledger.read(folder) == {2, 3, 4, 5, 6}
    report = Generations(folder).repair(accept_loss=True)
    assert report.damages == ("commits: a record before offset 128 is lost or damaged",)
    assert (report.restored, report.lost, report.written) == (5, (), 6)
    goes_on(ledger, folder, frozenset({2, 3, 4, 5, 6}))


@pytest.mark.parametrize("fault", ["error", "late", "short"])
@pytest.mark.parametrize(("gone", "content"), [("commits", {2, 3, 4, 5, 6}), (manifest_name(5), {2, 3, 4, 5})])
def test_a_repair_that_fails_gives_up_nothing_and_can_be_made_again(
    ledger: ModuleType, files: dict[str, bytes], gone: str, content: set[int], fault: Any
) -> None:
    """The damage stays where it was: no older state stands for the newest, and no empty folder for an index."""
    failures = 0
    for at in range(1, 70):
        folder = without(files, gone)
        try:
            Generations(FaultyStorage(folder, at=at, fault=fault)).repair(accept_loss=True)
        except (StorageFailed, IndexLocked):
            failures += 1
            folder = folder.after_death()
            with pytest.raises(CorruptIndex):
                ledger.read(folder)
            Generations(folder).repair(accept_loss=True)
        assert ledger.read(folder.after_death()) == content
    assert failures > 20


def test_repair_waits_for_no_writer(ledger: ModuleType, files: dict[str, bytes]) -> None:
    folder = without(files, names(files, 5)[-1])
    lock = folder.lock("lock", b"process 7 on a machine")
    assert Generations(folder, patience=0.01).repair().restored == 4
    with pytest.raises(IndexLocked, match="process 7 on a machine"):
        Generations(folder).repair(accept_loss=True)
    assert lock is not None


@pytest.fixture
def original(ledger: ModuleType, tmp_path: Path) -> Any:
    """A ledger in a real folder, its writer open."""
    book = ledger.Ledger(FolderStorage(tmp_path / "index", create=True))
    book.create()
    book.open()
    book.add(1, 2)
    book.replace(1, 3)
    yield book
    book.close()


def test_a_snapshot_is_an_index_of_its_own(ledger: ModuleType, original: Any, tmp_path: Path) -> None:
    with original.generations.read() as opened:
        original.generations.snapshot(opened, tmp_path / "copy")
        linked = opened.manifest.segments[0].files[0].name
        assert (tmp_path / "copy" / linked).stat().st_ino == (tmp_path / "index" / linked).stat().st_ino
        there = {path.name for path in (tmp_path / "copy").iterdir()}
        assert there == {"commits", manifest_name(3), *(record.name for record in opened.manifest.records())}
    copy = ledger.Ledger(FolderStorage(tmp_path / "copy"), acknowledged=frozenset({2, 3}))
    assert copy.generations.verify(ledger.told).content == "2 3"
    copy.open()
    copy.add(4)
    copy.merge()
    copy.collect()
    original.add(5)
    original.merge()
    original.writer.collect(1)
    copy.writer.collect(1)
    copy.close()
    assert ledger.read(copy.storage) == {2, 3, 4}
    assert ledger.read(original.storage) == {2, 3, 5}
    for book in (copy, original):
        assert book.generations.verify(ledger.told).damages == ()


def test_a_snapshot_of_an_older_generation_is_of_that(ledger: ModuleType, original: Any, tmp_path: Path) -> None:
    with original.generations.read() as opened:
        for number in (7, 8, 9):
            original.add(number)
            original.merge()
            original.collect()
        original.generations.snapshot(opened, tmp_path / "copy")
    assert ledger.read(FolderStorage(tmp_path / "copy")) == {2, 3}


def test_what_is_collected_cannot_be_copied_any_more(original: Any, tmp_path: Path) -> None:
    opened = original.generations.read()
    opened.close()
    original.merge()
    original.merge()
    original.collect()
    with pytest.raises(UnreadableFile, match="collected by now"):
        original.generations.snapshot(opened, tmp_path / "copy")
    assert [*(tmp_path / "copy").iterdir()] == []


def test_a_snapshot_goes_into_a_new_or_empty_folder(original: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "Thesis.doc").write_text("years of work")
    (tmp_path / "empty").mkdir()
    with original.generations.read() as opened:
        for folder in (tmp_path / "full", tmp_path / "index"):
            with pytest.raises(InvalidOption, match="a folder that is new or empty"):
                original.generations.snapshot(opened, folder)
        original.generations.snapshot(opened, tmp_path / "empty")
    assert (tmp_path / "full" / "Thesis.doc").read_text() == "years of work"


def test_a_snapshot_that_fails_leaves_nothing_that_looks_like_an_index(
    ledger: ModuleType, original: Any, tmp_path: Path
) -> None:
    for at in range(1, 6):
        with original.generations.read() as opened:
            failing = Generations(FaultyStorage(original.storage, at=at))
            folder = tmp_path / f"copy-{at}"
            try:
                failing.snapshot(opened, folder)
            except StorageFailed:
                assert [*folder.iterdir()] == []
                failing.snapshot(opened, folder)
        assert ledger.read(FolderStorage(folder)) == {2, 3}


def test_half_a_snapshot_is_no_index(ledger: ModuleType, original: Any, tmp_path: Path) -> None:
    """As a crash leaves it: files in any number, no log."""
    with original.generations.read() as opened:
        original.generations.snapshot(opened, tmp_path / "copy")
        copied = sorted(path.name for path in (tmp_path / "copy").iterdir())
    content = {name: (tmp_path / "copy" / name).read_bytes() for name in copied}
    for name in copied:
        with pytest.raises(CorruptIndex):
            ledger.read(without(content, "commits") if name == "commits" else without(content, name))
    assert ledger.read(without(content, "commits", manifest_name(3))) is None


def test_records_of_files_can_be_compared(files: dict[str, bytes]) -> None:
    with Generations(MemoryStorage(files)).read() as opened:
        record = opened.manifest.segments[0].files[0]
        assert opened.file(record).record == record
        assert evolve(record, length=1) != record
