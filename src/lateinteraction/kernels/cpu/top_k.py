"""The best documents of each query on the host, chosen while scores are still in cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import Given, given
from lateinteraction.kernels.cpu.maxsim import Scoring, scoring_of
from lateinteraction.kernels.cpu.operands import address, room
from lateinteraction.kernels.cpu.threads import run
from lateinteraction.kernels.operands import Tokens

_OFFER = Program("top_k", "offer", 6)
_UNITE = Program("top_k", "unite", 4)
_SORT = Program("top_k", "sort", 1)

SCORES_AT_A_TIME = 2**14
"""64 KiB of scores; enough documents that a call costs nothing beside scoring them."""


class _Heaps(NamedTuple):
    """The best so far of each query."""

    scores: Tensor
    """float32 (Q, k)."""
    places: Tensor
    """int64 (Q, k)."""
    given: Given

    @classmethod
    def of(cls, queries: int, k: int) -> _Heaps:
        """Room for k hits of each query."""
        return cls._around(room(queries, k), room(queries, k, dtype=torch.int64))

    def part(self, first: int, last: int) -> _Heaps:
        """Those of queries first … last − 1."""
        return self._around(self.scores[first:last], self.places[first:last])

    @classmethod
    def _around(cls, scores: Tensor, places: Tensor) -> _Heaps:
        return cls(scores, places, given(scores.data_ptr(), places.data_ptr(), *scores.shape))


def maxsim_top_k(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor]:
    """Scores (Q, k) and places (Q, k). See `Form.maxsim_top_k`."""
    scoring = scoring_of(queries, documents)
    k = min(k, len(documents.spans))
    ranges = scoring.ranges()
    heaps = [_Heaps.of(len(queries.spans), k) for _ in ranges]
    run(lambda first, last: _scan(scoring, first, last, heaps[ranges.index((first, last))]), ranges)
    best, kept = heaps[0], min(k, ranges[0][1])
    for other, (first, last) in zip(heaps[1:], ranges[1:], strict=True):
        found = min(k, last - first)
        _UNITE(address(best.given), kept, address(other.given), found)
        kept = min(k, kept + found)
    _SORT(address(best.given))
    return best.scores, best.places


def _scan(scoring: Scoring, first: int, last: int, heaps: _Heaps) -> None:
    """Fill heaps from documents first … last − 1."""
    if not heaps.scores.numel():
        return
    blocks = [(block, heaps.part(block.first, block.last)) for block in scoring.queries.blocks()]
    most, k = max(len(part.scores) for _, part in blocks), heaps.scores.shape[1]
    at_a_time = max(1, SCORES_AT_A_TIME // most)
    scores = room(most, at_a_time)
    for start in range(first, last, at_a_time):
        count = min(at_a_time, last - start)
        for block, part in blocks:
            scoring(start, start + count, scores[: len(part.scores), :count], block=block)
            _OFFER(scores.data_ptr(), 4 * at_a_time, start, count, address(part.given), min(k, start - first))
