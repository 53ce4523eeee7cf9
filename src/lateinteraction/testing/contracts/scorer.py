"""What a `Scorer` promises: a score for each pair, whoever else is in the batch, as the reference computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from lateinteraction.domain.embeddings import A, Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.domain.ports import Scorer
from lateinteraction.domain.reference.maxsim import keep, maxsim_all_pairs, maxsim_grouped
from lateinteraction.testing import strategies
from lateinteraction.testing.contracts.checks import (
    Conversions,
    Embeddings,
    Floats,
    chosen,
    holds_for,
    is_close,
    packed,
)

_pairs = strategies.query_document_embeddings()
_exact_pairs = st.sampled_from(("dyadic", "repeated", "opposed")).flatmap(
    lambda values: strategies.query_document_embeddings(values=values, queries=(1, 3), documents=(1, 5))
)
_groups = strategies.grouped_embeddings()
_randoms = st.randoms(use_true_random=False)


class ScorerContract(Conversions[A]):
    """Every `Scorer`, whatever its interaction; `MaxSimContract` is for those of MaxSim."""

    tolerance: float = 1e-6
    """Of scores, relative above 1 and absolute below."""

    def make_scorer(self) -> Scorer[A]:
        """The scorer, ready to use."""
        raise NotImplementedError

    def matrix(self, queries: Embeddings, documents: Embeddings) -> Floats:
        """Scores (Q, N) in NumPy."""
        return self.array(self.make_scorer().matrix(self.given(queries), self.given(documents)))

    def grouped(self, queries: Embeddings, documents: Embeddings, groups: Offsets) -> Floats:
        """Scores (N,) in NumPy."""
        return self.array(self.make_scorer().grouped(self.given(queries), self.given(documents), groups))

    @holds_for(_pairs)
    def test_there_is_a_float32_score_for_each_pair(self, pair: Any) -> None:
        scores = self.matrix(*pair)
        assert scores.shape == (len(pair[0]), len(pair[1]))
        assert scores.dtype == np.float32

    @holds_for(_pairs)
    def test_a_score_does_not_depend_on_its_neighbours(self, pair: Any) -> None:
        queries, documents = pair
        together = self.matrix(queries, documents)
        for i, j in np.ndindex(together.shape):
            alone = self.matrix(queries.span(i, i + 1), documents.span(j, j + 1))
            assert is_close(alone, together[i : i + 1, j : j + 1], self.tolerance)

    @holds_for(_pairs, _randoms)
    def test_permuted_items_have_permuted_scores(self, pair: Any, random: Any) -> None:
        queries, documents = pair
        rows, columns = list(range(len(queries))), list(range(len(documents)))
        random.shuffle(rows)
        random.shuffle(columns)
        permuted = self.matrix(chosen(queries, rows), chosen(documents, columns))
        assert is_close(permuted, self.matrix(queries, documents)[rows][:, columns], self.tolerance)

    @holds_for(_groups)
    def test_grouped_scores_are_blocks_of_the_matrix(self, drawn: Any) -> None:
        queries, documents, groups = drawn
        owners = np.repeat(np.arange(len(queries)), np.diff(groups))
        expected = self.matrix(queries, documents)[owners, np.arange(len(documents))]
        found = self.grouped(queries, documents, groups)
        assert found.dtype == np.float32
        assert is_close(found, expected, self.tolerance)

    @holds_for(_pairs)
    def test_an_empty_query_scores_zero_and_an_empty_document_minus_infinity(self, pair: Any) -> None:
        scores = self.matrix(*pair)
        empty_queries, empty_documents = (embeddings.lengths == 0 for embeddings in pair)
        assert np.all(scores[empty_queries] == 0)
        assert np.all(scores[~empty_queries][:, empty_documents] == -np.inf)
        assert np.all(np.isfinite(scores[~empty_queries][:, ~empty_documents]))

    def test_different_widths_are_refused(self) -> None:
        queries, documents = packed([[[1, 0]]], 2), packed([[[1, 0, 0]]], 3)
        with pytest.raises(InvalidEmbeddings):
            self.matrix(queries, documents)
        with pytest.raises(InvalidEmbeddings):
            self.grouped(queries, documents, offsets_of([1]))

    def test_groups_that_do_not_fit_are_refused(self) -> None:
        queries, documents = packed([[[1, 0]], [[0, 1]]], 2), packed([[[1, 0]], [[0, 1]], []], 2)
        for lengths in ([3], [1, 1], [1, 1, 1], [2, 2], []):
            with pytest.raises(InvalidEmbeddings):
                self.grouped(queries, documents, offsets_of(lengths))


class MaxSimContract(ScorerContract[A]):
    """A `Scorer` of MaxSim."""

    @holds_for(_pairs)
    def test_scores_are_those_of_the_reference(self, pair: Any) -> None:
        assert is_close(self.matrix(*pair), maxsim_all_pairs(*pair), self.tolerance)

    @holds_for(_exact_pairs)
    def test_scores_of_exact_values_are_exact(self, pair: Any) -> None:
        assert np.array_equal(self.matrix(*pair), maxsim_all_pairs(*pair))

    @holds_for(_groups)
    def test_grouped_scores_are_those_of_the_reference(self, drawn: Any) -> None:
        assert is_close(self.grouped(*drawn), maxsim_grouped(*drawn), self.tolerance)

    @holds_for(_pairs, st.data())
    def test_any_tokens_may_be_left_out(self, pair: Any, data: Any) -> None:
        queries, documents = pair
        kept = keep(documents, data.draw(strategies.keep_masks(documents)))
        assert is_close(self.matrix(queries, kept), maxsim_all_pairs(queries, kept), self.tolerance)

    @holds_for(_pairs, _randoms)
    def test_the_order_of_tokens_does_not_matter(self, pair: Any, random: Any) -> None:
        queries, documents = pair
        shuffled = (_with_shuffled_tokens(embeddings, random) for embeddings in pair)
        assert is_close(self.matrix(*shuffled), self.matrix(queries, documents), self.tolerance)

    @holds_for(_exact_pairs, st.integers(0))
    def test_a_token_given_twice_changes_nothing(self, pair: Any, which: int) -> None:
        queries, documents = pair
        assume(len(documents.tokens) > 0)
        token = which % len(documents.tokens)
        item = int(np.searchsorted(documents.offsets, token, side="right")) - 1
        doubled = _with_token(documents, item, documents.tokens[token])
        assert np.array_equal(self.matrix(queries, doubled), self.matrix(queries, documents))

    @holds_for(_exact_pairs, st.integers(0), st.integers(-16, 16))
    def test_another_token_never_lowers_a_score(self, pair: Any, which: int, eighths: int) -> None:
        queries, documents = pair
        item = which % len(documents)
        token = np.full(documents.dimension, eighths / 8, dtype=np.float32)
        before, after = self.matrix(queries, documents), self.matrix(queries, _with_token(documents, item, token))
        assert np.all(after >= before)
        assert np.array_equal(np.delete(after, item, axis=1), np.delete(before, item, axis=1))

    def test_negative_similarities_are_not_lost(self) -> None:
        queries = packed([[[1, 0], [0.5, 0]]], 2)
        documents = packed([[[-1, 0]], [[-2, 0], [-3, 0], [-4, 0]]], 2)
        assert np.array_equal(self.matrix(queries, documents), [[-1.5, -3.0]])
        assert np.array_equal(self.grouped(queries, documents, offsets_of([2])), [-1.5, -3.0])


def _with_token(embeddings: Embeddings, item: int, token: Floats) -> Embeddings:
    """The item with one more token, at its end."""
    tokens = np.insert(embeddings.tokens, int(embeddings.offsets[item + 1]), token, axis=0)
    lengths = embeddings.lengths
    lengths[item] += 1
    return TokenEmbeddings(tokens, offsets_of(lengths))


def _with_shuffled_tokens(embeddings: Embeddings, random: Any) -> Embeddings:
    rows: list[int] = []
    for first, last in zip(embeddings.offsets[:-1], embeddings.offsets[1:], strict=True):
        own = list(range(first, last))
        random.shuffle(own)
        rows += own
    return TokenEmbeddings(embeddings.tokens[np.array(rows, dtype=np.int64)], embeddings.offsets)
