"""Pace: how fast a long call goes, and how long it will still take, from what a `Progress` is told."""

from __future__ import annotations

from attrs import evolve, frozen


@frozen
class Pace:
    """What is known after some reports; times are seconds of whatever clock the reports come with.

    The clock starts with the first report, so that loading a model does not count, nor what was done before it. It
    starts anew with another call: one of another total, one told of fewer than before, or one after the end.
    """

    done: int = 0
    total: int | None = None
    _first: tuple[int, float] | None = None
    _last: float = 0.0

    def after(self, done: int, total: int | None, now: float) -> Pace:
        """The pace after one more report."""
        if self._first is None or done < self.done or total != self.total or self.done == self.total:
            return Pace(done, total, (done, now), now)
        return evolve(self, done=done, total=total, last=now)

    @property
    def per_second(self) -> float | None:
        """Items a second; None before there are two reports at different times."""
        if self._first is None or self._last <= self._first[1]:
            return None
        return (self.done - self._first[0]) / (self._last - self._first[1])

    @property
    def seconds_left(self) -> float | None:
        """At this pace; None where the total or the pace is not known."""
        if self.total is None or not self.per_second:
            return None
        return (self.total - self.done) / self.per_second

    def __str__(self) -> str:
        parts = [f"{self.done:,}" + ("" if self.total is None else f" of {self.total:,}")]
        if self.per_second is not None:
            parts.append(f"{self.per_second:,.1f}/s")
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(f"{hours}:{minutes:02}:{seconds:02} left")
        return " · ".join(parts)
