"""What stores and candidate sources promise: what was given comes back as it was, and token hits are the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from lateinteraction.domain.embeddings import A, TokenEmbeddings
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidRanking, LateInteractionError, UnknownDocument
from lateinteraction.domain.ports import CandidateSource, DocumentStore, EmbeddingStore
from lateinteraction.domain.reference.maxsim import similarities
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing import strategies
from lateinteraction.testing.contracts.checks import Conversions, Embeddings, holds_for, is_close, packed

_NOBODY = DocumentId("nobody at all")
_chosen = st.lists(st.integers(0), max_size=8)


class EmbeddingStoreContract(Conversions[A]):
    """Every `EmbeddingStore`."""

    stored_tolerance: float = 0.0
    """Between a value and what comes back of it; above 0 for a store that compresses."""

    def make_embedding_store(self, documents: Sequence[Document], embeddings: TokenEmbeddings[A]) -> EmbeddingStore[A]:
        """A new store that holds these, at least one."""
        raise NotImplementedError

    @holds_for(strategies.corpora(items=(1, 6)), _chosen)
    def test_embeddings_come_back_in_the_order_asked_for(self, corpus: Any, wanted: list[int]) -> None:
        documents, embeddings = corpus
        store = self.make_embedding_store(documents, self.given(embeddings))
        rows = [row % len(documents) for row in wanted]
        found = self.read(store.fetch([documents[row].id for row in rows]))
        assert len(found) == len(rows)
        for row, tokens in zip(rows, found, strict=True):
            assert is_close(tokens, embeddings[row], self.stored_tolerance)

    @holds_for(strategies.corpora(items=(1, 3)), st.integers(0, 3))
    def test_an_id_without_embeddings_is_refused(self, corpus: Any, place: int) -> None:
        documents, embeddings = corpus
        store = self.make_embedding_store(documents, self.given(embeddings))
        ids = [document.id for document in documents]
        with pytest.raises(UnknownDocument):
            store.fetch([*ids[:place], _NOBODY, *ids[place:]])


class DocumentStoreContract(Conversions[A]):
    """Every `DocumentStore`."""

    def make_document_store(self, documents: Sequence[Document], embeddings: TokenEmbeddings[A]) -> DocumentStore:
        """A new store that holds these documents, at least one; it need not care for the embeddings."""
        raise NotImplementedError

    @holds_for(
        st.lists(strategies.documents(), min_size=1, max_size=5, unique_by=lambda document: document.id), _chosen
    )
    def test_documents_come_back_whole_in_the_order_asked_for(
        self, documents: list[Document], wanted: list[int]
    ) -> None:
        store = self.make_document_store(documents, self.given(packed([[[1]]] * len(documents), 1)))
        asked_for = [documents[row % len(documents)] for row in wanted]
        assert store.get([document.id for document in asked_for]) == asked_for

    def test_values_of_metadata_keep_their_types(self) -> None:
        values = {"yes": True, "no": False, "one": 1, "zero": 0, "real": 1.0, "text": "1", "null": None, "": -(2**53)}
        store = self.make_document_store([Document(DocumentId("a"), "", values)], self.given(packed([[[1]]], 1)))
        (found,) = store.get([DocumentId("a")])
        assert found.metadata == values
        assert {key: type(value) for key, value in found.metadata.items()} == {
            key: type(value) for key, value in values.items()
        }

    def test_an_id_without_a_document_is_refused(self) -> None:
        document = Document(DocumentId("a"), "text")
        store = self.make_document_store([document], self.given(packed([[[1]]], 1)))
        for ids in ([_NOBODY], [document.id, _NOBODY], [_NOBODY, document.id]):
            with pytest.raises(UnknownDocument):
                store.get(ids)


class CandidateSourceContract(Conversions[A]):
    """Every `CandidateSource`. With so few tokens, one that approximates has to be exact: let it look everywhere."""

    tolerance: float = 1e-5
    """Of similarities, absolute."""

    def make_candidate_source(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[A]
    ) -> CandidateSource[A]:
        """A new source that proposes from these; they have at least one token."""
        raise NotImplementedError

    @holds_for(
        strategies.corpora(items=(1, 5)).filter(lambda corpus: len(corpus[1].tokens) > 0),
        strategies.token_embeddings(dimension=3, items=(0, 3), each=(0, 3)),
        st.integers(1, 12),
    )
    def test_hits_are_the_nearest_tokens(self, corpus: Any, queries: Embeddings, k: int) -> None:
        documents, embeddings = corpus
        hits = self.make_candidate_source(documents, self.given(embeddings)).nearest(self.given(queries), k)
        assert np.array_equal(hits.query_offsets, queries.offsets)
        every = similarities(queries.tokens, embeddings.tokens)
        owners = np.repeat(np.arange(len(documents)), embeddings.lengths)
        for token, (first, last) in enumerate(zip(hits.offsets[:-1], hits.offsets[1:], strict=True)):
            best = np.sort(every[token])[::-1][:k]
            assert is_close(hits.similarities[first:last], best.astype(np.float32), self.tolerance)
            for document, similarity in zip(hits.documents[first:last], hits.similarities[first:last], strict=True):
                own = every[token][[documents[owner].id == document for owner in owners]]
                assert np.any(np.abs(own - similarity) <= self.tolerance), "a similarity of no token of its document"

    def test_no_queries_have_no_hits(self) -> None:
        hits = self._small().nearest(self.given(packed([], 2)), 3)
        assert len(hits) == 0
        assert hits.documents == ()

    def test_an_empty_query_has_no_hits(self) -> None:
        hits = self._small().nearest(self.given(packed([[], [[1, 0]]], 2)), 1)
        assert hits.documents_of(0) == []
        assert hits.documents_of(1) == ["a"]

    def test_a_cutoff_below_one_is_refused(self) -> None:
        for k in (0, -1):
            self._refuses(InvalidRanking, packed([[[1, 0]]], 2), k)

    def test_queries_that_cannot_be_compared_are_refused(self) -> None:
        self._refuses(InvalidEmbeddings, packed([[[1, 0, 0]]], 3), 1)
        self._refuses(InvalidEmbeddings, packed([[[np.nan, 0]]], 2), 1)

    def _small(self) -> CandidateSource[A]:
        documents = [Document(DocumentId(identifier), "") for identifier in "abc"]
        return self.make_candidate_source(documents, self.given(packed([[[1, 0], [0.5, 0]], [[0, 1]], []], 2)))

    def _refuses(self, error: type[LateInteractionError], queries: Embeddings, k: int) -> None:
        source = self._small()
        with pytest.raises(error):
            source.nearest(self.given(queries), k)
