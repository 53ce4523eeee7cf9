"""Programs are compiled once, kept where they can be, never confused, and run from threads and forked children."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

import lateinteraction
from lateinteraction.kernels import cpu
from lateinteraction.kernels.cpu import compilation, threads
from lateinteraction.kernels.cpu.compilation import MOST_TARGETS, MachineCode, Program, Store, digest_of, load
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.operands import Tokens

PACKAGE = Path(lateinteraction.__file__).parent
NORMS = """
import sys, torch
from lateinteraction.kernels import cpu
print(float(cpu.inverse_norms(torch.tensor([[3, 4]], dtype=torch.int8))), "numba" in sys.modules)
"""


def ran(code: str, **variables: str) -> str:
    """What a new process prints. Its lines are not counted: a fork while a thread counts one would wait for ever."""
    foreign = ("NUMBA_CACHE_DIR", "COVERAGE_PROCESS")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=own | variables, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def programs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.program"))


def test_what_one_process_compiles_the_next_one_loads_without_numba(tmp_path: Path) -> None:
    assert ran(NORMS, NUMBA_CACHE_DIR=str(tmp_path)) == "0.20000000298023224 True"
    (kept,) = programs(tmp_path)
    written = kept.stat().st_mtime_ns
    assert ran(NORMS, NUMBA_CACHE_DIR=str(tmp_path)) == "0.20000000298023224 False"
    assert kept.stat().st_mtime_ns == written
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


def test_importing_the_form_imports_no_compiler() -> None:
    code = "import sys; import lateinteraction.kernels.cpu; print('numba' in sys.modules, 'triton' in sys.modules)"
    assert ran(code) == "False False"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, with none of what was compiled for the original."""
    folder = tmp_path / "copied" / "lateinteraction"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_program_is_compiled_anew_when_a_file_it_is_made_of_changes(copied: Path) -> None:
    path, minus = str(copied.parent), NORMS.replace("[[3, 4]]", "[[-3, -4]]")
    assert ran(minus, PYTHONPATH=path).startswith("0.2")
    (kept,) = programs(copied)
    assert kept.parent == copied / "kernels/cpu/__pycache__"
    rows = copied / "kernels/cpu/programs/rows.py"  # not the file of the program: numba's own cache would not notice
    source = rows.read_text()
    edited = source.replace("builder.sitofp(builder.sext(value", "builder.uitofp(builder.sext(value")
    assert edited != source
    rows.write_text(edited)
    assert not ran(minus, PYTHONPATH=path).startswith("0.2")
    (newer,) = programs(copied)
    assert newer != kept


@pytest.mark.deep
def test_where_nothing_can_be_written_every_process_compiles(copied: Path) -> None:
    for folder in (copied / "kernels/cpu", copied / "kernels/cpu/programs"):
        (folder / "__pycache__").write_text("a file stands where the folder would be")
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "", "PYTHONDONTWRITEBYTECODE": "1"}
    assert ran(NORMS, PYTHONPATH=str(copied.parent), **nowhere) == "0.20000000298023224 True"
    assert programs(copied) == []


def test_where_the_sources_cannot_be_written_the_cache_of_the_user_is_used(copied: Path, tmp_path: Path) -> None:
    (copied / "kernels/cpu/__pycache__").write_text("a file stands where the folder would be")
    assert ran(NORMS, PYTHONPATH=str(copied.parent), XDG_CACHE_HOME=str(tmp_path / "cache")).endswith("True")
    assert len(programs(tmp_path / "cache")) == 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "first", tmp_path / "second"), "some.program-abc", "v1")


CODE = MachineCode("symbol", b"\0\1machine\0code")


def test_what_is_stored_is_read_back_and_replaces_older_versions(store: Store) -> None:
    assert store.read() is None
    path = store.write(CODE)
    assert path is not None
    assert path.parent == store.folders[0]
    assert store.read() == CODE
    later = store._replace(version="v2")
    assert later.read() is None
    later.write(MachineCode("symbol", b"newer"))
    assert (store.read(), later.read()) == (None, MachineCode("symbol", b"newer"))


def test_what_was_made_of_other_sources_goes_whatever_the_processor(store: Store) -> None:
    """And nothing else does: neither other processors of the same sources, nor other programs."""
    kept = [store._replace(stem="some.program-def", version="v2"), store._replace(stem="some.program_of_bytes-abc")]
    for each in (store, store._replace(stem="some.program-def"), *kept):
        each.write(CODE)
    newest = store._replace(version="v2")
    newest.write(CODE)
    assert all(each.read() == CODE for each in (newest, *kept))
    assert len(programs(store.folders[0])) == 3


def test_of_many_processors_those_that_were_seen_last_are_kept(store: Store) -> None:
    stores = [store._replace(stem=f"some.program-{number}") for number in range(MOST_TARGETS + 3)]
    for second, each in enumerate(stores):
        path = each.write(CODE)
        assert path is not None
        os.utime(path, (second, second))
    assert [each.read() is not None for each in stores] == [False] * 3 + [True] * MOST_TARGETS


def test_the_first_folder_that_can_be_written_is_used(store: Store) -> None:
    store.folders[0].write_text("not a folder")
    path = store.write(CODE)
    assert path is not None
    assert path.parent == store.folders[1]
    assert store.read() == CODE
    store._replace(folders=()).write(CODE)


def test_nothing_is_kept_of_sources_that_cannot_be_read(store: Store, tmp_path: Path) -> None:
    unknown = store._replace(version=digest_of(tmp_path / "none"))
    assert unknown.version == ""
    assert unknown.write(CODE) is None
    assert unknown.read() is None


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
def test_what_somebody_else_could_have_written_is_not_executed(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.write(CODE)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o644  # whoever may read the sources may read what is made of them
    path.chmod(0o664)
    assert store.read() is None
    assert "somebody else" in caplog.text
    path.chmod(0o644)
    assert store.read() == CODE
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        assert store.read() is None


@pytest.mark.parametrize("keep", [0, 10, 40, -1])
def test_damage_is_seen_and_mended(store: Store, keep: int, caplog: pytest.LogCaptureFixture) -> None:
    path = store.write(CODE)
    assert path is not None
    whole = path.read_bytes()
    for damaged in (whole[:keep], whole[:-1] + b"?"):
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert store.read() is None
        assert "damaged" in caplog.text
    store.write(CODE)
    assert store.read() == CODE


def test_any_change_of_any_source_is_another_version(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    (folder / "inner").mkdir(parents=True)
    (folder / "one.py").write_text("1")
    (folder / "inner/two.py").write_text("2")

    def versions() -> Iterator[str]:
        yield digest_of(folder)
        (folder / "inner/two.py").write_text("3")
        yield digest_of(folder)
        (folder / "inner/two.py").rename(folder / "inner/three.py")
        yield digest_of(folder)
        (folder / "four.py").write_text("")
        yield digest_of(folder)

    assert len(set(versions())) == 4
    before = digest_of(folder)
    (folder / "notes.txt").write_text("not a source")
    assert digest_of(folder) == before


def test_sources_that_change_while_they_are_compiled_are_not_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    digests = iter(["before", "after", "same", "same"])
    monkeypatch.setattr(compilation, "digest_of", lambda _: next(digests))
    Program("top_k", "sort", 1)._machine_code()
    assert programs(tmp_path) == []
    Program("top_k", "sort", 1)._machine_code()
    assert len(programs(tmp_path)) == 1


def test_each_processor_has_its_own_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    own, other = (Store.of("a.b", target, "v") for target in (processor(), processor()._replace(features="+else")))
    own.write(CODE)
    assert other.read() is None
    assert own.read() == CODE


@pytest.mark.parametrize("switch", ["NUMBA_OPT", "NUMBA_DEBUGINFO", "NUMBA_BOUNDSCHECK", "NUMBA_OF_TOMORROW"])
def test_what_numba_is_told_makes_another_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, switch: str) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    Store.of("a.b", processor(), "v").write(CODE)
    with monkeypatch.context() as told:
        told.setenv(switch, "0")
        assert Store.of("a.b", processor(), "v").read() is None
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # of no consequence
    assert Store.of("a.b", processor(), "v").read() == CODE
    monkeypatch.chdir(tmp_path)
    Path(".numba_config.yaml").write_text("opt: 0")
    assert Store.of("a.b", processor(), "v").read() is None


@pytest.mark.deep
def test_a_program_that_was_compiled_slow_is_not_run_fast(tmp_path: Path) -> None:
    """Nor is the fast one lost when somebody looks for an error."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert ran(NORMS, **cache) == "0.20000000298023224 True"
    assert ran(NORMS, NUMBA_OPT="0", **cache) == "0.20000000298023224 True"
    assert len(programs(tmp_path)) == 2
    assert ran(NORMS, **cache) == ran(NORMS, NUMBA_OPT="0", **cache) == "0.20000000298023224 False"


def test_a_program_that_needs_the_runtime_of_python_is_refused() -> None:
    from lateinteraction.kernels.cpu.programs import compiler

    def allocates(size: int) -> None:
        np.zeros(size)[0] = 1.0

    with pytest.raises(RuntimeError, match="NRT"):
        compiler.compiled(allocates, 1)


def test_a_program_that_raises_is_not_taken_for_one_that_ended() -> None:
    from lateinteraction.kernels.cpu.programs import compiler

    def counts(first: int, last: int, step: int) -> None:
        for _ in range(first, last, step):
            pass

    loaded = load(MachineCode(*compiler.compiled(counts, 3)), 3)
    result, error = ctypes.c_int64(), ctypes.c_int64()
    assert loaded.function(ctypes.byref(result), ctypes.byref(error), 0, 9, 1) == 0
    assert loaded.function(ctypes.byref(result), ctypes.byref(error), 0, 9, 0) != 0
    program = Program("some", "counts", 3)
    program._loaded = loaded
    program(0, 9, 1)
    with pytest.raises(RuntimeError, match=r"some\.counts"):
        program(0, 9, 0)


def normal(lengths: list[int], seed: int) -> Tokens:
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    values = torch.randn((sum(lengths), 24), generator=torch.Generator().manual_seed(seed))
    return Tokens(values, offsets.unfold(0, 2, 1), max(lengths))


def test_calls_from_several_threads_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # each call makes a thread of its own besides
    worlds = [(normal([5, 40], seed), normal([30, 1, 55, 9], seed + 10)) for seed in range(4)]
    expected = [cpu.maxsim_all_pairs(*world) for world in worlds]
    together = Barrier(len(worlds))

    def often(number: int) -> bool:
        together.wait()
        return all(torch.equal(cpu.maxsim_all_pairs(*worlds[number]), expected[number]) for _ in range(40))

    with ThreadPoolExecutor(len(worlds)) as pool:
        assert all(pool.map(often, range(len(worlds))))


def test_a_first_use_by_several_threads_at_once(tmp_path: Path) -> None:
    code = """
import torch
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from lateinteraction.kernels import cpu
together = Barrier(4)
def first(number):
    together.wait()
    return float(cpu.inverse_norms(torch.full((1, 4), float(number + 1))))
with ThreadPoolExecutor(4) as pool:
    print(list(pool.map(first, range(4))))
"""
    assert ran(code, NUMBA_CACHE_DIR=str(tmp_path)) == "[0.5, 0.25, 0.1666666716337204, 0.125]"
    assert len(programs(tmp_path)) == 1


@pytest.mark.deep
def test_several_processes_may_store_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: ran(NORMS, NUMBA_CACHE_DIR=str(tmp_path)), range(2)))
    assert all(each.startswith("0.2") for each in found)
    assert len(programs(tmp_path)) == len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("used_before", [True, False])
def test_a_forked_child_computes_as_its_parent_does(used_before: bool) -> None:
    code = f"""
import os, torch
from lateinteraction.kernels import cpu
from lateinteraction.kernels.cpu import threads
from lateinteraction.kernels.operands import Tokens
threads.LEAST_WORK = 1
torch.set_num_threads(2)
values = torch.arange(400.0).reshape(100, 4).remainder(7)
spans = torch.tensor([[0, 40], [40, 41], [50, 100]])
def computed():
    return cpu.maxsim_all_pairs(Tokens(values[:9], torch.tensor([[0, 9]]), 9), Tokens(values, spans, 50)).tolist()
before = computed() if {used_before} else None
child = os.fork()
if child == 0:
    os._exit(0 if computed() == (before or computed()) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), before is None or computed() == before)
"""
    assert ran(code) == "0 True"


@pytest.mark.deep
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_while_a_thread_computes_does_too(tmp_path: Path) -> None:
    """Or loads a program: no lock is held then by a thread that the child has not got."""
    code = """
import os, threading, torch
from lateinteraction.kernels import cpu
from lateinteraction.kernels.cpu import threads
from lateinteraction.kernels.operands import Tokens
threads.LEAST_WORK = 1
torch.set_num_threads(2)
values = torch.arange(40_000.0).reshape(10_000, 4).remainder(7)
spans = torch.arange(10_001).unfold(0, 2, 1)
expected = values @ values[:9].sum(dim=0)  # here, since torch's own threads do not outlive a fork
def computed():
    return cpu.maxsim_all_pairs(Tokens(values[:9], torch.tensor([[0, 9]]), 9), Tokens(values, spans, 1))
computing, enough = threading.Event(), threading.Event()
def compute():
    while not enough.is_set():
        computed()
        computing.set()
thread = threading.Thread(target=compute)
thread.start()
if {used_before}:
    computing.wait()
codes = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(computed()[0], expected) else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
enough.set()
thread.join()
print(codes)
"""
    for used_before in (True, False):
        assert ran(code.replace("{used_before}", str(used_before))) == str([0] * 20)


def test_work_is_shared_out_among_as_many_threads_as_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    weights = np.array([5, 1, 1, 1, 8, 0, 0, 4])
    for work, most in ((0, 1), (threads.LEAST_WORK * 2.5, 2), (threads.LEAST_WORK * 100, 4)):
        shares = threads.shares(weights, work)
        assert len(shares) <= most
        assert [place for first, last in shares for place in range(first, last)] == list(range(8))
        assert all(last > first for first, last in shares)
    assert threads.shares(np.zeros(0, np.int64), 1e12) == [(0, 0)]
    assert threads.shares(np.zeros(3, np.int64), 1e12)[-1][1] == 3


def test_what_a_task_raises_in_a_thread_is_raised_by_the_call() -> None:
    done: list[int] = []

    def task(first: int, last: int) -> None:
        if first == 1:
            raise LookupError(last)
        done.append(first)

    with pytest.raises(LookupError):
        threads.run(task, [(0, 1), (1, 2), (2, 3)])
    assert sorted(done) == [0, 2]
