"""A writer dies, or the power goes, at every operation: what was acknowledged is there, or the one commit under way."""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType
from typing import Any, Literal

import pytest

from lateinteraction.adapters.index.generations import Generations
from lateinteraction.domain.errors import StorageFailed
from lateinteraction.testing.storage import FaultyStorage, Killed, MemoryStorage

Fault = Literal["error", "late", "short", "enospc", "kill"]
OPERATIONS = range(1, 128)
"""Of the ledger's life without faults."""
SEEDS = 6
"""Power cuts at each operation: nothing kept, everything kept, and drawn ones."""


def killed(ledger: ModuleType, at: int) -> tuple[Any, MemoryStorage]:
    """A ledger whose process died at an operation, and the folder that it wrote to."""
    folder = MemoryStorage()
    book = ledger.Ledger(FaultyStorage(folder, at=at, fault="kill"))
    died = False
    try:
        for step in ledger.STEPS:
            step(book)
    except Killed:
        died = True
    assert died
    return book, folder


def test_a_killed_writer_leaves_the_acknowledged_state_or_the_next(ledger: ModuleType) -> None:
    for at in OPERATIONS:
        book, folder = killed(ledger, at)
        ledger.check_goes_on(folder.after_death(), book.possible)


def test_what_a_writer_finds_after_a_crash_stays_through_a_power_cut(ledger: ModuleType) -> None:
    """It may show it to people, who rely on it as if it had been acknowledged."""
    for at in OPERATIONS:
        book, folder = killed(ledger, at)
        if book.acknowledged is None:
            continue
        heir = folder.after_death()
        Generations(heir).writer().close()
        found = ledger.read(heir)
        for seed in range(4):
            assert ledger.read(heir.after_power_cut(seed)) == found


@pytest.mark.parametrize("fault", ["kill", "error", "late", "short"])
def test_a_recovery_that_fails_changes_no_answer_and_can_be_made_again(ledger: ModuleType, fault: Fault) -> None:
    for at in range(30, 60):  # the whole of a commit
        book, folder = killed(ledger, at)
        found = ledger.read(folder.after_death())
        for step in range(2, 14):
            heir = folder.after_death()
            with suppress(Killed, StorageFailed):
                Generations(FaultyStorage(heir, at=step, fault=fault)).writer().close()
            assert ledger.read(heir.after_death()) == found
            ledger.check_goes_on(heir.after_power_cut(at * step), book.possible)


def test_a_power_cut_leaves_the_acknowledged_state_or_the_next(ledger: ModuleType) -> None:
    for at in OPERATIONS:
        book, folder = killed(ledger, at)
        for seed in range(SEEDS):
            ledger.check_goes_on(folder.after_power_cut(seed), book.possible)


@pytest.mark.deep
@pytest.mark.parametrize("at", OPERATIONS)
def test_many_power_cuts_leave_the_acknowledged_state_or_the_next(ledger: ModuleType, at: int) -> None:
    book, folder = killed(ledger, at)
    for seed in range(SEEDS, 200):
        ledger.check_goes_on(folder.after_power_cut(seed), book.possible)


class Full:
    """A storage whose disk is full for two appends to the log: of the first, half is written."""

    def __init__(self, inner: MemoryStorage) -> None:
        self._inner, self.appends = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def append(self, name: str, data: bytes) -> None:
        self.appends += 1
        if self.appends in (2, 3):
            self._inner.append(name, data[: len(data) // 2] if self.appends == 2 else b"")
            raise StorageFailed("an append", "space", "Free some.")
        self._inner.append(name, data)


def test_a_power_cut_after_a_torn_record_that_could_not_be_taken_back_is_no_damage(ledger: ModuleType) -> None:
    """The next commit writes the abort first, so the torn bytes are never taken for its own."""
    for at in range(46, 64):  # from the torn record to the next one
        folder = MemoryStorage()
        book = ledger.Ledger(FaultyStorage(Full(folder), at=at, fault="kill"))
        with suppress(Killed):
            book.create()
            book.open()
            with suppress(StorageFailed):
                book.add(1)
            book.in_flight = None
            book.add(2, 3)
        for seed in range(40):
            ledger.check_goes_on(folder.after_power_cut(seed), (*book.possible, frozenset({1})))
