"""Search over the segments of a generation: exact ones scored whole, compressed ones by a shortlist.

A compressed segment is scored up to three times, each time fewer documents and more exactly: all of them by their
centroids in eight bits, the best of those by what the codec stores, the best of these by kept vectors, where there are
any. What a filter, a removal or a list of candidates leaves out is settled before: it neither costs nor counts.

Documents are named by segment and row. Ids, and the order of documents whose scores are equal, are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Literal, NamedTuple, final, get_args

import numpy as np
import torch
from attrs import Factory, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.index.lists import Lists
from lateinteraction.adapters.index.payloads import Payload, PreparedQuery, Residuals, Rows, Scores
from lateinteraction.adapters.neural.transfer import all_finite
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidOption
from lateinteraction.domain.ranking import check_cutoff

Effort = Literal["fast", "balanced", "exact"]

CANDIDATES = MappingProxyType({"fast": 64, "balanced": 256})
"""Documents that are scored by what the codec stores. Share of the exact best ten among them, Cranfield with a centroid
for 100 tokens: 32 .955, 64 .992, 128 .999, 256 1.000."""
CANDIDATES_PER_HIT = MappingProxyType({"fast": 4, "balanced": 8})
"""At least so many for each hit that is asked for."""
PROBE = MappingProxyType({"fast": 8, "balanced": 32})
"""Inverted lists in which each query token looks. Share of the exact best ten of Cranfield among 128 and 256 documents:
4 .984 .994, 8 .994 .999, 16 .999 1.000, 32 .999 1.000; all codes .999 1.000. Best ten of 100,000 synthetic documents
that are found, and ms: 8 .918 6.2, 16 .928 6.3, 32 .935 7.1; all codes .938 18.7."""
ENOUGH, ENOUGH_PER_HIT = 32, 4
"""Documents that lists must reach, and the least of them for each hit."""
FEW_DOCUMENTS = 32
"""Where fewer than one document in so many may be returned, lists reach too few of them to be worth a look."""
RESCORED, RESCORED_PER_HIT = 32, 2
"""Documents that are scored again by kept vectors, and the least of them for each hit."""


@final
@frozen
class SearchOptions:
    """How much a search may cost.

    Args:
        effort: "fast" and "balanced" score few documents and more by what the codec stores; "exact" scores all, by kept
            vectors where there are any.
        candidates: how many documents instead of the effort's own number; at least as many as hits are asked for.
        probe: in how many inverted lists each query token looks, where there are lists, instead of the effort's number.
        rescore: whether the best are scored again by kept vectors.
    """

    effort: Effort = "balanced"
    candidates: int | None = None
    probe: int | None = None
    rescore: bool = True

    def __attrs_post_init__(self) -> None:
        if self.effort not in get_args(Effort):
            raise InvalidOption(f"effort = {self.effort!r}", "'fast', 'balanced' or 'exact'", "Choose one.")
        for name, count in (("candidates", self.candidates), ("probe", self.probe)):
            if count is not None and (isinstance(count, bool) or count < 1):
                raise InvalidOption(f"{name} = {count!r}", "at least 1", "Leave it to the effort.")

    def shortlist(self, k: int) -> int | None:
        """How many documents are scored by what the codec stores, for k hits; None: all."""
        if self.candidates is not None:
            return max(self.candidates, k)
        if self.effort == "exact":
            return None
        return max(CANDIDATES[self.effort], CANDIDATES_PER_HIT[self.effort] * k)

    def nprobe(self) -> int:
        """In how many inverted lists each query token looks."""
        return self.probe or PROBE["fast" if self.effort == "fast" else "balanced"]


@final
@frozen(eq=False)
class SegmentView:
    """A segment as a search sees it.

    Args:
        payload: the tokens of its documents.
        eligible: bool (N,), which documents may be returned; None: all.
        candidates: the only documents that may be returned, in any order; None: all. With `eligible`: those in both.
        vectors: the same documents, more exactly, where more was kept than the payload: `Vectors`, or `Int8`.
        lists: of `Residuals` alone, where there are so many that reading all codes would take longer.
        chosen: which documents that leaves, each once, rising; None: all.
    """

    payload: Payload
    eligible: NDArray[np.bool_] | None = None
    candidates: Rows | None = None
    vectors: Payload | None = None
    lists: Lists | None = None
    chosen: Rows | None = field(
        init=False, repr=False, default=Factory(lambda self: _chosen(self.eligible, self.candidates), takes_self=True)
    )

    def __len__(self) -> int:
        return len(self.payload) if self.chosen is None else len(self.chosen)

    def among(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of these may be returned, where not all may."""
        if self.candidates is None and self.eligible is not None:
            return self.eligible[rows]
        return np.isin(rows, self.rows(), assume_unique=True)

    def rows(self) -> Rows:
        """All that may be returned."""
        return np.arange(len(self.payload)) if self.chosen is None else self.chosen


class Part(NamedTuple):
    """Scored documents of one segment."""

    segment: int
    rows: Rows
    scores: Scores


@final
@frozen(eq=False)
class Hits:
    """What one query found, best first; equal scores by segment and row.

    Every document whose score equals the k-th best is there, so that whoever knows the ids can choose among them.

    Args:
        segments: int64 (n,), places in the list of segments.
        rows: int64 (n,).
        scores: float32 (n,).
    """

    segments: NDArray[np.int64]
    rows: Rows
    scores: Scores

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def best(cls, parts: Sequence[Part], k: int) -> Hits:
        """The k best of these, and those that are as good as the k-th."""
        segments, rows, scores = _joined(parts)
        kept = np.flatnonzero(scores >= _least_of_best(scores, k))
        order = kept[np.lexsort((rows[kept], segments[kept], -scores[kept]))]
        return cls(segments[order], rows[order], scores[order])


def search(
    segments: Sequence[SegmentView], queries: TokenEmbeddings[Tensor], k: int, options: SearchOptions | None = None
) -> list[Hits]:
    """The k best documents of each query, and those that are as good as the k-th.

    Several queries are shared out among as many threads as torch computes with; one query is, by the kernels.

    Raises:
        InvalidRanking: k below 1.
        InvalidEmbeddings: queries of another width, or with NaN or infinity.
        CorruptIndex: what a segment holds is damaged.
    """
    check_cutoff(k)
    widths = {view.payload.dimension for view in segments}
    if not widths <= {queries.dimension}:
        raise InvalidEmbeddings(
            f"queries of {queries.dimension} dimensions", f"{sorted(widths)}, as the index has", "Use its encoder."
        )
    if not all_finite(queries.tokens):
        raise InvalidEmbeddings("query embeddings with NaN or infinity", "finite values", "Check the encoder.")
    chosen = options or SearchOptions()

    def answer(values: Tensor) -> Hits:
        query = PreparedQuery(values)  # one for each thread at a time: it keeps tables of some megabytes
        return Hits.best(list(_found(segments, query, k, chosen)), k)

    threads = min(len(queries), torch.get_num_threads())
    if threads <= 1:
        return [answer(values) for values in queries]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(answer, queries))


def _found(segments: Sequence[SegmentView], query: PreparedQuery, k: int, options: SearchOptions) -> Iterator[Part]:
    """Scored documents of all segments, the k best among them."""
    shortlist = options.shortlist(k)
    approximated: list[int] = []
    for number, view in enumerate(segments):
        if not len(query):
            yield Part(number, view.rows(), np.zeros(len(view), np.float32))
        elif shortlist is None or not view.payload.approximates:
            payload = view.vectors if view.vectors is not None and options.rescore else view.payload
            yield Part(number, view.rows(), payload.score(query, view.chosen))
        else:
            approximated.append(number)
    if shortlist is None or not approximated:
        return
    if sum(len(segments[number]) for number in approximated) > shortlist:
        enough = min(shortlist, max(ENOUGH, ENOUGH_PER_HIT * k))
        parts = [_approximated(number, segments[number], query, enough, options) for number in approximated]
        rows = [(part.segment, part.rows) for part in _cut(parts, shortlist)]
    else:
        rows = [(number, segments[number].rows()) for number in approximated]
    scored = [Part(number, own, segments[number].payload.score(query, own)) for number, own in rows]
    yield from _rescored(segments, scored, query, k) if options.rescore else scored


def _approximated(number: int, view: SegmentView, query: PreparedQuery, enough: int, options: SearchOptions) -> Part:
    """By inverted lists, where there are some and they reach enough of what may be returned; else by all codes."""
    payload, chosen = view.payload, view.chosen
    if view.lists is None or not isinstance(payload, Residuals):
        return Part(number, view.rows(), payload.approximate(query, chosen))
    if len(view) * FEW_DOCUMENTS >= len(payload):
        centroids, similarities = query.nearest(payload.codebook, options.nprobe())
        rows, gains = view.lists.gains(centroids, similarities)
        if chosen is not None:
            among = view.among(rows)
            rows, gains = rows[among], gains[among]
        if len(rows) >= min(enough, len(view)):
            return Part(number, rows, gains + similarities.min(axis=1).sum(dtype=np.float32))
    return Part(number, view.rows(), payload.approximate(query, chosen))


def _rescored(segments: Sequence[SegmentView], parts: Sequence[Part], query: PreparedQuery, k: int) -> Iterator[Part]:
    """The best by kept vectors, in place of all where these are kept; the others as they are."""
    kept = {number for number, view in enumerate(segments) if view.vectors is not None}
    yield from (part for part in parts if part.segment not in kept)
    for part in _cut([part for part in parts if part.segment in kept], max(RESCORED, RESCORED_PER_HIT * k)):
        vectors = segments[part.segment].vectors
        assert vectors is not None
        yield part._replace(scores=vectors.score(query, part.rows))


def _cut(parts: Sequence[Part], count: int) -> list[Part]:
    """The best so many; of equal scores the first segment's, and its first rows."""
    scores = np.concatenate([part.scores for part in parts]) if parts else np.empty(0, np.float32)
    least = _least_of_best(scores, count)
    equal = count - int(np.count_nonzero(scores > least))
    kept: list[Part] = []
    for part in parts:
        places = np.flatnonzero(part.scores >= least)
        ties = np.flatnonzero(part.scores[places] == least)
        places = np.delete(places, ties[max(0, equal) :])
        equal -= len(ties)
        kept.append(Part(part.segment, part.rows[places], part.scores[places]))
    return kept


def _least_of_best(scores: Scores, count: int) -> float:
    """The score of the last of the best so many; −∞ where there are no more."""
    return -np.inf if len(scores) <= count else float(np.partition(scores, -count)[-count])


def _joined(parts: Iterable[Part]) -> tuple[NDArray[np.int64], Rows, Scores]:
    listed = [*parts, Part(0, np.empty(0, np.int64), np.empty(0, np.float32))]
    segments = np.repeat(np.array([part.segment for part in listed]), [len(part.rows) for part in listed])
    return segments, np.concatenate([part.rows for part in listed]), np.concatenate([part.scores for part in listed])


def _chosen(eligible: NDArray[np.bool_] | None, candidates: Rows | None) -> Rows | None:
    if candidates is None:
        return None if eligible is None or bool(eligible.all()) else np.flatnonzero(eligible)
    rows = np.unique(candidates)
    return rows if eligible is None else rows[eligible[rows]]
