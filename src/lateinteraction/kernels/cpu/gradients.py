"""Gradients of MaxSim on the host, of all pairs and of listed ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import Given, given
from lateinteraction.kernels.cpu.kinds import FLOAT32, INT8
from lateinteraction.kernels.cpu.operands import (
    Documents,
    address,
    bytewise,
    documents_of,
    kind_of,
    lengths_of,
    pairs_of,
    room,
)
from lateinteraction.kernels.cpu.threads import FROM_MEMORY, run, shares
from lateinteraction.kernels.operands import Tokens

_OF_QUERIES = Program("gradients", "of_queries", 9)
_OF_DOCUMENTS = Program("gradients", "of_documents", 9)


class _Visits(NamedTuple):
    """Which pairs belong to each owner: all of its row or column, or by an order."""

    others: int
    pairs: Tensor | None = None
    order: Tensor | None = None
    """int64 (P,): numbers of pairs, by owner and then rising."""
    bounds: Tensor | None = None
    """int64 (owners + 1,): where each owner's numbers begin."""

    @property
    def given(self) -> Given:
        """As programs take them."""
        tensors = self.pairs, self.order, self.bounds
        return given(self.others, *(0 if each is None else each.data_ptr() for each in tensors))


class _Weights(NamedTuple):
    """Winners and upstream gradients."""

    winners: Tensor
    upstream: Tensor
    all_pairs: bool
    wrong: Tensor
    """int64 (1,): whether a program has met a winner that is no token of its document."""

    @property
    def given(self) -> Given:
        """As programs take them: address, whether int16, and steps of winners; address and steps of upstream; wrong."""
        size, stride = self.winners.element_size(), self.winners.stride(0)
        steps = (size, size * stride) if self.all_pairs else (size * stride, size)
        query_step = 4 * self.upstream.stride(0) if self.all_pairs else 0
        upstream = self.upstream.data_ptr(), 4, query_step
        return given(self.winners.data_ptr(), int(size == 2), *steps, *upstream, self.wrong.data_ptr())


def maxsim_all_pairs_gradients(
    queries: Tokens, documents: Tokens, winners: Tensor, upstream: Tensor, *, unit: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (S, D) and (R, D). See `Form.maxsim_all_pairs_gradients`."""
    visits = _Visits(len(documents.spans)), _Visits(len(queries.spans))
    return _both(queries, documents, visits, _weights(winners, upstream, all_pairs=True), unit)


def maxsim_pairs_gradients(
    queries: Tokens, documents: Tokens, pairs: Tensor, winners: Tensor, upstream: Tensor, *, unit: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (S, D) and (R, D). See `Form.maxsim_pairs_gradients`."""
    pairs = pairs_of(pairs, queries, documents)
    counts = len(queries.spans), len(documents.spans)
    visits = _visits(pairs, 0, *counts), _visits(pairs, 1, *reversed(counts))
    return _both(queries, documents, visits, _weights(winners, upstream, all_pairs=False), unit)


def _both(
    queries: Tokens, documents: Tokens, visits: tuple[_Visits, _Visits], weights: _Weights, unit: bool
) -> tuple[Tensor, Tensor]:
    for tokens in (queries, documents):
        if kind_of(tokens.values) == INT8:
            raise TypeError("gradients of int8 values: whole numbers have none")
    bytewise(queries, documents)
    sides = documents_of(queries), documents_of(documents)
    gradients = (
        _gradient(_OF_QUERIES, sides[0], sides[1], visits[0], weights, unit),
        _gradient(_OF_DOCUMENTS, sides[1], sides[0], visits[1], weights, unit),
    )
    if weights.wrong[0]:
        raise IndexError("winners that are neither −1 nor the number of a token of their document")
    return gradients


def _weights(winners: Tensor, upstream: Tensor, *, all_pairs: bool) -> _Weights:
    if winners.dtype not in (torch.int16, torch.int32):
        raise TypeError(f"winners of {winners.dtype}: they are int16 or int32")
    upstream = upstream.detach().type(torch.float32).contiguous()
    return _Weights(winners.contiguous(), upstream, all_pairs, room(1, dtype=torch.int64).zero_())


def _gradient(
    program: Program, own: Documents, other: Documents, visits: _Visits, weights: _Weights, unit: bool
) -> Tensor:
    lengths = _lengths_apart(own.spans)
    out = torch.zeros_like(own.values)
    dimension = own.values.shape[1]
    numbers = own.given, other.given, visits.given, weights.given

    def task(first: int, last: int) -> None:
        rows = 0 if own.kind == FLOAT32 else int(lengths[first:last].max(initial=0))
        memory = room((2 + rows) * dimension + 1)
        program(*map(address, numbers), first, last, int(unit), out.data_ptr(), memory.data_ptr())

    run(task, shares(lengths, float(weights.winners.numel()) * dimension * FROM_MEMORY))
    return out


def _lengths_apart(spans: Tensor) -> NDArray[np.int64]:
    """Tokens of each item, none of which is also another's.

    Raises:
        ValueError: a row that two items have: each would be its owner, and two threads would write it at a time.
    """
    lengths, bounds = lengths_of(spans), spans.numpy()
    if _rising(bounds):
        return lengths
    filled = bounds[lengths > 0]
    if not _rising(filled[np.argsort(filled[:, 0])]):
        raise ValueError("spans that overlap, where gradients are asked for: each row wants one owner")
    return lengths


def _rising(bounds: NDArray[np.int64]) -> bool:
    numbers = bounds.ravel()
    return bool((numbers[:-1] <= numbers[1:]).all())


def _visits(pairs: Tensor, side: int, owners: int, others: int) -> _Visits:
    own = pairs[:, side].numpy()
    order = np.argsort(own, kind="stable")
    bounds = np.searchsorted(own[order], np.arange(owners + 1))
    return _Visits(others, pairs, torch.from_numpy(order.astype(np.int64)), torch.from_numpy(bounds.astype(np.int64)))
