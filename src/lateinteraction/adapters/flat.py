"""FlatIndex: exact search in memory, the ground truth that every other index is measured against.

It scores every document that may be returned. Texts, metadata and embeddings live in segments that are never
changed: a call that writes builds new segments and swaps one reference, so readers in other threads see the
state before or after it and nothing between.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from attrs import Factory, evolve, field, frozen
from torch import Tensor

from lateinteraction.adapters.neural.admission import check_addition, check_queries, check_width
from lateinteraction.adapters.neural.scorer import MaxSimScorer
from lateinteraction.adapters.neural.transfer import to_device, to_host
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import UnknownDocument
from lateinteraction.domain.filters import Filter, check_filter, matches
from lateinteraction.domain.ports import AddReport, OnDuplicate
from lateinteraction.domain.ranking import Ranking, check_cutoff
from lateinteraction.domain.text import Document, DocumentId, check_distinct, check_ids, check_new

if TYPE_CHECKING:
    from lateinteraction.domain.ports import DocumentStore, EmbeddingStore, Index, Scorer


DOCUMENTS_PER_VIEW = 4
"""Runs of eligible documents shorter than this on average are gathered into one part: a call of the scorer costs about
as much as copying so many documents of 100 tokens."""


@frozen(eq=False)
class _Segment:
    """Some documents with their embeddings, and the row of each id."""

    documents: tuple[Document, ...]
    embeddings: TokenEmbeddings[Tensor]
    rows: Mapping[DocumentId, int] = field(init=False, default=Factory(lambda self: _numbered(self.documents), True))

    def __len__(self) -> int:
        return len(self.documents)


@final
@frozen(eq=False)
class FlatSnapshot:
    """A `FlatIndex` at one moment: rankings, texts and embeddings that belong together."""

    segments: tuple[_Segment, ...] = field(repr=False)
    scorer: Scorer[Tensor]

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    def __contains__(self, identifier: object) -> bool:
        return any(identifier in segment.rows for segment in self.segments)

    def ids(self) -> tuple[DocumentId, ...]:
        """The ids of all documents, in the order they were added."""
        return tuple(document.id for segment in self.segments for document in segment.documents)

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best documents for each query, exactly. See `Index.search`."""
        check_cutoff(k)
        if where is not None:
            check_filter(where)
        check_ids(candidates, "candidates")
        check_queries(queries)
        check_width(_width(self.segments), queries)
        ids: list[DocumentId] = []
        columns: list[Tensor] = []
        for segment in self.segments:
            for part in _eligible(segment, where, candidates):
                ids.extend(document.id for document in part.documents)
                columns.append(self.scorer.matrix(queries, part.embeddings))
        if not columns:
            return [Ranking((), ()) for _ in range(len(queries))]
        return [Ranking.from_scores(ids, row, k) for row in to_host(torch.cat(columns, dim=1))]

    def fetch(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[Tensor]:
        """Embeddings of these documents, in this order."""
        items = [segment.embeddings[row] for segment, row in (_place(self.segments, identifier) for identifier in ids)]
        if not items:
            width = self.segments[0].embeddings.dimension if self.segments else 0
            return TokenEmbeddings(torch.empty((0, width)), offsets_of([]))
        return TokenEmbeddings(torch.cat(items), offsets_of([len(item) for item in items]))

    def get(self, ids: Sequence[DocumentId]) -> list[Document]:
        """These documents, in this order."""
        return [segment.documents[row] for segment, row in (_place(self.segments, identifier) for identifier in ids)]


@final
class FlatIndex:
    """An `Index`, `EmbeddingStore` and `DocumentStore` in memory.

    Args:
        scorer: the interaction; MaxSim unless given.

    Writers exclude each other; readers never wait.
    """

    def __init__(self, scorer: Scorer[Tensor] | None = None) -> None:
        self._state = FlatSnapshot((), scorer or MaxSimScorer())
        self._writer = threading.Lock()

    def __len__(self) -> int:
        return len(self._state)

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._state

    def snapshot(self) -> FlatSnapshot:
        """The index as it is now: later additions and removals do not reach it. Costs nothing."""
        return self._state

    def held(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]:
        """Those of these ids that it has."""
        state = self._state
        return frozenset(identifier for identifier in ids if identifier in state)

    def ids(self) -> tuple[DocumentId, ...]:
        """The ids of all documents, in the order they were added."""
        return self._state.ids()

    def add(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], *, on_duplicate: OnDuplicate = "error"
    ) -> AddReport:
        """Take documents with their embeddings; they are found from the next call on. See `Index.add`."""
        check_addition(documents, embeddings, on_duplicate)
        own = embeddings.tokens.detach().clone()  # what the caller does with the tensor later is no write
        incoming = _Segment(tuple(documents), TokenEmbeddings(own, embeddings.offsets))
        with self._writer:
            segments = self._state.segments
            check_width(_width(segments), embeddings)
            known = [document.id for document in documents if document.id in self]
            taken = frozenset(known)
            if on_duplicate == "error":
                check_new(known, taken)
            if on_duplicate == "skip":
                incoming, staying = _without(incoming, taken), segments
            else:
                staying = tuple(_without(segment, taken) for segment in segments)
            self._state = evolve(self._state, segments=_folded([*staying, incoming]))
        return AddReport(
            added=[document.id for document in documents if document.id not in taken],
            skipped=known if on_duplicate == "skip" else (),
            replaced=known if on_duplicate == "replace" else (),
            empty=[incoming.documents[row].id for row in np.flatnonzero(incoming.embeddings.lengths == 0)],
        )

    def remove(self, which: Sequence[DocumentId] | Filter) -> int:
        """Forget documents, by id or by filter; how many. See `Index.remove`."""
        check_ids(which, "which")
        with self._writer:
            segments = self._state.segments
            if isinstance(which, Sequence):
                check_distinct(which)
                for identifier in which:
                    _place(segments, identifier)
                gone = frozenset(which)
            else:
                check_filter(which)
                gone = frozenset(
                    document.id
                    for segment in segments
                    for document in segment.documents
                    if matches(which, document.metadata)
                )
            self._state = evolve(self._state, segments=_folded(_without(segment, gone) for segment in segments))
        return len(gone)

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best documents for each query, exactly. See `Index.search`."""
        return self._state.search(queries, k, where=where, candidates=candidates)

    def fetch(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[Tensor]:
        """Embeddings of these documents, in this order."""
        return self._state.fetch(ids)

    def get(self, ids: Sequence[DocumentId]) -> list[Document]:
        """These documents, in this order."""
        return self._state.get(ids)


def _numbered(documents: Sequence[Document]) -> dict[DocumentId, int]:
    return {document.id: row for row, document in enumerate(documents)}


def _place(segments: Sequence[_Segment], identifier: DocumentId) -> tuple[_Segment, int]:
    for segment in segments:
        if identifier in segment.rows:
            return segment, segment.rows[identifier]
    raise UnknownDocument(
        f"document {identifier!r}", "an id that was added and not removed", "`ids()` lists those there are."
    )


def _width(segments: Sequence[_Segment]) -> int | None:
    return segments[0].embeddings.dimension if segments else None


def _selected(segment: _Segment, rows: Offsets) -> _Segment:
    """A segment of these rows, its tokens copied."""
    lengths, starts = segment.embeddings.lengths[rows], segment.embeddings.offsets[rows]
    offsets = offsets_of(lengths)
    token_rows = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    tokens = segment.embeddings.tokens
    return _Segment(
        tuple(segment.documents[row] for row in rows),
        TokenEmbeddings(tokens.index_select(0, to_device(token_rows, tokens.device)), offsets),
    )


def _without(segment: _Segment, gone: frozenset[DocumentId]) -> _Segment:
    """The segment itself when none of its documents is gone, else a smaller copy."""
    if not any(identifier in segment.rows for identifier in gone):
        return segment
    rows = [row for document, row in segment.rows.items() if document not in gone]
    return _selected(segment, np.array(rows, dtype=np.int64))


def _folded(segments: Iterable[_Segment]) -> tuple[_Segment, ...]:
    """Segments in the same order, each over twice as large as the next.

    So there are O(log n) of them, and n additions of one document copy each document O(log n) times.
    """
    folded: list[_Segment] = []
    for segment in segments:
        if not len(segment):
            continue
        folded.append(segment)
        while len(folded) > 1 and len(folded[-2]) <= 2 * len(folded[-1]):
            last, before = folded.pop(), folded.pop()
            folded.append(_joined(before, last))
    return tuple(folded)


def _joined(first: _Segment, second: _Segment) -> _Segment:
    return _Segment(
        first.documents + second.documents,
        TokenEmbeddings(
            torch.cat([first.embeddings.tokens, second.embeddings.tokens]),
            offsets_of(np.concatenate([first.embeddings.lengths, second.embeddings.lengths])),
        ),
    )


def _eligible(segment: _Segment, where: Filter | None, candidates: Sequence[DocumentId] | None) -> Iterator[_Segment]:
    """What may be returned. Runs of rows are views, so that a broad filter copies no tokens; scattered rows are copied,
    because each part costs a call of the scorer."""
    if where is None and candidates is None:
        yield segment
        return
    eligible = np.ones(len(segment), dtype=np.bool_)
    if candidates is not None:
        eligible[:] = False
        eligible[[segment.rows[candidate] for candidate in candidates if candidate in segment.rows]] = True
    if where is not None:
        for row in np.flatnonzero(eligible):
            eligible[row] = matches(where, segment.documents[row].metadata)
    runs = np.flatnonzero(np.diff(eligible, prepend=False, append=False)).reshape(-1, 2)
    if len(runs) * DOCUMENTS_PER_VIEW > np.count_nonzero(eligible):
        yield _selected(segment, np.flatnonzero(eligible))
        return
    for first, last in runs:
        yield _Segment(segment.documents[first:last], segment.embeddings.span(int(first), int(last)))


if TYPE_CHECKING:
    _index: type[Index[Tensor]] = FlatIndex
    _embeddings: type[EmbeddingStore[Tensor]] = FlatIndex
    _documents: type[DocumentStore] = FlatIndex
