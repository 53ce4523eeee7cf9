"""The one writer of an index: new files, commits, collection. What a crash leaves is argued in `generations`.

What the files hold is the caller's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, final

from attrs import evolve

from lateinteraction.adapters.index.collection import collect
from lateinteraction.adapters.index.commits import (
    COMMITS,
    LogEnd,
    abort_after,
    append,
    commit_after,
    log_size,
    read_end,
)
from lateinteraction.adapters.index.files import FileRecord, FileWriter
from lateinteraction.adapters.index.manifests import (
    PARTS,
    Manifest,
    SegmentRecord,
    digest_of,
    encode,
    file_name,
    manifest_name,
    number_of,
)
from lateinteraction.adapters.index.storage import Lock, Storage, temporary_name
from lateinteraction.domain.errors import CorruptIndex, IndexLocked, InvalidOption, StorageFailed

EMPTY = Manifest(generation=0, counter=1, settings={})
"""What is before the first generation."""


@final
class Writer:
    """Prepares files and commits generations. Holds the writer's lock; used by one thread at a time.

    A call that raises has changed nothing that is committed; the files that were being prepared are given up. There is
    one exception, which its message states: a commit of which the system does not say whether it is on the disk. After
    it, and after somebody else wrote in spite of the lock, every call is refused until the index is opened anew.

    Args:
        storage: the folder.
        lock: given back by `close`.
        base: the newest generation.
        end: of the log.
    """

    def __init__(self, storage: Storage, lock: Lock, base: Manifest, end: LogEnd) -> None:
        self._storage, self._lock, self._end = storage, lock, end
        self._base, self._record = base, end.newest
        self._process = os.getpid()
        self._refusal: str | None = None
        self._unsealed = False
        self._files: dict[str, FileWriter] = {}
        self._parts: dict[int, int] = {}
        self._known = {base.generation: base}
        numbers = (number_of(name) for name in storage.names())
        self._counter = max(base.counter, *(1 + number for number in numbers if number is not None), 1)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def base(self) -> Manifest:
        """The newest generation; of number 0 and with nothing in it before the first commit."""
        return self._base

    @property
    def refuses(self) -> bool:
        """Whether every call is refused from now on: to be closed, so that another writer finds out what there is."""
        return self._refusal is not None or self._end.newest != self._record

    def check_base(self, generation: int) -> None:
        """See that what is read is what this writer goes on from.

        Raises:
            IndexLocked: another generation is the newest, so somebody else has written.
        """
        if generation != self._base.generation:
            self._locked_out(None)

    def number(self) -> int:
        """A number that no data file ever had: for a segment, or for files that belong together."""
        self._check()
        number = self._counter
        self._counter += 1
        self._parts[number] = 0
        return number

    def new_file(self, kind: str, number: int | None = None) -> FileWriter:
        """A data file to fill and close. The commit that names its record publishes it; any other gives it up.

        Args:
            kind: what its arrays are together.
            number: from `number`, since the last commit; a new one where none is given.
        """
        self._check()
        number = self.number() if number is None else number
        part = self._parts.get(number, PARTS)
        if part >= PARTS:
            raise InvalidOption(
                f"a file of number {number}", f"a number of this commit with fewer than {PARTS}", "Take another number."
            )
        name = file_name(number, part)
        self._files[name] = FileWriter(self._storage, name, kind)
        self._parts[number] += 1
        return self._files[name]

    def commit(
        self,
        *,
        segments: Sequence[SegmentRecord],
        shared: Mapping[str, FileRecord] | None = None,
        settings: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> Manifest:
        """Make these segments the next generation; it is on the disk when this returns.

        Args:
            segments: all of them, those of the base that stay as well.
            shared: likewise; the base's where none are given.
            settings: likewise.
            note: for people.

        Raises:
            StorageFailed: a write was refused. Says whether it is known that nothing is committed.
            IndexLocked: somebody else has written.
        """
        self._check()
        try:
            self._align()
            manifest = Manifest(
                generation=self._end.number + 1,
                counter=self._counter,
                settings=self._base.settings if settings is None else settings,
                segments=segments,
                shared=self._base.shared if shared is None else shared,
                note=note,
            )
            self._commit(manifest, self._finished(manifest))
            self._base, self._record = manifest, self._end.newest
        finally:
            self.abandon()
        self._known[manifest.generation] = manifest
        return manifest

    def abandon(self) -> None:
        """Give up all files that are not committed; in a forked child they are the parent's."""
        if self._process != os.getpid():
            return
        files, self._files, self._parts = list(self._files.values()), {}, {}
        for file in files:
            file.abandon()

    def collect(self, keep: int = 2) -> int:
        """Remove what neither the last `keep` generations nor any lease names; how many files.

        Raises:
            StorageFailed: the system refused; what is committed is untouched.
        """
        self._check()
        self._check_log()
        if keep < 1:
            raise InvalidOption(f"keep = {keep}", "1 or more generations", "The newest always stays.")
        pending = {file.temporary for file in self._files.values()}
        return collect(self._storage, self._known, self._base, keep=keep, counter=self._counter, pending=pending)

    def close(self) -> None:
        """Give up what is not committed, and the lock. Once or more often; in a forked child nothing."""
        if self._process != os.getpid():
            return
        self.abandon()
        self._refusal = "a writer that is closed"
        self._lock.release()

    def _check(self) -> None:
        if self._process != os.getpid():
            raise IndexLocked(
                f"process {os.getpid()}, a fork of process {self._process}, which has the lock",
                "the process that opened the index for writing",
                "Open it in this process.",
            )
        if self._refusal is not None:
            raise StorageFailed(self._refusal, "an open writer whose state is known", "Open the index anew.")

    def _check_log(self) -> None:
        """See that the log is as we left it."""
        size = log_size(self._storage)
        if size < self._end.size:
            self._refusal = "a log that somebody has cut short"
            raise CorruptIndex(f"{COMMITS} of {size} bytes", f"{self._end.size} bytes", "Verify the index.")
        if size > self._end.size and not self._unsealed:
            self._locked_out(None)

    def _align(self) -> None:
        """Have the log end in a whole record that is ours.

        So bytes after the last record always belong to the one generation that is published after it.
        """
        if self._end.newest != self._record:  # an interrupt fell between a commit and our taking note of it
            self._refusal = "a writer that was interrupted"
            self._check()
        self._check_log()
        if self._unsealed:
            end = read_end(self._storage)
            self._end = append(self._storage, end, abort_after(end))
            self._unsealed = False

    def _finished(self, manifest: Manifest) -> list[FileWriter]:
        """The new files that a manifest names, closed."""
        known = {record.name: record for record in self._base.records()}
        new: list[FileWriter] = []
        for record in manifest.records():
            file = self._files.get(record.name)
            if (known.get(record.name) if file is None else file.close()) != record:
                raise InvalidOption(f"{record}", "a file of the base, or of this writer", "Commit what was prepared.")
            if file is not None:
                new.append(file)
        return new

    def _commit(self, manifest: Manifest, files: Sequence[FileWriter]) -> None:
        data, name, temporary = encode(manifest), manifest_name(manifest.generation), temporary_name()
        storage, before = self._storage, self._end
        published = begun = acknowledged = False
        try:
            with storage.create(temporary) as file:
                file.write(data)
                file.sync()
            for each in files:
                each.publish()
            published = True
            storage.publish(temporary, name)
            storage.sync_folder()
            begun = True
            self._end = append(storage, before, commit_after(before, manifest.generation, digest_of(data)))
            acknowledged = True
        except FileExistsError as error:
            published = False
            self._locked_out(error)
        finally:
            if not acknowledged:
                with suppress(StorageFailed):
                    storage.unlink(temporary)
            if published and not acknowledged:
                self._take_back(name, before, begun=begun)

    def _take_back(self, name: str, before: LogEnd, *, begun: bool) -> None:
        """Make it certain that a generation is not committed, or refuse to go on.

        Args:
            name: its manifest.
            before: the end of the log without it.
            begun: whether its record was begun. Until then nobody knows which names are on the disk, and the log may
                not be touched.
        """
        self._refusal = f"a commit that may or may not have taken place, of {name}"
        try:
            if not begun:
                self._storage.unlink(name)
                self._storage.sync_folder()
            self._end = append(self._storage, evolve(before, size=log_size(self._storage)), abort_after(before))
        except StorageFailed:
            if not self._withdrawn(name, before):
                self._check()
        else:
            with suppress(StorageFailed):
                self._storage.unlink(name)
        self._refusal = None

    def _withdrawn(self, name: str, before: LogEnd) -> bool:
        """Remove a manifest that nothing whole in the log speaks of; whether that is certain."""
        try:
            end = read_end(self._storage)
            if end.number != before.number or not self._storage.unlink(name):
                return False
            self._storage.sync_folder()
        except (StorageFailed, CorruptIndex):
            return False
        self._end, self._unsealed = end, True
        return True

    def _locked_out(self, cause: FileExistsError | None) -> None:
        self._refusal = "a folder that somebody else has written to"
        raise IndexLocked(
            f"{self._storage!r}, which somebody wrote to in spite of the lock",
            "one writer at a time",
            "Does the file system have locks between its machines? Open the index anew.",
        ) from cause
