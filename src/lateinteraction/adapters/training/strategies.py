"""Strategies: how gradients of a micro-batch are made. The same gradients by either, for every loss.

`direct` keeps what the network computed of all rectangles. `cached` runs each rectangle twice, first without and then
with a graph, and so keeps one rectangle's (Gao et al., arXiv 2101.06983, §3): the loss is computed from the rows of the
first pass, and its gradients with respect to these are what the second pass starts from. Both run the same rectangles
in the same order with the same random numbers, so that dropout makes no difference between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from attrs import frozen
from torch import Tensor, nn

from lateinteraction.adapters.encoding.learning import Sheet, sheet_of
from lateinteraction.adapters.neural.transfer import queued_to_device
from lateinteraction.adapters.training.batches import MicroBatch, Rectangles
from lateinteraction.adapters.training.randomness import RandomState, random_state, set_random_state
from lateinteraction.domain.embeddings import TokenEmbeddings

Embeddings = TokenEmbeddings[Tensor]
BatchLoss = Callable[[Embeddings, Embeddings], Tensor]
"""Of a micro-batch's queries and documents the loss, a scalar."""


def _nothing() -> AbstractContextManager[object]:
    return nullcontext()


@frozen(eq=False, kw_only=True)
class Setting:
    """Where gradients are made.

    Args:
        module: rows of sheets, as `TrainedModule`, wrapped or not.
        device: where sheets go.
        autocast: a context for the network.
        unsynchronised: a context in which gradients stay on this process.
        backward: of a scalar; scales it where the precision asks for that.
        passes: of how many rectangles are to be run for so many; more where all processes have to run as many.
    """

    module: nn.Module
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]] = _nothing
    unsynchronised: Callable[[], AbstractContextManager[object]] = _nothing
    backward: Callable[[Tensor], object] = Tensor.backward
    passes: Callable[[int], int] = int

    def rows(self, sheets: Sequence[Sheet]) -> Tensor:
        """Kept rows of sheets."""
        with self.autocast():
            return self.module(sheets)

    def sheets(self, batch: MicroBatch) -> list[Sheet]:
        """The rectangles of the queries, then of the documents, on the device; then such as keep no row."""
        sheets = [sheet_of(each, self.device) for each in (*batch.queries.batches, *batch.documents.batches)]
        one = torch.ones((1, 1), dtype=torch.int64, device=self.device)
        return sheets + [Sheet(one, one[0], one[0, :0], full=True)] * (self.passes(len(sheets)) - len(sheets))


@frozen(eq=False)
class Outcome:
    """What came of a micro-batch: its loss and embeddings, without gradients."""

    loss: Tensor
    queries: Embeddings
    documents: Embeddings


def direct(
    setting: Setting, batch: MicroBatch, loss_of: BatchLoss, *, weight: float = 1.0, last: bool = True
) -> Outcome:
    """Gradients of weight × loss, added to what parameters have.

    Args:
        setting: where.
        batch: of which.
        loss_of: the loss.
        weight: of this micro-batch among those of a step.
        last: whether gradients of the step are complete with it, and go to all processes.
    """
    with _nothing() if last else setting.unsynchronised():
        rows = setting.rows(setting.sheets(batch))
        queries, documents = _assembled(rows, batch)
        loss = loss_of(queries, documents)
        setting.backward(weight * loss)
    return _outcome(loss, queries, documents)


def cached(
    setting: Setting, batch: MicroBatch, loss_of: BatchLoss, *, weight: float = 1.0, last: bool = True
) -> Outcome:
    """As `direct`, keeping what one rectangle takes; gradients go to all processes once, with the last rectangle."""
    sheets = setting.sheets(batch)
    states, parts = list[RandomState](), list[Tensor]()
    with torch.no_grad():
        for sheet in sheets:
            states.append(random_state(setting.device))
            parts.append(setting.rows([sheet]))
    leaf, lengths = torch.cat(parts).requires_grad_(), [len(part) for part in parts]
    del parts
    queries, documents = _assembled(leaf, batch)
    with setting.unsynchronised():
        loss = loss_of(queries, documents)
        setting.backward(weight * loss)
    after = random_state(setting.device)
    assert leaf.grad is not None
    gradients = leaf.grad.split(lengths)
    for number, (sheet, state, gradient) in enumerate(zip(sheets, states, gradients, strict=True), start=1):
        with _nothing() if last and number == len(sheets) else setting.unsynchronised():
            set_random_state(state, setting.device)
            rows = setting.rows([sheet])
            rows.backward(gradient.type(rows.dtype))
            del rows
    set_random_state(after, setting.device)
    return _outcome(loss, queries, documents)


def _outcome(loss: Tensor, queries: Embeddings, documents: Embeddings) -> Outcome:
    return Outcome(
        loss.detach(),
        TokenEmbeddings(queries.tokens.detach(), queries.offsets),
        TokenEmbeddings(documents.tokens.detach(), documents.offsets),
    )


def _assembled(rows: Tensor, batch: MicroBatch) -> tuple[Embeddings, Embeddings]:
    """Rows of all rectangles as queries and documents."""
    own = len(batch.queries.order)
    return _in_order(rows[:own], batch.queries), _in_order(rows[own:], batch.documents)


def _in_order(rows: Tensor, rectangles: Rectangles) -> Embeddings:
    return TokenEmbeddings(rows.index_select(0, queued_to_device(rectangles.order, rows.device)), rectangles.offsets)
