"""MaxSim on the host: all pairs and listed pairs, with and without winners."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import given
from lateinteraction.kernels.cpu.kinds import FLOAT32
from lateinteraction.kernels.cpu.operands import (
    SPARE,
    Block,
    Documents,
    Panels,
    address,
    bytewise,
    documents_of,
    lengths_of,
    pairs_of,
    panels_of,
    piece_bytes,
    room,
)
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.cpu.threads import run, shares
from lateinteraction.kernels.operands import Tokens, winners_dtype

_SCORES = Program("maxsim", "scores", 7), Program("maxsim", "scores_of_bytes", 7)
_WINNERS = Program("maxsim", "winners", 7), Program("maxsim", "winners_of_bytes", 7)


class Scoring(NamedTuple):
    """Queries and documents that are ready to be scored, as often as one likes, all pairs or listed ones."""

    documents: Documents
    queries: Panels
    pairs: Tensor | None
    bytewise: bool

    def __call__(
        self, first: int, last: int, scores: Tensor, winners: Tensor | None = None, block: Block | None = None
    ) -> None:
        """Score pairs, or a block of n queries with documents, first … last − 1: scores (last − first,) or (n, …).

        Winners are (S, N) or (P, longest), and only those of first … last − 1 are written.
        """
        program = (_SCORES if winners is None else _WINNERS)[self.bytewise]
        memory = room(self._room, dtype=torch.uint8)
        query_step = 0 if self.pairs is not None else 4 * scores.stride(0)
        out = given(scores.data_ptr() - 4 * first, 4, query_step, *self._winners(winners))
        pairs = 0 if self.pairs is None else self.pairs.data_ptr()
        queries = self.queries.given if block is None else block.given
        program(address(self.documents.given), address(queries), pairs, first, last, memory.data_ptr(), address(out))

    def _winners(self, winners: Tensor | None) -> tuple[int, ...]:
        """As programs take them: address, whether they are int16, bytes from pair to pair and from token to token."""
        if winners is None:
            return 0, 0, 0, 0
        size = winners.element_size()
        steps = (1, winners.shape[1]) if self.pairs is None else (winners.shape[1], 1)
        return winners.data_ptr(), int(size == 2), size * steps[0], size * steps[1]

    @property
    def _room(self) -> int:
        """Bytes for maxima and winners of all lanes and for a piece of rows."""
        steps = self.queries.packed.shape[1]
        piece = 0 if self.documents.kind == FLOAT32 else piece_bytes(steps)
        return 8 * (self.queries.most * processor().panel + SPARE) + piece

    def ranges(self) -> list[tuple[int, int]]:
        """Pairs, or documents, shared out among threads."""
        lengths = lengths_of(self.documents.spans)
        if self.pairs is not None:
            lengths = lengths[self.pairs[:, 1].numpy()]
        return shares(lengths, self._work(lengths))

    def all_pairs(self, scores: Tensor, winners: Tensor | None) -> None:
        """Score every query with every document. Threads get some of either, whichever has no item that is too much."""
        lengths, panels, blocks = lengths_of(self.documents.spans), self.queries.needed, self.queries.blocks()

        def task(own: list[Block], first: int, last: int) -> None:
            for block in own:
                self(first, last, scores[block.first : block.last, first:last], winners, block)

        if len(blocks) > 1 and self.queries.most * lengths.sum() < lengths.max(initial=0) * panels.sum():
            run(lambda first, last: task(blocks[first:last], 0, len(lengths)), shares(panels, self._work(lengths)))
        else:
            run(lambda first, last: task(blocks, first, last), self.ranges())

    def _work(self, lengths: NDArray[np.int64]) -> float:
        """Multiply-adds with documents of these lengths."""
        panels, steps, lanes = self.queries.packed.shape
        return float(lengths.sum()) * (panels if self.pairs is None else self.queries.most) * steps * lanes


def scoring_of(queries: Tokens, documents: Tokens, pairs: Tensor | None = None) -> Scoring:
    """What scores all pairs, or the listed ones.

    Raises:
        TypeError: dtypes or devices that the form cannot compute.
        IndexError: spans or pairs of what is not there.
    """
    integers = bytewise(queries, documents)
    listed = None if pairs is None else pairs_of(pairs, queries, documents)
    return Scoring(documents_of(documents), panels_of(queries, apart=pairs is not None), listed, integers)


def maxsim_all_pairs(queries: Tokens, documents: Tokens) -> Tensor:
    """Scores (Q, N). See `Form.maxsim_all_pairs`."""
    return _all_pairs(queries, documents, None)


def maxsim_all_pairs_winners(queries: Tokens, documents: Tokens) -> tuple[Tensor, Tensor]:
    """Scores (Q, N) and winners (S, N). See `Form.maxsim_all_pairs_winners`."""
    winners = room(len(queries.values), len(documents.spans), dtype=winners_dtype(documents))
    return _all_pairs(queries, documents, winners), winners


def maxsim_pairs(queries: Tokens, documents: Tokens, pairs: Tensor) -> Tensor:
    """Scores (P,). See `Form.maxsim_pairs`."""
    return _pairs(queries, documents, pairs, None)


def maxsim_pairs_winners(queries: Tokens, documents: Tokens, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (P,) and winners (P, queries.longest). See `Form.maxsim_pairs_winners`."""
    winners = room(len(pairs), queries.longest, dtype=winners_dtype(documents)).fill_(-1)
    return _pairs(queries, documents, pairs, winners), winners


def _all_pairs(queries: Tokens, documents: Tokens, winners: Tensor | None) -> Tensor:
    scoring = scoring_of(queries, documents)
    scores = room(len(queries.spans), len(documents.spans))
    scoring.all_pairs(scores, winners)
    return scores


def _pairs(queries: Tokens, documents: Tokens, pairs: Tensor, winners: Tensor | None) -> Tensor:
    scoring = scoring_of(queries, documents, pairs)
    scores = room(len(pairs))
    run(lambda first, last: scoring(first, last, scores[first:last], winners), scoring.ranges())
    return scores
