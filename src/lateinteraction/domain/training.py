"""What training sees: examples with explicit roles, and the targets a loss is computed against.

Shapes: Q queries, N documents of the batch.
"""

from __future__ import annotations

import math
from typing import Any, Generic, Literal

import numpy as np
from attrs import field, frozen
from numpy.typing import ArrayLike, NDArray

from lateinteraction.domain.embeddings import A, Offsets, check_offsets, read_only_integers
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidExample
from lateinteraction.domain.text import Document, Query

Compared = Literal["own", "all"]


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


def _excluded(mask: Any) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    array = np.array(mask)
    if array.dtype != np.bool_:
        raise InvalidExample(f"excluded pairs as {array.dtype}", "booleans", "Give a mask (Q, columns).")
    array.setflags(write=False)
    return array


@frozen(eq=False)
class Targets(Generic[A]):
    """What a loss is told about a batch: whose document is whose, what a teacher thought, and who is no negative.

    Triplets, n-way negatives and distillation are this one shape. Documents beyond the last group are `others`: those
    of other processes, which are nobody's own here.

    Args:
        groups: int64 (Q+1,) on the host; documents groups[i] … groups[i+1]−1 belong to query i, the positive first.
        teacher: (N,) scores of the N = groups[Q] own documents, or None.
        others: how many documents follow them.
        excluded: bool (Q, N + others) on the host, pairs that are no negatives; None excludes none.
        compared: whether losses over the batch compare a query with `all` documents or with its `own`.
        source: where the examples are from, for what is set by source.

    Raises:
        InvalidExample: groups that are no offsets, a query without a document, a teacher or a mask of another shape,
            or a positive that is excluded.
    """

    groups: Offsets = field(converter=_groups)
    teacher: A | None = None
    others: int = field(default=0, kw_only=True)
    excluded: NDArray[np.bool_] | None = field(default=None, kw_only=True, converter=_excluded)
    compared: Compared = field(default="all", kw_only=True)
    source: str | None = field(default=None, kw_only=True)

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
        if isinstance(self.others, bool) or self.others < 0:
            raise InvalidExample(f"others = {self.others!r}", "a count", "Leave it out where there are none.")
        if self.compared not in ("own", "all"):
            raise InvalidExample(f"compared = {self.compared!r}", "'own' or 'all'", "Choose one of the two.")
        if self.excluded is not None:
            self._check_excluded(self.excluded)

    def _check_excluded(self, excluded: NDArray[np.bool_]) -> None:
        expected = (len(self.positives), self.columns)
        if excluded.shape != expected:
            raise InvalidExample(f"excluded pairs of shape {excluded.shape}", f"{expected}", "Give one for each pair.")
        if bool(np.any(excluded[np.arange(len(self.positives)), self.positives])):
            raise InvalidExample("a positive that is excluded", "masks of negatives", "Positives are never negatives.")

    def __len__(self) -> int:
        """Own documents of the batch."""
        return int(self.groups[-1])

    @property
    def columns(self) -> int:
        """All documents that the queries may be compared with."""
        return len(self) + self.others

    @property
    def positives(self) -> Offsets:
        """The column of each query's positive, int64 (Q,)."""
        return self.groups[:-1]

    @property
    def compared_pairs(self) -> NDArray[np.bool_]:
        """Bool (Q, columns): what a loss over the batch compares each query with, its positive among it."""
        pairs = np.ones((len(self.positives), self.columns), np.bool_)
        if self.compared == "own":
            pairs = self.own_pairs
        return pairs if self.excluded is None else pairs & ~self.excluded

    @property
    def own_pairs(self) -> NDArray[np.bool_]:
        """Bool (Q, columns): which documents are a query's own."""
        column = np.arange(self.columns)
        return (self.groups[:-1, None] <= column) & (column < self.groups[1:, None])


def false_negatives(
    query_keys: ArrayLike, document_keys: ArrayLike, answered: ArrayLike, groups: Offsets
) -> NDArray[np.bool_]:
    """Bool (Q, N + others): documents that are taken for negatives of a query and are known not to be.

    That is any document but the query's positive itself that has the positive's key, or is the positive of a query
    with the same key.

    Args:
        query_keys: (Q,), equal where queries are.
        document_keys: (N + others,), equal where documents are.
        answered: (N + others,), for each document the key of the query whose positive it is; of one that is no
            positive, anything that is no query's key.
        groups: int64 (Q+1,), the first N documents by query.
    """
    queries, documents = np.asarray(query_keys), np.asarray(document_keys)
    positives = groups[:-1]
    mask = documents[positives][:, None] == documents[None, :]
    mask |= queries[:, None] == np.asarray(answered)[None, :]
    mask[np.arange(len(queries)), positives] = False
    return mask


def beyond_margin(teacher: ArrayLike, groups: Offsets, margin: float) -> NDArray[np.bool_]:
    """Bool (N,): own documents that a teacher scores above their query's positive less the margin.

    A teacher that puts a negative so high says that it answers the query too (Moreira et al., NV-Retriever,
    arXiv 2407.15831, §3.2, TopK-MarginPos).
    """
    scores = np.asarray(teacher)
    limits = np.repeat(scores[groups[:-1]] - margin, np.diff(groups))
    found: NDArray[np.bool_] = scores > limits
    found[groups[:-1]] = False
    return found


@frozen
class TrainingReport:
    """What a training run did.

    Args:
        steps: optimiser steps taken, those before it was resumed among them.
        examples: seen in them.
        losses: at each logged step.
        best: the highest that `watch` measured, or None.
        best_step: after how many steps that was.
        stopped: whether it was asked to end before its time.
    """

    steps: int
    examples: int
    losses: tuple[float, ...] = field(converter=tuple)
    best: float | None = None
    best_step: int | None = None
    stopped: bool = False
