"""The log of commits: a record of 64 bytes for each, appended and never changed.

A record counts where its checksum is right. What an append that was cut short left is filled up to 64 bytes by the next
one, and passed over for ever. Each record carries the checksum of the one before it, so a lost one is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import NoReturn
from zlib import crc32

from attrs import evolve, frozen

from lateinteraction.adapters.index.storage import Storage
from lateinteraction.domain.errors import CorruptIndex

COMMITS = "commits"
RECORD = 64
_MAGIC = 0x4D4D4F43  # "COMM"
_LAYOUT = Struct("<IIQ16sI24xI")
_WINDOW = 8
"""Records that are read from the end at first; more where all of them are aborts."""


class Kind(IntEnum):
    """What a record says of its generation."""

    COMMIT = 1
    ABORT = 2
    """It is none: whoever published it could not commit it."""
    RESTART = 3
    """It is committed, and nothing before it is vouched for: the first one, also of a snapshot or a repaired index."""


@frozen
class Record:
    """One record.

    Attributes:
        kind: what it says.
        generation: of which generation.
        digest: of its manifest, 16 bytes; zeros for an abort.
        previous: checksum of the record before it, 0 where there is none. An abort names the one before the commit that
            it takes back, which may or may not have reached the log.
    """

    kind: Kind
    generation: int
    digest: bytes
    previous: int

    @property
    def data(self) -> bytes:
        """The 64 bytes."""
        body = _LAYOUT.pack(_MAGIC, self.kind, self.generation, self.digest, self.previous, 0)[:-4]
        return body + crc32(body).to_bytes(4, "little")

    @property
    def checksum(self) -> int:
        return int.from_bytes(self.data[-4:], "little")


@frozen
class LogEnd:
    """What the end of the log says.

    Attributes:
        size: bytes of the log.
        number: the last generation that it names, committed or aborted; 0 where it names none. The next to be published
            is number + 1.
        checksum: of the last record, which the next one carries.
        newest: the last commit that is not aborted.
        loose: whether bytes follow the last record: an append was cut short, or a record is damaged.
    """

    size: int = 0
    number: int = 0
    checksum: int = 0
    newest: Record | None = None
    loose: bool = False


@frozen
class LogCheck:
    """What reading the whole log found: how many records, and every sign of a lost or damaged one."""

    records: int
    damages: tuple[str, ...]


def read_end(storage: Storage) -> LogEnd:
    """The end of the log, as far back as it takes to find a commit; all defaults where there is no log.

    Raises:
        CorruptIndex: a record that would tell is lost.
    """
    size = log_size(storage)
    window = _WINDOW
    while True:
        start = max(size // RECORD - window, 0) * RECORD
        places = _records(storage, start, size)
        end = _end(places, size, whole=start == 0)
        if end is not None:
            return end
        window *= 8


def salvage_end(storage: Storage) -> LogEnd:
    """The end of a log that may be damaged: behind it nothing is believed, and the next commit is a restart."""
    places = _valid(storage.read(COMMITS), 0) if log_size(storage) else []
    number = max((record.generation for _, record in places), default=0)
    after, checksum = (places[-1][0] + RECORD, places[-1][1].checksum) if places else (0, 0)
    size = log_size(storage)
    return LogEnd(size, number, checksum, loose=size > after)


def append(storage: Storage, end: LogEnd, record: Record) -> LogEnd:
    """Write a record behind `end` and bring it to the disk, with the log's own name if it is the first; the new end.

    Raises:
        StorageFailed: it may be there, in part, or not.
    """
    filler = bytes(-end.size % RECORD)
    storage.append(COMMITS, filler + record.data)
    storage.sync(COMMITS)
    if not end.number:
        storage.sync_folder()
    newest = end.newest if record.kind is Kind.ABORT else record
    return LogEnd(end.size + len(filler) + RECORD, record.generation, record.checksum, newest)


def commit_after(end: LogEnd, generation: int, digest: bytes) -> Record:
    """The record that commits a generation."""
    if end.newest is None:
        return Record(Kind.RESTART, generation, digest, 0)
    return Record(Kind.COMMIT, generation, digest, end.checksum)


def abort_after(end: LogEnd) -> Record:
    """The record that the next generation is none. `end` is what was there before a commit of it was tried."""
    return Record(Kind.ABORT, end.number + 1, bytes(16), end.checksum)


def log_size(storage: Storage) -> int:
    """Bytes of the log, 0 where there is none."""
    try:
        return storage.size(COMMITS)
    except FileNotFoundError:
        return 0


def log_identity(storage: Storage) -> tuple[int, ...]:
    """Which log it is, and in what state; empty where there is none."""
    try:
        return storage.identity(COMMITS)
    except FileNotFoundError:
        return ()


def committed(storage: Storage, count: int | None = None) -> list[Record]:
    """The last commits that were not aborted, newest first: `count` of them where there are as many; all by default."""
    size = log_size(storage)
    window = size if count is None else max(count * 2, _WINDOW)
    while True:
        start = max(size // RECORD - window, 0) * RECORD
        records = [record for _, record in _records(storage, start, size)]
        none = {record.generation for record in records if record.kind is Kind.ABORT}
        found = [record for record in reversed(records) if record.generation not in none]
        if start == 0 or (count is not None and len(found) >= count):
            return found[:count]
        window *= 8


def aborted(storage: Storage) -> set[int]:
    """All generations that the log says are none."""
    return {record.generation for _, record in _records(storage, 0, log_size(storage)) if record.kind is Kind.ABORT}


def check_log(storage: Storage) -> LogCheck:
    """Read every record, and see that none is lost in between. A log that is not there has none."""
    try:
        places = _valid(storage.read(COMMITS), 0)
    except FileNotFoundError:
        return LogCheck(0, (f"{COMMITS} is missing",))
    damages: list[str] = []
    before: list[Record] = []
    for place, record in places:
        if record.kind is Kind.RESTART:
            damages.clear()
        elif not _follows(record, before):
            damages.append(f"{COMMITS}: a record before offset {place} is lost or damaged")
        before.append(record)
    return LogCheck(len(places), tuple(damages))


def _decode(data: bytes) -> Record | None:
    if len(data) != RECORD:
        return None
    magic, kind, generation, digest, previous, checksum = _LAYOUT.unpack(data)
    if magic != _MAGIC or crc32(data[:-4]) != checksum or kind not in (*Kind,) or not generation:
        return None
    record = Record(Kind(kind), generation, digest, previous)
    return record if record.data == data else None


def _records(storage: Storage, start: int, size: int) -> list[tuple[int, Record]]:
    return _valid(storage.read(COMMITS, start, size - start), start) if size else []


def _valid(data: bytes, start: int) -> list[tuple[int, Record]]:
    """The records in these bytes, each with its offset in the log."""
    found = ((start + at, _decode(data[at : at + RECORD])) for at in range(0, len(data), RECORD))
    return [(place, record) for place, record in found if record is not None]


def _follows(record: Record, before: Sequence[Record]) -> bool:
    """Whether nothing is lost between these records and the one after them."""
    if before and _takes_back(record, before[-1]):
        before = before[:-1]
    return record.previous == (before[-1].checksum if before else 0)


def _takes_back(record: Record, before: Record) -> bool:
    return record.kind is Kind.ABORT and before.kind is not Kind.ABORT and record.generation == before.generation


def _end(places: Sequence[tuple[int, Record]], size: int, *, whole: bool) -> LogEnd | None:
    """What these records, the last of the log, say; None where earlier ones are needed."""
    records = [record for _, record in places]
    if len(records) < 2 and not whole:
        return None
    if not records:
        return LogEnd(size, loose=size > 0)
    place, last = places[-1]
    if len(records) > 1 and last.generation <= records[-2].generation and not _takes_back(last, records[-2]):
        _corrupt(place, f"a record of generation {last.generation} after one of {records[-2].generation}")
    end = LogEnd(size, last.generation, last.checksum, loose=size > place + RECORD)
    while places:
        place, record = places[-1]
        if record.kind is not Kind.ABORT:
            return evolve(end, newest=record)
        places = places[: -2 if len(places) > 1 and _takes_back(record, places[-2][1]) else -1]
        if (places or whole) and record.previous != (places[-1][1].checksum if places else 0):
            _corrupt(place, "a record that does not follow the one before it")
    return end if whole else None


def _corrupt(place: int, found: str) -> NoReturn:
    raise CorruptIndex(
        f"{COMMITS} at offset {place}: {found}",
        "records in the order of their generations, none missing",
        "Restore the folder from a copy, or see what `repair` can save.",
    )
