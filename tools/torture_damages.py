"""Files of an index are damaged, one at a time; whoever opens it gets our error or what was there, and nothing else.

Cases run in children forked from this process, which is warm; one that crashes or hangs costs its own case alone.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from torture_figures import Figures
from torture_model import QUESTIONS, Call, Entry, State, add, after, document, expected, perform, planned, same, seeded

from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.errors import CorruptIndex, IndexMismatch, LateInteractionError, UnreadableFile

REFUSALS = (CorruptIndex, IndexMismatch, UnreadableFile)
COMPRESS_AT = 40
"""Tokens from which segments are compressed here, so that small indexes have a codebook."""
TIMEOUT = 20.0
"""Seconds after which a case hangs: a thousand times what one takes."""
CASES_OF_A_CHILD = 50


class Victim(NamedTuple):
    """A whole index: its files, its documents now and before, its answers, and which files its newest state names."""

    name: str
    files: dict[str, bytes]
    state: State
    earlier: Sequence[State]
    answers: dict[str, object]
    newest: frozenset[str]


class Outcome(NamedTuple):
    """What a damage led to: "refused", "right", "wrong", "older" or "crash", and how."""

    verdict: str
    how: str


Damage = Callable[[Random, bytes, Sequence[bytes]], bytes | None]
"""From what is drawn, a file, and all others: the file as it is damaged; None where it is gone."""


def _flipped(draw: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(draw, content)
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def _overwritten(draw: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(draw, content)
    length = min(draw.choice((1, 4, 16, 512)), len(content) - place)
    run = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    return content[:place] + run + content[place + length :]


def _truncated(draw: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    return content[: _place(draw, content)]


def _extended(draw: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(draw, content)
    return content + draw.choice((b"\0", bytes(64), bytes(512), draw.randbytes(100), content[place:], content[-64:]))


def _moved(draw: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    first, last = sorted((_place(draw, content), _place(draw, content)))
    return draw.choice((content[:first] + content[last:], content[:last] + content[first:]))


def _exchanged(draw: Random, _: bytes, others: Sequence[bytes]) -> bytes:
    return draw.choice(others)


def _removed(_: Random, __: bytes, ___: Sequence[bytes]) -> None:
    return None


DAMAGES: Sequence[Damage] = (
    *(_flipped, _flipped, _flipped, _overwritten, _overwritten),
    *(_truncated, _truncated, _extended, _moved, _exchanged, _removed),
)


def _place(draw: Random, content: bytes) -> int:
    """Anywhere, and often near the beginning or the end, where headers are."""
    if not content:
        return 0
    near = draw.choice((len(content), 128, 16))
    place = draw.randrange(min(near, len(content)))
    return place if draw.random() < 0.5 else len(content) - 1 - place


def torture(figures: Figures, seed: int, cases: int, share: float = 1.0) -> None:
    """Damage so many files; fewer, as time allows.

    Args:
        figures: count what is found.
        seed: of documents and damages.
        cases: how many.
        share: of the time, at which it ends.
    """
    with tempfile.TemporaryDirectory(prefix="torture-") as name, _small_codebooks():
        folder = Path(name)
        victims = [_victim(folder / each, seed, *how) for each, how in VICTIMS.items()]
        number = 0
        while number < cases and not figures.over(share):
            last = min(number + CASES_OF_A_CHILD, cases)
            number = _some_cases(figures, victims, folder / "damaged", seed, range(number, last))


VICTIMS: dict[str, tuple[IndexOptions, bool]] = {
    "segments": (IndexOptions("float16"), False),
    "compacted": (IndexOptions("float16"), True),
    "compressed": (IndexOptions("residual4"), True),
    "kept": (IndexOptions("residual2", keep="float16"), True),
    "int8": (IndexOptions("int8"), False),
}
"""Indexes by name: how they store tokens, and whether they are compacted."""


@contextmanager
def _small_codebooks() -> Iterator[None]:
    before = folding.COMPRESS_AT
    folding.COMPRESS_AT = COMPRESS_AT
    try:
        yield
    finally:
        folding.COMPRESS_AT = before


def _victim(folder: Path, seed: int, options: IndexOptions, compacted: bool) -> Victim:
    draw = seeded(seed)
    states: list[State] = [{}]
    settings = IndexSettings(options)
    with StoredIndex.create(FolderStorage(folder, create=True), settings) as index:
        for number in range(1, 15):
            call = planned(draw, states[-1], number)
            perform(index, call)
            states.append(after(states[-1], call))
        if compacted:
            perform(index, Call("compact", {}))
        state = states[-1]
        answers = {name: ask(index, state) for name, ask in QUESTIONS.items()}
        newest = frozenset(record.name for record in index.snapshot().opened.manifest.records())
    right = expected(state)
    exact = [name for name in right if options.codec == "float16" or name in ("ids", "texts and metadata")]
    assert all(same(answers[name], right[name]) for name in exact), "the index is wrong before it is damaged"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    earlier = [each for each in states if each != state]
    return Victim(folder.name, files, state, earlier, answers, newest)


def _some_cases(figures: Figures, victims: Sequence[Victim], folder: Path, seed: int, numbers: range) -> int:
    """Run cases in a child, as far as it lives; the number of the next one."""
    ours, theirs = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(ours)
            _serve(victims, folder, seed, numbers, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    done, ending = _heard(figures, ours, numbers, lambda number: _what(victims, seed, number))
    if ending == "hang":
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(ours)
    if done < numbers.stop:
        what = f"{_what(victims, seed, done)}: ended with status {status}"
        figures.tried("damaged files tried")
        figures.wrong("hangs on damage" if ending == "hang" else "crashes on damage", what)
        done += 1
    return done


def _heard(figures: Figures, pipe: int, numbers: range, what: Callable[[int], str]) -> tuple[int, str]:
    """Count what the child says; the number of the first case that it says nothing of, and why."""
    number, text = numbers.start, b""
    while number < numbers.stop:
        if not select.select([pipe], [], [], TIMEOUT)[0]:
            return number, "hang"
        said = os.read(pipe, 1 << 16)
        if not said:
            return number, "crash"
        *lines, text = (text + said).split(b"\n")
        for line in lines:
            _count(figures, Outcome(*json.loads(line)), what(number))
            number += 1
    return number, ""


def _count(figures: Figures, outcome: Outcome, what: str) -> None:
    figures.tried("damaged files tried")
    if outcome.verdict == "refused":
        figures.tried("damages answered with an error")
    elif outcome.verdict == "right":
        figures.tried("damages answered rightly")
    else:
        names = {"crash": "crashes on damage", "older": "older states on damage", "wrong": "wrong answers on damage"}
        figures.wrong(names[outcome.verdict], f"{what}: {outcome.how}")


def _serve(victims: Sequence[Victim], folder: Path, seed: int, numbers: range, pipe: int) -> None:
    for number in numbers:
        victim, name, damaged = case(victims, seed, number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for each, content in {**victim.files, name: damaged}.items():
            if content is not None:
                (folder / each).write_bytes(content)
        try:
            outcome = examine(folder, victim, name, damaged, writing=number % 3 == 0)
        except Exception as error:
            outcome = Outcome("crash", f"{type(error).__name__}: {error}")
        os.write(pipe, json.dumps(outcome).encode() + b"\n")


def case(victims: Sequence[Victim], seed: int, number: int) -> tuple[Victim, str, bytes | None]:
    """Which index is damaged, which file of it, and how."""
    draw = seeded(seed, number)
    victim = draw.choice(victims)
    names = sorted(victim.files)
    name = draw.choice([*names, "commits", *(each for each in names if each.startswith("g-"))])
    others = [content for other, content in victim.files.items() if other != name]
    return victim, name, draw.choice(DAMAGES)(draw, victim.files[name], others)


def _what(victims: Sequence[Victim], seed: int, number: int) -> str:
    victim, name, damaged = case(victims, seed, number)
    length = "gone" if damaged is None else f"{len(damaged)} bytes of {len(victim.files[name])}"
    return f"case {number} of seed {seed}, {victim.name}, {name}, {length}"


def examine(folder: Path, victim: Victim, name: str, damaged: bytes | None, *, writing: bool) -> Outcome:
    """Ask everything of a damaged index, verify it, and write to it.

    Args:
        folder: with the index.
        victim: the index as it was.
        name: of the file that is damaged.
        damaged: its content; None where it is gone.
        writing: whether to write, and ask again.
    """
    try:
        index = StoredIndex(FolderStorage(folder))
    except REFUSALS:
        return Outcome("refused", "opening")
    with index:
        refused, wrong = _asked(index, victim)
        report = index.verify()
        if report.sound and (refused or (name in victim.newest and damaged != victim.files[name])):
            wrong.append("verify, which found nothing")
        if writing and not wrong:
            try:
                _write(index, compact=victim.name in ("segments", "compacted"))
                wrong += [f"{each} after writing" for each in _asked(index, victim)[1]]
            except REFUSALS:  # of which it is not told here whether the first half of it took place
                refused.append("writing")
        if wrong:
            return Outcome("older" if _is_older(index, victim) else "wrong", f"{wrong}")
    return Outcome("refused" if refused else "right", f"{refused}")


def _asked(index: StoredIndex, victim: Victim) -> tuple[list[str], list[str]]:
    """The questions that are refused, and those that are answered wrongly."""
    refused: list[str] = []
    wrong: list[str] = []
    for name, ask in QUESTIONS.items():
        try:
            answer: Any = ask(index, victim.state)
        except REFUSALS:
            refused.append(name)
        except LateInteractionError as error:
            wrong.append(f"{name} ({error!r})")
        else:
            if not same(answer, victim.answers[name]):
                wrong.append(name)
    return refused, wrong


def _write(index: StoredIndex, *, compact: bool) -> None:
    """Write and take it back, so that the same answers are right."""
    new = {"document 1000": Entry(10**9, 10**9)}
    add(index, new)
    index.remove([document(*each).id for each in new.items()])
    if compact:
        index.compact()


def _is_older(index: StoredIndex, victim: Victim) -> bool:
    """Whether the ids and texts are those of an earlier state."""
    try:
        return any(
            all(same(QUESTIONS[name](index, state), expected(state)[name]) for name in ("ids", "texts and metadata"))
            for state in victim.earlier
            if sorted(state) == sorted(index.ids())
        )
    except LateInteractionError:
        return False
