"""Taking over from the last writer: its lock, and what it left unfinished."""

from __future__ import annotations

import time

from lateinteraction.adapters.index.commits import COMMITS, LogEnd, abort_after, append, commit_after
from lateinteraction.adapters.index.leases import owner
from lateinteraction.adapters.index.manifests import manifest_name
from lateinteraction.adapters.index.states import LOCK, State, decided, look
from lateinteraction.adapters.index.storage import Lock, Storage
from lateinteraction.domain.errors import IndexLocked

_LOCK_PATIENCE = 0.3
"""Seconds in which a reader that only looked whether a writer lives has given the lock back."""


def lock_writer(storage: Storage) -> Lock:
    """The lock of the one writer.

    Raises:
        IndexLocked: another process or object has it.
        StorageFailed: the folder cannot be written to.
    """
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        lock = storage.lock(LOCK, owner())
        if lock is not None:
            return lock
        if time.monotonic() > deadline:
            holder = storage.note(LOCK).decode("utf-8", "replace") or "a process without a name"
            raise IndexLocked(
                f"{storage!r}, which {holder} writes to",
                "one writer at a time",
                "Wait until it closes the index, or end it. Reading needs no lock.",
            )
        time.sleep(0.01)


def recover(storage: Storage) -> tuple[State | None, LogEnd]:
    """Make final what the last writer left: whoever has taken the lock does this before anything else.

    A generation that was published and not logged is logged, or taken back where its files are not all there. What was
    only read so far is brought to the disk, and the log ends in a whole record.

    Returns:
        The newest generation, None where there is none, and the end of the log.
    """
    looked = look(storage)
    state, end, published = decided(storage, looked), looked.end, looked.published
    storage.sync_folder()
    if published is not None and state is not None and state.manifest.generation == published:
        end = append(storage, end, commit_after(end, published, state.digest))
    elif published is not None or end.loose:
        end = append(storage, end, abort_after(end))
        storage.unlink(manifest_name(end.number))
    elif end.size:
        storage.sync(COMMITS)
    return state, end
