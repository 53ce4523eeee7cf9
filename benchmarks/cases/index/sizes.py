"""How much is measured: what the figures say, or a trial of it, which is never recorded."""

from __future__ import annotations

import os

from attrs import frozen

VARIABLES = ("DOCUMENTS", "REPEATS")
CHOICES = ("PARTS", "CORPORA")


@frozen
class Sizes:
    """How much is measured.

    Args:
        documents: of the synthetic corpus that most figures are about; other counts follow it in a trial.
        repeats: rounds in which every contestant has its turn.
        trial: nothing is recorded.
    """

    documents: int = 20_000
    repeats: int = 15
    trial: bool = False

    @classmethod
    def chosen(cls) -> Sizes:
        """From the variables DOCUMENTS and REPEATS."""
        given = {name.lower(): int(os.environ[name]) for name in VARIABLES if os.environ.get(name)}
        return cls(**given, trial=bool(given))

    @property
    def recorded(self) -> bool:
        """Whether all of it is measured in full."""
        return not self.trial and not any(os.environ.get(name) for name in CHOICES)

    def reduced(self, count: int, least: int = 1) -> int:
        """So many, or in a trial the same share of them as of the documents."""
        return max(least, min(count, count * self.documents // 20_000)) if self.trial else count
