"""Generations: what was acknowledged is never lost, and every reader sees one committed state. Here is the argument.

A folder holds immutable data files `s-…`, one manifest `g-<n>` per generation, a log `commits` of 64-byte records, the
writer's `lock`, readers' `lease-…` files, and temporaries `tmp-…`. Nothing is truncated, rewritten or replaced.

**A commit** of generation n+1, where n is the last number in the log:

1. Data files are written under temporaries and synced. So is the manifest.
2. Data files get their names, then the manifest gets its own.
3. The folder is synced.
4. A record of the manifest's digest is appended to the log.
5. The log is synced, and its own name with its first record. Only now is the commit acknowledged.

**The newest generation** is the last one in the log that is not aborted, or n+1 where `g-<n+1>` is there, valid, not in
the log, and all files it names are sound. What a crash leaves, and what the next reader and writer answer:

- *In 1*: temporaries. Generation n; the temporaries are collected.
- *In 2*, process killed: data files that no manifest names, or all of them and the manifest. Generation n, or n+1.
- *In 2 or 3*, power cut: any of the names. Without the manifest: n. With it and all its files: n+1, and nothing else is
  missing, since each was synced before it got its name. With it and not all of its files: n. It cannot have been
  acknowledged, since the record comes after the folder's sync; the next writer aborts it.
- *In 4 or 5*: all names are on the disk. The record is there or not or torn, in which case its checksum is wrong:
  n+1 in each case.

The next writer brings to the disk what it found and logs n+1, before it does anything else: from then on it is no less
durable than what was acknowledged. A torn record is filled up to 64 bytes by the next append and passed over. Since
records are appended, only the last sector changes, which disks write whole.

**A failed step** after 1 aborts: a record that n+1 is none is appended and synced, and the manifest is unlinked, before
that where 4 was not begun, and with a sync of the folder. The abort carries the checksum of the record before the
commit it takes back, because that one may be lost where its sync failed. Where the abort cannot be written either (the
disk is full) and the log, read again, holds no whole record of n+1, then the manifest is unlinked and the folder
synced, which is as certain; the abort is written before the next commit. Otherwise nobody knows: the error says so and
the writer refuses to go on; reopening decides as after a crash. The number n+1 is used again only where no whole record
of it was ever in the log and its manifest was taken back.

**Damage.** The log's last record names n by digest: a manifest that is missing or different is `CorruptIndex`. When the
last record itself is lost or damaged, `g-<n>` is the one generation after the log's end, and is answered. When more
than one record is lost, manifests are further ahead than one: `CorruptIndex`. A record that repeats an earlier
generation, an abort that does not follow what it takes back, manifests without any log: `CorruptIndex`. Bytes after the
last record mean that all names of the generation after it were on the disk, so where its manifest is there and files
are not, it is `CorruptIndex`. For this to hold, nobody appends to the log before the folder is synced, and a writer
never publishes while the log ends in loose bytes: it appends an abort first.

**A reader** never answers what a living writer may still take back: when `g-<n+1>` is not in the log, it looks whether
the writer's lock is free, and waits for the record if it is not. A folder that it cannot write to gives it no lock to
look at; it waits as long. Waiting ends after a second: what two syncs do not bring is a record that was lost.

**Collection** keeps the last generations and those that leases name; manifests go first. A reader that looked before
it had its lease may find files gone: it looks again, and only where the log has not moved on it is `CorruptIndex`.

File systems without working locks between machines are not for writing from several. A writer that meets another one
there notices it, since nothing is replaced and it looks at the log's size before each commit and each collection; but a
collection that falls into the other's commit may remove what that is about to name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from lateinteraction.adapters.index.commits import log_identity
from lateinteraction.adapters.index.inspection import RepairReport, VerifyReport, repair, verify
from lateinteraction.adapters.index.manifests import Manifest
from lateinteraction.adapters.index.reading import OpenGeneration, no_index, open_newest
from lateinteraction.adapters.index.recovery import lock_writer, recover
from lateinteraction.adapters.index.snapshots import write_snapshot
from lateinteraction.adapters.index.states import PATIENCE, newest
from lateinteraction.adapters.index.storage import Storage
from lateinteraction.adapters.index.writing import EMPTY, Writer
from lateinteraction.domain.errors import InvalidOption


@final
class Generations:
    """The generations in a folder: read, written, verified.

    Args:
        storage: the folder.
        patience: seconds that a reader waits for a commit which is under way.
    """

    def __init__(self, storage: Storage, *, patience: float = PATIENCE) -> None:
        self._storage, self._patience = storage, patience

    def exists(self) -> bool:
        """Whether there is an index.

        Raises:
            CorruptIndex: there is one, and it is damaged.
        """
        return newest(self._storage, self._patience) is not None

    def create(self, settings: Mapping[str, Any]) -> Manifest:
        """Commit a first generation without segments.

        Args:
            settings: JSON.

        Raises:
            InvalidOption: there is an index.
            IndexLocked: somebody else writes.
        """
        lock = lock_writer(self._storage)
        try:
            state, end = recover(self._storage)
            if state is not None:
                raise InvalidOption(
                    f"{self._storage!r}, which holds generation {state.manifest.generation}",
                    "a folder without an index",
                    "Open that one, or name another folder.",
                )
            return Writer(self._storage, lock, EMPTY, end).commit(segments=(), settings=settings)
        finally:
            lock.release()

    def read(self) -> OpenGeneration:
        """Open the newest generation and hold a lease on it.

        Raises:
            UnreadableFile: there is no index.
            CorruptIndex: it is damaged.
            IndexMismatch: a newer version of this library wrote it.
        """
        return open_newest(self._storage, self._patience)

    def refresh(self, opened: OpenGeneration) -> OpenGeneration:
        """The newest generation: the given one where nothing was committed since, which costs one look at the log.

        Files that both have are not opened again. The given one stays open.
        """
        if log_identity(self._storage) == opened.log:
            return opened
        return open_newest(self._storage, self._patience, opened)

    def writer(self) -> Writer:
        """Take the lock, and finish what the last writer left.

        Raises:
            IndexLocked: another process or object writes; says which.
            UnreadableFile: there is no index.
            CorruptIndex: it is damaged.
            StorageFailed: the folder cannot be written to.
        """
        lock = lock_writer(self._storage)
        opened = False
        try:
            state, end = recover(self._storage)
            if state is None:
                raise no_index(self._storage)
            writer = Writer(self._storage, lock, state.manifest, end)
            opened = True
        finally:
            if not opened:
                lock.release()
        return writer

    def snapshot(self, opened: OpenGeneration, folder: Path) -> None:
        """Make a new folder that holds this generation: links to its files, else copies, and a log of its own.

        Raises:
            InvalidOption: the folder holds something.
            StorageFailed: it cannot be written.
        """
        write_snapshot(self._storage, opened, folder)

    def verify(self, content: Callable[[OpenGeneration], str] | None = None) -> VerifyReport:
        """Read every byte of the newest generation and the log; lists what is damaged.

        Args:
            content: what to say of what the index holds, such as a digest of all documents.
        """
        return verify(self._storage, self._patience, content)

    def repair(self, *, accept_loss: bool = False) -> RepairReport:
        """Say what making a damaged index whole again would lose; do it where that is accepted.

        Raises:
            IndexLocked: somebody else writes.
            CorruptIndex: loss is accepted, and nothing can be saved.
        """
        return repair(self._storage, self._patience, accept_loss=accept_loss)
