"""Search on a device: what `search` finds, of tokens that are there or are brought there block by block.

What is on its way to the device when a search begins and what comes back when it ends is all that crosses. In between
the host only says what to compute (see `stages`), and waits for nothing. All codes are looked at, whether there are
inverted lists or not. The few documents that are scored again by kept vectors are scored on the host, where these lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import NamedTuple, final

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.index.columns import blocks_of, ranges
from lateinteraction.adapters.index.hits import Hits, Part, Rows, Scores, cut
from lateinteraction.adapters.index.options import RESCORED, RESCORED_PER_HIT, SearchOptions
from lateinteraction.adapters.index.payloads import PreparedQuery
from lateinteraction.adapters.index.resident import Lane, Placement
from lateinteraction.adapters.index.stages import QUERIES_AT_ONCE, TABLE_BYTES, Findings, Queries, Wanted
from lateinteraction.adapters.index.views import SegmentView
from lateinteraction.adapters.neural.transfer import queued_to_device, to_device, to_host
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of

SPARE = 32
"""Hits that come to the host besides those that are asked for, so that it sees whether the last one ties with more."""
WIDER = 16
"""How many times as many come where it does."""

Batch = tuple[Tensor, Tensor, Sequence[int]]
"""Values, spans and lengths of queries that share their look at a block."""


@final
@frozen(eq=False)
class PlacedView:
    """A segment as a search on a device sees it.

    Args:
        view: what may be returned of it, and how it is scored on the host.
        placement: where its tokens are.
        kept: where those of `view.vectors` are, for searches that score all documents.
        centroids: of the codebook that it is read with.
        joint: where it is together with its neighbours, and its first row there, if it is.
    """

    view: SegmentView
    placement: Placement
    kept: Placement | None = None
    centroids: int = 0
    joint: tuple[Placement, int] | None = None


class Look(NamedTuple):
    """What a search does with one placement."""

    placement: Placement
    chosen: Rows | None
    first: int
    """Ordinal of the first document."""
    approximated: bool


@final
class Asked:
    """What a search may return, how closely it looks at each segment, and who is whose ordinal.

    Args:
        views: the segments.
        k: how many hits of each query.
        options: how much it may cost.
    """

    def __init__(self, views: Sequence[PlacedView], k: int, options: SearchOptions) -> None:
        self.views, self.k, self._rescore = views, k, options.rescore
        sizes = np.array([len(each.view) for each in views], np.int64)
        shortlist = options.shortlist(k, int(sizes.sum()))
        self._firsts = offsets_of(sizes)
        self._listed = np.array([shortlist is not None and each.view.payload.approximates for each in views], np.bool_)
        known_better = np.array([each.view.vectors is not None for each in views], np.bool_)
        self.rescored = self._listed & known_better & options.rescore
        """Of which segments the best are scored again by kept vectors."""
        self.whole = int(sizes[~self._listed].sum())
        self._approximated = int(sizes[self._listed].sum())
        self._shortlist = min(self._approximated, shortlist or 0)

    def wanted(self, spare: int) -> Wanted:
        """Of each stage, where so many hits more than asked for come to the host."""
        listed = self._shortlist
        closest = listed if self.rescored.any() else min(listed, self.k + spare)
        return Wanted(listed, self._approximated <= listed, closest, min(self.whole, self.k + spare))

    def looks(self) -> Iterator[Look]:
        """Where to look for all that may be returned. Neighbours that are there together are looked at together."""
        numbers = [number for number, each in enumerate(self.views) if len(each.view)]
        for _, group in groupby(numbers, lambda number: (self.views[number].joint or (number,))[0]):
            own = list(group)
            each, first = self.views[own[0]], int(self._firsts[own[0]])
            if each.joint is None:
                exactly = each.kept if self._rescore and not self._listed[own[0]] else None
                yield Look(exactly or each.placement, each.view.chosen, first, bool(self._listed[own[0]]))
            else:
                rows = [self.views[number].view.rows() + _joint_row(self.views[number]) for number in own]
                yield Look(each.joint[0], np.concatenate(rows), first, approximated=False)

    def of(self, ordinals: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The segments and rows of documents."""
        segments = np.searchsorted(self._firsts, ordinals, side="right") - 1
        rows = ordinals - self._firsts[segments]
        for number in map(int, np.unique(segments)):
            if self.views[number].view.chosen is not None:
                own = segments == number
                rows[own] = self.views[number].view.rows()[rows[own]]
        return segments, rows

    def everything(self) -> Hits:
        """For a query without tokens: all documents, each of which scores 0."""
        segments, rows = self.of(np.arange(int(self._firsts[-1])))
        return Hits(segments, rows, np.zeros(len(rows), np.float32))


def search_there(
    asked: Asked, queries: TokenEmbeddings[Tensor], device: torch.device, lane: Lane | None = None
) -> list[Hits]:
    """The k best documents of each query, and those that are as good as the k-th. See `search.search`.

    Args:
        asked: among which documents.
        queries: finite, of the width of the index, on any device.
        device: where the placements are.
        lane: the way of those that are brought.
    """
    found: dict[int, Hits] = {}
    waiting = [number for number, length in enumerate(map(int, queries.lengths)) if length]
    spare = SPARE
    while waiting:
        with ExitStack() as meanwhile:
            if lane is not None:
                meanwhile.enter_context(lane.alone)
                meanwhile.callback(lane.rest)
            there = scored(asked, queries, waiting, spare, device)
        results = to_host(there)
        for column, number in enumerate(waiting):
            hits = _hits(asked, asked.wanted(spare), results[:, column], queries[number])
            if hits is not None:
                found[number] = hits
        waiting = [number for number in waiting if number not in found]
        spare *= WIDER
    return [found[number] if number in found else asked.everything() for number in range(len(queries))]


def scored(
    asked: Asked, queries: TokenEmbeddings[Tensor], numbers: Sequence[int], spare: int, device: torch.device
) -> Tensor:
    """What these queries find, on the device: see `Findings.result`. The host waits for nothing.

    Args:
        asked: among which documents.
        queries: of which some are answered.
        numbers: which, at least one; they have tokens.
        spare: as of `Asked.wanted`.
        device: where the placements are.
    """
    batches = list(_batches(asked, queries, numbers, device))
    findings = [Findings(asked.wanted(spare)) for _ in batches]
    kept = [Queries(*batch) for batch in batches[:1]]
    for look in asked.looks():
        for block, place in look.placement.blocks(look.chosen):
            # A batch keeps its tables for the next block where it is the only one: those of many would fill the device.
            looking = kept if len(batches) == 1 else (Queries(*batch) for batch in batches)
            for batch, finding in zip(looking, findings, strict=True):
                finding.look(batch, block, look.first + place, approximated=look.approximated)
    return torch.cat(
        [finding.result(len(batch[2]), device) for batch, finding in zip(batches, findings, strict=True)], 1
    )


def _batches(
    asked: Asked, queries: TokenEmbeddings[Tensor], numbers: Sequence[int], device: torch.device
) -> Iterator[Batch]:
    """So many queries at a time as have room for their tables."""
    chosen = np.array(numbers, np.int64)
    lengths, starts = queries.lengths[chosen], queries.offsets[:-1][chosen]
    values = queries.tokens.detach().type(torch.float32)
    there = queued_to_device(to_host(values), device) if values.device.type == "cpu" else to_device(values, device)
    centroids = max(each.centroids for each in asked.views) if asked.views else 0
    sizes = np.maximum(lengths * (5 * centroids), TABLE_BYTES // QUERIES_AT_ONCE)
    for part in blocks_of(sizes, TABLE_BYTES):
        offsets = offsets_of(lengths[part])
        rows = queued_to_device(ranges(starts[part], lengths[part]), device)
        spans = np.stack([offsets[:-1], offsets[1:]], axis=1)
        yield there.index_select(0, rows), queued_to_device(spans, device), [int(each) for each in lengths[part]]


def _hits(asked: Asked, wanted: Wanted, result: NDArray[np.int64], query: Tensor) -> Hits | None:
    """What one query found; None where documents that are as good as the last of it may not have come to the host.

    Args:
        asked: among which documents.
        wanted: how many came to the host.
        result: (2, n), as `Findings.result` gives it.
        query: its tokens.
    """
    scores = result[0].astype(np.int32).view(np.float32)
    parts = _parts(*asked.of(result[1]), scores)
    if asked.rescored.any():
        parts = list(_rescored(asked, parts, query))
    hits = Hits.best(parts, asked.k)
    left_out = [scores[wanted.exact - 1]] if wanted.exact < asked.whole else []
    left_out += [scores[-1]] if wanted.closest < wanted.listed else []
    return None if left_out and max(left_out) >= hits.scores[-1] else hits


def _joint_row(each: PlacedView) -> int:
    return 0 if each.joint is None else each.joint[1]


def _parts(segments: NDArray[np.int64], rows: Rows, scores: Scores) -> list[Part]:
    """Scored documents by segment."""
    order = np.lexsort((rows, segments))
    by_segment = np.split(order, np.flatnonzero(np.diff(segments[order])) + 1)
    return [Part(int(segments[own[0]]), rows[own], scores[own]) for own in by_segment if len(own)]


def _rescored(asked: Asked, parts: Sequence[Part], query: Tensor) -> Iterator[Part]:
    """The best by kept vectors, in place of all where these are kept; the others as they are."""
    yield from (part for part in parts if not asked.rescored[part.segment])
    prepared = PreparedQuery(to_device(query, "cpu"))
    best = cut([part for part in parts if asked.rescored[part.segment]], max(RESCORED, RESCORED_PER_HIT * asked.k))
    for part in best:
        vectors = asked.views[part.segment].view.vectors
        assert vectors is not None
        yield part._replace(scores=vectors.score(prepared, part.rows))
