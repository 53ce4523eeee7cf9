"""Documents a chunk at a time: which, their rows in one piece, and the best of each one's rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Spans = NDArray[np.int64]

SIMILARITIES_PER_CHUNK = 2**17
"""Similarities held at a time: 512 KiB in float32, which stays in a core's second-level cache.

On 1 × 1,000 documents of 20–300 tokens (D = 128) 2^16 … 2^18 are within a tenth of each other; 2^14 costs half as
much again and 2^21 a tenth more (`make bench CASE=maxsim`).
"""

FEWEST_ROWS_PER_CHUNK = 256
"""With very many query tokens the chunk grows beyond the cache rather than starve the matrix product."""


class Chunk(NamedTuple):
    """Documents first … last−1."""

    first: int
    last: int
    spans: Spans
    """(n, 2), the rows of each."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return list(map(int, self.spans[:, 1] - self.spans[:, 0]))

    def pieces(self, rows: int) -> Iterator[Chunk]:
        """The chunk itself; or the one document that is longer, `rows` at a time."""
        start, end = map(int, self.spans[0])
        if self.last > self.first + 1 or end - start <= rows:
            yield self
            return
        for piece in range(start, end, rows):
            yield self._replace(spans=np.array([[piece, min(piece + rows, end)]]))

    def rows_of(self, values: Tensor) -> Tensor:
        """The chunk's rows of a tensor, in order: a view where they lie side by side."""
        if len(self.spans) and bool(np.all(self.spans[1:, 0] == self.spans[:-1, 1])):
            return values[int(self.spans[0, 0]) : int(self.spans[-1, 1])]
        return torch.cat([values[start:end] for start, end in self._bounds]) if len(self.spans) else values[:0]

    def add_to(self, sums: Tensor, rows: Tensor) -> None:
        """Add rows, in the chunk's order, to the rows of `sums` that they belong to; documents may repeat."""
        for (start, end), part in zip(self._bounds, rows.split(self.lengths), strict=True):
            sums[start:end] += part

    @property
    def _bounds(self) -> Iterator[tuple[int, int]]:
        return ((int(start), int(end)) for start, end in self.spans)


def on_host(places: Tensor) -> NDArray[np.int64]:
    """Spans or pairs as numbers, without a copy.

    Raises:
        TypeError: they are on a device; reading them would make everybody wait for it.
    """
    if places.device.type != "cpu":
        raise TypeError(f"spans on {places.device}: the eager form reads them on the host")
    return np.asarray(places)


def rows_per_chunk(query_rows: int) -> int:
    """How many document rows keep the table with this many query rows in cache."""
    return max(FEWEST_ROWS_PER_CHUNK, SIMILARITIES_PER_CHUNK // max(1, query_rows))


def chunks(spans: Spans, rows: int) -> Iterator[Chunk]:
    """Whole documents of at most `rows` tokens together; one, if it alone has more."""
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    first, before = 0, 0
    while first < len(spans):
        fitting = int(np.searchsorted(ends, before + rows, side="right"))
        last = min(max(fitting, first + 1), first + rows)
        yield Chunk(first, last, spans[first:last])
        first, before = last, int(ends[last - 1])


def maxima(table: Tensor, lengths: list[int], lowest: float) -> Tensor:
    """The best (n, S) of the rows of each of n documents in a table (C, S); `lowest` where one has none."""
    longest = max(lengths)
    if longest > 0 and min(lengths) == longest:
        return table.view(len(lengths), longest, -1).amax(dim=1)
    absent = table.new_full((table.shape[1],), lowest)
    return torch.stack([part.amax(dim=0) if len(part) else absent for part in table.split(lengths)])


def winners(table: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """`maxima` and, for each, the lowest row that has it, int64 (n, S), counted within the document; −1 for none."""
    absent = table.new_full((table.shape[1],), -torch.inf), table.new_full((table.shape[1],), -1, dtype=torch.int64)
    found = [part.max(dim=0) if len(part) else absent for part in table.split(lengths)]
    return torch.stack([best for best, _ in found]), torch.stack([row for _, row in found])


def sum_per_query(best: Tensor, query_spans: Spans) -> Tensor:
    """Scores (Q, n) from maxima (n, S)."""
    if not len(query_spans):
        return best.new_empty((0, best.shape[0]))
    return torch.stack([best[:, start:end].sum(dim=1) for start, end in query_spans])


def precision_of(*values: Tensor) -> torch.dtype:
    """float64 where one of them is, else float32."""
    return torch.float64 if any(each.dtype == torch.float64 for each in values) else torch.float32
