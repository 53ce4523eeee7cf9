"""Real processes over a real folder: killed, forked, refused, reading while another writes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.errors import IndexLocked, StorageFailed
from lateinteraction.testing.storage import MemoryStorage

HERE = Path(__file__).parent
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed as POSIX does")


@pytest.fixture
def folder(ledger: ModuleType, tmp_path: Path) -> Path:
    """A folder with an empty index."""
    ledger.Ledger(FolderStorage(tmp_path / "index", create=True)).create()
    return tmp_path / "index"


@contextmanager
def started(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program of this folder, that was heard to have opened the index; killed at the end of the `with` block."""
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("open")
            yield process
        finally:
            process.kill()


def killed(process: subprocess.Popen[str], after: float) -> tuple[frozenset[int] | None, int]:
    """What a writing program had acknowledged when it was killed, None if nothing; and the number that it was at."""
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    output = process.stdout.read()  # not communicate(), which passes over what reading the first line has read ahead
    process.wait()
    whole = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    done = [frozenset(map(int, rest)) for what, *rest in whole if what == "done"]
    tried = [int(rest[0]) for what, *rest in whole if what == "try"]
    return (done[-1] if done else None), (tried[-1] if tried else 0)


def check_kills(ledger: ModuleType, folder: Path, times: int) -> None:
    """Kill one writer after another; each finds what the one before acknowledged, or one step more."""
    draw = random.Random(times)
    content: frozenset[int] = frozenset()
    commits = 0
    for number in range(times):
        with started("writing_program.py", folder, number) as process:
            acknowledged, tried = killed(process, draw.uniform(0.0, 0.4))
        commits += acknowledged is not None
        acknowledged = content if acknowledged is None else acknowledged
        content = ledger.read(FolderStorage(folder))
        assert content - {tried} <= acknowledged
        assert len(acknowledged - content) <= (tried in content)
        report = Generations(FolderStorage(folder)).verify(ledger.told)
        assert report.damages == ()
        assert report.content == " ".join(map(str, sorted(content)))
    assert commits > times / 4
    with Generations(FolderStorage(folder)).writer() as writer:
        writer.collect()
    assert len([*folder.iterdir()]) < 40
    assert not [path for path in folder.iterdir() if path.name.startswith(("tmp-", "lease-"))]


@posix
def test_nothing_acknowledged_is_lost_by_killing_writers(ledger: ModuleType, folder: Path) -> None:
    check_kills(ledger, folder, 8)


@posix
@pytest.mark.deep
def test_nothing_acknowledged_is_lost_by_killing_many_writers(ledger: ModuleType, folder: Path) -> None:
    check_kills(ledger, folder, 150)


@posix
def test_a_second_process_is_told_at_once_who_writes(ledger: ModuleType, folder: Path) -> None:
    with started("writing_program.py", folder) as process:
        began = time.monotonic()
        with pytest.raises(IndexLocked, match=rf"process {process.pid} on {os.uname().nodename} writes to"):
            Generations(FolderStorage(folder)).writer()
        assert time.monotonic() - began < 1.0
        assert ledger.read(FolderStorage(folder)) is not None
    Generations(FolderStorage(folder)).writer().close()


@posix
def test_readers_see_whole_states_in_order_while_one_writes_and_collects(ledger: ModuleType, folder: Path) -> None:
    book = ledger.Ledger(FolderStorage(folder), acknowledged=frozenset())
    with ExitStack() as stack:
        readers = [stack.enter_context(started("reading_program.py", folder)) for _ in range(4)]
        written = {1: frozenset(), **busily_written(book, seconds=3)}
        for reader in readers:
            output, _ = reader.communicate("stop\n", timeout=60)
            assert reader.returncode == 0
            seen = {int(line.split()[0]): frozenset(map(int, line.split()[1:])) for line in output.splitlines()}
            assert len(seen) > 3
            assert all(content == written[generation] for generation, content in seen.items())
    book.writer.collect(1)
    assert not [path for path in folder.iterdir() if path.name.startswith("lease-")]
    assert len([path for path in folder.iterdir() if path.name.startswith("g-")]) == 1
    book.close()


def busily_written(book: Any, seconds: float) -> dict[int, frozenset[int]]:
    """What each generation holds that is written meanwhile, collecting after each."""
    book.open()
    written = {}
    draw = random.Random(4)
    end = time.monotonic() + seconds
    for number in count(1):
        if number % 10 == 0:
            book.merge()
        elif number % 3 == 0:
            book.replace(draw.choice(sorted(book.acknowledged)), number)
        else:
            book.add(number)
        written[book.writer.base.generation] = book.acknowledged
        book.collect()
        if time.monotonic() > end:
            break
    return written


@posix
def test_a_forked_child_holds_no_lock_when_its_parent_dies(ledger: ModuleType, folder: Path) -> None:
    program = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "from ledger import *\n"
        "from lateinteraction.adapters.index.storage import FolderStorage\n"
        f"book = Ledger(FolderStorage({str(folder)!r}), acknowledged=frozenset())\n"
        "book.open(); book.add(1); opened = book.generations.read()\n"
        "child = os.fork()\n"
        "if not child: time.sleep(60)\n"
        "sys.stdout.write(f'{child}\\n'); sys.stdout.flush(); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # it is alive
        book = ledger.Ledger(FolderStorage(folder), acknowledged=frozenset({1}))
        book.open()
        book.add(2)
        book.collect()
        assert not [path for path in folder.iterdir() if path.name.startswith("lease-")]
        book.close()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def in_child(act: Any) -> None:
    """Run in a forked child, which must succeed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@posix
def test_a_forked_child_reads_what_its_parent_opened_and_writes_nothing(ledger: ModuleType, folder: Path) -> None:
    book = ledger.Ledger(FolderStorage(folder), acknowledged=frozenset())
    book.open()
    book.add(1)
    opened = book.generations.read()
    half = book.writer.new_file("segment")

    def child() -> None:
        assert ledger.content_of(opened) == {1}
        opened.close()
        for call in (book.collect, lambda: book.add(2), lambda: book.writer.new_file("segment")):
            with pytest.raises(IndexLocked, match=f"a fork of process {os.getppid()}"):
                call()
        book.close()
        with pytest.raises(IndexLocked, match=f"process {os.getppid()} on"):
            book.generations.writer()

    in_child(child)
    assert [path for path in folder.iterdir() if path.name.startswith("lease-")]
    assert (folder / half.temporary).exists()
    book.add(3)
    assert ledger.read(book.storage) == {1, 3}
    opened.close()
    book.close()


class ReadOnly:
    """A folder that cannot be written to."""

    writable = False

    def __init__(self, inner: MemoryStorage) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name in ("identity", "size", "read", "map", "names", "note", "after_death"):
            return getattr(self._inner, name)

        def refuse(*_: object) -> None:
            raise StorageFailed(name, "a folder that can be written to", "Open it for reading.")

        return refuse


def test_a_folder_that_cannot_be_written_to_is_read_without_writing(ledger: ModuleType) -> None:
    folder = MemoryStorage()
    book = ledger.Ledger(folder)
    book.create()
    book.open()
    book.add(1)
    storage = ReadOnly(folder)
    generations = Generations(storage, patience=ledger.PATIENCE)
    opened = generations.read()
    assert ledger.content_of(opened) == {1}
    book.add(2)
    assert ledger.content_of(generations.refresh(opened)) == {1, 2}
    assert generations.verify(ledger.told).content == "1 2"
    with pytest.raises(StorageFailed):
        generations.writer()
    files = folder.contents()
    unlogged = MemoryStorage({**files, "commits": files["commits"][:-64]})
    assert ledger.read(ReadOnly(unlogged)) == {1, 2}


@pytest.fixture
def unwritable(ledger: ModuleType) -> Iterator[Path]:
    """A real folder with an index, whose permissions allow reading alone; outside of what only this user may enter."""
    place = Path(tempfile.mkdtemp(prefix="lateinteraction-read-only-"))
    place.chmod(0o755)
    book = ledger.Ledger(FolderStorage(place / "index", create=True))
    book.create()
    book.open()
    book.add(1, 2)
    book.close()
    (place / "index").chmod(0o555)
    yield place / "index"
    (place / "index").chmod(0o755)
    shutil.rmtree(place)


@posix
def test_a_folder_without_permission_is_read_without_a_trace(ledger: ModuleType, unwritable: Path) -> None:
    before = {path.name: path.read_bytes() for path in unwritable.iterdir()}

    def child() -> None:
        if os.geteuid() == 0:  # to whom permissions mean nothing
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        storage = FolderStorage(unwritable)
        assert not storage.writable
        assert ledger.read(storage) == {1, 2}
        assert Generations(storage).verify(ledger.told).content == "1 2"
        with suppress(StorageFailed):
            Generations(storage).writer()
            raise AssertionError("it was locked for writing")

    in_child(child)
    assert {path.name: path.read_bytes() for path in unwritable.iterdir()} == before
