"""A writing child is killed with SIGKILL, at each operation of its storage and at random moments; then we look.

Children are forked from this process, which is warm: it has loaded torch and runs one thread.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

from torture_figures import Figures
from torture_model import KINDS, Call, Entry, State, add, after, document, perform, planned, repeat, seeded, wrong

from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.errors import LateInteractionError, UnreadableFile

LONGEST = 0.12
"""Seconds that a child lives at most when it is killed at a random moment: some four commits."""
CALLS_OF_A_CHILD = 200
KILLS_OF_A_FOLDER = 40
ADMITTED, ACKNOWLEDGED = b"a", b"k"
"""What a child writes when it has opened the index, and when a call has returned."""


class Killed(NamedTuple):
    """A child that was killed: how many calls it had acknowledged, and whether it died at all."""

    acknowledged: int
    died: bool


@final
class Mortal:
    """A storage, or a file of one, that kills its process at an operation; of what is to be written, half is there.

    Args:
        inner: what does the work.
        left: operations until then, shared by the storage and all its files; counts down.
    """

    def __init__(self, inner: Any, left: list[int]) -> None:
        self._inner, self._left = inner, left

    def __enter__(self) -> Mortal:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def act(*arguments: Any) -> Any:
            self._left[0] -= 1
            if self._left[0] == 0:
                if name in ("write", "append"):
                    data = memoryview(arguments[-1])
                    found(*arguments[:-1], bytes(data)[: data.nbytes // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            made = found(*arguments)
            return Mortal(made, self._left) if name == "create" else made

        return act


def torture(figures: Figures, seed: int, kills: int, share: float = 1.0) -> None:
    """Kill so many children, half of them at an operation; or fewer, as time allows.

    Args:
        figures: count what is found.
        seed: of documents, calls and moments.
        kills: how many.
        share: of the time, at which it ends.
    """
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        at_operations = _chosen(list(_moments(folder / "base", seed)), (kills + 1) // 2)
        for number, (call, state, at) in enumerate(at_operations):
            if figures.over(share / 2):
                break
            _kill_at(figures, folder / f"operation-{number}", folder / "base", (state, call), at)
            shutil.rmtree(folder / f"operation-{number}", ignore_errors=True)
        _kill_at_random(figures, folder, seed, kills - len(at_operations), share)


def _moments(base: Path, seed: int) -> Iterator[tuple[Call | None, State, int]]:
    """Each operation of each kind of call on one index, which is made here; and of making an index."""
    draw, state = seeded(seed), {}
    with StoredIndex.create(FolderStorage(base, create=True)) as index:
        for number in range(1, 13):
            call = planned(draw, state, number)
            perform(index, call)
            state = after(state, call)
    calls: list[Call | None] = [None, *(planned(draw, state, 20 + number, kind) for number, kind in enumerate(KINDS))]
    for call in calls:
        for at in range(1, _operations(base, call) + 1):
            yield call, {} if call is None else state, at


def _operations(base: Path, call: Call | None) -> int:
    left = [10**9]
    with _copied(base, base.with_name("counted"), call) as folder:
        _one_call(Mortal(FolderStorage(folder, create=True), left), call)
    return 10**9 - left[0]


def _one_call(storage: Any, call: Call | None) -> None:
    if call is None:
        StoredIndex.create(storage).close()
        return
    with StoredIndex(storage) as index:
        perform(index, call)


@contextmanager
def _copied(base: Path, folder: Path, call: Call | None) -> Iterator[Path]:
    """A copy of the index for a call; an empty folder where it is to be made."""
    if call is None:
        folder.mkdir()
    else:
        shutil.copytree(base, folder)
    yield folder
    shutil.rmtree(folder)


def _chosen(items: list[Any], count: int) -> list[Any]:
    """So many of them, evenly."""
    if count >= len(items):
        return items
    return [items[number * len(items) // count] for number in range(count)]


def _kill_at(figures: Figures, folder: Path, base: Path, scene: tuple[State, Call | None], at: int) -> None:
    """Have a child die at an operation of one call."""
    state, call = scene
    what = f"operation {at} of {'create' if call is None else call}"
    with _copied(base, folder, call):
        child = _child(lambda tell: (_one_call(Mortal(FolderStorage(folder), [at]), call), tell(ACKNOWLEDGED))[0])
        found = child.ended()
        figures.tried("kills at an operation")
        if not found.died:
            figures.wrong("unsound after a kill", f"{what}: the child was not killed")
        examine(figures, folder, what, state, call)


def _kill_at_random(figures: Figures, folder: Path, seed: int, kills: int, share: float) -> None:
    """Have children write one after another, and kill each at a random moment."""
    draw, state, number = seeded(seed), {}, 1
    path = folder / "random"
    for killed in range(kills):
        if figures.over(share):
            return
        if killed % KILLS_OF_A_FOLDER == 0:
            shutil.rmtree(path, ignore_errors=True)
            StoredIndex.create(FolderStorage(path, create=True)).close()
            state = {}
        plan = _plan(seed, state, number)
        child = _child(_writing(path, plan))
        child.kill(after=draw.uniform(0, LONGEST))
        found = child.ended()
        figures.tried("kills at a random moment")
        figures.tried("calls acknowledged before a kill", found.acknowledged)
        for call in plan[: found.acknowledged]:
            state = after(state, call)
        number += len(plan)
        in_flight = plan[found.acknowledged] if found.acknowledged < len(plan) else None
        if not found.died:
            figures.wrong("unsound after a kill", f"kill {killed} of seed {seed}: the child ended by itself")
        what = f"kill {killed} of seed {seed}, after {found.acknowledged} calls, in {in_flight}"
        state = examine(figures, path, what, state, in_flight)


def _plan(seed: int, state: State, first: int) -> list[Call]:
    """The calls of a child, which both sides know."""
    draw = seeded(seed, first)
    calls: list[Call] = []
    for number in range(first, first + CALLS_OF_A_CHILD):
        calls.append(planned(draw, state, number))
        state = after(state, calls[-1])
    return calls


def _writing(folder: Path, plan: list[Call]) -> Callable[[Callable[[bytes], None]], None]:
    def write(tell: Callable[[bytes], None]) -> None:
        with StoredIndex(FolderStorage(folder)) as index:
            tell(ADMITTED)
            for call in plan:
                perform(index, call)
                tell(ACKNOWLEDGED)

    return write


def examine(figures: Figures, folder: Path, what: str, before: State, call: Call | None) -> State:
    """See that what was acknowledged is there, or the call in flight too; repeat it, and go on.

    Args:
        figures: count what is wrong.
        folder: that a child died on.
        what: happened, in words.
        before: the documents that were acknowledged.
        call: in flight; None where an index was being made.

    Returns:
        The documents that are there now.
    """
    then = before if call is None else after(before, call)
    try:
        index = _opened(folder, may_be_absent=call is None)
        with index:
            _check_found(figures, index, what, before, then)
            if call is not None:
                repeat(index, call)
            if deviations := wrong(index, then):
                figures.wrong("retries that were not idempotent", f"{what}: {deviations}")
            if damages := index.verify().damages:
                figures.wrong("unsound after a kill", f"{what}: {damages}")
            new = {"document 1000": Entry(10**9, 10**9)}
            add(index, new)
            index.remove([document(*each).id for each in new.items()])
        with StoredIndex(FolderStorage(folder)) as again:
            if deviations := wrong(again, then):
                figures.wrong("wrong ids, texts, embeddings or hits after a kill", f"{what}, later: {deviations}")
    except LateInteractionError as error:
        figures.wrong("unsound after a kill", f"{what}: {type(error).__name__}: {error}")
    return then


def _check_found(figures: Figures, index: StoredIndex, what: str, before: State, then: State) -> None:
    deviations = wrong(index, before)
    if not deviations:
        return
    if wrong(index, then):
        sure = {identifier for identifier, entry in before.items() if then.get(identifier) == entry}
        if lost := sure - set(index.ids()):
            figures.wrong("acknowledged documents lost", f"{what}: {sorted(lost)}", len(lost))
        figures.wrong("wrong ids, texts, embeddings or hits after a kill", f"{what}: {deviations}")
    else:
        figures.tried("calls that had taken place when they were killed")


def _opened(folder: Path, *, may_be_absent: bool) -> StoredIndex:
    storage = FolderStorage(folder)
    try:
        return StoredIndex(storage)
    except UnreadableFile:
        if not may_be_absent:
            raise
        return StoredIndex.create(storage)


@final
class _Child:
    """A forked process that writes a byte for each thing that it has done."""

    def __init__(self, process: int, pipe: int) -> None:
        self._process, self._pipe = process, pipe

    def kill(self, after: float) -> None:
        """Kill it so many seconds after it has opened the index."""
        select.select([self._pipe], [], [], 60)
        time.sleep(after)
        os.kill(self._process, signal.SIGKILL)

    def ended(self) -> Killed:
        """Wait until it has."""
        said = b""
        while more := os.read(self._pipe, 1 << 16):
            said += more
        os.close(self._pipe)
        _, status = os.waitpid(self._process, 0)
        return Killed(said.count(ACKNOWLEDGED), os.WIFSIGNALED(status))


def _child(work: Callable[[Callable[[bytes], None]], Any]) -> _Child:
    """Do it in a child, which is given a function to tell what it has done."""
    ours, theirs = os.pipe()
    process = os.fork()
    if process:
        os.close(theirs)
        return _Child(process, ours)
    try:
        os.close(ours)
        work(lambda said: (os.write(theirs, said), None)[1])
    finally:
        os._exit(0)
