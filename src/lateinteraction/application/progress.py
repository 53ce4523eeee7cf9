"""Lines that tell people how far a long call has come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from typing import TextIO, final

from lateinteraction.domain.pace import Pace
from lateinteraction.domain.ports import Stage, StageProgress


class ProgressLine:
    """A `Progress` for people: how many of how many documents, how many a second, how long still.

        li.load_model(progress=li.ProgressLine())

    Args:
        stream: what the line is written to, over and over; None is standard error.
        clock: seconds since some moment.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._pace = Pace()

    def __call__(self, done: int, total: int | None) -> None:
        self._pace = self._pace.after(done, total, self._clock())
        self._stream.write(f"\r{self._pace}\x1b[K" + ("\n" if done == total else ""))
        self._stream.flush()


class BuildLine:
    """A `StageProgress` for people: what an index in the making is at, besides how much memory it took so far.

        index.add_stream(documents, progress=li.BuildLine())

    Args:
        stream: what the line is written to, over and over; None is standard error.
        clock: seconds since some moment.
        memory: the most bytes that this process has held; None where nobody knows.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = monotonic,
        memory: Callable[[], int | None] | None = None,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._memory = most_memory if memory is None else memory
        self._pace = Pace()

    def __call__(self, stage: Stage, done: int, total: int | None) -> None:
        self._pace = self._pace.after(done, total, self._clock())
        held = self._memory()
        shown = "" if held is None else f" · {held / 1e9:.1f} GB"
        self._stream.write(f"\r{stage} · {self._pace}{shown}\x1b[K" + ("\n" if done == total else ""))
        self._stream.flush()


@final
class StreamProgress:
    """A `StageProgress` for a stream that passes on what it is told, and the stages of the calls it is made of.

    Args:
        progress: told of documents of the stream, whatever the calls count.
    """

    def __init__(self, progress: StageProgress) -> None:
        self._progress = progress
        self._come: tuple[int, int | None] = 0, None

    def __call__(self, stage: Stage, done: int, total: int | None) -> None:
        self._come = done, total
        self._progress(stage, done, total)

    def of_call(self, stage: Stage, done: int, total: int | None) -> None:
        """For one call: its stage, at where the stream has come."""
        self._progress(stage, *self._come)


def most_memory() -> int | None:
    """The most bytes that this process has held; None where the system does not tell, as on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
