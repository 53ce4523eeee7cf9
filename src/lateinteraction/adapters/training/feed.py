"""Feed: from a step to what this process computes of it, and from its documents to what a loss is told.

A function of the step alone: negatives are drawn by row, and nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser
from lateinteraction.adapters.neural.transfer import to_device
from lateinteraction.adapters.training.batches import MicroBatch, micro_batch_of
from lateinteraction.adapters.training.gather import gathered
from lateinteraction.adapters.training.options import TrainingOptions
from lateinteraction.adapters.training.plan import BatchPlan, PlannedBatch, drawn_negatives
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.ports import ExampleSource
from lateinteraction.domain.training import Targets, TrainingExample, beyond_margin, false_negatives

CPU_TOKENS_PER_RECTANGLE, DEVICE_TOKENS_PER_RECTANGLE = 1_024, 16_384
"""As encoders batch: larger rectangles leave a CPU's cache, and a device wants large ones."""
_NOBODY = np.iinfo(np.int64).min
"""The query that a document which is no positive answers; no query's key is it, but for one in 2⁶⁴."""


def tokens_per_rectangle(device: torch.device) -> int:
    """Most tokens of a rectangle where nobody says otherwise."""
    return CPU_TOKENS_PER_RECTANGLE if device.type == "cpu" else DEVICE_TOKENS_PER_RECTANGLE


@final
@frozen(eq=False, kw_only=True)
class Feed:
    """The micro-batches of each step, for one process. Several threads may ask.

    Args:
        plan: which rows are together.
        sources: that it is of.
        tokeniser: follows the model's recipe.
        options: how many micro-batches and negatives there are.
        rank, world: which process of how many.
        tokens_per_rectangle: most tokens that the model sees at once.
    """

    plan: BatchPlan
    sources: Sequence[ExampleSource]
    tokeniser: RecipeTokeniser
    options: TrainingOptions
    rank: int
    world: int
    tokens_per_rectangle: int

    def __call__(self, step: int) -> list[MicroBatch]:
        """This process's share of a step, in `accumulation` parts."""
        planned = self.plan[step].of_rank(self.rank, self.world)
        share = len(planned.rows) // self.options.accumulation
        parts = [planned.rows[first : first + share] for first in range(0, len(planned.rows), share)]
        return [self._micro_batch(planned, rows) for rows in parts]

    def _micro_batch(self, planned: PlannedBatch, rows: NDArray[np.int64]) -> MicroBatch:
        source = self.sources[planned.source]
        return micro_batch_of(
            [self._example(source, planned, int(row)) for row in rows],
            self.tokeniser,
            rows=rows,
            source=source.name,
            tokens_per_rectangle=self.tokens_per_rectangle,
        )

    def _example(self, source: ExampleSource, planned: PlannedBatch, row: int) -> TrainingExample:
        """A row, with as many of its negatives as are wanted."""
        example = source.example(row)
        if self.options.negatives is None:
            return example
        drawn = drawn_negatives(
            self.plan.options.seed,
            planned.epoch,
            planned.source,
            row,
            available=len(example.documents) - 1,
            wanted=self.options.negatives,
        )
        chosen = [0, *(int(each) + 1 for each in drawn)]
        return TrainingExample(
            example.query,
            [example.documents[each] for each in chosen],
            None if example.teacher is None else [example.teacher[each] for each in chosen],
        )


def compared_with(
    batch: MicroBatch, documents: TokenEmbeddings[Tensor], options: TrainingOptions
) -> tuple[TokenEmbeddings[Tensor], Targets[Tensor]]:
    """What the queries of a micro-batch are compared with, and what the loss is told about it.

    Args:
        batch: of this process.
        documents: its own. Where the scope is `gathered`, those of all processes come back.
        options: the scope, and when a teacher says that a negative is none.
    """
    answered = np.full(len(documents), _NOBODY)
    answered[batch.groups[:-1]] = batch.query_keys
    labels = np.stack([batch.document_keys, answered])
    device = documents.tokens.device
    if options.scope == "gathered":
        together = gathered(documents, labels)
        documents, labels = together.embeddings, together.labels
    excluded = false_negatives(batch.query_keys, labels[0], labels[1], batch.groups)
    if options.teacher_margin is not None and batch.teacher is not None:
        near = beyond_margin(batch.teacher, batch.groups, options.teacher_margin)
        excluded[np.repeat(np.arange(len(batch.rows)), np.diff(batch.groups)), np.arange(len(near))] |= near
    return documents, Targets(
        batch.groups,
        None if batch.teacher is None else to_device(batch.teacher, device),
        others=labels.shape[1] - int(batch.groups[-1]),
        excluded=excluded,
        compared="own" if options.scope == "own" else "all",
        source=batch.source,
    )
