"""Inverted lists on the host. See `programs.lists`."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import given, readable, room, spans_within
from lateinteraction.kernels.operands import Listed

_SCORES = Program("lists", "scores", 1)


def listed_scores(listed: Listed, gains: Tensor, count: int) -> Tensor:
    """Scores (count,). See `Form.listed_scores`.

    In the calling thread alone: what several threads add to one document would have to be added up again, and a search
    of 20,000 documents takes 20 to 70 µs.
    """
    gains = readable("gains", gains, torch.float32)
    documents = readable("lists", listed.documents, torch.uint16)
    spans = spans_within(listed.spans.flatten(0, 1), len(documents))
    firsts = readable("first documents", listed.firsts, torch.int64)
    scores, best, beyond = room(count).zero_(), room(count).zero_(), room(1, dtype=torch.int64).zero_()
    places = (each.data_ptr() for each in (documents, spans, firsts, gains, scores, best, beyond))
    numbers = given(*places, *gains.shape, count)
    _SCORES(numbers.ctypes.data)
    if int(beyond):
        raise IndexError(f"a list names a document beyond the {count} that there are")
    return scores
