"""What `FolderStorage` asks of the operating system, and the one module that knows which: files, locks, flush, links.

Everything raises `OSError` as the system does.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final
from weakref import WeakSet

if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 30  # beyond what the file says, which others may then read

    def try_lock(number: int) -> bool:
        """Take the lock of an open file; False where another opening of it has it."""
        os.lseek(number, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(number, 0, os.SEEK_SET)
        return True

    def unlock(number: int) -> None:
        """Give the lock back, also where a child has inherited the file."""
        os.lseek(number, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(number, msvcrt.LK_UNLCK, 1)

    def flush(number: int) -> None:
        """Bring a file to the disk."""
        os.fsync(number)

    def flush_folder(path: Path) -> None:
        """Nothing: folders cannot be opened there, and NTFS journals names."""

else:
    import fcntl

    _FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
    """On macOS, where fsync leaves data in the disk's own cache."""

    def try_lock(number: int) -> bool:
        """Take the lock of an open file; False where another opening of it has it."""
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(number: int) -> None:
        """Give the lock back, also where a child has inherited the file."""
        fcntl.flock(number, fcntl.LOCK_UN)

    def flush(number: int) -> None:
        """Bring a file to the disk."""
        if _FULL_SYNC is None:
            os.fsync(number)
        else:
            fcntl.fcntl(number, _FULL_SYNC)

    def flush_folder(path: Path) -> None:
        """Bring the names in a folder to the disk."""
        number = os.open(path, os.O_RDONLY)
        try:
            flush(number)
        finally:
            os.close(number)


_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""No link is followed, and a pipe under one of our names keeps nobody waiting."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@final
class Descriptor:
    """An open file that writes or locks, closed at the latest with its owner, and at once in forked children.

    A child that kept it would keep the lock when its parent dies.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self._number: int | None = None
        with _FORKING:
            self._number = _open(path, flags)
            _OPEN.add(self)

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()

    @property
    def number(self) -> int:
        if self._number is None:
            raise OSError(errno.EBADF, "the file was closed, or its process forked")
        return self._number

    @property
    def is_open(self) -> bool:
        return self._number is not None

    def close(self) -> None:
        """Once or more often."""
        with _FORKING:
            number, self._number = self._number, None
            if number is not None:
                os.close(number)


_FORKING = threading.RLock()
"""Held while a descriptor is opened or closed and while the process forks: a child knows all that it inherits."""
_OPEN: WeakSet[Descriptor] = WeakSet()


def _close_inherited() -> None:
    for descriptor in list(_OPEN):
        with suppress(OSError):
            descriptor.close()
    _FORKING.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_FORKING.acquire, after_in_parent=_FORKING.release, after_in_child=_close_inherited)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """An open file for the length of a block."""
    number = _open(path, flags)
    try:
        yield number
    finally:
        os.close(number)


def _open(path: Path, flags: int) -> int:
    number = os.open(path, flags | _PLAIN, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no plain file")
    return number


def write_all(number: int, data: memoryview) -> None:
    """Write C-contiguous data, in as many pieces as the system likes."""
    left = data.cast("B") if data.nbytes else data
    while left.nbytes:
        written = os.write(number, left)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        left = left[written:]


def make_folder(path: Path) -> None:
    """Make a folder and what is above it, names on the disk; FileExistsError where something else has the name."""
    new = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in new:
        flush_folder(each.parent)


def linked(source: Path, target: Path) -> bool:
    """Make a hard link; False where the file system has none, or none between these two."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def copy(source: Path, target: Path) -> None:
    """A new file of the same content, on the disk; on an error there is none."""
    with opened(source, os.O_RDONLY) as read, opened(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as written:
        try:
            with os.fdopen(read, "rb", closefd=False) as old, os.fdopen(written, "wb", closefd=False) as new:
                shutil.copyfileobj(old, new, 1 << 20)
            flush(written)
        except OSError:
            target.unlink(missing_ok=True)
            raise


def identity(path: Path) -> tuple[int, ...]:
    """Which file it is, how long, and when it was last changed: a number alone is given to the next file."""
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def is_at(number: int, path: Path) -> bool:
    """Whether this open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(number), path.lstat())
    except FileNotFoundError:
        return False
