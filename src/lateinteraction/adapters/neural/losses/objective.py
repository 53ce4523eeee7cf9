"""Objective: a loss that a trainer can take apart; and what all losses check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from lateinteraction.adapters.neural.transfer import to_device
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidExample, InvalidOption, shown
from lateinteraction.domain.training import Targets

Embeddings = TokenEmbeddings[Tensor]


class Objective(Protocol):
    """A `Loss[Tensor]` that says what it learns and how it is called."""

    @property
    def learned(self) -> tuple[nn.Module, ...]:
        """Modules that training changes together with the model."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """What it computes, as JSON: equal where losses are."""
        ...

    def __call__(self, queries: Embeddings, documents: Embeddings, targets: Targets[Tensor]) -> Tensor: ...


def learned_of(loss: Objective) -> tuple[nn.Module, ...]:
    """The modules that a loss learns, each once."""
    return tuple(dict.fromkeys(loss.learned))


def check_batch(queries: Embeddings, documents: Embeddings, targets: Targets[Tensor]) -> None:
    """Raise unless embeddings and targets are of one batch, and every positive has a token."""
    if len(queries) != len(targets.positives) or len(documents) != targets.columns:
        raise InvalidExample(
            f"{len(queries)} queries and {len(documents)} documents",
            f"{len(targets.positives)} and {targets.columns}, by the targets",
            "Embed the same batch.",
        )
    empty = np.flatnonzero(documents.lengths[targets.positives] == 0)
    if len(empty):
        raise InvalidExample(
            f"a positive of query {empty[0]} that scores −∞", "one that kept a token", "Drop the example."
        )


def check_number(name: str, number: object, *, least: float = 0.0) -> None:
    """Raise unless this is a finite number above `least`."""
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not least < number < float("inf"):
        raise InvalidOption(f"{name} = {shown(number)}", f"a finite number above {least:g}", "1.0 changes nothing.")


def teacher_of(targets: Targets[Tensor], scores: Tensor) -> Tensor:
    """The teacher's scores (N,), in the precision of the student's."""
    if targets.teacher is None:
        raise InvalidExample("targets without teacher scores", "one for each document", "Label the examples first.")
    return to_device(targets.teacher, scores.device).type(scores.dtype)
