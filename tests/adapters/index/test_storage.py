"""FolderStorage keeps the port's contract, with and without hard links, through deaths, forks and refusals."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from lateinteraction.adapters.index.storage import FolderStorage, is_name, temporary_name
from lateinteraction.domain.errors import InvalidOption, StorageFailed, UnreadableFile
from lateinteraction.testing.contracts.storage import StorageContract, holding
from lateinteraction.testing.storage import RefusingStorage


class TestFolderStorage(StorageContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_storage(self) -> FolderStorage:
        return FolderStorage(tempfile.mkdtemp(dir=self.folder))

    def opened_again(self, storage: FolderStorage) -> FolderStorage:
        return FolderStorage(storage.path)


class TestFolderStorageWithoutHardLinks(TestFolderStorage):
    @pytest.fixture(autouse=True)
    def _no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(source: Path, target: Path) -> NoReturn:
            source.lstat()  # a missing source is told first, as on FAT
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refused)


class TestFolderStorageThatRefusesToUnlinkWhatIsInUse(StorageContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_storage(self) -> RefusingStorage:
        return RefusingStorage(FolderStorage(tempfile.mkdtemp(dir=self.folder)))


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "index", create=True)


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A second program, whose lines nobody counts: a thread that counts may have a lock when another one forks."""
    opening = "import os, sys, time\nfrom lateinteraction.adapters.index.storage import FolderStorage\n"
    command = [sys.executable, "-c", opening + program, *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=inherited)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> str:
    """What a program says until its end."""
    with process:
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    return output.strip()


@pytest.fixture
def holder(storage: FolderStorage) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the lock, and has a forked child that outlives it."""
    program = """
lock = FolderStorage(sys.argv[1]).lock("lock", b"another")
child = os.fork()
if not child:
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
time.sleep(600)
"""
    with python(program, storage.path) as process:
        yield process
        process.kill()


def test_a_process_that_dies_gives_its_lock_back_though_its_child_lives(
    storage: FolderStorage, holder: subprocess.Popen[str]
) -> None:
    child = int(said(holder))
    assert storage.lock("lock", b"ours") is None
    assert storage.note("lock") == b"another"
    holder.kill()
    holder.wait(60)
    os.kill(child, 0)  # it lives, and waits for its parent's input to end
    lock = storage.lock("lock", b"ours")
    assert lock is not None
    assert lock.held
    lock.release()


def test_a_forked_child_has_neither_the_locks_nor_the_files_of_its_parent(storage: FolderStorage) -> None:
    program = """
from lateinteraction.domain.errors import StorageFailed
storage = FolderStorage(sys.argv[1])
lock, file = storage.lock("lock", b""), storage.create("new")
child = os.fork()
if not child:
    if lock.held:
        os._exit(1)
    try:
        file.write(b"the child's")
        os._exit(2)
    except StorageFailed:
        pass
    file.close()
    lock.release()
    os._exit(3 if storage.lock("lock", b"") else 0)
status = os.waitpid(child, 0)[1]
file.write(b"the parent's")
print(os.waitstatus_to_exitcode(status), lock.held, storage.lock("lock", b""), storage.read("new").decode())
"""
    assert ended(python(program, storage.path)) == "0 True None the parent's"


def test_a_lock_that_is_dropped_is_free(storage: FolderStorage) -> None:
    assert storage.lock("lock", b"") is not None
    lock = storage.lock("lock", b"")
    assert lock is not None
    lock.release()


def test_locks_exclude_while_their_files_come_and_go(storage: FolderStorage) -> None:
    inside = threading.Lock()

    def visits(number: int) -> int:
        entered = 0
        for _ in range(200):
            lock = FolderStorage(storage.path).lock("lock", b"%d" % number)
            if lock is None:
                continue
            assert inside.acquire(blocking=False)
            entered += 1
            inside.release()
            storage.unlink("lock")
            lock.release()
        return entered

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(visits, range(6))) > 0


def test_forking_while_others_open_files_leaves_no_lock_behind(storage: FolderStorage) -> None:
    program = """
import threading
storage = FolderStorage(sys.argv[1])
done = threading.Event()
def locks():
    while not done.is_set():
        storage.lock("lock", b"").release()
thread = threading.Thread(target=locks)
thread.start()
children = []
for _ in range(20):
    child = os.fork()
    if not child:
        mine = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
        held = [name for name in mine if os.readlink(f"/proc/self/fd/{name}").endswith("/lock")]
        os._exit(len(held))
    children.append(child)
print(sum(os.waitpid(child, 0)[1] for child in children))
done.set()
thread.join()
"""
    if sys.platform != "linux":
        pytest.skip("open files are listed on Linux only")
    assert ended(python(program, storage.path)) == "0"


def test_a_folder_is_made_with_all_above_it(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "a" / "b", create=True)
    holding(storage, "file", b"content")
    assert FolderStorage(str(tmp_path / "a" / "b"), create=True).names() == ["file"]


@pytest.mark.parametrize("create", [False, True])
def test_what_is_no_folder_is_refused(tmp_path: Path, create: bool) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "dangling", "loop"):
        with pytest.raises(UnreadableFile, match=name):
            FolderStorage(tmp_path / name, create=create)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("name", ["", "a\0b", "half a pair \ud800", "x" * 5000, "/dev/null", "/dev/null/below"])
def test_a_hostile_name_is_one_error_of_ours_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, create: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InvalidOption, UnreadableFile, StorageFailed)):
        FolderStorage(name, create=create)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder that only the system fills")
def test_a_folder_where_only_the_system_makes_files_is_told() -> None:
    with pytest.raises(StorageFailed, match="making /proc/nobodys-index"):
        FolderStorage("/proc/nobodys-index", create=True)


def test_a_folder_that_is_not_there_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="not there"):
        FolderStorage(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed):
        FolderStorage(tmp_path / "file" / "below", create=True)


def test_a_relative_path_is_one_place_wherever_the_program_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = FolderStorage("index", create=True)
    monkeypatch.chdir("elsewhere")
    holding(storage, "file", b"")
    assert (tmp_path / "index" / "file").exists()
    assert repr(storage) == f"FolderStorage({str(tmp_path / 'index')!r})"


def test_what_cannot_be_ours_is_not_listed(storage: FolderStorage) -> None:
    for name in (".DS_Store", "README.md", "Übung", "a" * 81, "ours"):
        (storage.path / name).write_bytes(b"")
    assert storage.names() == ["ours"]


def test_no_link_is_followed(storage: FolderStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    (storage.path / "link").symlink_to(outside)
    for follow in (
        lambda: storage.read("link"),
        lambda: storage.map("link"),
        lambda: storage.note("link"),
        lambda: storage.append("link", b"more"),
        lambda: storage.sync("link"),
        lambda: storage.lock("link", b"note"),
    ):
        with pytest.raises(StorageFailed):
            follow()
    with pytest.raises(FileExistsError):
        storage.create("link")
    holding(storage, "tmp", b"")
    with pytest.raises(FileExistsError):
        storage.publish("tmp", "link")
    assert storage.unlink("link")
    assert outside.read_bytes() == b"secret"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_under_a_name_keeps_nobody_waiting(
    storage: FolderStorage, make: Callable[[Path], None]
) -> None:
    make(storage.path / "odd")
    for operate in (storage.read, storage.map, lambda name: storage.append(name, b"x"), lambda n: storage.lock(n, b"")):
        with pytest.raises(StorageFailed):
            operate("odd")


def test_a_disk_that_is_full_is_told_and_keeps_what_fitted(storage: FolderStorage) -> None:
    program = """
import resource
from lateinteraction.domain.errors import StorageFailed
storage = FolderStorage(sys.argv[1])
storage.append("log", b"acknowledged")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for write in (lambda: storage.append("log", bytes(5000)), lambda: storage.create("new").write(bytes(5000))):
    try:
        write()
    except StorageFailed as error:
        print(type(error.__cause__).__name__, end=" ")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(storage.size("log"), storage.read("log", 0, 12).decode(), storage.size("new"))
"""
    assert ended(python(program, storage.path)) == "OSError OSError 1000 acknowledged 1000"


def test_writes_that_the_system_takes_in_pieces_are_whole(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda number, data: write(number, bytes(data)[:3]))
    holding(storage, "file", b"in several pieces")
    assert storage.read("file") == b"in several pieces"


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EIO, "Look at the disk"), (errno.ENOSPC, "Free some space"), (errno.EPIPE, "says")]
)
def test_what_the_system_refuses_is_told_with_a_remedy(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def refused(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    holding(storage, "file", b"")
    monkeypatch.setattr(os, "fsync", refused)
    for sync in (lambda: storage.sync("file"), storage.sync_folder, storage.create("new").sync):
        with pytest.raises(StorageFailed, match=remedy) as told:
            sync()
        assert isinstance(told.value.__cause__, OSError)


def test_a_system_that_writes_nothing_is_told(storage: FolderStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(StorageFailed, match="nothing was written"):
        storage.append("log", b"data")


def test_a_lock_that_cannot_be_noted_is_not_kept(storage: FolderStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda *_: 0)
        with pytest.raises(StorageFailed):
            storage.lock("lock", b"note")
    lock = storage.lock("lock", b"note")
    assert lock is not None
    lock.release()


def test_a_copy_that_fails_leaves_nothing(
    storage: FolderStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(number: int) -> Callable[..., NoReturn]:
        def refuse(*_: object, **__: object) -> NoReturn:
            raise OSError(number, os.strerror(number))

        return refuse

    holding(storage, "file", b"content")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(os, "link", refused(errno.EXDEV))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", refused(errno.ENOSPC))
        with pytest.raises(StorageFailed):
            storage.link_into("file", tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    storage.link_into("file", tmp_path / "other")
    assert (tmp_path / "other" / "file").read_bytes() == b"content"


def test_a_hard_link_shares_the_disk(storage: FolderStorage, tmp_path: Path) -> None:
    holding(storage, "file", b"content")
    (tmp_path / "other").mkdir()
    storage.link_into("file", tmp_path / "other")
    assert (tmp_path / "other" / "file").samefile(storage.path / "file")


def test_a_link_that_the_system_refuses_otherwise_is_told(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    holding(storage, "tmp", b"content")
    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(StorageFailed):
        storage.publish("tmp", "final")
    assert storage.names() == ["tmp"]


def test_a_folder_that_may_only_be_read_is_read_without_a_trace() -> None:
    program = """
from lateinteraction.domain.errors import StorageFailed
storage = FolderStorage(sys.argv[1])
if os.geteuid() == 0:
    os.setuid(65534)
refused = 0
for write in (
    lambda: storage.create("new"), lambda: storage.append("new", b""), lambda: storage.lock("new", b""),
    lambda: storage.publish("file", "new"), lambda: storage.append("file", b"more"),
):
    try:
        write()
    except StorageFailed as error:
        refused += "reading only" in str(error) or "free" in str(error)
print(storage.writable, storage.unlink("file"), storage.read("file").decode(), storage.map("file").size, refused)
sys.stdout.flush()
os._exit(0)  # nobody may write what is written at an exit
"""
    with tempfile.TemporaryDirectory() as folder:
        holding(FolderStorage(folder), "file", b"content")
        os.chmod(folder, 0o555)
        try:
            assert ended(python(program, folder)) == "False False content 7 5"
            assert os.listdir(folder) == ["file"]
        finally:
            os.chmod(folder, 0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted on Linux only")
def test_no_operation_leaves_a_file_open(storage: FolderStorage, tmp_path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()  # what other tests have left is not closed between
    before = open_files()
    for number in range(20):
        holding(storage, f"tmp-{number}", b"content")
        storage.publish(f"tmp-{number}", f"final-{number}")
        storage.append("log", b"line")
        storage.sync("log")
        storage.sync_folder()
        storage.map("log")
        storage.create(f"dropped-{number}").write(b"unfinished")
        lock = storage.lock("lock", b"")
        assert lock is not None
        assert storage.lock("lock", b"") is None
        lock.release()
        for fails in (lambda: storage.read("missing"), lambda: storage.create("log")):
            with pytest.raises(OSError, match=r"missing|log"):
                fails()
    assert open_files() == before


def test_mapped_bytes_are_readable_after_the_folder_is_gone(tmp_path: Path) -> None:
    storage = holding(FolderStorage(tmp_path / "index", create=True), "file", b"content")
    mapped = storage.map("file")
    shutil.rmtree(tmp_path / "index")
    assert mapped.tobytes() == b"content"


def test_temporary_names_are_names_and_never_the_same() -> None:
    names = [temporary_name() for _ in range(100)]
    assert len(set(names)) == 100
    assert all(is_name(name) and name.startswith(f"tmp-{os.getpid()}-") for name in names)
    assert not is_name(7)
