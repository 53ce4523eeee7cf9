"""What `torture.py` counts, and the table of it."""

from __future__ import annotations

import time
from collections import Counter
from typing import final

TRIED = (
    "kills at an operation",
    "kills at a random moment",
    "calls acknowledged before a kill",
    "calls that had taken place when they were killed",
    "damaged files tried",
    "damages answered with an error",
    "damages answered rightly",
    "fault points enumerated",
    "faults that failed a call",
    "power cuts",
)
"""Must not be 0."""
WRONG = (
    "acknowledged documents lost",
    "wrong ids, texts, embeddings or hits after a kill",
    "retries that were not idempotent",
    "unsound after a kill",
    "crashes on damage",
    "hangs on damage",
    "wrong answers on damage",
    "older states on damage",
    "failed calls that changed something",
    "failed calls that cannot be tried again",
    "wrong answers after a fault",
)
"""Must be 0."""


@final
class Figures:
    """Counts of what was tried and of what was wrong, with the first examples of each.

    Args:
        seconds: after which parts that ask `over` stop; none where it is None.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._began = time.monotonic()
        self._seconds = seconds

    def over(self, share: float) -> bool:
        """Whether this share of the time is used up."""
        return self._seconds is not None and self.elapsed > share * self._seconds

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._began

    def tried(self, name: str, count: int = 1) -> None:
        """Count what was tried."""
        assert name in TRIED
        self.counts[name] += count

    def wrong(self, name: str, example: str, count: int = 1) -> None:
        """Count what was wrong, and remember how it can be seen again."""
        assert name in WRONG
        self.counts[name] += count
        self.examples.setdefault(name, []).append(example)

    @property
    def good(self) -> bool:
        """Whether nothing was wrong."""
        return not any(self.counts[name] for name in WRONG)

    def table(self) -> str:
        """All counts, the seconds, and up to five examples of whatever was wrong."""
        lines = [f"{name:<50} {self.counts[name]:>8,}" for name in (*TRIED, *WRONG)]
        lines.append(f"{'seconds':<50} {self.elapsed:>8,.1f}")
        for name, examples in self.examples.items():
            lines.extend(f"error: {name}: {example:.600}" for example in examples[:5])
        return "\n".join(lines)
