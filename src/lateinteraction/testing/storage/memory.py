"""MemoryStorage: a folder in memory that knows what a power cut may take."""

from __future__ import annotations

import errno
import os
import re
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.domain.errors import InvalidOption
from lateinteraction.testing.storage.port import Buffer, Lock, NewFile, failed

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""

_NAME = re.compile(r"[a-z0-9-]{1,80}")


@final
class MemoryStorage:
    """A folder in memory that knows what a power cut may take.

    A file's bytes are safe once it is synced, a name once the folder is; until then each may survive or not, and of
    the bytes any sectors. Nothing else orders them: not the file system's journal, not the order of calls.

    Args:
        files: what is there and safe from the beginning.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self._there = {_checked(name): _File(content, len(content)) for name, content in (files or {}).items()}
        self._safe = dict(self._there)
        self._changes: list[tuple[str, _File | None]] = []

    @property
    def writable(self) -> bool:
        return True

    def create(self, name: str) -> NewFile:
        file = _File()
        self._enter(_checked(name), file)
        return _MemoryFile(file)

    def publish(self, temporary: str, name: str) -> None:
        file = self._file(temporary)
        self._enter(_checked(name), file)
        self.unlink(temporary)

    def append(self, name: str, data: Buffer) -> None:
        file = _File()
        found = self._there.setdefault(_checked(name), file)
        if found is file:
            self._changes.append((name, file))
        found.content += memoryview(data)

    def sync(self, name: str) -> None:
        self._file(name).sync()

    def sync_folder(self) -> None:
        settled, self._changes = self._changes, []
        for name, file in settled:
            _put(self._safe, name, file)

    def names(self) -> list[str]:
        return sorted(self._there)

    def size(self, name: str) -> int:
        return len(self._file(name).content)

    def identity(self, name: str) -> tuple[int, ...]:
        file = self._file(name)
        return file.identity, len(file.content)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = self._file(name).content
        return bytes(content[offset : len(content) if length is None else offset + length])

    def map(self, name: str) -> NDArray[np.uint8]:
        return np.frombuffer(self.read(name), np.uint8)

    def unlink(self, name: str) -> bool:
        if self._there.pop(_checked(name), None) is not None:
            self._changes.append((name, None))
        return True

    def lock(self, name: str, note: bytes) -> Lock | None:
        file = _File()
        found = self._there.setdefault(_checked(name), file)
        if found is file:
            self._changes.append((name, file))
        if not found.lock.acquire(blocking=False):
            return None
        found.content, found.synced = bytearray(note), 0
        return _MemoryLock(found)

    def note(self, name: str) -> bytes:
        return self.read(name)

    def link_into(self, name: str, folder: Path) -> None:
        content = self.read(name)
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def contents(self) -> dict[str, bytes]:
        """Every file's bytes, by name."""
        return {name: bytes(file.content) for name, file in sorted(self._there.items())}

    def after_death(self) -> MemoryStorage:
        """The folder as the next process finds it: nothing is locked; what was not safe from a power cut is not now."""
        heirs = {id(file): _File(file.content, file.synced) for file in self._files()}
        heir = MemoryStorage()
        heir._there = {name: heirs[id(file)] for name, file in self._there.items()}
        heir._safe = {name: heirs[id(file)] for name, file in self._safe.items()}
        heir._changes = [(name, file and heirs[id(file)]) for name, file in self._changes]
        return heir

    def after_power_cut(self, seed: int) -> MemoryStorage:
        """The folder after a power cut: what was synced, and of the rest what the seed decides.

        Args:
            seed: 0: nothing of it; 1: all of it; others: any part, drawn name by name and sector by sector.
        """
        draw = np.random.default_rng(seed)
        names = dict(self._safe)
        for name in dict.fromkeys(name for name, _ in self._changes):
            states = [file for changed, file in self._changes if changed == name]
            kept = min(seed, 1) * len(states) if seed < 2 else int(draw.integers(len(states) + 1))
            if kept:
                _put(names, name, states[kept - 1])
        torn: dict[int, bytes] = {}
        for file in names.values():
            if id(file) not in torn:
                torn[id(file)] = file.torn(None if seed < 2 else draw) if seed != 1 else bytes(file.content)
        return MemoryStorage({name: torn[id(file)] for name, file in names.items()})

    def _files(self) -> list[_File]:
        changed = [file for _, file in self._changes if file is not None]
        return [*self._there.values(), *self._safe.values(), *changed]

    def _enter(self, name: str, file: _File) -> None:
        if self._there.setdefault(name, file) is not file:
            raise FileExistsError(errno.EEXIST, "the name is taken", name)
        self._changes.append((name, file))

    def _file(self, name: str) -> _File:
        file = self._there.get(_checked(name))
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", name)
        return file


@final
class _File:
    """Bytes, how many of them are safe, and who holds the lock."""

    def __init__(self, content: bytes | bytearray = b"", synced: int = 0) -> None:
        self.content = bytearray(content)
        self.synced = synced
        self.lock = threading.Lock()
        self.identity = uuid.uuid4().int

    def sync(self) -> None:
        self.synced = len(self.content)

    def torn(self, draw: np.random.Generator | None) -> bytes:
        """What a power cut leaves: the safe bytes, then sectors that were written, are zero, or hold something else."""
        if draw is None:
            return bytes(self.content[: self.synced])
        lengths = [self.synced, len(self.content), int(draw.integers(self.synced, len(self.content) + 1))]
        length = lengths[int(draw.integers(3))]
        left = self.content[:length]
        for start in range(self.synced // SECTOR * SECTOR, length, SECTOR):
            lost = slice(max(start, self.synced), min(start + SECTOR, length))
            fate = int(draw.integers(4))
            if fate < 2:
                left[lost] = bytes(lost.stop - lost.start) if fate else draw.bytes(lost.stop - lost.start)
        return bytes(left)


@final
class _MemoryFile:
    """A `NewFile` in memory."""

    def __init__(self, file: _File) -> None:
        self._file: _File | None = file

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Buffer) -> None:
        self._open().content += memoryview(data)

    def sync(self) -> None:
        self._open().sync()

    def close(self) -> None:
        self._file = None

    def _open(self) -> _File:
        if self._file is None:
            raise failed("writing a file that is closed", errno.EBADF)
        return self._file


@final
class _MemoryLock:
    """A `Lock` in memory."""

    def __init__(self, file: _File) -> None:
        self._file: _File | None = file

    @property
    def held(self) -> bool:
        return self._file is not None

    def release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.lock.release()


def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidOption(f"a file named {name!r:.60}", "a–z, 0–9 and -, 1 to 80 of them", "Name it otherwise.")
    return name


def _put(names: dict[str, _File], name: str, file: _File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file
