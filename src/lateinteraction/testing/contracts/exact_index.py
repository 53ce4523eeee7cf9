"""What an exact `Index` promises besides: the rankings of MaxSim, however its documents came and went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from lateinteraction.domain.embeddings import A
from lateinteraction.domain.ranking import Ranking, merge
from lateinteraction.domain.reference.maxsim import maxsim_all_pairs
from lateinteraction.domain.text import Document
from lateinteraction.testing import strategies
from lateinteraction.testing.contracts.checks import Embeddings, chosen, holds_for, is_close, packed
from lateinteraction.testing.contracts.history import IndexHistory
from lateinteraction.testing.contracts.index import (
    ALL,
    DOCUMENTS,
    QUERIES,
    IndexContract,
    corpora_with_queries,
    document_of,
    ids_of,
)

_exact_corpora_with_queries = st.tuples(
    strategies.corpora(values="dyadic") | strategies.corpora(values="repeated"),
    strategies.token_embeddings(dimension=3, items=(0, 3), each=(0, 3), values="dyadic"),
)


class ExactIndexContract(IndexContract[A]):
    """An `Index` whose rankings are those of MaxSim over what was added, to the tolerance of its precision."""

    tolerance: float = 1e-5
    """Of scores, relative above 1 and absolute below. Where all values are multiples of 1/8 rankings must be equal."""

    @holds_for(corpora_with_queries, st.integers(1, 7))
    def test_rankings_are_those_of_the_reference(self, drawn: Any, k: int) -> None:
        (documents, embeddings), queries = drawn
        found = self.filled(documents, embeddings).search(self.given(queries), k)
        for row, (ranking, expected) in enumerate(
            zip(found, _exact_rankings(documents, embeddings, queries, k), strict=True)
        ):
            alone = dict(
                zip([document.id for document in documents], maxsim_all_pairs(queries, embeddings)[row], strict=True)
            )
            scores = np.array([alone[document] for document in ranking.documents], dtype=np.float32)
            assert is_close(ranking.scores, scores, self.tolerance), "a score is not that of its document"
            assert is_close(ranking.scores, expected.scores, self.tolerance), "a better document was left out"

    @holds_for(
        strategies.corpora(values="repeated"),
        strategies.token_embeddings(dimension=3, items=(0, 3), values="dyadic"),
        st.integers(1, 7),
    )
    def test_equal_scores_are_ordered_by_id(self, corpus: Any, queries: Embeddings, k: int) -> None:
        documents, embeddings = corpus
        found = self.filled(documents, embeddings).search(self.given(queries), k)
        assert found == _exact_rankings(documents, embeddings, queries, k)

    def test_a_cutoff_beyond_the_size_finds_everything(self) -> None:
        assert self.found(self.filled()) == [ids_of("a", "b", "c", "d")] * len(QUERIES)

    def test_an_empty_document_scores_minus_infinity(self) -> None:
        index = self.filled()
        for ranking in index.search(self.given(QUERIES), ALL):
            assert ranking.documents[-1] == "d"
            assert ranking.scores[-1] == -np.inf
        assert self.found(index, candidates=ids_of("d")) == [ids_of("d")] * len(QUERIES)

    def test_an_empty_document_can_be_fetched_and_removed(self) -> None:
        index = self.filled()
        store = self.document_store(index)
        assert store is None or store.get(ids_of("d")) == [DOCUMENTS[3]]
        assert index.remove(ids_of("d")) == 1
        assert len(index) == 3

    def test_an_empty_query_scores_zero_everywhere(self) -> None:
        (ranking,) = self.filled().search(self.given(packed([[]], 2)), ALL)
        assert ranking == Ranking(ids_of("a", "b", "c", "d"), np.zeros(4))

    def test_negative_similarities_are_not_lost(self) -> None:
        index = self.filled([document_of("far"), document_of("farther")], packed([[[-1, 0], [-2, 0]], [[-2, 0]]], 2))
        (ranking,) = index.search(self.given(packed([[[1, 0], [0.5, 0]]], 2)), 2)
        assert ranking == Ranking(ids_of("far", "farther"), [-1.5, -3.0])

    @holds_for(strategies.corpora(values="dyadic"), st.randoms(use_true_random=False))
    def test_the_order_of_addition_does_not_matter(self, corpus: Any, random: Any) -> None:
        documents, embeddings = corpus
        order = list(range(len(documents)))
        random.shuffle(order)
        shuffled = self.filled([documents[i] for i in order], chosen(embeddings, order))
        queries = self.given(packed([[[1, 0, 0]], [[0, 1, 0], [0, 0, -1]]], 3))
        assert shuffled.search(queries, 4) == self.filled(documents, embeddings).search(queries, 4)

    @holds_for(_exact_corpora_with_queries, st.integers(0, 6), st.integers(1, 7))
    def test_a_split_corpus_merged_is_the_whole_corpus(self, drawn: Any, cut: int, k: int) -> None:
        (documents, embeddings), queries = drawn
        cut = min(cut, len(documents))
        asked = self.given(queries)
        left = self.filled(documents[:cut], embeddings.span(0, cut)).search(asked, k)
        right = self.filled(documents[cut:], embeddings.span(cut, len(documents))).search(asked, k)
        whole = self.filled(documents, embeddings)
        assert [merge(parts, k) for parts in zip(left, right, strict=True)] == whole.search(asked, k)

    @holds_for(_exact_corpora_with_queries)
    def test_many_additions_are_one_addition(self, drawn: Any) -> None:
        (documents, embeddings), queries = drawn
        index = self.make_index()
        for row, document in enumerate(documents):
            index.add([document], self.given(embeddings.span(row, row + 1)))
        asked = self.given(queries)
        whole = self.filled(documents, embeddings)
        assert index.search(asked, ALL) == whole.search(asked, ALL)

    @holds_for(corpora_with_queries)
    def test_a_score_does_not_depend_on_its_neighbours(self, drawn: Any) -> None:
        (documents, embeddings), queries = drawn
        index = self.filled(documents, embeddings)
        for row, ranking in enumerate(index.search(self.given(queries), ALL)):
            alone = self.given(queries.span(row, row + 1))
            for hit in ranking:
                (narrow,) = index.search(alone, 1, candidates=[hit.document])
                assert is_close(narrow.scores, np.array([hit.score], np.float32), self.tolerance)

    def test_any_history_is_that_of_a_dictionary(self) -> None:
        def history() -> IndexHistory:
            return IndexHistory(self.make_index(), self.given, self.document_store)

        # It takes any function that makes a machine, and is annotated as if it took classes only.
        run_state_machine_as_test(cast("Any", history), settings=settings(deadline=None, stateful_step_count=30))


def _exact_rankings(
    documents: Sequence[Document], embeddings: Embeddings, queries: Embeddings, k: int
) -> list[Ranking]:
    """What the reference MaxSim ranks."""
    ids = [document.id for document in documents]
    return [Ranking.from_scores(ids, scores, k) for scores in maxsim_all_pairs(queries, embeddings)]
