"""Leases: files by which readers say which generation they use, locked for as long as they do.

The lock is what counts. A reader that died has none, and collection removes the file that it left.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import final

from lateinteraction.adapters.index.storage import Lock, Storage
from lateinteraction.domain.errors import StorageFailed

_NAME = re.compile(r"lease-([0-9]{1,16})-[0-9]+-[0-9a-f]+")
_log = logging.getLogger(__name__)


@final
class Lease:
    """A reader's hold on the files of a generation."""

    def __init__(self, storage: Storage, name: str, lock: Lock) -> None:
        self._storage, self._name, self._lock = storage, name, lock
        self._process = os.getpid()
        self._held = True

    def release(self) -> None:
        """Once or more often. In a forked child nothing: the lease is its parent's."""
        if not self._held or self._process != os.getpid():
            return
        self._held = False
        _remove(self._storage, self._name, self._lock)


def take(storage: Storage, generation: int) -> Lease | None:
    """Hold a generation; None in a folder that cannot be written to, or is full.

    A reader without a lease may find files gone while it opens them, and then looks again; what it has mapped stays.
    """
    while storage.writable:
        name = f"lease-{generation}-{os.getpid()}-{uuid.uuid4().hex[:16]}"
        try:
            lock = storage.lock(name, owner())
        except StorageFailed as error:
            _log.warning("generation %d is read without a lease: %s", generation, error)
            break
        if lock is not None:  # else a collection looked whether anybody holds it, and removes it
            return Lease(storage, name, lock)
    return None


@contextmanager
def leased(storage: Storage, generation: int) -> Iterator[None]:
    """Hold a generation within a `with` block."""
    lease = take(storage, generation)
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


def held(storage: Storage, names: Iterable[str]) -> set[int]:
    """The generations that live readers hold, among these names of files; leases of the dead are removed.

    A lease that the system does not let us look at, such as another user's, counts as held.
    """
    generations: set[int] = set()
    for name in names:
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        try:
            lock = storage.lock(name, b"")
        except StorageFailed as error:
            _log.debug("%s counts as held: %s", name, error)
            lock = None
        if lock is None:
            generations.add(int(found[1]))
        else:
            _remove(storage, name, lock)
    return generations


def owner() -> bytes:
    """Who this is, for the people who read a lock's file."""
    return f"process {os.getpid()} on {platform.node()}".encode()


def _remove(storage: Storage, name: str, lock: Lock) -> None:
    """Remove the file while it is locked, so that nobody takes a lease that is about to vanish."""
    try:
        gone = _unlinked(storage, name)
    finally:
        lock.release()
    if not gone:  # where an open file cannot be removed
        _unlinked(storage, name)


def _unlinked(storage: Storage, name: str) -> bool:
    try:
        return storage.unlink(name)
    except StorageFailed as error:
        _log.debug("%s is left to the next collection: %s", name, error)
        return True
