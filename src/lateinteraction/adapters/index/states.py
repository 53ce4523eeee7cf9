"""Which generation is the newest: the rules that `generations` argues for, applied to a log and a listing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import evolve, frozen

from lateinteraction.adapters.index.commits import COMMITS, LogEnd, aborted, log_size, read_end
from lateinteraction.adapters.index.files import StoredFile
from lateinteraction.adapters.index.leases import owner
from lateinteraction.adapters.index.manifests import Manifest, decode, digest_of, generation_of, manifest_name
from lateinteraction.adapters.index.storage import Lock, Storage
from lateinteraction.domain.errors import CorruptIndex, StorageFailed

LOCK = "lock"
PATIENCE = 1.0
"""Seconds that a reader waits for the fate of a generation that a writer has published and not yet logged.

Two syncs lie between; what takes longer is a log that lost its last record."""
_PAUSE = 0.002
_log = logging.getLogger(__name__)


@frozen
class State:
    """A committed generation: its manifest, the digest of that, and the end of the log that was read with it."""

    manifest: Manifest
    digest: bytes
    end: LogEnd


@frozen
class Look:
    """A log and a listing that belong together.

    Attributes:
        end: of the log.
        published: the generation after the last that the log names, where there is a manifest of it.
    """

    end: LogEnd
    published: int | None


def look(storage: Storage) -> Look:
    """Read the end of the log and the names of manifests.

    Raises:
        CorruptIndex: manifests that no order of events accounts for.
    """
    while True:
        end = read_end(storage)
        generations = {each for each in map(generation_of, storage.names()) if each is not None}
        if log_size(storage) == end.size:
            break
    ahead = sorted(each for each in generations if each > end.number)
    if ahead and ahead != [end.number + 1]:
        raise _without_record(ahead[-1], end)
    if end.newest is None and (forgotten := generations - aborted(storage) - {end.number + 1}):
        raise _without_record(max(forgotten), end)
    return Look(end, ahead[0] if ahead else None)


def newest(storage: Storage, patience: float = PATIENCE) -> State | None:
    """The newest generation for a reader, who changes nothing; None where there is no index.

    Raises:
        CorruptIndex: it cannot be told, or its manifest is damaged or missing.
    """
    while True:
        looked = _settled(storage, time.monotonic() + patience)
        try:
            state = decided(storage, looked)
        except FileNotFoundError:  # its writer has just taken it back
            continue
        except CorruptIndex:
            if log_size(storage) == looked.end.size:
                raise
            continue  # what was the newest is collected by now
        if looked.published is None or log_size(storage) == looked.end.size:
            return state


def logged(storage: Storage, end: LogEnd) -> State | None:
    """What the log names as the newest."""
    if end.newest is None:
        return None
    manifest, digest = load(storage, end.newest.generation, end.newest.digest)
    return State(manifest, digest, end)


def decided(storage: Storage, looked: Look) -> State | None:
    """The newest generation where nobody is between publishing one and logging it.

    One that is published and not in the log is it, where all its files are there: its writer died, or the log lost the
    record of it. Where they are not, the power failed before their names were on the disk, and it was never committed.

    Raises:
        FileNotFoundError: it is not there any more.
    """
    if looked.published is None:
        return logged(storage, looked.end)
    manifest, digest = load(storage, looked.published, None)
    try:
        for record in manifest.records():
            StoredFile.open(storage, record)
    except CorruptIndex:
        if looked.end.loose:  # its record was begun, which is after all names were on the disk
            raise
        return logged(storage, looked.end)
    _log.info("generation %d is published and not in the log: its writer ended early", manifest.generation)
    return State(manifest, digest, looked.end)


def load(storage: Storage, generation: int, digest: bytes | None) -> tuple[Manifest, bytes]:
    """A manifest, and its digest, which is the given one where the log gives one.

    Raises:
        CorruptIndex: it is damaged, or missing although the log names it.
        FileNotFoundError: it is missing, and the log does not name it.
    """
    name = manifest_name(generation)
    try:
        data = storage.read(name)
    except FileNotFoundError as error:
        if digest is None:
            raise
        raise _not_as_logged(f"{name}, which is missing", digest) from error
    found = digest_of(data)
    if digest is not None and found != digest:
        raise _not_as_logged(f"{name} of digest {found.hex()}", digest)
    return decode(data, generation), found


@contextmanager
def alone(storage: Storage) -> Iterator[Lock | None]:
    """Hold the writer's lock for a moment; None where it is held, or cannot be."""
    try:
        lock = storage.lock(LOCK, owner()) if storage.writable else None
    except StorageFailed:  # it belongs to another user
        lock = None
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def _settled(storage: Storage, deadline: float) -> Look:
    """A look in which a published generation was not logged because its writer died, not because it is at it.

    What is published after the first look is later than the question, and not waited for.
    """
    first = looked = look(storage)
    while looked.published is not None and looked.published == first.published:
        with alone(storage) as lock:
            looked = look(storage)
            if lock is not None or time.monotonic() > deadline:
                return looked
        time.sleep(_PAUSE)
    return evolve(looked, published=None)


def _without_record(generation: int, end: LogEnd) -> CorruptIndex:
    return CorruptIndex(
        f"{manifest_name(generation)}, and {COMMITS} of {end.size} bytes that ends with generation {end.number}",
        "a record of every generation but the next",
        "The log is damaged or missing: restore the folder from a copy, or see what `repair` can save.",
    )


def _not_as_logged(found: str, digest: bytes) -> CorruptIndex:
    return CorruptIndex(
        found,
        f"the manifest of digest {digest.hex()} that {COMMITS} names",
        "Restore the folder from a copy, or see what `repair` can save.",
    )
