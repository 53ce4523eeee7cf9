"""Tables of centroid scores on the host: made, put into eight bits, searched for the best. See `programs.tables`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lateinteraction.kernels.cpu.blocks import CENTROIDS, PANEL
from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import FLOATS, given, readable, room, share
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.operands import CentroidTable

_SCORES = Program("tables", "scores", 4)
_EXTREMES = Program("tables", "extremes", 4)
_QUANTISE = Program("tables", "quantise", 3)
_BLOCK_MAXIMA = Program("tables", "block_maxima", 3)
_BEST = Program("tables", "best", 4)


def centroid_scores(query_values: Tensor, centroids: Tensor) -> Tensor:
    """The table (K, S). See `Form.centroid_scores`."""
    centroids = readable("centroids", centroids, torch.float32)
    panels = panels_of_rows(readable("query tokens", query_values, *FLOATS))
    table = room(len(centroids), len(query_values))
    K, S = table.shape
    numbers = given(centroids.data_ptr(), centroids.shape[1], panels.data_ptr(), S, table.data_ptr())

    def score(first: int, last: int) -> None:
        tile = room(processor().rows, PANEL)
        _SCORES(numbers.ctypes.data, first, last, tile.data_ptr())

    share(score, K, CENTROIDS, float(panels.numel()) * K)
    return table


def quantise_table(scores: Tensor) -> CentroidTable:
    """The table in eight bits. See `Form.quantise_table`."""
    scores = readable("a table", scores, torch.float32)
    K, S = scores.shape
    found: list[Tensor] = []

    def look(first: int, last: int) -> None:
        extremes = room(2, S)
        _EXTREMES(numbers.ctypes.data, first, last, extremes.data_ptr())
        found.append(extremes)

    numbers = given(scores.data_ptr(), S)
    share(look, K, CENTROIDS, _PASS * scores.numel())
    extremes = torch.stack(found)
    lows = extremes[:, 0].amin(dim=0)
    steps = (extremes[:, 1].amax(dim=0) - lows) / 255.0
    values = room(K, S, dtype=torch.uint8)
    numbers = given(scores.data_ptr(), S, lows.data_ptr(), steps.data_ptr(), values.data_ptr())
    share(lambda first, last: _QUANTISE(numbers.ctypes.data, first, last), K, CENTROIDS, _PASS * scores.numel())
    return CentroidTable(values, steps, lows)


_PASS = 10.0
"""Multiply-adds, of 0.01 ns, that take as long as to read one number of a table and compare or divide it."""


def probe(scores: Tensor, nprobe: int) -> Tensor:
    """The best centroids. See `Form.probe`."""
    scores = readable("a table", scores, torch.float32)
    K, S = scores.shape
    wanted = min(nprobe, K)
    maxima = room(-(-K // CENTROIDS), S)
    chosen = room(S, wanted, dtype=torch.int64)
    numbers = given(scores.data_ptr(), K, S, maxima.data_ptr())
    blocks = len(maxima)
    share(lambda first, last: _BLOCK_MAXIMA(numbers.ctypes.data, first, last), blocks, 1, _PASS * scores.numel())
    searched = given(scores.data_ptr(), K, S, maxima.data_ptr(), wanted, chosen.data_ptr())

    def search(first: int, last: int) -> None:
        scratch = room(max(1, 2 * wanted), dtype=torch.int64)
        _BEST(searched.ctypes.data, first, last, scratch.data_ptr())

    share(search, S, 1, _VISIT * S * (blocks + min(wanted, blocks) * CENTROIDS))
    return chosen


_VISIT = 100.0
"""Multiply-adds that take as long as to visit a number of a column, each of which lies in a cache line of its own."""


def panels_of_rows(values: Tensor, scales: Tensor | None = None) -> Tensor:
    """Rows (S, D), times their scales, as the products want them: float32 (panels, D, PANEL), 0 beyond the last row."""
    wide = values.type(torch.float32)
    wide = wide if scales is None else wide * scales.detach()[:, None]
    padded = torch.nn.functional.pad(wide, (0, 0, 0, -len(wide) % PANEL))
    return padded.view(-1, PANEL, wide.shape[1]).mT.contiguous()


class Edge(NamedTuple):
    """A copy of the last rows of a table, for passes that read a few columns beyond the last one."""

    values: Tensor
    inside: int
    """How many rows may be read in the table itself."""

    @classmethod
    def of(cls, table: Tensor, columns: int) -> Edge:
        """What passes of so many columns need."""
        K, S = table.shape
        beyond = -S % columns
        inside = max(0, K - -(-beyond // S)) if S else K
        return cls(torch.nn.functional.pad(table[inside:].flatten(), (0, beyond)), inside)

    def given(self, table: Tensor) -> tuple[int, int, int]:
        """The table's address, that which its row 0 would have in the edge, and how many rows are inside."""
        row_bytes = table.shape[1] * table.element_size()
        return table.data_ptr(), self.values.data_ptr() - self.inside * row_bytes, self.inside
