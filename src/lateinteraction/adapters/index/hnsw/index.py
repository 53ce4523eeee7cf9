"""HnswIndex: another index that holds everything, and a graph over its tokens that says which documents to score.

The graph is never the truth. It may lag behind, name documents that are gone, or be lost: what it proposes is looked up
and scored by the index that holds the documents, and what is not in it yet is proposed besides. Up to
`GraphOptions.exact_below` tokens nothing is in it, and search is as exact as that index.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol, final

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.index.columns import blocks_of
from lateinteraction.adapters.index.hnsw.gate import Gate
from lateinteraction.adapters.index.hnsw.graph import (
    GraphOptions,
    SavedGraph,
    TokenGraph,
    alike,
    check_available,
    sketches,
)
from lateinteraction.adapters.index.hnsw.hits import Hits, merged, nearest_of, xtr_scores
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.neural.admission import check_queries, check_width
from lateinteraction.adapters.neural.transfer import to_host
from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.filters import Filter
from lateinteraction.domain.ports import AddReport, OnDuplicate, Progress
from lateinteraction.domain.ranking import Ranking, check_cutoff
from lateinteraction.domain.text import Document, DocumentId, check_ids

if TYPE_CHECKING:
    from lateinteraction.domain.ports import CandidateSource, DocumentStore, EmbeddingStore, Index

_log = logging.getLogger(__name__)

Interaction = Literal["maxsim", "xtr"]

TOKENS_PER_INSERTION = 2048
"""Put into the graph while searches wait: some 0.2 s."""

TOKENS_AT_A_TIME = 1 << 17
"""Fetched at once, to be put into the graph."""

DOCUMENTS_AT_A_TIME = 512
"""Fetched at once, to be compared with what the graph has."""

ENOUGH = 4
"""Times k: a filter that fewer of the proposed documents pass is searched without the graph."""


class State(Protocol):
    """A state of an index that holds everything: rankings, texts and embeddings that belong together."""

    def __len__(self) -> int: ...
    def ids(self) -> tuple[DocumentId, ...]: ...
    def fetch(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[Tensor]: ...
    def get(self, ids: Sequence[DocumentId]) -> list[Document]: ...
    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]: ...


class Holder(Protocol):
    """An index that holds everything, such as `FlatIndex` and `StoredIndex`."""

    def snapshot(self) -> State: ...
    def held(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]: ...
    def remove(self, which: Sequence[DocumentId] | Filter) -> int: ...
    def add(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], *, on_duplicate: OnDuplicate = "error"
    ) -> AddReport: ...


@final
class _View:
    """What searches use: a state, and the documents of it that are not in the graph."""

    def __init__(self, state: State, pending: Mapping[DocumentId, int]) -> None:
        self.state, self.pending = state, pending

    @once
    def vectors(self) -> TokenEmbeddings[Tensor]:
        """The embeddings of the pending documents."""
        return self.state.fetch(list(self.pending))


@final
class HnswIndex:
    """An `Index`, `CandidateSource`, `EmbeddingStore` and `DocumentStore`. Safe to use from several threads.

    Args:
        holder: what holds the documents. Nobody else may write to it, or `refresh` is to be called afterwards.
        options: of the graph.
        interaction: "maxsim", or "xtr", which takes what was retrieved for the whole and is for models trained for it.
        graph: of these documents, as it was saved; what it lacks is put in.
        progress: told of the tokens that are put in.

    Raises:
        MissingExtra: Voyager is not installed.
    """

    def __init__(
        self,
        holder: Holder,
        options: GraphOptions | None = None,
        *,
        interaction: Interaction = "maxsim",
        graph: SavedGraph | None = None,
        progress: Progress | None = None,
    ) -> None:
        if interaction not in ("maxsim", "xtr"):
            raise InvalidOption(f"interaction = {interaction!r}", "'maxsim' or 'xtr'", "Choose one of the two.")
        self.options, self._interaction = options or GraphOptions(), interaction
        check_available()
        self.holder = holder
        self._gate, self._one_writer = Gate(), threading.Lock()
        self._graph = None if graph is None else graph.graph
        self._sketches = {} if graph is None else dict(graph.sketches)
        self._view = _View(holder.snapshot(), {})
        self._behind = True
        self.refresh(progress=progress)

    def __len__(self) -> int:
        return len(self._view.state)

    def held(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]:
        """Those of these ids that it has."""
        return self.holder.held(ids)

    def get(self, ids: Sequence[DocumentId]) -> list[Document]:
        """These documents, in this order."""
        return self._view.state.get(ids)

    def fetch(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[Tensor]:
        """Embeddings of these documents, in this order."""
        return self._view.state.fetch(ids)

    def in_graph(self) -> int:
        """How many tokens the graph has; all others are compared one by one."""
        return 0 if self._graph is None else self._graph.tokens

    def save(self, write: Callable[[SavedGraph], object]) -> bool:
        """Have the graph written, while nobody changes it; whether there is one. What holds the documents saves those.

        Args:
            write: such as `saved.save_graph` into a storage.
        """
        with self._one_writer:
            if self._graph is not None:
                write(SavedGraph(self._graph, self._sketches))
            return self._graph is not None

    def add(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], *, on_duplicate: OnDuplicate = "error"
    ) -> AddReport:
        """Take documents with their embeddings. See `Index.add`."""
        with self._one_writer:
            expected = len(self._view.state)
            report = self.holder.add(documents, embeddings, on_duplicate=on_duplicate)
            with self._afterwards():
                state = self.holder.snapshot()
                if self._behind or len(state) != expected + len(report.added):  # of what others have written
                    self._synchronise(state)
                else:
                    taken = {*report.added, *report.replaced}
                    lengths = zip(documents, map(int, embeddings.lengths), strict=True)
                    self._changed(
                        state, report.replaced, {each.id: length for each, length in lengths if each.id in taken}
                    )
                self._grow()
        return report

    def remove(self, which: Sequence[DocumentId] | Filter) -> int:
        """Forget documents, by id or by filter; how many. See `Index.remove`."""
        with self._one_writer:
            count = self.holder.remove(which)
            with self._afterwards():
                known = list(which) if isinstance(which, Sequence) else [*self._sketches, *self._view.pending]
                state = self.holder.snapshot()
                if self._behind:
                    self._synchronise(state)
                else:
                    self._changed(state, set(known) - self.holder.held(known), {})
                self._grow()
        return count

    def refresh(self, *, progress: Progress | None = None) -> None:
        """See what others have written to the holder. Reads all embeddings."""
        with self._one_writer:
            self._synchronise(self.holder.snapshot())
            self._grow(progress)

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best documents for each query, of those that the graph proposes and those that are not in it.

        Where fewer than k of them may be found, or of a filtered search fewer than four times k, all documents are
        looked at. See `Index.search`.
        """
        check_cutoff(k)
        check_queries(queries)
        check_ids(candidates, "candidates")
        if self._graph is None:
            return self._view.state.search(queries, k, where=where, candidates=candidates)
        view, hits = self._hits(queries, self.options.neighbours)
        asked = _Asked(view, k, where, candidates)
        found: list[Ranking] = []
        for number in range(len(queries)):
            query = queries.span(number, number + 1)
            own = hits.of(queries.offsets[number], queries.offsets[number + 1])
            if not len(query.tokens):
                found.append(asked.everywhere(query))
            elif self._interaction == "xtr":
                found.append(asked.by_tokens(query, own))
            else:
                found.append(asked.among(query, own.documents()))
        return found

    def nearest(self, queries: TokenEmbeddings[Tensor], k: int) -> TokenHits:
        """For each query token the nearest tokens, k of them or fewer. See `CandidateSource.nearest`."""
        check_cutoff(k)
        check_queries(queries)
        _, hits = self._hits(queries, k)
        present = hits.owners >= 0
        documents = [hits.ids[owner] for owner in map(int, hits.owners[present])]
        return TokenHits(documents, hits.similarities[present], offsets_of(present.sum(axis=1)), queries.offsets)

    def _hits(self, queries: TokenEmbeddings[Tensor], k: int) -> tuple[_View, Hits]:
        """A state, and the nearest tokens of it for every query token: in the graph, and one by one beside it."""
        vectors = to_host(queries.tokens.detach().type(torch.float32))
        with self._gate.reading():
            view, graph, parts = self._view, self._graph, list[Hits]()
            if graph is not None:
                check_width(graph.dimension, queries)
                parts.append(_in_graph(graph, vectors, k, view.pending))
        if view.pending:
            check_width(view.vectors.dimension, queries)
            parts.append(nearest_of(list(view.pending), view.vectors, queries.tokens, k))
        return view, merged(parts, len(vectors), k)

    @contextmanager
    def _afterwards(self) -> Iterator[None]:
        """A block after a write that is acknowledged: what fails in it is told, and mended by the next write."""
        try:
            yield
        except (OSError, MemoryError, RuntimeError) as error:
            self._behind = True
            _log.warning("what was written is not seen before `refresh` or the next write: %s", error)

    def _synchronise(self, state: State) -> None:
        """Compare all documents with what the graph has."""
        present = state.ids()
        pending: dict[DocumentId, int] = {}
        gone = set(self._sketches) - set(present)
        for first in range(0, len(present), DOCUMENTS_AT_A_TIME):
            ids = present[first : first + DOCUMENTS_AT_A_TIME]
            embeddings = _on_host(state.fetch(ids))
            made = sketches(embeddings)
            described = zip(ids, map(int, embeddings.lengths), made, strict=True)
            pending |= {each: length for each, length, sketch in described if not self._has(each, length, sketch)}
        self._changed(state, gone | set(pending), pending, afresh=True)
        self._behind = False

    def _has(self, identifier: DocumentId, length: int, sketch: NDArray[np.float16]) -> bool:
        known = self._sketches.get(identifier)
        if known is None or self._graph is None or self._graph.length(identifier) != length:
            return False
        return known.shape == sketch.shape and bool(alike(known[None], sketch[None])[0])

    def _changed(
        self, state: State, gone: Iterable[DocumentId], came: Mapping[DocumentId, int], *, afresh: bool = False
    ) -> None:
        """Let searches see a new state."""
        gone = frozenset(gone)
        before = {} if afresh else self._view.pending
        left = {identifier: length for identifier, length in before.items() if identifier not in gone}
        with self._gate.writing():
            for identifier in gone:
                self._sketches.pop(identifier, None)
                if self._graph is not None:
                    self._graph.remove(identifier)
            self._view = _View(state, {**left, **came})

    def _grow(self, progress: Progress | None = None) -> None:
        """Put pending documents into the graph, where they are many; build it anew where most of it was removed."""
        try:
            graph = self._graph
            if graph is not None and (not len(graph) or graph.removed > max(graph.tokens, self.options.exact_below)):
                self._forget()
            if sum(self._view.pending.values()) > self.options.exact_below:
                self._insert(progress)
        except (MemoryError, RuntimeError, OSError) as error:  # what was added stays added
            _log.warning("the graph could not be built, so that every token is compared: %s", error)
            self._forget()

    def _forget(self) -> None:
        """Have no graph, and all documents pending."""
        lengths = {} if self._graph is None else {each: length for each, length in self._graph.documents() if each}
        with self._gate.writing():
            self._graph, self._sketches = None, {}
            self._view = _View(self._view.state, {**lengths, **self._view.pending})

    def _insert(self, progress: Progress | None) -> None:
        """Put all pending documents into the graph; searches go on between."""
        state, pending = self._view.state, dict(self._view.pending)
        ids, total, done = list(pending), sum(pending.values()), 0
        for rows in blocks_of(np.maximum(list(pending.values()), 1), TOKENS_AT_A_TIME):
            embeddings = _on_host(state.fetch(ids[rows]))
            graph = TokenGraph(embeddings.dimension, self.options) if self._graph is None else self._graph
            for part in blocks_of(np.maximum(embeddings.lengths, 1), TOKENS_PER_INSERTION):
                with self._gate.writing():
                    graph.add(ids[rows][part], embeddings.span(part.start, part.stop))
            made = dict(zip(ids[rows], sketches(embeddings), strict=True))
            for identifier in made:
                del pending[identifier]
            with self._gate.writing():
                self._graph = graph
                self._sketches.update(made)
                self._view = _View(state, dict(pending))
            done += len(embeddings.tokens)
            if progress is not None:
                progress(done, total)


@frozen(eq=False)
class _Asked:
    """What a search may find, of one state."""

    view: _View
    k: int
    where: Filter | None
    candidates: Sequence[DocumentId] | None

    @property
    def filtered(self) -> bool:
        return self.where is not None or self.candidates is not None

    def everywhere(self, query: TokenEmbeddings[Tensor], k: int | None = None) -> Ranking:
        """The best of all documents that may be found."""
        (found,) = self.view.state.search(query, k or self.k, where=self.where, candidates=self.candidates)
        return found

    def among(self, query: TokenEmbeddings[Tensor], proposed: Sequence[DocumentId]) -> Ranking:
        """The best of the proposed and the pending; of all where too few of these may be found."""
        ids = [*proposed, *self.view.pending]
        if self.candidates is not None:
            if len(self.candidates) <= len(ids):
                return self.everywhere(query)
            wanted = frozenset(self.candidates)
            ids = [identifier for identifier in ids if identifier in wanted]
        enough = ENOUGH * self.k if self.filtered else self.k
        (found,) = self.view.state.search(query, enough, where=self.where, candidates=ids)
        best = found.truncate(self.k)
        # Documents without tokens rank last, in the order they came: those of the graph are not proposed.
        return best if len(found) >= enough and np.isfinite(best.scores[-1]) else self.everywhere(query)

    def by_tokens(self, query: TokenEmbeddings[Tensor], hits: Hits) -> Ranking:
        """XTR over the hits; documents without any follow, all with the score of what no token retrieved."""
        proposed, scores, rest = xtr_scores(hits)
        known = dict(zip(proposed, map(float, scores), strict=True))
        if self.filtered and proposed:
            allowed = self._allowed(query, proposed)
            known = {identifier: score for identifier, score in known.items() if identifier in allowed}
        if len(known) < self.k:
            for hit in self.everywhere(query, self.k + len(known)):
                known.setdefault(hit.document, rest if np.isfinite(hit.score) else -np.inf)
        return Ranking.from_scores(list(known), list(known.values()), self.k)

    def _allowed(self, query: TokenEmbeddings[Tensor], proposed: Sequence[DocumentId]) -> frozenset[DocumentId]:
        """Those of these documents that may be found."""
        wanted = None if self.candidates is None else frozenset(self.candidates)
        ids = [identifier for identifier in proposed if wanted is None or identifier in wanted]
        if self.where is None or not ids:
            return frozenset(ids)
        (found,) = self.view.state.search(query, len(ids), where=self.where, candidates=ids)
        return frozenset(found.documents)


def _in_graph(graph: TokenGraph, vectors: NDArray[np.float32], k: int, pending: Mapping[DocumentId, int]) -> Hits:
    """The nearest tokens in a graph, without those of documents that are pending."""
    found = graph.nearest(vectors, k)
    slots, places = np.unique(found.slots, return_inverse=True)
    owners = graph.owners(slots)
    ids = [identifier for identifier in owners if identifier is not None and identifier not in pending]
    numbers = {identifier: number for number, identifier in enumerate(ids)}
    own = np.array([-1 if each is None else numbers.get(each, -1) for each in owners], np.int64)
    return Hits(ids, own[places].reshape(found.slots.shape), found.similarities)


def _on_host(embeddings: TokenEmbeddings[Tensor]) -> TokenEmbeddings[NDArray[np.float32]]:
    return TokenEmbeddings(to_host(embeddings.tokens.detach().type(torch.float32)), embeddings.offsets)


if TYPE_CHECKING:
    _index: type[Index[Tensor]] = HnswIndex
    _candidates: type[CandidateSource[Tensor]] = HnswIndex
    _embeddings: type[EmbeddingStore[Tensor]] = HnswIndex
    _documents: type[DocumentStore] = HnswIndex
