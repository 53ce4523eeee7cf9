"""Inverted lists: the best that a query token finds of each document, added up token after token."""

from __future__ import annotations

from typing import Any

import numpy as np

from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.memory import float32s, int64s, uint16s


@part
def _raise(lists: Any, gains: int, best: int, count: int) -> int:
    """The best gain of each document that one token's lists name; 1 if they name one beyond the last."""
    documents, spans, firsts, many = lists
    for number in range(many):
        gain = float32s(gains)[number]
        first = int64s(firsts)[number]
        place, end = int64s(spans)[2 * number], int64s(spans)[2 * number + 1]
        while place < end:
            document = first + uint16s(documents)[place]
            if document < 0 or document >= count:
                return 1
            if gain > float32s(best)[document]:
                float32s(best)[document] = gain
            place += 1
    return 0


@part
def _add(lists: Any, best: int, scores: int) -> None:
    """Add the best of each document, once however many lists name it, and forget it."""
    documents, spans, firsts, many = lists
    for number in range(many):
        first = int64s(firsts)[number]
        place, end = int64s(spans)[2 * number], int64s(spans)[2 * number + 1]
        while place < end:
            document = first + uint16s(documents)[place]
            float32s(scores)[document] += float32s(best)[document]
            float32s(best)[document] = np.float32(0.0)
            place += 1


def scores(given: int) -> None:
    """Scores of all documents: see `kernels.cpu.lists`, which leaves zeros in `scores`, `best` and `beyond`.

    given: lists, their spans (S, M, 2), the first documents (M,), gains (S, M), scores (count,), room for as many,
        whether a list names a document that is not there; S, M, count.
    """
    g = int64s(given)
    documents, spans, firsts, gains, out, best, beyond = g[0], g[1], g[2], g[3], g[4], g[5], g[6]
    tokens, many, count = g[7], g[8], g[9]
    for token in range(tokens):
        lists = documents, spans + token * many * 16, firsts, many
        if _raise(lists, gains + token * many * 4, best, count) != 0:
            int64s(beyond)[0] = 1
            return
        _add(lists, best, out)
