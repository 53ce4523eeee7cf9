"""Every operation of the storage fails once in every way, in every kind of call: nothing changes, and a retry works."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, get_args

from torture_figures import Figures
from torture_model import KINDS, Call, Entry, State, after, perform, planned, repeat, seeded, wrong

from lateinteraction.adapters.index.commits import COMMITS
from lateinteraction.adapters.index.folding import FANOUT
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.errors import IndexLocked, LateInteractionError, StorageFailed
from lateinteraction.testing.storage import FaultyStorage, Killed, MemoryStorage
from lateinteraction.testing.storage.faults import Fault

FAULTS: Sequence[Fault] = get_args(Fault)


class Scene(NamedTuple):
    """A call, the folder that it is made on, and the documents there; no call: a copy of the index is made."""

    name: str
    files: dict[str, bytes]
    state: State
    call: Call | None


class Point(NamedTuple):
    """A fault in a scene: at which operation, and of what kind."""

    scene: Scene
    at: int
    fault: Fault

    def __str__(self) -> str:
        return f"{self.fault} at operation {self.at} of {self.scene.name}"


def scenes(seed: int) -> list[Scene]:
    """Each kind of call, and a copy, on an index of several segments with deltas; and an addition that folds."""
    draw = seeded(seed)
    files, state = _made(lambda before, number: planned(draw, before, number), 12)
    some = [Scene(kind, files, state, planned(draw, state, 20 + number, kind)) for number, kind in enumerate(KINDS)]
    alone, singles = _made(lambda _, number: _single(number), FANOUT - 1)
    return [*some, Scene("copy", files, state, None), Scene("folding", alone, singles, _single(FANOUT))]


def _made(plan: Callable[[State, int], Call], calls: int) -> tuple[dict[str, bytes], State]:
    """The files of an index after so many calls, and its documents."""
    storage, state = MemoryStorage(), {}
    with StoredIndex.create(storage) as index:
        for number in range(1, calls + 1):
            call = plan(state, number)
            perform(index, call)
            state = after(state, call)
    return {name: content for name, content in storage.contents().items() if name != "lock"}, state


def _single(number: int) -> Call:
    return Call("add", {f"document {number}": Entry(number, number)})


def torture(figures: Figures, seed: int, share: float = 1.0, stride: int = 1) -> None:
    """Try every `stride`-th point of all scenes, as long as there is time.

    Args:
        figures: count what is found.
        seed: of documents and calls.
        share: of the time, at which it ends.
        stride: 1: all points.
    """
    with _quiet_dead():
        all_points = list(points(scenes(seed)))
        seeded(seed).shuffle(all_points)  # so that a share of them is of all scenes and all faults
        for point in all_points[::stride]:
            if figures.over(share):
                return
            examine(figures, point)


def points(all_scenes: Sequence[Scene]) -> Iterator[Point]:
    """One for each operation that a scene takes without a fault, and each fault."""
    for scene in all_scenes:
        storage = FaultyStorage(MemoryStorage(scene.files))
        with StoredIndex(storage) as index:
            _act(Figures(), index, scene)
        for at in range(1, len(storage.journal) + 1):
            for fault in FAULTS:
                yield Point(scene, at, fault)


def examine(figures: Figures, point: Point) -> None:
    """Make the call with the fault, and see what it leaves."""
    figures.tried("fault points enumerated")
    scene = point.scene
    inner = MemoryStorage(scene.files)
    storage = FaultyStorage(inner, at=point.at, fault=point.fault)
    then = scene.state if scene.call is None else after(scene.state, scene.call)
    error: BaseException | None = None
    index = None
    try:
        index = StoredIndex(storage)
        _act(figures, index, scene)
    except (Killed, LateInteractionError) as raised:
        error = raised
    if error is not None:
        figures.tried("faults that failed a call")
    _check_left(figures, point, inner, then, error)
    if index is not None and isinstance(error, StorageFailed) and "may or may not" not in str(error):
        _check_goes_on(figures, point, index, inner)
    elif index is not None and error is None and (deviations := wrong(index, then)):
        figures.wrong("wrong answers after a fault", f"{point}, which the call survived: {deviations}")


def _check_left(figures: Figures, point: Point, inner: MemoryStorage, then: State, error: BaseException | None) -> None:
    """A folder holds what was there before a call that failed, what is there after one that did not; else either."""
    scene, told = point.scene, f"{point}, which raised {error!r}"
    unknown = isinstance(error, Killed) or "may or may not" in str(error)
    possible = [scene.state, then] if unknown else [then if error is None else scene.state]
    folder = inner.after_death()
    if changed := _changed(scene.files, folder.contents()):
        figures.wrong("failed calls that changed something", f"{told}: files are written over, {changed}")
    if error is not None and not isinstance(error, Killed | StorageFailed):
        figures.wrong("wrong answers after a fault", told)
    for cut in (0, 2 + point.at):
        figures.tried("power cuts")
        _check_holds(figures, f"{told}, and a power cut", inner.after_power_cut(cut), possible)
    _check_holds(figures, told, folder, possible)
    try:
        with StoredIndex(folder) as index:
            if scene.call is not None:
                repeat(index, scene.call)
            deviations = [*wrong(index, then), *index.verify().damages]
    except LateInteractionError as raised:
        deviations = [repr(raised)]
    if deviations:
        figures.wrong("failed calls that cannot be tried again", f"{told}, on the folder opened anew: {deviations}")


def _check_holds(figures: Figures, what: str, folder: MemoryStorage, possible: Sequence[State]) -> None:
    try:
        with StoredIndex(folder) as index:
            deviations = [wrong(index, state) for state in possible]
    except LateInteractionError as error:
        deviations = [[repr(error)]]
    if all(deviations):
        figures.wrong("failed calls that changed something", f"{what}: {deviations}")


def _changed(before: Mapping[str, bytes], now: Mapping[str, bytes]) -> list[str]:
    """Files that are there and not as they were; the log may have grown."""
    kept = {name: now.get(name, content) for name, content in before.items()}
    kept[COMMITS] = kept[COMMITS][: len(before[COMMITS])]
    return [name for name, content in before.items() if kept[name] != content]


def _check_goes_on(figures: Figures, point: Point, index: StoredIndex, inner: MemoryStorage) -> None:
    """The object that failed answers as before, and does the call when it is asked again."""
    scene = point.scene
    if point.fault != "enospc" and (deviations := wrong(index, scene.state)):
        figures.wrong("wrong answers after a fault", f"{point}, of the object that failed: {deviations}")
    try:
        _act(figures, index, scene)
        then = scene.state if scene.call is None else after(scene.state, scene.call)
        with StoredIndex(inner.after_death()) as again:
            deviations = [*wrong(index, then), *wrong(again, then)]
        if deviations:
            figures.wrong("failed calls that cannot be tried again", f"{point}, by the same object: {deviations}")
    except LateInteractionError as error:
        # The disk stays full; and a lock that was taken and not given is only freed by the process's end.
        allowed = {"enospc": StorageFailed, "late": IndexLocked}.get(point.fault, ())
        if not isinstance(error, allowed):
            figures.wrong("failed calls that cannot be tried again", f"{point}, by the same object: {error!r}")


def _act(figures: Figures, index: StoredIndex, scene: Scene) -> None:
    """Make the call, or the copy, which is whole or not there."""
    if scene.call is not None:
        perform(index, scene.call)
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "copy"
        try:
            index.copy_to(target)
        except (Killed, StorageFailed):
            if left := os.listdir(target):
                figures.wrong("failed calls that changed something", f"a copy that failed leaves {left}")
            raise
        with StoredIndex(FolderStorage(target)) as copied:
            if deviations := [*wrong(copied, scene.state), *copied.verify().damages]:
                figures.wrong("wrong answers after a fault", f"a copy: {deviations}")


@contextmanager
def _quiet_dead() -> Iterator[None]:
    """What is collected after its process died in play raises `Killed` once more, which nobody needs to read."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda raised: None if isinstance(raised.exc_value, Killed) else before(raised)
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = before
