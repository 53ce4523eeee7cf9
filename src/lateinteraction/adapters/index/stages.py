"""What a device computes for a search, one block of documents after another, and never asks the host about.

Every size is known on the host before anything starts: how many documents a block has, how many of them a stage keeps.
So nothing waits for a result, and what was found crosses to the host once, at the end. Queries, documents and results
are tensors of one device, whichever that is.

A document is named by its ordinal: its place among all that a search may return.

Letters: Q queries, S of their tokens, N documents of a block, D dimensions, K centroids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

import torch
from attrs import evolve, frozen
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.domain.quantisation import LARGEST_CODE
from lateinteraction.kernels.eager.order import best_of
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Tokens

SCORES_AT_ONCE = 2**22
"""Scores of documents that are there at once. Finding the best of them takes some 40 bytes for each: 168 MB."""
TABLE_BYTES = 2**28
"""What the tables of queries with a codebook may take together, in float32 and in bytes; one query's may take more."""
WIDENED_BYTES = 2**28
"""What bytes of documents may take where they are widened to be scored by a query that is not rounded."""
WORKING_BYTES = 2**30
"""All of that, what kernels hold of their own (256 MB of maxima), and what an allocator cannot use."""
QUERIES_AT_ONCE = 64
"""Queries that share their look at a block."""


@final
@frozen(eq=False)
class CodebookThere:
    """A codebook on a device."""

    codec: Codec

    def __len__(self) -> int:
        return self.codec.centroids.shape[0]


@final
class Queries:
    """Some queries on a device, and what blocks make of their tokens: each once.

    Args:
        values: float32 (S, D).
        spans: int64 (Q, 2), there as well; the queries lie one behind the other.
        lengths: tokens of each, on the host.
    """

    def __init__(self, values: Tensor, spans: Tensor, lengths: Sequence[int]) -> None:
        self.tokens = Tokens(values, spans, max(lengths))
        ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
        self._bounds = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self._tables: dict[CodebookThere, Tensor] = {}
        self._tables_of_bytes: dict[CodebookThere, CentroidTable] = {}
        self._in_eight_bits: Tokens | None = None

    def __len__(self) -> int:
        return len(self._bounds)

    def alone(self) -> Iterator[tuple[Tokens, slice]]:
        """Each query by itself, and which rows are its own."""
        starts = self.tokens.spans - self.tokens.spans[:, :1]
        for number, (first, last) in enumerate(self._bounds):
            yield Tokens(self.tokens.values[first:last], starts[number : number + 1], last - first), slice(first, last)

    def table(self, codebook: CodebookThere) -> Tensor:
        """How similar each token is to each centroid, (K, S)."""
        if codebook not in self._tables:
            self._tables[codebook] = kernels.centroid_scores(self.tokens.values, codebook.codec.centroids)
        return self._tables[codebook]

    def table_of_bytes(self, codebook: CodebookThere) -> CentroidTable:
        """The same in eight bits."""
        if codebook not in self._tables_of_bytes:
            self._tables_of_bytes[codebook] = kernels.quantise_table(self.table(codebook))
        return self._tables_of_bytes[codebook]

    def in_eight_bits(self) -> Tokens:
        """The tokens rounded as `domain.quantisation` rounds those of documents."""
        if self._in_eight_bits is None:
            values = self.tokens.values
            # By a tensor: by a number, devices would multiply by its inverse.
            scales = values.abs().amax(dim=1) / values.new_full((), float(LARGEST_CODE))
            steps = (values / torch.where(scales > 0, scales, 1)[:, None]).clamp(-LARGEST_CODE, LARGEST_CODE)
            self._in_eight_bits = self.tokens._replace(values=steps.round().type(torch.int8), scales=scales)
        return self._in_eight_bits


class Best(NamedTuple):
    """The best of each query: scores float32 (Q, n), falling, and int64 (Q, n), whose they are; ties: the lowest."""

    scores: Tensor
    places: Tensor

    def joined(self, other: Best, count: int) -> Best:
        """The best so many of both; the places of the other are higher."""
        scores, places = torch.cat([self.scores, other.scores], dim=1), torch.cat([self.places, other.places], dim=1)
        chosen = best_of(scores, count)
        return Best(scores.gather(1, chosen), places.gather(1, chosen))


class Block(Protocol):
    """Documents of one segment on a device, in the order of their ordinals."""

    @property
    def spans(self) -> Tensor:
        """Where the tokens of each are, int64 (N, 2)."""
        ...

    def only(self, rows: Tensor) -> Block:
        """Those of these rows, int64, which rise."""
        ...

    def rough(self, queries: Queries, count: int) -> Best:
        """The best so many by scores that are good enough for a shortlist, and their rows."""
        ...

    def scores(self, queries: Queries, rows: Tensor) -> Tensor:
        """MaxSim (Q, n) with documents as they are stored, of each query with its own rows, int64 (Q, n)."""
        ...

    def best(self, queries: Queries, count: int) -> Best:
        """The best so many by MaxSim with all of them as they are stored, and their rows."""
        ...


@final
@frozen(eq=False)
class VectorBlock:
    """Documents as vectors: a `Block`.

    Args:
        values: float16 or float32 (T, D).
        spans: int64 (N, 2).
        longest: at least the tokens of the longest document.
    """

    values: Tensor
    spans: Tensor
    longest: int

    @property
    def _tokens(self) -> Tokens:
        return Tokens(self.values, self.spans, self.longest)

    def only(self, rows: Tensor) -> VectorBlock:
        return evolve(self, spans=self.spans.index_select(0, rows))

    def rough(self, queries: Queries, count: int) -> Best:
        """See `Block.rough`: by the scores themselves."""
        return self.best(queries, count)

    def scores(self, queries: Queries, rows: Tensor) -> Tensor:
        """See `Block.scores`."""
        asking = torch.arange(len(queries), device=rows.device)[:, None].expand_as(rows)
        pairs = torch.stack([asking.flatten(), rows.flatten()], dim=1)
        return kernels.maxsim_pairs(queries.tokens, self._tokens, pairs).view(rows.shape)

    def best(self, queries: Queries, count: int) -> Best:
        """See `Block.best`."""
        return Best(*kernels.maxsim_top_k(queries.tokens, self._tokens, count))


@final
@frozen(eq=False)
class Int8Block:
    """Documents in eight bits: a `Block`.

    Args:
        values: int8 (T, D).
        scales: float32 (T,).
        spans: int64 (N, 2).
        longest: at least the tokens of the longest document.
    """

    values: Tensor
    scales: Tensor
    spans: Tensor
    longest: int

    def only(self, rows: Tensor) -> Int8Block:
        return evolve(self, spans=self.spans.index_select(0, rows))

    def rough(self, queries: Queries, count: int) -> Best:
        """See `Block.rough`: of queries that are rounded as documents are."""
        documents = Tokens(self.values, self.spans, self.longest, self.scales)
        return Best(*kernels.maxsim_top_k(queries.in_eight_bits(), documents, count))

    def scores(self, queries: Queries, rows: Tensor) -> Tensor:
        """See `Block.scores`."""
        step = self._step
        return torch.cat(
            [
                torch.cat([kernels.maxsim_all_pairs(query, self._widened(part)) for part in own.split(step)], dim=1)
                for (query, _), own in zip(queries.alone(), rows.unbind(), strict=True)
            ]
        )

    def best(self, queries: Queries, count: int) -> Best:
        """See `Block.best`."""
        rows = torch.arange(len(self.spans), device=self.spans.device)
        found = (kernels.maxsim_all_pairs(queries.tokens, self._widened(part)) for part in rows.split(self._step))
        return _best_of_pieces(found, count)

    @property
    def _step(self) -> int:
        """Documents whose tokens are widened at a time."""
        return max(1, WIDENED_BYTES // (4 * self.values.shape[1] * max(1, self.longest)))

    def _widened(self, rows: Tensor) -> Tokens:
        """These documents in float32, each with as many rows as the longest has: their number must not depend on which
        they are."""
        spans = self.spans.index_select(0, rows)
        steps = torch.arange(self.longest, device=rows.device)
        places = (spans[:, :1] + steps).clamp(max=len(self.values) - 1).flatten()
        values = self.values.index_select(0, places).type(torch.float32)
        starts = torch.arange(len(spans), device=rows.device) * self.longest
        ends = starts + (spans[:, 1] - spans[:, 0])
        scales = self.scales.index_select(0, places)[:, None]
        return Tokens(values * scales, torch.stack([starts, ends], dim=1), self.longest)


@final
@frozen(eq=False)
class ResidualBlock:
    """Documents as centroids and residuals: a `Block`.

    Args:
        codes: int32 (T,); all of them are centroids of the codebook.
        residuals: uint8 (T, B).
        scales: float16 (T,).
        spans: int64 (N, 2).
        codebook: what they are read with.
    """

    codes: Tensor
    residuals: Tensor
    scales: Tensor
    spans: Tensor
    codebook: CodebookThere

    def only(self, rows: Tensor) -> ResidualBlock:
        return evolve(self, spans=self.spans.index_select(0, rows))

    def rough(self, queries: Queries, count: int) -> Best:
        """See `Block.rough`: of unit vectors that lie where the centroids are."""
        table, asking = queries.table_of_bytes(self.codebook), queries.tokens.spans
        pieces = self.spans.split(_documents_at_once(len(queries)))
        return _best_of_pieces(
            (kernels.centroid_interaction(table, asking, self.codes, spans) for spans in pieces), count
        )

    def scores(self, queries: Queries, rows: Tensor) -> Tensor:
        """See `Block.scores`."""
        table = queries.table(self.codebook)
        return torch.cat(
            [
                self._scores(query, table[:, own].contiguous(), self.spans.index_select(0, listed))
                for (query, own), listed in zip(queries.alone(), rows.unbind(), strict=True)
            ]
        )

    def best(self, queries: Queries, count: int) -> Best:
        """See `Block.best`."""
        table = queries.table(self.codebook)
        pieces = self.spans.split(_documents_at_once(len(queries)))
        return _best_of_pieces((self._scores(queries.tokens, table, spans) for spans in pieces), count)

    def _scores(self, queries: Tokens, table: Tensor, spans: Tensor) -> Tensor:
        documents = Compressed(self.codes, self.residuals, self.scales, spans)
        return kernels.residual_maxsim(queries, table, self.codebook.codec, documents)


class Wanted(NamedTuple):
    """How many documents are kept of those that a search may return; all of it known before it starts."""

    listed: int
    """On the shortlist of segments that are approximated, at most."""
    all_listed: bool
    """Whether that is all there are, so that nothing need be approximated."""
    closest: int
    """Of the shortlist, how many are told to the host."""
    exact: int
    """Of the segments that are scored whole, how many are told to the host."""


@final
class Findings:
    """What some queries have found in the blocks that they were shown.

    A block of an approximated segment is done with at once: its best by approximation are scored, and stand with their
    scores among those of other blocks until the best of all remain. That scores more documents than a shortlist made
    first would, and wants every block on the device only once.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._exact: Best | None = None
        self._rough: Best | None = None
        self._scores: Tensor | None = None

    def look(self, queries: Queries, block: Block, first: int, *, approximated: bool) -> None:
        """Take a block whose documents have the ordinals from `first` on; ordinals rise from look to look."""
        if not approximated:
            best = _moved(block.best(queries, self._wanted.exact), first)
            self._exact = best if self._exact is None else self._exact.joined(best, self._wanted.exact)
            return
        if self._wanted.all_listed:
            found = block.best(queries, self._wanted.listed)
            self._list(_moved(found, first), found.scores)
        else:
            found = block.rough(queries, self._wanted.listed)
            self._list(_moved(found, first), block.scores(queries, found.places))

    def result(self, queries: int, device: torch.device) -> Tensor:
        """The bits of the scores as float32, and the ordinals, int64 (2, Q, n): first those of segments that are scored
        whole, then those of the shortlist, each in falling order of score."""
        nothing = torch.empty((queries, 0), device=device)
        parts = [Best(nothing, nothing.type(torch.int64)) if self._exact is None else self._exact]
        if self._rough is not None and self._scores is not None:
            chosen = best_of(self._scores, self._wanted.closest)
            parts.append(Best(self._scores.gather(1, chosen), self._rough.places.gather(1, chosen)))
        scores = torch.cat([part.scores for part in parts], dim=1).type(torch.float32)
        return torch.stack([scores.view(torch.int32).type(torch.int64), torch.cat([part.places for part in parts], 1)])

    def _list(self, rough: Best, scores: Tensor) -> None:
        if self._rough is None or self._scores is None:
            self._rough, self._scores = rough, scores
            return
        approximate = torch.cat([self._rough.scores, rough.scores], dim=1)
        places = torch.cat([self._rough.places, rough.places], dim=1)
        chosen = best_of(approximate, self._wanted.listed)
        self._rough = Best(approximate.gather(1, chosen), places.gather(1, chosen))
        self._scores = torch.cat([self._scores, scores], dim=1).gather(1, chosen)


def _moved(best: Best, first: int) -> Best:
    return best._replace(places=best.places + first)


def _documents_at_once(queries: int) -> int:
    return max(1, SCORES_AT_ONCE // queries)


def _best_of_pieces(pieces: Iterator[Tensor], count: int) -> Best:
    """The best of scores (Q, n) that come a piece of the documents at a time."""
    found: Best | None = None
    first = 0
    for scores in pieces:
        chosen = best_of(scores, count)
        best = Best(scores.gather(1, chosen), chosen + first)
        found = best if found is None else found.joined(best, count)
        first += scores.shape[1]
    assert found is not None
    return found


if TYPE_CHECKING:
    _blocks: list[Callable[..., Block]] = [VectorBlock, Int8Block, ResidualBlock]
