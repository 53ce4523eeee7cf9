"""The storage port: all that an index asks of a folder, and `FolderStorage`, which asks it of the operating system.

Nothing here knows what the files hold. Fakes that lose power, fail or refuse are in `lateinteraction.testing.storage`.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Protocol, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index import system
from lateinteraction.domain.errors import InvalidOption, LateInteractionError, StorageFailed, UnreadableFile, shown

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What can be written: C-contiguous, of any item; its bytes are taken as they lie. Of an array, its `data`."""

_NAME = re.compile(r"[a-z0-9-]{1,80}")
_TEMPORARY = re.compile(r"tmp-[0-9]+-[0-9a-f]{32}")


class NewFile(Protocol):
    """A file that nobody sees under its final name yet. A context manager, which closes it."""

    def __enter__(self) -> NewFile: ...
    def __exit__(self, *_: object) -> None: ...

    def write(self, data: Buffer) -> None:
        """All of it, or `StorageFailed`: then some of it may be there, and the file is to be given up."""
        ...

    def sync(self) -> None:
        """Bring what was written to the disk. After `StorageFailed` the file is to be given up, not synced again."""
        ...

    def close(self) -> None:
        """Once or more often; does not sync."""
        ...


class Lock(Protocol):
    """A lock that was taken."""

    @property
    def held(self) -> bool:
        """Whether it is still: False once it is released, and in a forked child, whose parent has it."""
        ...

    def release(self) -> None:
        """Once or more often; in a forked child without effect."""
        ...


class Storage(Protocol):
    """One folder of plain files. Names are of a–z, 0–9 and -, 1 to 80 of them; others are `InvalidOption`.

    What the system refuses is `StorageFailed`, except where a method names another answer. `FileNotFoundError` and
    `FileExistsError` stay what they are. Threads may call at once.
    """

    def create(self, name: str) -> NewFile:
        """A new file to write; `FileExistsError` where the name is taken."""
        ...

    def publish(self, temporary: str, name: str) -> None:
        """Give a closed file its final name: it appears there whole and replaces nothing; `temporary` is gone.

        After `StorageFailed` the name may be there or not. Both are on the disk after `sync_folder`.

        Raises:
            FileExistsError: the name is taken; nothing has changed.
            FileNotFoundError: there is no such temporary.
        """
        ...

    def append(self, name: str, data: Buffer) -> None:
        """Add to the end of a file, which is made where there is none. Not synced; torn after `StorageFailed`."""
        ...

    def sync(self, name: str) -> None:
        """Bring what a file holds to the disk. Its name is there only after `sync_folder`."""
        ...

    def sync_folder(self) -> None:
        """Bring names to the disk: those that were made and those that are gone."""
        ...

    def names(self) -> list[str]:
        """What is there, sorted; names that cannot be ours are left out."""
        ...

    def size(self, name: str) -> int:
        """Bytes; `FileNotFoundError` where there is none."""
        ...

    def identity(self, name: str) -> tuple[int, ...]:
        """What is the same for as long as nobody writes to the file or gives its name to another one.

        `FileNotFoundError` where there is none.
        """
        ...

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes from `offset` on: `length` of them, or as many as there are."""
        ...

    def map(self, name: str) -> NDArray[np.uint8]:
        """The file as it is now, read-only; readable for as long as the array lives, whatever becomes of the name."""
        ...

    def unlink(self, name: str) -> bool:
        """Whether the name is gone: True also where it never was, False where the system refuses for now.

        Windows refuses for a file that is mapped, open or locked, by us too.
        """
        ...

    def lock(self, name: str, note: bytes) -> Lock | None:
        """Take a lock that one object of all processes holds at a time; None where it is held.

        It is freed by `release` and by the death of the process, and is not inherited by forked children. The file is
        made where there is none, and it is the file under this name now that is locked: never one that was unlinked.
        `note` becomes its content, for people to read; a file that a lock stands for is otherwise not written.
        """
        ...

    def note(self, name: str) -> bytes:
        """What the last holder of a lock left; empty where it was cut short."""
        ...

    def link_into(self, name: str, folder: Path) -> None:
        """The same file in another folder, under the same name: a hard link, or a synced copy where none can be made.

        For files that nobody writes to any more. The other folder's names are not synced. `FileExistsError` stays.
        """
        ...

    @property
    def writable(self) -> bool:
        """Whether files can be made and removed here; a folder that is not is read without leaving a trace."""
        ...


def is_name(name: object) -> bool:
    """Whether it can name a file of a storage: a–z, 0–9 and -, 1 to 80 of them."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` could have given it: other people's files have other names."""
    return _TEMPORARY.fullmatch(name) is not None


def temporary_name() -> str:
    """A name nobody has used: tmp-<pid>-<32 hex digits>."""
    return f"tmp-{os.getpid()}-{uuid.uuid4().hex}"


def _is_path(path: str) -> bool:
    """Whether the system can be asked for it."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


@final
class FolderStorage:
    """A folder of the operating system. Links that lead elsewhere, pipes and folders under a name are not followed.

    Files are flushed as far as the system can (`F_FULLFSYNC` where it has it). Where the file system has no hard links,
    `publish` renames after it has looked that the name is free: whole as ever, and replacing nothing as long as only
    the holder of the writer's lock publishes, which is the rule here.

    Args:
        path: the folder.
        create: make it, and what is above it, where there is none.

    Raises:
        UnreadableFile: it is no folder, or there is none and `create` is false.
        StorageFailed: it cannot be made.
    """

    def __init__(self, path: Path | str, create: bool = False) -> None:
        if not str(path) or not _is_path(str(path)):
            raise InvalidOption(f"{shown(str(path))} as a path", "the path of a folder", "Name another.")
        self.path = Path(os.path.abspath(path))
        self._renaming = threading.Lock()
        if create:
            with _refusals("making", self.path), suppress(FileExistsError):  # what is there instead is told below
                try:
                    system.make_folder(self.path)
                except FileNotFoundError as error:  # as where only the system itself makes files
                    raise _refused("making", self.path, error) from error
        if not os.path.isdir(self.path):
            there = os.path.lexists(self.path)
            raise UnreadableFile(
                f"{self.path}, which is {'no folder' if there else 'not there'}", "a folder", "Name the index's folder."
            )

    def __repr__(self) -> str:
        return f"FolderStorage({str(self.path)!r})"

    @property
    def writable(self) -> bool:
        return os.access(self.path, os.W_OK)

    def create(self, name: str) -> NewFile:
        path = self._at(name)
        with _refusals("making", path):
            return _NewFile(path, system.Descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def publish(self, temporary: str, name: str) -> None:
        source, target = self._at(temporary), self._at(name)
        with _refusals("publishing", target):
            if system.linked(source, target):
                source.unlink()
                return
            with self._renaming:
                if os.path.lexists(target):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
                source.rename(target)

    def append(self, name: str, data: Buffer) -> None:
        path = self._at(name)
        with _refusals("appending to", path), system.opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as number:
            system.write_all(number, memoryview(data))

    def sync(self, name: str) -> None:
        path = self._at(name)
        with (
            _refusals("syncing", path),
            system.opened(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY) as number,
        ):
            system.flush(number)

    def sync_folder(self) -> None:
        with _refusals("syncing", self.path):
            system.flush_folder(self.path)

    def names(self) -> list[str]:
        with _refusals("listing", self.path):
            return sorted(filter(is_name, os.listdir(self.path)))

    def size(self, name: str) -> int:
        path = self._at(name)
        with _refusals("looking at", path):
            return path.lstat().st_size

    def identity(self, name: str) -> tuple[int, ...]:
        path = self._at(name)
        with _refusals("looking at", path):
            return system.identity(path)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._at(name)
        with _refusals("reading", path), system.opened(path, os.O_RDONLY) as number:
            there = max(os.fstat(number).st_size - offset, 0)
            with os.fdopen(number, "rb", closefd=False) as file:
                file.seek(offset)
                return file.read(there if length is None else min(length, there))

    def map(self, name: str) -> NDArray[np.uint8]:
        path = self._at(name)
        with _refusals("mapping", path), system.opened(path, os.O_RDONLY) as number:
            if os.fstat(number).st_size == 0:  # which cannot be mapped
                return np.frombuffer(b"", np.uint8)
            return np.frombuffer(mmap(number, 0, access=ACCESS_READ), np.uint8)

    def unlink(self, name: str) -> bool:
        path = self._at(name)
        with _refusals("removing", path):
            try:
                path.unlink(missing_ok=True)
            except PermissionError:
                return False
            return True

    def lock(self, name: str, note: bytes) -> Lock | None:
        path = self._at(name)
        with _refusals("locking", path):
            while True:
                descriptor = system.Descriptor(path, os.O_RDWR | os.O_CREAT)
                try:
                    if not system.try_lock(descriptor.number):
                        descriptor.close()
                        return None
                    if system.is_at(descriptor.number, path):
                        os.ftruncate(descriptor.number, 0)
                        system.write_all(descriptor.number, memoryview(note))
                        return _HeldLock(descriptor)
                except OSError:
                    descriptor.close()
                    raise
                descriptor.close()  # somebody unlinked it between our opening and our locking it

    def note(self, name: str) -> bytes:
        return self.read(name)

    def link_into(self, name: str, folder: Path) -> None:
        source, target = self._at(name), folder / name
        with _refusals("linking", target):
            if not system.linked(source, target):
                system.copy(source, target)

    def _at(self, name: str) -> Path:
        if not is_name(name):
            raise InvalidOption(f"a file named {shown(name)}", "a–z, 0–9 and -, 1 to 80 of them", "Name it otherwise.")
        return self.path / name


@final
class _NewFile:
    """A `NewFile` of the operating system."""

    def __init__(self, path: Path, descriptor: system.Descriptor) -> None:
        self._path, self._descriptor = path, descriptor

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Buffer) -> None:
        with _refusals("writing", self._path):
            system.write_all(self._descriptor.number, memoryview(data))

    def sync(self) -> None:
        with _refusals("syncing", self._path):
            system.flush(self._descriptor.number)

    def close(self) -> None:
        with _refusals("closing", self._path):
            self._descriptor.close()


@final
class _HeldLock:
    """A `Lock` of the operating system."""

    def __init__(self, descriptor: system.Descriptor) -> None:
        self._descriptor = descriptor

    @property
    def held(self) -> bool:
        return self._descriptor.is_open

    def release(self) -> None:
        if self.held:
            with suppress(OSError):  # closing gives it back too, unless somebody inherited the file
                system.unlock(self._descriptor.number)
            with suppress(OSError):
                self._descriptor.close()


_REMEDIES = {
    errno.ENOSPC: "Free some space; what was acknowledged is safe.",
    errno.EDQUOT: "Free some of your quota; what was acknowledged is safe.",
    errno.EROFS: "Open it for reading only.",
    errno.EACCES: "Ask for the permission, or open it for reading only.",
    errno.EIO: "Look at the disk; what was acknowledged is safe if it reads back: verify the index.",
    errno.EMFILE: "Allow the process more open files.",
}


@contextmanager
def _refusals(doing: str, path: Path) -> Iterator[None]:
    """What the system refuses as `StorageFailed`, except that a name is missing or taken."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, LateInteractionError):
        raise
    except OSError as error:
        raise _refused(doing, path, error) from error


def _refused(doing: str, path: Path, error: OSError) -> StorageFailed:
    remedy = _REMEDIES.get(error.errno or 0, "See what the system says.")
    given = f"{doing} {path}, which failed ({error.strerror or error})"
    return StorageFailed(given, "a disk and permissions that allow it", remedy)
