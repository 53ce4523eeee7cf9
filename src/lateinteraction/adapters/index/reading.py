"""A generation as a reader holds it: every file mapped, a lease taken, the same for as long as it is used."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import final

from attrs import field, frozen

from lateinteraction.adapters.index.commits import log_identity
from lateinteraction.adapters.index.files import FileRecord, StoredFile
from lateinteraction.adapters.index.leases import Lease, take
from lateinteraction.adapters.index.manifests import Manifest
from lateinteraction.adapters.index.states import State, newest
from lateinteraction.adapters.index.storage import Storage
from lateinteraction.domain.errors import CorruptIndex, UnreadableFile

_ATTEMPTS = 100
"""Generations that may be collected one after another while a reader tries to open them."""


@final
@frozen(eq=False)
class OpenGeneration:
    """One generation with its files. Threads may use it at once, whatever is written meanwhile.

    The lease is released by `close`, or when nobody refers to this any more. What was read from the files stays
    readable. In a forked child the files are as they were, and the lease remains the parent's.

    Attributes:
        manifest: what it is made of.
        digest: of the manifest, 16 bytes; two generations are the same where this is.
        log: the identity of the log before it was read.
        files: by name.
    """

    manifest: Manifest
    digest: bytes
    log: tuple[int, ...]
    files: Mapping[str, StoredFile] = field(repr=False)
    _lease: Lease | None = field(repr=False)

    def __enter__(self) -> OpenGeneration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def generation(self) -> int:
        return self.manifest.generation

    def file(self, record: FileRecord) -> StoredFile:
        """A file of the manifest."""
        return self.files[record.name]

    def close(self) -> None:
        """Let the generation be collected. Once or more often."""
        if self._lease is not None:
            self._lease.release()


def open_newest(storage: Storage, patience: float, reuse: OpenGeneration | None = None) -> OpenGeneration:
    """Open the newest generation, taking files over that another one has open.

    Raises:
        UnreadableFile: there is no index.
        CorruptIndex: it is damaged, or files of it are.
    """
    for attempt in range(_ATTEMPTS):
        log = log_identity(storage)
        state = newest(storage, patience)
        if state is None:
            raise no_index(storage)
        try:
            return open_state(storage, state, log, reuse)
        except CorruptIndex:
            after = newest(storage, patience)  # collected between our look and our lease?
            if attempt == _ATTEMPTS - 1 or (after is not None and after.digest == state.digest):
                raise
    raise AssertionError("unreachable")


def no_index(storage: Storage) -> UnreadableFile:
    """The error for a folder without a generation."""
    return UnreadableFile(f"{storage!r}, which holds no index", "a folder with a generation in it", "Create the index.")


def open_state(
    storage: Storage, state: State, log: tuple[int, ...], reuse: OpenGeneration | None = None
) -> OpenGeneration:
    """Take a lease on a generation and open its files; `CorruptIndex` where it is collected by now."""
    known = {} if reuse is None else reuse.files
    lease = take(storage, state.manifest.generation)
    complete = False
    try:
        files = {
            record.name: known[record.name]
            if record.name in known and known[record.name].record == record
            else StoredFile.open(storage, record)
            for record in state.manifest.records()
        }
        complete = True
    finally:
        if lease is not None and not complete:
            lease.release()
    opened = OpenGeneration(state.manifest, state.digest, log, MappingProxyType(files), lease)
    if lease is not None:
        weakref.finalize(opened, lease.release)
    return opened
