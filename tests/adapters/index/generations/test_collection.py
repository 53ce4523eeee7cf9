"""Collection removes what nobody needs and nothing else; leases say what readers need."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Any

import pytest

from lateinteraction.adapters.index.leases import take
from lateinteraction.adapters.index.manifests import manifest_name
from lateinteraction.domain.errors import (
    CorruptIndex,
    InvalidOption,
)
from lateinteraction.testing.storage import FaultyStorage, MemoryStorage, RefusingStorage


def leases(storage: Any) -> list[str]:
    return [name for name in storage.names() if name.startswith("lease-")]


def test_collection_never_takes_the_newest_generation_whatever_the_log_says(ledger: ModuleType, book: Any) -> None:
    size = book.storage.size("commits")
    book.storage.unlink("commits")
    book.storage.append("commits", bytes(size))
    book.writer.collect(1)
    with pytest.raises(CorruptIndex):
        ledger.read(book.storage)
    book.close()
    assert book.generations.repair(accept_loss=True).restored == 3
    assert ledger.read(book.storage) == {1, 2}


def test_where_a_kept_manifest_is_damaged_no_data_file_is_collected(ledger: ModuleType, book: Any) -> None:
    """Nobody knows what it named. Once it is not kept any more, it does not matter."""
    book.merge()
    book.close()
    storage = MemoryStorage({**book.storage.contents(), manifest_name(3): b"rubbish"})
    book = ledger.Ledger(storage, acknowledged=book.acknowledged)
    book.open()
    there = [name for name in storage.names() if name.startswith("s-")]
    book.collect()
    assert [name for name in storage.names() if name.startswith("s-")] == there
    book.writer.collect(1)
    assert [name for name in storage.names() if name.startswith("s-")] == there[-1:]
    assert ledger.read(storage) == {1, 2}


def test_at_least_one_generation_is_kept(book: Any) -> None:
    with pytest.raises(InvalidOption, match="keep = 0"):
        book.writer.collect(0)


def test_a_reader_keeps_its_files_through_every_write_and_collection(ledger: ModuleType, book: Any) -> None:
    with book.generations.read() as opened:
        names = set(opened.files)
        for number in range(3, 12):
            book.replace(number - 2, number)
            book.merge()
            book.collect()
            assert ledger.content_of(opened) == {1, 2}
        assert names < set(book.storage.names())
        assert manifest_name(opened.generation) in book.storage.names()
    book.collect()
    assert not names & set(book.storage.names())
    assert ledger.content_of(opened) == {1, 2}  # what is mapped stays


def test_collection_keeps_the_last_generations_and_what_they_need(ledger: ModuleType, book: Any) -> None:
    for number in range(3, 10):
        book.add(number)
    for keep in (5, 3, 1):
        book.writer.collect(keep)
        manifests = [name for name in book.storage.names() if name.startswith("g-")]
        assert manifests == [manifest_name(each) for each in range(11 - keep, 11)]
    assert ledger.read(book.storage) == {*range(1, 10)}
    book.merge()
    book.writer.collect(1)
    assert len([name for name in book.storage.names() if name.startswith("s-")]) == 1


def test_many_commits_leave_few_files(ledger: ModuleType, book: Any) -> None:
    for number in range(3, 60):
        book.add(number)
        if number % 10 == 0:
            book.merge()
        book.collect()
    assert len(book.storage.names()) < 20


def test_what_is_refused_is_collected_when_it_is_let_go(ledger: ModuleType) -> None:
    book = ledger.Ledger(RefusingStorage(MemoryStorage()))
    book.create()
    book.open()
    book.add(1)
    opened = book.generations.read()
    opened.close()  # its lease is gone, its files are still mapped
    book.merge()
    book.merge()
    book.collect()
    name = opened.manifest.segments[0].files[0].name
    assert name in book.storage.names()
    del opened
    gc.collect()
    book.collect()
    assert name not in book.storage.names()
    assert ledger.read(book.storage) == {1}


def test_the_leases_of_the_dead_are_collected(book: Any) -> None:
    book.storage.append("lease-1-99999-abc", b"process 99999 on a machine")
    opened = book.generations.read()
    assert len(leases(book.storage)) == 2
    book.collect()
    assert len(leases(book.storage)) == 1
    opened.close()
    assert leases(book.storage) == []


def test_a_lease_is_given_back_when_nobody_refers_to_the_generation(book: Any) -> None:
    opened = book.generations.read()
    other = book.generations.read()
    assert len(leases(book.storage)) == 2
    del opened
    gc.collect()
    assert len(leases(book.storage)) == 1
    other.close()
    other.close()
    assert leases(book.storage) == []


def test_a_reader_on_a_full_disk_reads_without_a_lease(ledger: ModuleType, book: Any) -> None:
    full = FaultyStorage(book.storage, at=1, fault="enospc")
    assert ledger.read(full) == {1, 2}
    assert take(full, 3) is None


def test_collection_leaves_files_that_are_being_written(book: Any) -> None:
    left_behind, foreign = f"tmp-1-{'0' * 32}", "tmp-of-somebody-else"
    with book.writer.new_file("segment") as file:
        book.storage.append(left_behind, b"x")
        book.storage.append(foreign, b"x")
        book.collect()
        assert {file.temporary, foreign} <= set(book.storage.names())
        assert left_behind not in book.storage.names()
        file.close()
