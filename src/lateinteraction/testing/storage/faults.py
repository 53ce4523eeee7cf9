"""FaultyStorage fails at the nth operation; RefusingStorage keeps what is in use, as Windows does."""

from __future__ import annotations

import errno
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.testing.storage.port import Buffer, Lock, NewFile, Storage, failed

Fault: TypeAlias = Literal["error", "late", "short", "enospc", "kill"]
R = TypeVar("R")


class Killed(BaseException):
    """The process died here. What cleans up after errors must not run: each further operation raises it again."""


@final
class FaultyStorage:
    """A storage of which the nth operation fails. Reads count too, and so do the operations of files that it makes.

    Args:
        inner: what does the work.
        at: which operation fails, from 1; 0: none.
        fault: "error": it has no effect; "late": it fails after it took effect; "short": of what was to be written,
            half is there; "enospc": from here on nothing can be made or grow; "kill": half is written, then `Killed`,
            and every operation from here on is `Killed` too; locks are free, as the system sees to.

    Attributes:
        journal: each operation with its names, in order.
        happened: whether the fault has occurred.
    """

    def __init__(self, inner: Storage, *, at: int = 0, fault: Fault = "error") -> None:
        self.journal: list[str] = []
        self.happened = False
        self._inner, self._at, self._fault = inner, at, fault
        self._dead = False
        self._held: list[Callable[[], None]] = []
        self._turn = threading.Lock()

    @property
    def writable(self) -> bool:
        return self._inner.writable

    def create(self, name: str) -> NewFile:
        file = self.perform(f"create {name}", lambda: self._inner.create(name), grows=True)
        self._held.append(file.close)
        return _FaultyFile(self, file, name)

    def publish(self, temporary: str, name: str) -> None:
        self.perform(f"publish {temporary} {name}", lambda: self._inner.publish(temporary, name), grows=True)

    def append(self, name: str, data: Buffer) -> None:
        self.perform(
            f"append {name}",
            lambda: self._inner.append(name, data),
            half=lambda: self._inner.append(name, _half(data)),
            grows=True,
        )

    def sync(self, name: str) -> None:
        self.perform(f"sync {name}", lambda: self._inner.sync(name))

    def sync_folder(self) -> None:
        self.perform("sync_folder", self._inner.sync_folder)

    def names(self) -> list[str]:
        return self.perform("names", self._inner.names)

    def size(self, name: str) -> int:
        return self.perform(f"size {name}", lambda: self._inner.size(name))

    def identity(self, name: str) -> tuple[int, ...]:
        return self.perform(f"identity {name}", lambda: self._inner.identity(name))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.perform(f"read {name}", lambda: self._inner.read(name, offset, length))

    def map(self, name: str) -> NDArray[np.uint8]:
        return self.perform(f"map {name}", lambda: self._inner.map(name))

    def unlink(self, name: str) -> bool:
        return self.perform(f"unlink {name}", lambda: self._inner.unlink(name))

    def lock(self, name: str, note: bytes) -> Lock | None:
        lock = self.perform(f"lock {name}", lambda: self._inner.lock(name, note), grows=True)
        if lock is not None:
            self._held.append(lock.release)
        return lock

    def note(self, name: str) -> bytes:
        return self.perform(f"note {name}", lambda: self._inner.note(name))

    def link_into(self, name: str, folder: Path) -> None:
        self.perform(f"link_into {name} {folder}", lambda: self._inner.link_into(name, folder), grows=True)

    def perform(
        self, operation: str, act: Callable[[], R], *, half: Callable[[], None] | None = None, grows: bool = False
    ) -> R:
        """Do it, or fail as was asked for. `half` does it in part; `grows` tells what needs space."""
        if not self._is_due(operation, grows=grows):
            return act()
        if self._fault in ("short", "kill") and half is not None:
            half()
        if self._fault == "kill":
            self._die()
        if self._fault == "late":
            act()
        raise failed(operation, errno.ENOSPC if self._fault == "enospc" else errno.EIO)

    def _is_due(self, operation: str, *, grows: bool) -> bool:
        if self._dead:
            raise Killed(operation)
        with self._turn:
            self.journal.append(operation)
            number = len(self.journal)
        due = 0 < self._at <= number and grows if self._fault == "enospc" else number == self._at
        self.happened = self.happened or due
        return due

    def _die(self) -> None:
        self._dead = True
        for let_go in self._held:
            let_go()
        raise Killed(self.journal[-1])


@final
class _FaultyFile:
    """A `NewFile` whose operations count with its storage's."""

    def __init__(self, storage: FaultyStorage, inner: NewFile, name: str) -> None:
        self._storage, self._inner, self._name = storage, inner, name

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Buffer) -> None:
        self._storage.perform(
            f"write {self._name}",
            lambda: self._inner.write(data),
            half=lambda: self._inner.write(_half(data)),
            grows=True,
        )

    def sync(self) -> None:
        self._storage.perform(f"sync {self._name}", self._inner.sync)

    def close(self) -> None:
        try:
            self._storage.perform(f"close {self._name}", lambda: None)
        finally:
            self._inner.close()  # as a system does, whatever it answers


@final
class RefusingStorage:
    """A storage that unlinks and publishes as Windows does: nothing that is mapped, locked or open for writing.

    Args:
        inner: what does the work.
    """

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self._mapped: dict[str, list[weakref.ref[Any]]] = {}
        self._locks: dict[str, Lock] = {}
        self._files: dict[str, _RefusingFile] = {}

    @property
    def writable(self) -> bool:
        return self._inner.writable

    def create(self, name: str) -> NewFile:
        self._files[name] = file = _RefusingFile(self._inner.create(name))
        return file

    def publish(self, temporary: str, name: str) -> None:
        if self.in_use(temporary):
            raise failed(f"publishing {temporary}, which is in use", errno.EACCES)
        self._inner.publish(temporary, name)

    def append(self, name: str, data: Buffer) -> None:
        self._inner.append(name, data)

    def sync(self, name: str) -> None:
        self._inner.sync(name)

    def sync_folder(self) -> None:
        self._inner.sync_folder()

    def names(self) -> list[str]:
        return self._inner.names()

    def size(self, name: str) -> int:
        return self._inner.size(name)

    def identity(self, name: str) -> tuple[int, ...]:
        return self._inner.identity(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._inner.read(name, offset, length)

    def map(self, name: str) -> NDArray[np.uint8]:
        array = self._inner.map(name)
        self._mapped.setdefault(name, []).append(weakref.ref(array))  # views of it keep it alive
        return array

    def unlink(self, name: str) -> bool:
        return not self.in_use(name) and self._inner.unlink(name)

    def lock(self, name: str, note: bytes) -> Lock | None:
        lock = self._inner.lock(name, note)
        if lock is not None:
            self._locks[name] = lock
        return lock

    def note(self, name: str) -> bytes:
        return self._inner.note(name)

    def link_into(self, name: str, folder: Path) -> None:
        self._inner.link_into(name, folder)

    def in_use(self, name: str) -> bool:
        """Whether an array, a lock or an open file keeps the name from being removed."""
        mapped = any(array() is not None for array in self._mapped.get(name, ()))
        locked = name in self._locks and self._locks[name].held
        return mapped or locked or (name in self._files and self._files[name].is_open)


@final
class _RefusingFile:
    """A `NewFile` that knows whether it is open."""

    def __init__(self, inner: NewFile) -> None:
        self._inner = inner
        self.is_open = True

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Buffer) -> None:
        self._inner.write(data)

    def sync(self) -> None:
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()
        self.is_open = False


def _half(data: Buffer) -> memoryview:
    view = memoryview(data)
    return view.cast("B")[: view.nbytes // 2] if view.nbytes else view
