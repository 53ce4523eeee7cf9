"""Retriever and Reranker: an encoder together with an index, or with a scorer.

They know no device and no batch size; those belong to the adapters that own hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Generic, Protocol

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import A, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption, InvalidRanking
from lateinteraction.domain.filters import Filter
from lateinteraction.domain.ports import AddReport, Encoder, Index, OnDuplicate, Scorer
from lateinteraction.domain.ranking import Ranking, check_cutoff, fuse_reciprocal_rank
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
    """Two rankings made one: by embeddings and by words, fused by reciprocal ranks (Cormack et al., SIGIR 2009).

    Args:
        dense: ranks by embeddings.
        lexical: ranks by words, over the same documents.
        depth: how many hits of each are fused, and at least as many as are asked for.
    """

    dense: Searcher[A]
    lexical: LexicalSearcher
    depth: int = 100

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
        depth = max(k, self.depth)
        both = (
            self.dense.search(queries, depth, where=where, candidates=candidates),
            self.lexical.search(queries, depth, where=where, candidates=candidates),
        )
        return [fuse_reciprocal_rank(pair, k) for pair in zip(*both, strict=True)]


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
        check_documents(documents)
        held: frozenset[DocumentId] = frozenset()
        if on_duplicate != "replace":
            held = self.index.held([document.id for document in documents])
        if on_duplicate == "error":
            check_new((document.id for document in documents), held)
        wanted = [document for document in documents if document.id not in held]
        report = self.index.add(wanted, self.encoder.encode_documents(wanted), on_duplicate=on_duplicate)
        skipped = held | frozenset(report.skipped)
        return evolve(report, skipped=[document.id for document in documents if document.id in skipped])

    def add_stream(
        self, documents: Iterable[Document], *, on_duplicate: OnDuplicate = "error", documents_per_add: int = 1024
    ) -> AddReport:
        """Encode and add a stream that need not fit in memory, piece by piece; an error leaves whole pieces added."""
        if not isinstance(documents_per_add, int) or documents_per_add < 1:
            raise InvalidOption(f"documents_per_add = {documents_per_add!r}", "at least 1", "1024 is the default.")
        stream = iter(documents)
        total = AddReport()
        while piece := list(islice(stream, documents_per_add)):
            done = self.add(piece, on_duplicate=on_duplicate)
            total = AddReport(
                total.added + done.added,
                total.skipped + done.skipped,
                total.replaced + done.replaced,
                total.empty + done.empty,
            )
        return total

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
