"""In-batch XTR scores on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import given
from lateinteraction.kernels.cpu.operands import (
    address,
    bytewise,
    documents_of,
    lengths_of,
    panels_of,
    piece_bytes,
    room,
)
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.cpu.threads import run, shares
from lateinteraction.kernels.operands import Tokens, winners_dtype

_SCORES = Program("xtr", "scores", 7), Program("xtr", "scores_of_bytes", 7)


def xtr_all_pairs(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (Q, N), winners (S, N), finders (Q, N). See `Form.xtr_all_pairs`."""
    program = _SCORES[bytewise(queries, documents)]
    own, panels = documents_of(documents), panels_of(queries, apart=True)
    pairs = len(queries.spans), len(documents.spans)
    scores, finders = room(*pairs), room(*pairs, dtype=torch.int32)
    winners = room(len(queries.values), pairs[1], dtype=winners_dtype(documents))
    tokens = int(lengths_of(own.spans).sum())
    retrieved = k if k < tokens else 0
    out = given(scores.data_ptr(), winners.data_ptr(), int(winners.element_size() == 2), finders.data_ptr())

    def task(first: int, last: int) -> None:
        memory = _memory(pairs[1], retrieved, panels.packed.shape[1])
        where = given(*(each.data_ptr() for each in memory))
        program(address(own.given), address(panels.given), first, last, retrieved, address(where), address(out))

    lengths = panels.places[:, 1].numpy()
    run(task, shares(lengths, float(lengths.sum()) * tokens * panels.packed.shape[1]))
    return scores, winners, finders


def _memory(documents: int, k: int, steps: int) -> tuple[Tensor, ...]:
    """The best of each document, what is put aside, the similarities of a piece of rows, and a piece of rows."""
    lanes, piece = processor().panel, piece_bytes(steps)
    best = room(2 * documents * lanes)
    aside = room(lanes * (2 * k + 2), dtype=torch.int64)
    table = room((piece // (4 * max(1, steps)) + processor().rows) * lanes)
    return best, aside, table, room(piece, dtype=torch.uint8)
