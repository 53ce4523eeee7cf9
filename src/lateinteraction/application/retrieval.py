"""Retriever and Reranker: an encoder together with an index, or with a scorer.

They know no device and no batch size; those belong to the adapters that own hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Generic, Protocol

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import A, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption, InvalidRanking
from lateinteraction.domain.filters import Filter
from lateinteraction.domain.ports import AddCounts, AddReport, Encoder, Index, OnDuplicate, Scorer, Stage, StageProgress
from lateinteraction.domain.ranking import Fusion, Ranking, check_cutoff
from lateinteraction.domain.text import Document, DocumentId, Query, check_documents, check_new


class Searchable(Protocol[A]):
    """The reading half of an `Index`; a snapshot of one is enough to search."""

    def search(
        self,
        queries: TokenEmbeddings[A],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]: ...


@frozen
class Searcher(Generic[A]):
    """Queries in, rankings out, over something that only reads."""

    encoder: Encoder[A]
    index: Searchable[A]

    def search(
        self,
        queries: Sequence[Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best documents for each query."""
        check_cutoff(k)
        return self.index.search(self.encoder.encode_queries(queries), k, where=where, candidates=candidates)


class TextSearchable(Protocol):
    """What ranks documents by the words they share with a query."""

    def search_text(
        self,
        texts: Sequence[str],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]: ...


@frozen
class LexicalSearcher:
    """Queries in, rankings out, by the words they share with documents."""

    index: TextSearchable

    def search(
        self,
        queries: Sequence[Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best documents for each query, of those that share a word with it."""
        return self.index.search_text([query.text for query in queries], k, where=where, candidates=candidates)


@frozen
class HybridSearcher(Generic[A]):
    """Two rankings made one: by embeddings and by words.

    Args:
        dense: ranks by embeddings.
        lexical: ranks by words, over the same documents.
        fusion: how the two become one.
    """

    dense: Searcher[A]
    lexical: LexicalSearcher
    fusion: Fusion = field(factory=Fusion)

    def search(
        self,
        queries: Sequence[Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best documents for each query; a query without tokens or without words is ranked by what it has."""
        check_cutoff(k)
        depth = max(k, self.fusion.depth)
        embeddings = self.dense.encoder.encode_queries(queries)
        dense = self.dense.index.search(embeddings, depth, where=where, candidates=candidates)
        lexical = self.lexical.search(queries, depth, where=where, candidates=candidates)
        nothing = Ranking((), ())  # a query without tokens scores 0 everywhere, which says nothing of any document
        told = (ranking if tokens else nothing for ranking, tokens in zip(dense, embeddings.lengths, strict=True))
        return [self.fusion.fuse(*pair, k) for pair in zip(told, lexical, strict=True)]


@frozen
class Retriever(Generic[A]):
    """Texts in, rankings out."""

    encoder: Encoder[A]
    index: Index[A]

    def add(self, documents: Sequence[Document], *, on_duplicate: OnDuplicate = "error") -> AddReport:
        """Encode documents and add them in one piece: all of them, or on an error none.

        What is there already is noticed before it is encoded; what is skipped is not encoded at all, so that a stream
        which was interrupted goes on where it ended.
        """
        return self._added(documents, on_duplicate, lambda: None)

    def _added(
        self, documents: Sequence[Document], on_duplicate: OnDuplicate, writing: Callable[[], None]
    ) -> AddReport:
        check_documents(documents)
        held: frozenset[DocumentId] = frozenset()
        if on_duplicate != "replace":
            held = self.index.held([document.id for document in documents])
        if on_duplicate == "error":
            check_new((document.id for document in documents), held)
        wanted = [document for document in documents if document.id not in held]
        embeddings = self.encoder.encode_documents(wanted)
        writing()
        report = self.index.add(wanted, embeddings, on_duplicate=on_duplicate)
        skipped = held | frozenset(report.skipped)
        return evolve(report, skipped=[document.id for document in documents if document.id in skipped])

    def add_stream(
        self,
        documents: Iterable[Document],
        *,
        on_duplicate: OnDuplicate = "error",
        documents_per_add: int = 2048,
        total: int | None = None,
        progress: StageProgress | None = None,
    ) -> AddCounts:
        """Encode and add a stream that need not fit in memory, piece by piece; an error leaves whole pieces added.

        What was interrupted goes on where it ended when it is run again with on_duplicate="skip".

        Args:
            documents: drawn as they are needed.
            on_duplicate: as in `add`.
            documents_per_add: of a piece, which a stored index commits at once.
            total: how many there are, where that is known: for those who watch.
            progress: told before a piece is encoded, before it is written, and at the end.

        Raises:
            InvalidOption: pieces of less than one document.
        """
        if isinstance(documents_per_add, bool) or not isinstance(documents_per_add, int) or documents_per_add < 1:
            raise InvalidOption(f"documents_per_add = {documents_per_add!r}", "at least 1", "2048 is the default.")
        stream, counts, told = iter(documents), AddCounts(), progress or _silent
        while piece := list(islice(stream, documents_per_add)):
            told("encoding", counts.documents, total)
            writing = partial(told, "writing", counts.documents, total)
            counts = counts.after(self._added(piece, on_duplicate, writing))
        told("writing", counts.documents, counts.documents)
        return counts

    def remove(self, which: Sequence[DocumentId] | Filter) -> int:
        """Forget documents, by id or by filter; how many."""
        return self.index.remove(which)

    def search(
        self,
        queries: Sequence[Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best documents for each query."""
        return Searcher(self.encoder, self.index).search(queries, k, where=where, candidates=candidates)


@frozen
class Reranker(Generic[A]):
    """Orders given documents by their score with a query.

    Args:
        to_host: brings scores to a NumPy array; what it takes is the array kind's business.
    """

    encoder: Encoder[A]
    scorer: Scorer[A]
    to_host: Callable[[A], NDArray[np.float32]]

    def rank(self, query: Query, documents: Sequence[Document], k: int | None = None) -> Ranking:
        """The documents of one query, best first; the k best where k is given."""
        return self.rank_each([query], [documents], k)[0]

    def rank_each(
        self, queries: Sequence[Query], documents: Sequence[Sequence[Document]], k: int | None = None
    ) -> list[Ranking]:
        """The documents of each query, best first, in one pass of the encoder and the scorer."""
        if len(queries) != len(documents):
            raise InvalidRanking(
                f"{len(queries)} queries and {len(documents)} lists of documents", "a list for each", "[] is allowed."
            )
        if k is not None:
            check_cutoff(k)
        for own in documents:
            check_documents(own)
        groups = offsets_of([len(own) for own in documents])
        scores = self.to_host(
            self.scorer.grouped(
                self.encoder.encode_queries(queries),
                self.encoder.encode_documents([document for own in documents for document in own]),
                groups,
            )
        )
        return [
            Ranking.from_scores([document.id for document in own], scores[first:last], k)
            for own, first, last in zip(documents, groups[:-1], groups[1:], strict=True)
        ]


def _silent(stage: Stage, done: int, total: int | None) -> None:
    """Progress that nobody watches."""
