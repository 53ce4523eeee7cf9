"""Search over the segments of a generation: exact ones scored whole, compressed ones by a shortlist.

A compressed segment is scored up to three times, each time fewer documents and more exactly: all of them by their
centroids in eight bits, the best of those by what the codec stores, the best of these by kept vectors, where there are
any. What a filter, a removal or a list of candidates leaves out is settled before: it neither costs nor counts.

Documents are named by segment and row. Ids, and the order of documents whose scores are equal, are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.adapters.index.codebook import Codebook
from lateinteraction.adapters.index.hits import Hits as Hits
from lateinteraction.adapters.index.hits import Part, Rows, cut
from lateinteraction.adapters.index.options import (
    RESCORED,
    RESCORED_PER_HIT,
    TOGETHER,
)
from lateinteraction.adapters.index.options import Effort as Effort
from lateinteraction.adapters.index.options import SearchOptions as SearchOptions
from lateinteraction.adapters.index.payloads import PreparedQuery, Residuals, gathered
from lateinteraction.adapters.index.probing import approximated
from lateinteraction.adapters.index.views import SegmentView as SegmentView
from lateinteraction.adapters.index.xtr import by_retrieved_tokens
from lateinteraction.adapters.neural.transfer import all_finite
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.domain.ranking import check_cutoff


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
        if chosen.interaction == "xtr":
            return Hits.best(by_retrieved_tokens(segments, query, k, chosen), k)
        return Hits.best(list(_found(segments, query, k, chosen)), k)

    def alone(values: Tensor) -> Hits:
        with kernels.at_most(1):
            return answer(values)

    threads = min(len(queries), torch.get_num_threads())
    if threads <= 1:
        return [answer(values) for values in queries]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(alone, queries))


def _found(segments: Sequence[SegmentView], query: PreparedQuery, k: int, options: SearchOptions) -> Iterator[Part]:
    """Scored documents of all segments, the k best among them."""
    shortlist = options.shortlist(k, sum(map(len, segments)))
    rough: list[int] = []
    for number, view in enumerate(segments):
        if not len(query):
            yield Part(number, view.rows(), np.zeros(len(view), np.float32))
        elif view.narrowed is not None:
            yield Part(number, *view.narrowed.best(query, k, view.chosen))
        elif shortlist is None or not view.payload.approximates:
            payload = view.vectors if view.vectors is not None and options.rescore else view.payload
            yield Part(number, view.rows(), payload.score(query, view.chosen))
        else:
            rough.append(number)
    if shortlist is None or not rough:
        return
    if sum(len(segments[number]) for number in rough) > shortlist:
        parts = approximated(
            {number: segments[number] for number in rough}, query, options.enough(k, shortlist), options.nprobe()
        )
        rows = [(part.segment, part.rows) for part in cut(parts, shortlist)]
    else:
        rows = [(number, segments[number].rows()) for number in rough]
    scored = _scored(segments, rows, query)
    yield from _rescored(segments, scored, query, k) if options.rescore else scored


def _scored(segments: Sequence[SegmentView], rows: Sequence[tuple[int, Rows]], query: PreparedQuery) -> list[Part]:
    """Documents by what the codec stores; a few of several segments with one codebook together, in one go.

    Each by itself would look up the centroids of its documents, and compare the query with those; where it has been
    compared with all of them, nothing is gained.
    """
    found: list[Part] = []
    together: dict[Codebook, list[tuple[int, Residuals, Rows]]] = {}
    few = sum(len(own) for _, own in rows) <= TOGETHER
    for number, own in rows:
        payload = segments[number].payload
        if few and isinstance(payload, Residuals) and not query.has_table(payload.codebook):
            together.setdefault(payload.codebook, []).append((number, payload, own))
        else:
            found.append(Part(number, own, payload.score(query, own)))
    for members in together.values():
        (_, payload, own), *others = members
        if others:
            payload = gathered([(payload, own) for _, payload, own in members])
            own = np.arange(len(payload))
        ends = np.cumsum([len(own) for _, _, own in members])
        for (number, _, own_rows), scores in zip(members, np.split(payload.score(query, own), ends[:-1]), strict=True):
            found.append(Part(number, own_rows, scores))
    return found


def _rescored(segments: Sequence[SegmentView], parts: Sequence[Part], query: PreparedQuery, k: int) -> Iterator[Part]:
    """The best by kept vectors, in place of all where these are kept; the others as they are."""
    kept = {number for number, view in enumerate(segments) if view.vectors is not None}
    yield from (part for part in parts if part.segment not in kept)
    for part in cut([part for part in parts if part.segment in kept], max(RESCORED, RESCORED_PER_HIT * k)):
        vectors = segments[part.segment].vectors
        assert vectors is not None
        yield part._replace(scores=vectors.score(query, part.rows))
