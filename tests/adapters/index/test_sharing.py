"""One folder and several processes: readers beside a writer, two writers, forked children, no permission to write."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import IndexLocked
from lateinteraction.domain.text import Document, DocumentId

PROGRAM = Path(__file__).parent / "sharing_program.py"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked as POSIX does")


def started(*arguments: str) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**own, "OMP_NUM_THREADS": "1"},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed, where nothing went wrong."""
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return output.strip()


def add(index: StoredIndex, *numbers: int) -> None:
    documents = [Document(DocumentId(str(number)), f"text {number}", {"n": number}) for number in numbers]
    index.add(documents, TokenEmbeddings(torch.eye(4)[: len(numbers)], offsets_of([1] * len(numbers))))


@pytest.fixture
def folder() -> Iterator[Path]:
    """With an index of three documents; outside of what only this user may enter."""
    place = Path(tempfile.mkdtemp(prefix="lateinteraction-shared-"))
    place.chmod(0o755)
    with StoredIndex.create(
        FolderStorage(place / "index", create=True), IndexSettings(IndexOptions("float16"))
    ) as index:
        add(index, 1, 2, 3)
    yield place / "index"
    (place / "index").chmod(0o755)
    shutil.rmtree(place)


def test_eight_readers_see_every_generation_as_it_is_whatever_a_writer_does(tmp_path: Path) -> None:
    """And what they hold stays so, bit by bit, through additions, replacements, removals, updates and compactions."""
    told = ended(started(str(PROGRAM), str(tmp_path / "index"), "8", "24"))
    generations = [int(count) for count in told.split()]
    assert len(generations) == 8
    assert min(generations) >= 2


SECOND = """
import sys
from lateinteraction.wiring import indexes
from lateinteraction.domain.errors import IndexLocked
index = indexes.stored_index(sys.argv[1])
try:
    index.update({"1": {"second": True}})
except IndexLocked as error:
    print(error)
input()
index.update({"1": {"second": True}})
print(len(index), "torch" in sys.modules)
"""


def test_of_two_writers_the_second_is_told_who_writes_and_writes_once_that_one_has_closed(folder: Path) -> None:
    with StoredIndex(FolderStorage(folder)) as first:
        add(first, 4)
        second = started("-c", SECOND, str(folder))
        assert second.stdout is not None
        assert f"process {os.getpid()} on" in second.stdout.readline()
        add(first, 5)
    assert ended_after_a_line(second) == "5 False"
    assert StoredIndex(FolderStorage(folder)).get([DocumentId("1")])[0].metadata == {"second": True}


def ended_after_a_line(process: subprocess.Popen[str]) -> str:
    """`ended`, for one that waits for a line."""
    output, errors = process.communicate("\n", timeout=120)
    assert (process.returncode, errors) == (0, "")
    return output.strip()


PARENT = """
import os, sys, time
from lateinteraction.wiring import indexes
index = indexes.stored_index(sys.argv[1])
index.update({"1": {"parent": True}})
child = os.fork()
if child == 0:
    assert len(index) == 3 and index.get(["1"])[0].metadata == {"parent": True}
    os.close(0), os.close(1), os.close(2)
    time.sleep(60)
    os._exit(0)
print(child, "torch" in sys.modules, flush=True)
os._exit(0)
"""


def test_a_forked_child_that_outlives_the_writer_does_not_keep_its_lock(folder: Path) -> None:
    child, torch_is_there = ended(started("-c", PARENT, str(folder))).split()
    try:
        os.kill(int(child), 0)  # it lives
        assert torch_is_there == "False"
        with StoredIndex(FolderStorage(folder)) as index:
            index.update({DocumentId("1"): {"after": True}})
            assert index.verify().sound
    finally:
        os.kill(int(child), signal.SIGKILL)


READER = """
import os, sys
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.errors import StorageFailed
if os.geteuid() == 0:  # to whom permissions mean nothing
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
with StoredIndex(FolderStorage(sys.argv[1])) as index:
    assert index.snapshot().search_text(["text"], 5)[0].documents == ("1", "2", "3")
    assert index.verify().sound
    for call in (lambda: index.remove(["1"]), lambda: index.update({"1": {}}), index.compact):
        try:
            call()
        except StorageFailed:
            continue
        raise AssertionError("it was written to")
    print(len(index.refresh()), "torch" in sys.modules)
"""


def test_a_folder_that_may_only_be_read_is_read_without_a_trace(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.chmod(0o555)
    assert ended(started("-c", READER, str(folder))) == "3 False"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_lease_of_somebody_else_counts_as_held_and_stops_no_collection(folder: Path) -> None:
    """A name under which nothing can be opened stands for the file of a user whose files we may not open."""
    with StoredIndex(FolderStorage(folder)) as index:
        generation = index.snapshot().generation
        (folder / f"lease-{generation}-1-{'0' * 16}").mkdir()
        for number in range(10, 20):
            add(index, number)
        names = {path.name for path in folder.iterdir()}
    kept = {int(name[2:]) for name in names if name.startswith("g-")}
    assert kept == {generation, generation + 9, generation + 10}


def test_whoever_is_refused_as_writer_can_write_later_with_the_same_object(folder: Path) -> None:
    first, second = (StoredIndex(FolderStorage(folder)) for _ in range(2))
    add(first, 4)
    for _ in range(2):
        with pytest.raises(IndexLocked):
            add(second, 5)
    first.close()
    add(second, 5)
    assert len(second) == 5
    second.close()
