"""What training sees: examples with explicit roles, and the targets a loss is computed against.

Shapes: Q queries, N documents of the batch.
"""

from __future__ import annotations

import math
from typing import Any, Generic

import numpy as np
from attrs import field, frozen
from numpy.typing import ArrayLike

from lateinteraction.domain.embeddings import A, Offsets, check_offsets, read_only_integers
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidExample
from lateinteraction.domain.text import Document, Query


def _teacher(scores: Any) -> tuple[float, ...] | None:
    return None if scores is None else tuple(scores)


def _groups(groups: ArrayLike) -> Offsets:
    try:
        return read_only_integers(groups)
    except InvalidEmbeddings as error:
        raise InvalidExample(
            f"groups: {error.given}", error.expected, "Groups are offsets over the documents."
        ) from error


@frozen
class TrainingExample:
    """A query, its documents with the positive first, and optionally a teacher's score for each.

    Raises:
        InvalidExample: no document, or teacher scores that are not one finite number per document.
    """

    query: Query
    documents: tuple[Document, ...] = field(converter=tuple)
    teacher: tuple[float, ...] | None = field(default=None, converter=_teacher)

    def __attrs_post_init__(self) -> None:
        if not self.documents:
            raise InvalidExample("an example without documents", "the positive and any negatives", "Drop the example.")
        if self.teacher is None:
            return
        if len(self.teacher) != len(self.documents):
            raise InvalidExample(
                f"{len(self.teacher)} teacher scores for {len(self.documents)} documents",
                "one score for each",
                "Check the row that the example was built from.",
            )
        if not all(isinstance(score, (int, float, np.number)) and math.isfinite(score) for score in self.teacher):
            raise InvalidExample(
                "a teacher score that is no finite number", "finite scores", "Label the example again."
            )


@frozen(eq=False)
class Targets(Generic[A]):
    """What a loss is told about a batch: whose document is whose, and what a teacher thought.

    Triplets, n-way negatives and distillation are this one shape.

    Args:
        groups: int64 (Q+1,) on the host; documents groups[i] … groups[i+1]−1 belong to query i, the positive first.
        teacher: (N,) scores, or None.

    Raises:
        InvalidExample: groups that are no offsets, a query without a document, or a teacher of another length.
    """

    groups: Offsets = field(converter=_groups)
    teacher: A | None = None

    def __attrs_post_init__(self) -> None:
        try:
            check_offsets(self.groups, int(self.groups.flat[-1]) if self.groups.size else 0, "documents")
        except InvalidEmbeddings as error:
            raise InvalidExample(error.given, error.expected, "Groups are offsets over the documents.") from error
        if bool(np.any(np.diff(self.groups) < 1)):
            raise InvalidExample("a query without a document", "at least its positive", "Drop the query.")
        if self.teacher is not None and tuple(self.teacher.shape) != (len(self),):
            raise InvalidExample(
                f"teacher scores of shape {tuple(self.teacher.shape)}", f"({len(self)},)", "Give one for each document."
            )

    def __len__(self) -> int:
        """Documents of the batch."""
        return int(self.groups[-1])

    @property
    def positives(self) -> Offsets:
        """The column of each query's positive, int64 (Q,)."""
        return self.groups[:-1]


@frozen
class TrainingReport:
    """What a training run did: optimiser steps taken, examples seen, and the loss at each logged step."""

    steps: int
    examples: int
    losses: tuple[float, ...] = field(converter=tuple)
