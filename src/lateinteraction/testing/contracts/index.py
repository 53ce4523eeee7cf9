"""What every `Index` promises: writes are found at once, refusals change nothing, filters and candidates hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from lateinteraction.domain.embeddings import A, TokenEmbeddings
from lateinteraction.domain.errors import (
    DuplicateDocument,
    InvalidEmbeddings,
    InvalidRanking,
    LateInteractionError,
    UnknownDocument,
)
from lateinteraction.domain.filters import And, Comparison, Filter, Not, matches
from lateinteraction.domain.ports import AddReport, DocumentStore, Index
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId, Metadata
from lateinteraction.testing import strategies
from lateinteraction.testing.contracts.checks import Conversions, Embeddings, chosen, holds_for, is_close, packed

_ENGLISH = Comparison("language", "==", "en")
_RECENT = Comparison("year", ">=", 2000)
_NOTHING = Comparison("language", "==", "tlh")


def document_of(identifier: str, metadata: Metadata | None = None, text: str = "") -> Document:
    """A document in one line."""
    return Document(DocumentId(identifier), text or f"text of {identifier}", metadata or {})


def ids_of(*identifiers: str) -> list[DocumentId]:
    """Ids in one line."""
    return [DocumentId(identifier) for identifier in identifiers]


# Every similarity and score is a multiple of 1/8, so all of them are exact.
DOCUMENTS = [
    document_of("a", {"year": 1999, "language": "en"}),
    document_of("b", {"year": 2024, "language": "en"}),
    document_of("c", {"year": 2024, "language": "de"}),
    document_of("d", {"language": "de"}),
]
_EMBEDDINGS = packed([[[1, 0], [0, 0.5]], [[0.5, 0.5]], [[0, 1], [-1, 0]], []], 2)
QUERIES = packed([[[1, 0]], [[0, 1], [1, 0]], [[-1, 0]]], 2)
ALL = 100

corpora_with_queries = st.tuples(
    strategies.corpora(), strategies.token_embeddings(dimension=3, items=(0, 3), each=(0, 3))
)


class IndexContract(Conversions[A]):
    """Every `Index`, also one that approximates; `ExactIndexContract` is for those that do not."""

    loss: float = 0.0
    """How far a score may be from MaxSim of what was added, relative above 1 and absolute below: more than 0 for an
    index that stores embeddings with a loss. Which document is the best by far does not depend on it."""

    def make_index(self) -> Index[A]:
        """A new, empty index at every call."""
        raise NotImplementedError

    def document_store(self, index: Index[A]) -> DocumentStore | None:
        """The store of the index's documents, often the index itself; None where there is none."""
        return None

    def filled(self, documents: Sequence[Document] = DOCUMENTS, embeddings: Embeddings = _EMBEDDINGS) -> Index[A]:
        """A new index that holds these."""
        index = self.make_index()
        if len(documents):
            index.add(documents, self.given(embeddings))
        return index

    def found(
        self,
        index: Index[A],
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[list[DocumentId]]:
        """The ids found for each of some queries, in rising order."""
        rankings = index.search(self.given(QUERIES), ALL, where=where, candidates=candidates)
        return [sorted(ranking.documents) for ranking in rankings]

    def state(self, index: Index[A]) -> tuple[int, list[Ranking], list[Document]]:
        """All that can be seen from outside."""
        rankings = index.search(self.given(QUERIES), ALL)
        store = self.document_store(index)
        documents = [] if store is None else store.get(sorted(rankings[0].documents))
        return len(index), rankings, documents

    def assert_best(self, index: Index[A], identifier: str, score: float) -> None:
        """This document is the best for the first of the queries, by this score."""
        found = index.search(self.given(QUERIES), 1)[0]
        assert list(found.documents) == ids_of(identifier)
        assert is_close(found.scores, np.array([score], np.float32), self.loss)

    @contextmanager
    def refused(self, index: Index[A], error: type[LateInteractionError]) -> Iterator[None]:
        """The block raises this error and changes nothing."""
        before = self.state(index)
        with pytest.raises(error):
            yield
        assert self.state(index) == before, "a call that raises has changed the index"

    def test_a_document_is_found_by_the_next_call(self) -> None:
        index = self.make_index()
        for count, document in enumerate(DOCUMENTS[:3]):
            index.add([document], self.given(_EMBEDDINGS.span(count, count + 1)))
            assert len(index) == count + 1
            assert self.found(index) == [ids_of("a", "b", "c")[: count + 1]] * len(QUERIES)

    def test_an_addition_is_reported_in_the_order_given(self) -> None:
        index = self.make_index()
        backwards = [3, 2, 1, 0]
        report = index.add([DOCUMENTS[i] for i in backwards], self.given(chosen(_EMBEDDINGS, backwards)))
        assert report == AddReport(added=ids_of("d", "c", "b", "a"), empty=ids_of("d"))

    def test_documents_are_given_back_whole(self) -> None:
        store = self.document_store(self.filled())
        if store is not None:
            assert store.get(ids_of("c", "a")) == [DOCUMENTS[2], DOCUMENTS[0]]

    def test_the_callers_array_can_be_used_again(self) -> None:
        tokens: Any = self.tensor(_EMBEDDINGS.tokens.copy())
        index = self.make_index()
        index.add(DOCUMENTS, TokenEmbeddings(tokens, _EMBEDDINGS.offsets))
        before = self.state(index)
        tokens[:] = 0
        assert self.state(index) == before, "the index holds on to the array it was given"

    def test_adding_nothing_changes_nothing(self) -> None:
        for index in (self.make_index(), self.filled()):
            before = self.state(index)
            assert index.add([], self.given(packed([], 2))) == AddReport()
            assert self.state(index) == before

    def test_an_id_twice_in_one_call_is_refused(self) -> None:
        index = self.filled()
        twice = [document_of("x"), document_of("x", text="another")]
        for policy in ("error", "skip", "replace"):
            with self.refused(index, DuplicateDocument):
                index.add(twice, self.given(_EMBEDDINGS.span(0, 2)), on_duplicate=policy)

    def test_an_id_that_is_already_there_is_refused(self) -> None:
        index = self.filled()
        with self.refused(index, DuplicateDocument):
            index.add([document_of("x"), document_of("a")], self.given(_EMBEDDINGS.span(0, 2)))
        with self.refused(index, DuplicateDocument):
            index.add([document_of("a"), document_of("x")], self.given(_EMBEDDINGS.span(0, 2)), on_duplicate="error")

    def test_it_says_which_ids_it_has(self) -> None:
        index = self.filled()
        assert index.held(ids_of("x", "b", "a", "y")) == {"a", "b"}
        assert index.held([]) == frozenset()
        index.remove(ids_of("a"))
        assert index.held(ids_of("a", "b")) == {"b"}

    def test_skip_keeps_the_old_document(self) -> None:
        index = self.filled()
        before = self.state(index)
        changed = document_of("b", {"language": "tlh"})
        assert index.add([changed], self.given(packed([[]], 2)), on_duplicate="skip") == AddReport(skipped=ids_of("b"))
        assert self.state(index) == before
        assert self.found(index, where=_NOTHING) == [[]] * len(QUERIES)

    def test_skip_takes_the_new_documents(self) -> None:
        index = self.filled()
        given = self.given(packed([[[-1, 0]], [], [[0, 1]]], 2))
        report = index.add([document_of("a"), document_of("y"), document_of("x")], given, on_duplicate="skip")
        assert report == AddReport(added=ids_of("y", "x"), skipped=ids_of("a"), empty=ids_of("y"))
        assert len(index) == 6
        assert self.found(index) == [ids_of("a", "b", "c", "d", "x", "y")] * len(QUERIES)

    def test_replace_takes_the_new_document(self) -> None:
        index = self.filled()
        changed = document_of("b", {"language": "tlh"}, "another text")
        report = index.add([changed], self.given(packed([[[4, 0]]], 2)), on_duplicate="replace")
        assert report == AddReport(replaced=ids_of("b"))
        assert len(index) == len(DOCUMENTS)
        assert self.found(index, where=_NOTHING) == [ids_of("b")] * len(QUERIES)
        self.assert_best(index, "b", 4.0)
        store = self.document_store(index)
        assert store is None or store.get(ids_of("b")) == [changed]

    def test_replace_reports_new_and_empty_documents_apart(self) -> None:
        index = self.filled()
        given = self.given(packed([[], [[1, 0]]], 2))
        report = index.add([document_of("a"), document_of("x")], given, on_duplicate="replace")
        assert report == AddReport(added=ids_of("x"), replaced=ids_of("a"), empty=ids_of("a"))
        assert len(index) == 5

    def test_embeddings_of_another_width_are_refused(self) -> None:
        index = self.filled()
        for policy in ("error", "skip", "replace"):
            with self.refused(index, InvalidEmbeddings):
                index.add([document_of("x")], self.given(packed([[[1, 0, 0]]], 3)), on_duplicate=policy)

    def test_values_that_are_not_finite_are_refused(self) -> None:
        index = self.filled()
        for value in (np.nan, np.inf, -np.inf):
            broken = self.given(packed([[[1, 0]], [[0, 1], [0, value]]], 2))
            with self.refused(index, InvalidEmbeddings):
                index.add([document_of("x"), document_of("y")], broken)
            with self.refused(index, InvalidEmbeddings):
                index.add([document_of("x"), document_of("a")], broken, on_duplicate="replace")

    def test_another_count_of_embeddings_is_refused(self) -> None:
        index = self.filled()
        for documents in ([], [document_of("x")], [document_of("x"), document_of("y"), document_of("z")]):
            with self.refused(index, InvalidEmbeddings):
                index.add(documents, self.given(_EMBEDDINGS.span(0, 2)))

    def test_documents_are_removed_by_id(self) -> None:
        index = self.filled()
        assert index.remove(ids_of("c", "a")) == 2
        assert len(index) == 2
        assert self.found(index) == [ids_of("b", "d")] * len(QUERIES)
        assert self.found(index, candidates=ids_of("a", "b")) == [ids_of("b")] * len(QUERIES)

    def test_documents_are_removed_by_filter(self) -> None:
        index = self.filled()
        assert index.remove(_NOTHING) == 0
        assert index.remove(And([_ENGLISH, _RECENT])) == 1
        assert len(index) == 3
        assert self.found(index) == [ids_of("a", "c", "d")] * len(QUERIES)

    def test_removing_nothing_changes_nothing(self) -> None:
        index = self.filled()
        before = self.state(index)
        assert index.remove([]) == 0
        assert self.state(index) == before

    def test_an_unknown_id_is_refused(self) -> None:
        index = self.filled()
        with self.refused(index, UnknownDocument):
            index.remove(ids_of("a", "nobody"))
        with self.refused(index, UnknownDocument):
            index.remove(ids_of("nobody", "a"))
        index.remove(ids_of("a"))
        with self.refused(index, UnknownDocument):
            index.remove(ids_of("a"))

    def test_a_removed_document_can_come_back_changed(self) -> None:
        index = self.filled()
        index.remove(ids_of("a"))
        assert index.add([document_of("a")], self.given(packed([[[4, 0]]], 2))) == AddReport(added=ids_of("a"))
        self.assert_best(index, "a", 4.0)
        assert "a" not in self.found(index, where=_ENGLISH)[0]

    def test_an_index_can_be_emptied_and_filled_again(self) -> None:
        index = self.filled()
        assert index.remove(Not([_NOTHING])) == 4
        assert len(index) == 0
        assert self.found(index) == [[]] * len(QUERIES)
        index.add(DOCUMENTS, self.given(_EMBEDDINGS))
        assert self.state(index) == self.state(self.filled())

    def test_an_empty_index_finds_nothing(self) -> None:
        index = self.make_index()
        assert len(index) == 0
        assert self.found(index) == [[]] * len(QUERIES)
        assert self.found(index, where=_ENGLISH, candidates=ids_of("a")) == [[]] * len(QUERIES)

    def test_no_queries_give_no_rankings(self) -> None:
        for index in (self.make_index(), self.filled()):
            assert index.search(self.given(packed([], 2)), 3) == []

    def test_a_cutoff_below_one_is_refused(self) -> None:
        for index in (self.make_index(), self.filled()):
            for k in (0, -1):
                with self.refused(index, InvalidRanking):
                    index.search(self.given(QUERIES), k)

    def test_queries_that_cannot_be_compared_are_refused(self) -> None:
        index = self.filled()
        for broken in (packed([[[1, 0, 0]]], 3), packed([[[1, 0]], [[np.nan, 0]]], 2), packed([[[np.inf, 0]]], 2)):
            with self.refused(index, InvalidEmbeddings):
                index.search(self.given(broken), 3)

    def test_no_more_than_k_documents_are_found(self) -> None:
        index = self.filled()
        for k in range(1, 6):
            assert all(len(ranking) <= k for ranking in index.search(self.given(QUERIES), k))

    def test_only_documents_that_match_the_filter_are_found(self) -> None:
        index = self.filled()
        assert self.found(index, where=_ENGLISH) == [ids_of("a", "b")] * len(QUERIES)
        assert self.found(index, where=And([_ENGLISH, Not([_RECENT])])) == [ids_of("a")] * len(QUERIES)
        assert self.found(index, where=Not([_RECENT])) == [ids_of("a", "d")] * len(QUERIES)
        assert self.found(index, where=_NOTHING) == [[]] * len(QUERIES)

    def test_a_filter_does_not_use_up_the_cutoff(self) -> None:
        rankings = self.filled().search(self.given(QUERIES), 2, where=_ENGLISH)
        assert [sorted(ranking.documents) for ranking in rankings] == [ids_of("a", "b")] * len(QUERIES)

    def test_only_candidates_are_found(self) -> None:
        index = self.filled()
        assert self.found(index, candidates=ids_of("d", "a")) == [ids_of("a", "d")] * len(QUERIES)
        rankings = index.search(self.given(QUERIES), 1, candidates=ids_of("c"))
        assert [ranking.documents for ranking in rankings] == [("c",)] * len(QUERIES)

    def test_no_candidates_give_no_hits(self) -> None:
        assert self.found(self.filled(), candidates=[]) == [[]] * len(QUERIES)

    def test_unknown_candidates_are_passed_over(self) -> None:
        index = self.filled()
        assert self.found(index, candidates=ids_of("nobody", "b")) == [ids_of("b")] * len(QUERIES)
        assert self.found(index, candidates=ids_of("nobody")) == [[]] * len(QUERIES)

    def test_a_candidate_given_twice_counts_once(self) -> None:
        assert self.found(self.filled(), candidates=ids_of("b", "b", "a")) == [ids_of("a", "b")] * len(QUERIES)

    def test_candidates_must_match_the_filter_too(self) -> None:
        index = self.filled()
        assert self.found(index, where=_ENGLISH, candidates=ids_of("b", "c")) == [ids_of("b")] * len(QUERIES)
        assert self.found(index, where=_ENGLISH, candidates=ids_of("c")) == [[]] * len(QUERIES)

    @holds_for(
        st.lists(strategies.documents(), min_size=1, max_size=4, unique_by=lambda document: document.id),
        strategies.filters(),
    )
    def test_any_filter_means_what_the_domain_says(self, documents: list[Document], where: Filter) -> None:
        meant = sorted(document.id for document in documents if matches(where, document.metadata))
        index = self.filled(documents, packed([[[1, 0]]] * len(documents), 2))
        assert self.found(index, where=where) == [meant] * len(QUERIES)

    @holds_for(corpora_with_queries)
    def test_k_documents_are_a_prefix_of_k_plus_one(self, drawn: Any) -> None:
        (documents, embeddings), queries = drawn
        index, asked = self.filled(documents, embeddings), self.given(queries)
        longer = index.search(asked, len(documents) + 1)
        for k in range(len(documents), 0, -1):
            shorter, longer = longer, index.search(asked, k)
            assert [ranking.truncate(k) for ranking in shorter] == longer
