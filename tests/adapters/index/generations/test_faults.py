"""Every operation of a small index's life fails once, in every way: nothing acknowledged is lost, and a retry works."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from types import ModuleType
from typing import Any, Literal

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.generations import Generations
from lateinteraction.domain.errors import IndexLocked, StorageFailed
from lateinteraction.testing.storage import FaultyStorage, Killed, MemoryStorage

Fault = Literal["error", "late", "short", "enospc", "kill"]
LAST = 129
"""Operation of the ledger's life without faults; a test sees that it is so."""


def failing(ledger: ModuleType, at: int, fault: Fault) -> Failure | None:
    """The first step that fails, where any does: some faults fall on what may fail, such as removing a temporary."""
    folder = MemoryStorage()
    storage = FaultyStorage(folder, at=at, fault=fault)
    book = ledger.Ledger(storage)
    for number, step in enumerate(ledger.STEPS):
        before = ledger.referenced(folder.after_death())
        try:
            step(book)
        except StorageFailed as error:
            return Failure(folder, storage, book, number, before, error)
    assert ledger.read(folder) == ledger.CONTENT
    return None


@frozen
class Failure:
    """A step that failed, and what there was before it."""

    folder: MemoryStorage
    storage: FaultyStorage
    book: Any
    number: int
    before: dict[str, bytes]
    error: StorageFailed


def test_a_life_without_faults_has_as_many_operations_as_are_tried(ledger: ModuleType) -> None:
    storage = FaultyStorage(MemoryStorage())
    book = ledger.Ledger(storage)
    for step in ledger.STEPS:
        step(book)
    operations = [*storage.journal]
    assert book.acknowledged == ledger.read(storage) == ledger.CONTENT
    assert len(operations) == LAST


@pytest.mark.parametrize("fault", ["error", "late", "short", "enospc"])
def test_a_failed_call_has_changed_nothing_that_is_committed_and_knows_it(ledger: ModuleType, fault: Fault) -> None:
    failures = [failure for at in range(1, LAST + 1) if (failure := failing(ledger, at, fault)) is not None]
    assert len(failures) > 0.8 * LAST
    for failure in failures:
        assert ledger.referenced(failure.folder.after_death()) == failure.before
        assert "may or may not" not in str(failure.error)
        for seed in range(4):
            assert ledger.referenced(failure.folder.after_power_cut(seed)) == failure.before


@pytest.mark.parametrize("fault", ["error", "late", "short"])
def test_a_failed_call_succeeds_when_it_is_repeated(ledger: ModuleType, fault: Fault) -> None:
    for at in range(1, LAST + 1):
        failure = failing(ledger, at, fault)
        if failure is None or (fault == "late" and failure.storage.journal[at - 1] == "lock lock"):
            continue  # a lock that is taken and not given: only the process's end frees it
        for step in ledger.STEPS[failure.number :]:
            step(failure.book)
        assert ledger.read(failure.folder) == failure.book.acknowledged == ledger.CONTENT
        ledger.check_goes_on(failure.folder, (ledger.CONTENT,))


def test_on_a_full_disk_calls_fail_until_there_is_space(ledger: ModuleType) -> None:
    for at in range(1, LAST + 1):
        failure = failing(ledger, at, "enospc")
        if failure is None:
            continue
        for _ in range(3):
            with pytest.raises(StorageFailed):
                ledger.STEPS[failure.number](failure.book)
        with_space = failure.folder.after_death()
        assert ledger.referenced(with_space) == failure.before
        ledger.check_goes_on(with_space, (failure.book.acknowledged,))


def lived_badly(ledger: ModuleType, storage: FaultyStorage) -> Any:
    """The ledger's life, each failed step repeated, up to its death or to where the writer refuses to go on."""
    book = ledger.Ledger(storage)
    with suppress(Killed, IndexLocked):  # a lock that was taken and not given
        for step in ledger.STEPS:
            for _ in range(4):
                try:
                    step(book)
                except StorageFailed as error:
                    if "may or may not" in str(error):
                        return book
                    book.in_flight = None  # it is known that nothing happened
                else:
                    break
            else:
                return book
    return book


@given(
    first=st.integers(1, LAST),
    fault=st.sampled_from(["error", "late", "short", "enospc"]),
    later=st.integers(1, 40),
    second=st.sampled_from(["error", "late", "short", "enospc", "kill"]),
    seed=st.integers(0, 1000),
)
def test_after_two_faults_and_a_power_cut_there_is_the_acknowledged_state_or_one_that_nobody_denied(
    ledger: ModuleType, first: int, fault: Fault, later: int, second: Fault, seed: int
) -> None:
    folder = MemoryStorage()
    book = lived_badly(
        ledger, FaultyStorage(FaultyStorage(folder, at=first, fault=fault), at=first + later, fault=second)
    )
    ledger.check_goes_on(folder.after_power_cut(seed), book.possible)
    ledger.check_goes_on(folder.after_death(), book.possible)


def test_a_writer_killed_while_it_takes_a_commit_back_loses_nothing(ledger: ModuleType) -> None:
    """Half an abort in the log, names on the disk or not: the one before, or the one under way, and no false alarm."""
    counting = FaultyStorage(MemoryStorage())
    lived_badly(ledger, counting)
    manifests = [number for number, each in enumerate(counting.journal, 1) if " g-" in each and "publish" in each][-3:]
    firsts = [number + step for number in manifests for step in range(4)]
    journal = [counting.journal[first - 1].split()[0] for first in firsts]
    assert journal == ["publish", "sync_folder", "append", "sync"] * 3
    for first, fault, later in product(firsts, ("error", "late"), range(1, 5)):
        folder = MemoryStorage()
        inner = FaultyStorage(folder, at=first, fault=fault)
        book = lived_badly(ledger, FaultyStorage(inner, at=first + later, fault="kill"))
        for seed in range(2, 6):
            ledger.check_goes_on(folder.after_power_cut(seed), book.possible)
        heir = folder.after_death()
        Generations(heir).writer().close()
        found = ledger.read(heir)  # and what the next writer finds stays
        assert all(ledger.read(heir.after_power_cut(seed)) == found for seed in range(3))


@pytest.mark.deep
@pytest.mark.parametrize("first", range(1, LAST + 1))
def test_after_any_two_faults_there_is_the_acknowledged_state_or_one_that_nobody_denied(
    ledger: ModuleType, first: int
) -> None:
    for fault, later, second in product(
        ("error", "late", "short", "enospc"), range(1, 16), ("error", "late", "enospc", "kill")
    ):
        folder = MemoryStorage()
        inner = FaultyStorage(folder, at=first, fault=fault)
        book = lived_badly(ledger, FaultyStorage(inner, at=first + later, fault=second))
        for seed in (0, first, first * later):
            ledger.check_goes_on(folder.after_power_cut(seed), book.possible)
        ledger.check_goes_on(folder.after_death(), book.possible)


def test_a_commit_of_unknown_outcome_says_so_and_refuses_all_that_follows(ledger: ModuleType) -> None:
    """The record is written, it cannot be synced, and neither can the abort."""
    folder = MemoryStorage()
    book = ledger.Ledger(folder)
    for step in ledger.STEPS[:3]:
        step(book)
    counting = FaultyStorage(folder.after_death())
    again = ledger.Ledger(counting, acknowledged=book.acknowledged)
    again.open()
    again.add(7)
    synced = max(number for number, each in enumerate(counting.journal, 1) if each == "sync commits")
    heir = folder.after_death()
    inner = FaultyStorage(heir, at=synced, fault="error")
    again = ledger.Ledger(FaultyStorage(inner, at=synced + 2, fault="error"), acknowledged=book.acknowledged)
    again.open()
    with pytest.raises(StorageFailed, match="may or may not have taken place"):
        again.add(7)
    possible = again.possible
    for refused in (lambda: again.add(8), again.collect, again.writer.number):
        with pytest.raises(StorageFailed, match="Open the index anew"):
            refused()
    again.close()
    ledger.check_goes_on(heir, possible)
