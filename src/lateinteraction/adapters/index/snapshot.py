"""IndexSnapshot: an index at one generation. Rankings, texts and embeddings of it belong together, for every thread.

It reads only. What a search does with the tokens of a segment is the payloads' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.adapters.index.bm25 import Bm25, LexicalSegment
from lateinteraction.adapters.index.columns import Rows
from lateinteraction.adapters.index.files import FileRecord
from lateinteraction.adapters.index.ids import HashedIds
from lateinteraction.adapters.index.joining import Group, Joined
from lateinteraction.adapters.index.lists import STARTS
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.index.reading import OpenGeneration
from lateinteraction.adapters.index.segments import Segment, open_segment
from lateinteraction.adapters.index.settings import IndexSettings
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import UnknownDocument
from lateinteraction.domain.filters import Filter, check_filter
from lateinteraction.domain.ranking import Ranking, check_cutoff
from lateinteraction.domain.text import Document, DocumentId, check_ids

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.index.codebook import Codebook
    from lateinteraction.adapters.index.hits import Hits
    from lateinteraction.adapters.index.options import SearchOptions
    from lateinteraction.adapters.index.payloads import Payload
    from lateinteraction.adapters.index.views import SegmentView

Mask = NDArray[np.bool_]


class Place(NamedTuple):
    """Where a document is."""

    segment: int
    row: int


@frozen
class IndexStats:
    """What an index is made of.

    Attributes:
        generation: the committed state.
        documents: that can be found.
        removed: whose place is not yet free.
        tokens: of documents, with removed ones.
        segments: how many, by how their embeddings are stored.
        bytes: of all files; of them those of token embeddings, and of vectors that were kept beside them.
        codec, keep: what was asked for.
        tier: that is in force: "exact" where all that is stored is scored, "compressed" where segments are searched by
            their centroids first, "listed" where some of them have inverted lists; of an empty index the one forced.
        listed: segments with inverted lists.
        centroids: of the codebook; 0 without one.
    """

    generation: int
    documents: int
    removed: int
    tokens: int
    segments: Mapping[str, int]
    bytes: Mapping[str, int]
    codec: str
    keep: str
    tier: str
    listed: int
    centroids: int


@final
class _SharedCodebook:
    """Reads the codebook once, when it is first asked for. Knows its file and no generation, so that none is held."""

    def __init__(self, record: FileRecord | None, opened: OpenGeneration) -> None:
        self.record = record
        self._arrays = None if record is None else opened.file(record)

    @property
    def centroids(self) -> int:
        """How many there are, which is known without reading them."""
        return 0 if self._arrays is None else len(self._arrays.lazily("codebook.centroids"))

    def __call__(self) -> Codebook | None:
        return self._codebook

    @once
    def _codebook(self) -> Codebook | None:
        if self._arrays is None:
            return None
        from lateinteraction.adapters.index.codebook import Codebook

        return Codebook.read(self._arrays)


@final
class IndexSnapshot:
    """A generation that is open.

    Args:
        opened: its files.
        before: an earlier one of the same index, whose segments are taken over where they have not changed.
    """

    def __init__(self, opened: OpenGeneration, before: IndexSnapshot | None = None) -> None:
        self.opened = opened
        self.settings = IndexSettings.from_json(opened.manifest.settings)
        shared = opened.manifest.shared.get("codebook")
        same = before is not None and before._shared.record == shared
        self._shared = before._shared if before is not None and same else _SharedCodebook(shared, opened)
        known = {} if before is None else {segment.record.number: segment for segment in before.segments}
        self.segments = tuple(
            open_segment(record, opened.file, self._shared, known.get(record.number))
            for record in opened.manifest.segments
        )
        self._joined = Joined(self.segments, None if before is None else before._joined)

    @property
    def codebook(self) -> Codebook | None:
        """What residuals are read with."""
        return self._shared()

    @property
    def generation(self) -> int:
        """Its number: 1 and up."""
        return self.opened.generation

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    def __contains__(self, identifier: object) -> bool:
        return isinstance(identifier, str) and self.places([identifier])[0] is not None

    def ids(self) -> tuple[DocumentId, ...]:
        """The ids of all documents, in the order they are stored in."""
        return tuple(DocumentId(each) for segment in self.segments for each in segment.ids.at(segment.rows))

    def places(self, ids: Sequence[str]) -> list[Place | None]:
        """Where each document is; None where it is not."""
        places: list[Place | None] = [None] * len(ids)
        asked = HashedIds.of(ids)
        for number, segment in enumerate(self.segments):
            rows = segment.rows_of(asked)
            for item in map(int, np.flatnonzero(rows >= 0)):
                places[item] = Place(number, int(rows[item]))
        return places

    def all_places(self, ids: Sequence[str]) -> list[Place]:
        """Where each document is.

        Raises:
            UnknownDocument: one is not there.
        """
        places: list[Place] = []
        for identifier, place in zip(ids, self.places(ids), strict=True):
            if place is None:
                raise UnknownDocument(
                    f"document {identifier!r}", "an id that was added and not removed", "`ids()` lists those there are."
                )
            places.append(place)
        return places

    def get(self, ids: Sequence[DocumentId]) -> list[Document]:
        """These documents, in this order. See `DocumentStore.get`."""
        check_ids(ids, "ids")
        found: list[Document | None] = [None] * len(ids)
        for number, items, rows in self._by_segment(ids):
            for item, document in zip(items, self.segments[number].documents(rows), strict=True):
                found[item] = document
        return [document for document in found if document is not None]

    def fetch(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[Tensor]:
        """Embeddings of these documents, float32, in this order. See `EmbeddingStore.fetch`.

        The most exact that are stored: those that were kept, where any were.
        """
        return self._decoded(ids, lambda segment: segment.payload if segment.kept is None else segment.kept)

    def coded(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[Tensor]:
        """The same as the codec stores them, whatever was kept beside: what candidates are ranked by."""
        return self._decoded(ids, lambda segment: segment.payload)

    def _decoded(self, ids: Sequence[DocumentId], payload_of: Callable[[Segment], Payload]) -> TokenEmbeddings[Tensor]:
        import torch

        check_ids(ids, "ids")
        parts: list[Tensor | None] = [None] * len(ids)
        for number, items, rows in self._by_segment(ids):
            for item, tokens in zip(items, payload_of(self.segments[number]).decode(rows), strict=True):
                parts[item] = tokens
        tokens = [part for part in parts if part is not None]
        if not tokens:
            return TokenEmbeddings(torch.empty((0, self.settings.dimension or 0)), offsets_of([]))
        return TokenEmbeddings(torch.cat(tokens), offsets_of(list(map(len, tokens))))

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
        options: SearchOptions | None = None,
    ) -> list[Ranking]:
        """The k best for each query, by MaxSim with what is stored. See `Index.search`.

        Args:
            queries: Q of them.
            k: how many hits of each.
            where: only documents that match.
            candidates: only these; ids that are not there are passed over.
            options: how much it may cost.
        """
        from lateinteraction.adapters.index.search import search
        from lateinteraction.adapters.neural.admission import check_queries, check_width

        check_cutoff(k)
        check_queries(queries)
        check_width(self.settings.dimension, queries)
        masks = self.eligible(where, candidates)
        asked = [(group, mask) for group in self._joined.groups for mask in [group.mask(masks)] if mask.any()]
        found = search([self._view(group, mask) for group, mask in asked], queries, k, options)
        return [self._of_groups(hits, [group for group, _ in asked], k) for hits in found]

    def _view(self, group: Group, mask: Mask) -> SegmentView:
        from lateinteraction.adapters.index.search import SegmentView

        if len(group.places) > 1:
            return SegmentView(self._joined.payload(group), mask, narrowed=self._joined.narrowed(group))
        segment = self.segments[group.places[0]]
        lists, narrowed = segment.lists_for(self.codebook), self._joined.narrowed(group)
        return SegmentView(segment.payload, mask, vectors=segment.kept, lists=lists, narrowed=narrowed)

    def _of_groups(self, hits: Hits, groups: Sequence[Group], k: int) -> Ranking:
        segments, rows = np.empty_like(hits.segments), np.empty_like(hits.rows)
        for number in map(int, np.unique(hits.segments)):
            own = hits.segments == number
            segments[own], rows[own] = groups[number].found(hits.rows[own])
        return self.ranking(segments, rows, hits.scores, k)

    def search_text(
        self,
        texts: Sequence[str],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best for each text, by BM25 over this generation; documents that share no term are none of them."""
        check_cutoff(k)
        eligible = self.eligible(where, candidates)
        found = (self._bm25.search(text, k, eligible) for text in texts)
        return [self.ranking(each.segments, each.rows, each.scores, k) for each in found]

    def eligible(self, where: Filter | None, candidates: Sequence[DocumentId] | None) -> list[Mask]:
        """For each segment, which rows may be found, bool (N,)."""
        check_ids(candidates, "candidates")
        if where is not None:
            check_filter(where)
        masks = [segment.live for segment in self.segments]
        if candidates is not None:
            asked = HashedIds.of(candidates)
            masks = [_chosen(segment, asked) for segment in self.segments]
        if where is not None:
            masks = [
                mask & segment.metadata.matching(where) if mask.any() else mask
                for segment, mask in zip(self.segments, masks, strict=True)
            ]
        return masks

    def stats(self) -> IndexStats:
        """What it is made of."""
        records = [segment.record for segment in self.segments]
        manifest = self.opened.manifest
        kinds = [record.kind for record in records]
        documents = len(self)
        listed = sum(STARTS in segment.arrays for segment in self.segments)
        forced = self.settings.options.tier
        found = "listed" if listed else "compressed" if "residual" in kinds else "exact"
        return IndexStats(
            generation=self.generation,
            documents=documents,
            removed=sum(record.documents for record in records) - documents,
            tokens=sum(record.tokens for record in records),
            segments={kind: kinds.count(kind) for kind in sorted(set(kinds))},
            bytes={
                "files": sum(record.length for record in manifest.records()),
                "embeddings": sum(segment.token_bytes for segment in self.segments),
                "kept": sum(segment.kept_bytes for segment in self.segments),
            },
            codec=self.settings.options.codec,
            keep=self.settings.options.keep,
            tier=found if kinds or forced == "auto" else forced,
            listed=listed,
            centroids=self._shared.centroids,
        )

    @once
    def _bm25(self) -> Bm25:
        segments = [LexicalSegment(segment.postings, segment.live) for segment in self.segments]
        return Bm25(segments, self.settings.analyser)

    def ranking(self, segments: Rows, rows: Rows, scores: NDArray[np.float32], k: int) -> Ranking:
        """The k best of scored documents; of equal ones the lowest ids.

        Args:
            segments: places among `segments`, int64 (n,).
            rows: of these segments, int64 (n,).
            scores: float32 (n,), falling, with all that tie with the k-th among them.
            k: how many.
        """
        chosen = self._decisive(segments, rows, scores, k)
        return Ranking.from_scores(self._ids_at(segments[chosen], rows[chosen]), scores[chosen], k)

    def _decisive(self, segments: Rows, rows: Rows, scores: NDArray[np.float32], k: int) -> Rows:
        """Those that can be among the k best: of all that tie with the k-th, the lowest ids of each segment."""
        if len(scores) <= k:
            return np.arange(len(scores))
        better = np.flatnonzero(scores > scores[k - 1])
        tied = np.flatnonzero(scores == scores[k - 1])
        wanted = k - len(better)
        parts = [better]
        for number in map(int, np.unique(segments[tied])):
            own = tied[segments[tied] == number]
            if len(own) > wanted:
                own = own[np.isin(rows[own], self.segments[number].ids.lowest(rows[own], wanted))]
            parts.append(own)
        return np.concatenate(parts)

    def _ids_at(self, segments: Rows, rows: Rows) -> list[DocumentId]:
        ids = np.empty(len(rows), object)
        for number in map(int, np.unique(segments)):
            own = segments == number
            ids[own] = self.segments[number].ids.at(rows[own])
        return [DocumentId(identifier) for identifier in ids]

    def _by_segment(self, ids: Sequence[DocumentId]) -> Iterable[tuple[int, list[int], Rows]]:
        """For each segment: which of the ids are in it, and their rows there."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for item, place in enumerate(self.all_places(ids)):
            items, rows = found.setdefault(place.segment, ([], []))
            items.append(item)
            rows.append(place.row)
        for number, (items, rows) in sorted(found.items()):
            yield number, items, np.array(rows, np.int64)


def _chosen(segment: Segment, candidates: HashedIds) -> Mask:
    mask = np.zeros(segment.record.documents, np.bool_)
    rows = segment.rows_of(candidates)
    mask[rows[rows >= 0]] = True
    return mask


class Tunable(Protocol):
    """A state of an index that is searched at a cost: here, or on a device."""

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
        options: SearchOptions | None = None,
    ) -> list[Ranking]: ...


@final
@frozen(eq=False)
class TunedSnapshot:
    """A state whose searches cost what these options say."""

    snapshot: Tunable
    options: SearchOptions | None

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """See `IndexSnapshot.search`."""
        return self.snapshot.search(queries, k, where=where, candidates=candidates, options=self.options)
