"""The log: whole records count, torn ones are passed over, a lost one is noticed, an abort takes back."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.commits import (
    RECORD,
    Kind,
    LogEnd,
    Record,
    abort_after,
    append,
    check_log,
    commit_after,
    committed,
    log_size,
    read_end,
    salvage_end,
)
from lateinteraction.domain.errors import CorruptIndex
from lateinteraction.testing.storage import MemoryStorage

DIGESTS = st.binary(min_size=16, max_size=16)
EVENTS = st.lists(st.sampled_from(["commit", "abort", "unsynced", "torn"]), max_size=40)


def digest(generation: int) -> bytes:
    return generation.to_bytes(16, "little")


def committed_to(storage: MemoryStorage, end: LogEnd) -> LogEnd:
    """One more commit, of the next generation."""
    return append(storage, end, commit_after(end, end.number + 1, digest(end.number + 1)))


def aborted_after(storage: MemoryStorage, before: LogEnd) -> LogEnd:
    """The next generation is none; what is in the log of it is behind `before`."""
    actual = LogEnd(log_size(storage), before.number, before.checksum, before.newest)
    return append(storage, actual, abort_after(before))


def played(events: list[str], storage: MemoryStorage) -> tuple[LogEnd, list[int]]:
    """A log of these events, its end as its writer knows it, and the generations that are committed."""
    end, generations = LogEnd(), []
    for event in events:
        if event == "commit":
            end = committed_to(storage, end)
            generations.append(end.number)
        elif event == "abort":
            end = aborted_after(storage, end)
        elif event == "unsynced":  # the commit is there, its sync failed, it is taken back
            committed_to(storage, end)
            end = aborted_after(storage, end)
        else:
            storage.append("commits", b"COMM" + bytes(9))
            end = aborted_after(storage, end)
    return end, generations


@given(events=EVENTS)
def test_the_end_of_a_log_is_what_its_writer_knows(events: list[str]) -> None:
    storage = MemoryStorage()
    end, generations = played(events, storage)
    assert read_end(storage) == end
    assert (end.newest.generation if end.newest else None) == (generations[-1] if generations else None)
    if events:
        assert check_log(storage).damages == ()


@given(events=EVENTS, count=st.integers(1, 5))
def test_the_last_commits_are_those_that_were_not_taken_back(events: list[str], count: int) -> None:
    storage = MemoryStorage()
    _, generations = played(events, storage)
    assert [record.generation for record in committed(storage, count)] == generations[::-1][:count]
    assert [record.digest for record in committed(storage)] == [digest(each) for each in reversed(generations)]


@given(events=EVENTS, torn=st.binary(min_size=1, max_size=RECORD - 1))
def test_bytes_after_the_last_record_are_loose_and_change_nothing_else(events: list[str], torn: bytes) -> None:
    storage = MemoryStorage()
    end, _ = played(events, storage)
    storage.append("commits", torn)
    found = read_end(storage)
    assert found == LogEnd(end.size + len(torn), end.number, end.checksum, end.newest, loose=True)
    after = committed_to(storage, found)
    assert read_end(storage) == after
    assert after.size % RECORD == 0
    assert check_log(storage).damages == ()


@given(generation=st.integers(1, 2**64 - 1), content=DIGESTS, previous=st.integers(0, 2**32 - 1))
def test_a_record_has_sixty_four_bytes_of_which_each_counts(generation: int, content: bytes, previous: int) -> None:
    record = Record(Kind.RESTART, generation, content, previous)
    assert len(record.data) == RECORD
    assert read_end(MemoryStorage({"commits": record.data})).newest == record
    for place in range(RECORD):
        changed = bytearray(record.data)
        changed[place] ^= 0x10
        assert read_end(MemoryStorage({"commits": bytes(changed)})) == LogEnd(RECORD, loose=True)


def test_a_long_log_is_read_from_its_end_only() -> None:
    storage = MemoryStorage()
    end = LogEnd()
    for _ in range(300):
        end = committed_to(storage, end)

    class Reads(list[int]):
        def size(self, name: str) -> int:
            return storage.size(name)

        def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
            self.append(length or 0)
            return storage.read(name, offset, length)

    reads = Reads()
    assert read_end(reads) == end
    assert sum(reads) <= 4096


def test_a_commit_before_many_aborts_is_found() -> None:
    storage = MemoryStorage()
    end = committed_to(storage, committed_to(storage, LogEnd()))
    for _ in range(1000):
        end = aborted_after(storage, end)
    assert read_end(storage) == end
    assert end.newest == Record(Kind.COMMIT, 2, digest(2), end.newest.previous)
    assert end.number == 1002
    assert [record.generation for record in committed(storage, 2)] == [2, 1]


def test_a_record_that_repeats_an_earlier_generation_is_damage() -> None:
    storage = MemoryStorage()
    played(["commit"] * 5, storage)
    for again in range(5):
        repeated = MemoryStorage({"commits": storage.read("commits") + storage.read("commits", RECORD * again, RECORD)})
        with pytest.raises(CorruptIndex, match="commits at offset 320: a record of generation"):
            read_end(repeated)


def test_a_commit_that_is_lost_before_an_abort_is_noticed() -> None:
    """Else the one before it would be answered: an older state."""
    storage = MemoryStorage()
    played(["commit", "commit", "commit", "abort"], storage)
    content = storage.read("commits")
    for place in range(2 * RECORD, 3 * RECORD):
        changed = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        with pytest.raises(CorruptIndex, match="a record that does not follow"):
            read_end(MemoryStorage({"commits": changed}))


@given(events=EVENTS.map(lambda events: ["commit", *events]), place=st.integers(0, RECORD - 1))
def test_checking_the_log_finds_every_lost_record_but_the_last(events: list[str], place: int) -> None:
    """The last one is found by its manifest. A commit that was taken back may be lost: nothing hangs on it."""
    storage = MemoryStorage()
    ends = [played(events[: count + 1], MemoryStorage())[0].size for count in range(len(events))]
    end, _ = played(events, storage)
    content = storage.read("commits")
    for size in ends[:-1]:
        at = size - RECORD + place
        lost = MemoryStorage({"commits": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]})
        assert check_log(lost).damages
        with suppress(CorruptIndex):
            assert read_end(lost).newest == end.newest


def test_a_missing_log_is_said_to_be_missing() -> None:
    assert check_log(MemoryStorage()).damages == ("commits is missing",)
    assert read_end(MemoryStorage()) == salvage_end(MemoryStorage()) == LogEnd()


def test_a_restart_vouches_for_nothing_before_it() -> None:
    storage = MemoryStorage()
    played(["commit", "commit", "commit"], storage)
    content = storage.read("commits")
    broken = MemoryStorage({"commits": content[:RECORD] + bytes(RECORD) + content[2 * RECORD :]})
    assert check_log(broken).damages == ("commits: a record before offset 128 is lost or damaged",)
    end = salvage_end(broken)
    assert (end.number, end.newest) == (3, None)
    after = committed_to(broken, end)
    assert after.newest.kind is Kind.RESTART
    assert check_log(broken).damages == ()
    assert read_end(broken) == after
