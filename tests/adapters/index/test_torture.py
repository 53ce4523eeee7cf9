"""A minute of torture, at most, and whether the tool that does it would see what it looks for."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions
from lateinteraction.adapters.index.snapshot import IndexSnapshot
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.adapters.index.writing import Writer
from lateinteraction.domain.errors import StorageFailed
from lateinteraction.testing.storage import MemoryStorage

TOOLS = Path(__file__).resolve().parents[3] / "tools"
PARTS = ("torture_model", "torture_figures", "torture_faults", "torture_kills", "torture_damages")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed as POSIX does")


def load() -> dict[str, ModuleType]:
    """The parts of the tool; found beside each other while they are loaded, as where the tool is started."""
    sys.path.insert(0, str(TOOLS))
    try:
        return {name.removeprefix("torture_"): importlib.import_module(name) for name in PARTS}
    finally:
        sys.path.remove(str(TOOLS))


LOADED = load()
model, kills, damages, faults = (LOADED[name] for name in ("model", "kills", "damages", "faults"))


@pytest.fixture
def figures() -> Any:
    return LOADED["figures"].Figures()


def wrong_of(figures: Any) -> set[str]:
    """What was found to be wrong."""
    return {name for name in LOADED["figures"].WRONG if figures.counts[name]}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return subprocess.run([sys.executable, *map(str, command)], env=variables, capture_output=True, text=True)


def read_table(output: str) -> dict[str, int]:
    rows = re.findall(r"^(\S.*?) {2,}([\d,]+)$", output, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in rows}


@posix
def test_an_index_survives_kills_damages_and_faults() -> None:
    done = run(TOOLS / "torture.py", "--kills", 50, "--damages", 250, "--stride", 19, "--seconds", 60)
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    counts = read_table(done.stdout)
    assert {name: counts[name] for name in LOADED["figures"].WRONG if counts[name]} == {}
    assert {name for name in LOADED["figures"].TRIED if not counts[name]} == set()


# The model: what the questions are held against.


def lived(seed: int, calls: int, storage: Any = None) -> tuple[StoredIndex, list[Any]]:
    """An index after so many calls, and its states."""
    draw, states = model.seeded(seed), [{}]
    index = StoredIndex.create(storage or MemoryStorage())
    for number in range(1, calls + 1):
        call = model.planned(draw, states[-1], number)
        model.perform(index, call)
        states.append(model.after(states[-1], call))
    return index, states


@given(st.integers(0, 10**6))
def test_the_answers_of_an_index_are_those_that_its_documents_give(seed: int) -> None:
    index, states = lived(seed, 12)
    assert model.wrong(index, states[-1]) == []
    model.perform(index, model.Call("compact", {}))
    assert model.wrong(index, states[-1]) == []


@given(st.integers(0, 10**6), st.sampled_from([kind for kind in model.KINDS if kind != "compact"]))
def test_a_call_that_is_repeated_changes_nothing_more(seed: int, kind: str) -> None:
    index, states = lived(seed, 6)
    call = model.planned(model.seeded(seed, 1), states[-1], 99, kind)
    then = model.after(states[-1], call)
    for _ in range(3):
        model.repeat(index, call)
        assert model.wrong(index, then) == []


def test_every_difference_between_documents_is_seen() -> None:
    index = StoredIndex.create(MemoryStorage())
    state = {f"document {number}": model.Entry(number, number) for number in range(1, 30)}
    model.add(index, state)
    missing = {identifier: entry for identifier, entry in state.items() if identifier != "document 7"}
    assert "ids" in model.wrong(index, missing)
    assert "texts and metadata" in model.wrong(index, {**state, "document 7": model.Entry(7, 8)})
    exchanged = {**state, "document 7": state["document 8"], "document 8": state["document 7"]}
    assert {"texts and metadata", "embeddings"} <= {*model.wrong(index, exchanged)}
    one_group = {identifier: entry._replace(described=1) for identifier, entry in state.items()}
    assert {"filtered", "filtered words"} <= {*model.wrong(index, one_group)}
    other_words = {identifier: entry._replace(made=entry.made + 1) for identifier, entry in state.items()}
    assert {"embeddings", "nearest", "words"} <= {*model.wrong(index, other_words)}


# What torture has found.


class Unreadable:
    """A storage that maps no file while it is told so."""

    def __init__(self, inner: MemoryStorage) -> None:
        self._inner, self.told = inner, False

    def __getattr__(self, name: str) -> Any:
        if name == "map" and self.told:
            raise StorageFailed("mapping", "more open files", "Allow the process more of them.")
        return getattr(self._inner, name)


def test_what_is_committed_and_cannot_be_opened_is_acknowledged_and_no_older_answer_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = Unreadable(MemoryStorage())
    index, states = lived(3, 4, storage)
    call = model.Call("add", {"document 500": model.Entry(500, 500)})
    storage.told = True
    model.perform(index, call)
    assert "what was committed is not open yet" in caplog.text
    for ask in (index.ids, index.snapshot, lambda: len(index), lambda: "document 500" in index):
        with pytest.raises(StorageFailed):
            ask()
    storage.told = False
    assert model.wrong(index, model.after(states[-1], call)) == []


# Bugs that are planted, and must be found.


def fail(figures: Any, name: str, fault: str) -> None:
    """Have every operation of one scene fail in one way."""
    scene = next(each for each in faults.scenes(0) if each.name == name)
    for point in faults.points([scene]):
        if point.fault == fault:
            faults.examine(figures, point)


def test_without_a_bug_nothing_is_found(figures: Any) -> None:
    fail(figures, "add", "error")
    assert figures.good
    assert figures.counts["faults that failed a call"] > 20


def test_a_commit_that_is_not_taken_back_is_found(figures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "_take_back", lambda *_, **__: None)
    fail(figures, "remove", "error")
    assert "failed calls that changed something" in wrong_of(figures)


def test_a_call_that_fails_after_its_commit_is_found(figures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Writer.commit

    def failing(writer: Writer, **given: Any) -> Any:
        commit(writer, **given)
        return writer._storage.size("commits")  # what can fail although all is done

    monkeypatch.setattr(Writer, "commit", failing)
    fail(figures, "add", "error")
    assert {"failed calls that changed something", "failed calls that cannot be tried again"} <= wrong_of(figures)


def test_what_was_acknowledged_and_is_not_there_is_found(figures: Any, tmp_path: Path) -> None:
    index, states = lived(3, 8, FolderStorage(tmp_path / "index", create=True))
    index.close()
    acknowledged = {**states[-1], "document 500": model.Entry(500, 500)}
    in_flight = model.Call("add", {"document 501": model.Entry(501, 501)})
    kills.examine(figures, tmp_path / "index", "a loss", acknowledged, in_flight)
    assert figures.counts["acknowledged documents lost"] == 1
    assert {"retries that were not idempotent", "wrong ids, texts, embeddings or hits after a kill"} < wrong_of(figures)
    assert "a loss" in figures.table()
    assert not figures.good


def test_what_a_kill_may_leave_is_nothing_wrong(figures: Any, tmp_path: Path) -> None:
    index, states = lived(3, 8, FolderStorage(tmp_path / "index", create=True))
    call = model.Call("add", {"document 500": model.Entry(500, 500)})
    index.close()
    shutil.copytree(tmp_path / "index", tmp_path / "done")
    with StoredIndex(FolderStorage(tmp_path / "done")) as done:
        model.perform(done, call)
    for folder in ("index", "done"):
        assert kills.examine(figures, tmp_path / folder, folder, states[-1], call) == model.after(states[-1], call)
    assert figures.counts["calls that had taken place when they were killed"] == 1
    assert figures.good


@pytest.fixture
def victim(tmp_path: Path) -> Any:
    return damages._victim(tmp_path / "victim", 5, IndexOptions("float16"), False)


def examined(tmp_path: Path, victim: Any, files: dict[str, bytes], name: str = "commits") -> str:
    """The verdict on an index of these files, of which one is said to be damaged."""
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for each, content in files.items():
        (folder / each).write_bytes(content)
    return damages.examine(folder, victim, name, files.get(name), writing=True).verdict


def test_the_verdict_on_a_damage_is_what_happened(tmp_path: Path, victim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examined(tmp_path, victim, victim.files) == "right"
    gone = {name: content for name, content in victim.files.items() if name != "commits"}
    assert examined(tmp_path, victim, gone) == "refused"
    with StoredIndex(FolderStorage(tmp_path / "victim")) as index:
        model.add(index, {"document 700": model.Entry(700, 700)})
    later = {path.name: path.read_bytes() for path in (tmp_path / "victim").iterdir()}
    assert examined(tmp_path, victim, later) == "wrong"
    newer = victim._replace(earlier=[victim.state], state={"document 700": model.Entry(700, 700)}, answers={})
    newer = newer._replace(answers=model.expected(newer.state))
    assert examined(tmp_path, newer, victim.files) == "older"
    monkeypatch.setattr(IndexSnapshot, "ids", lambda _: ("document 3",))
    assert examined(tmp_path, victim, victim.files) == "wrong"


def test_damage_that_is_not_verified_is_found(tmp_path: Path, victim: Any) -> None:
    name = min(victim.newest)
    changed = victim._replace(files={**victim.files, name: b"as it was"})
    assert examined(tmp_path, changed, victim.files, name) == "wrong", "verify has nothing to say"


def test_every_damage_changes_a_file_and_is_the_same_each_time(victim: Any) -> None:
    cases = [damages.case([victim], 1, number) for number in range(300)]
    assert cases == [damages.case([victim], 1, number) for number in range(300)]
    assert {name for _, name, _ in cases} == victim.files.keys()
    changed = [content != victim.files[name] for _, name, content in cases]
    assert sum(changed) > 280
    assert None in [content for *_, content in cases]


PLANTED = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import torture_damages, torture_kills
from torture_figures import Figures

def serve(victims, folder, seed, numbers, pipe, real=torture_damages._serve):
    for number in numbers:
        if number == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 5:
            time.sleep(60)
        real(victims, folder, seed, range(number, number + 1), pipe)

figures = Figures()
torture_damages._serve, torture_damages.TIMEOUT = serve, 2.0
torture_damages.torture(figures, 0, 8)
torture_kills.perform = lambda index, call: time.sleep(0.01)  # acknowledges, and writes nothing
torture_kills._kill_at_random(figures, __import__("pathlib").Path(sys.argv[2]), 0, 2, 1.0)
print(figures.table())
"""


@posix
def test_children_that_crash_hang_or_acknowledge_what_they_did_not_write_are_found(tmp_path: Path) -> None:
    done = run("-c", PLANTED, TOOLS, tmp_path)
    assert done.stderr == ""
    counts = read_table(done.stdout)
    assert counts["damaged files tried"] == 8
    assert counts["crashes on damage"] == counts["hangs on damage"] == 1
    assert counts["acknowledged documents lost"] > 0
    assert "case 3 of seed 0" in done.stdout


def test_without_time_nothing_is_tried() -> None:
    figures = LOADED["figures"].Figures(0.0)
    faults.torture(figures, 0)
    assert not any(figures.counts.values())
