"""XTR: ranking by retrieved tokens, and the in-batch score that trains for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.domain import reference
from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidRanking
from lateinteraction.domain.text import DocumentId
from lateinteraction.testing import strategies as lis

Floats = NDArray[np.floating]
Embeddings = TokenEmbeddings[Floats]
Differences = Callable[[Callable[[Floats], float], Floats], Floats]
seeds = st.integers(0, 2**32 - 1)


def pack(*items: list[list[float]], width: int = 2) -> Embeddings:
    tokens = np.array([token for item in items for token in item], np.float32).reshape(-1, width)
    return TokenEmbeddings(tokens, offsets_of([len(item) for item in items]))


def name(document: int) -> DocumentId:
    return DocumentId(f"d{document}")


def nearest(queries: Embeddings, documents: Embeddings, k: int) -> TokenHits:
    """The k most similar document tokens of every query token: what a perfect token index returns."""
    owners = np.repeat(np.arange(len(documents)), documents.lengths)
    found: list[tuple[DocumentId, float]] = []
    for token in queries.tokens.astype(float):
        similarities = documents.tokens.astype(float) @ token
        best = np.argsort(-similarities, kind="stable")[:k]
        found.extend((name(owners[row]), float(similarities[row])) for row in best)
    each = min(k, len(documents.tokens))
    offsets = offsets_of([each] * len(queries.tokens))
    return TokenHits(tuple(hit[0] for hit in found), [hit[1] for hit in found], offsets, queries.offsets)


# Retrieval


def test_rankings_worked_out_by_hand() -> None:
    hits = TokenHits(
        documents=tuple(map(name, [1, 2, 1, 2, 3, 3, 9])),
        similarities=[0.75, 0.5, 0.25, 1.0, 0.5, -0.25, 0.125],
        offsets=[0, 3, 6, 6, 7],
        query_offsets=[0, 3, 3, 4],
    )
    # Query 0: token 0 retrieved 0.75, 0.5, 0.25 (its minimum stands in), token 1 1.0, 0.5, −0.25, token 2 nothing.
    first, second, third = reference.xtr_rankings(hits)
    assert first.documents == (name(2), name(3), name(1))
    np.testing.assert_array_equal(first.scores, [0.5 + 1.0, 0.25 + 0.5, 0.75 - 0.25])
    assert len(second) == 0
    assert (third.documents, third.scores[0]) == ((name(9),), 0.125)


def test_equal_scores_are_ranked_by_id() -> None:
    hits = TokenHits((name(2), name(1)), [0.5, 0.5], [0, 2], [0, 1])
    assert reference.xtr_rankings(hits)[0].documents == (name(1), name(2))


@given(lis.query_document_embeddings(queries=(1, 3), documents=(1, 4)))
def test_with_every_token_retrieved_the_score_is_maxsim(pair: tuple[Embeddings, Embeddings]) -> None:
    queries, documents = pair
    scores = reference.maxsim_all_pairs(queries, documents)
    for i, ranking in enumerate(reference.xtr_rankings(nearest(queries, documents, len(documents.tokens)))):
        expected = {name(j) for j, document in enumerate(documents) if len(document) and len(queries[i])}
        assert set(ranking.documents) == expected
        for hit in ranking:
            assert hit.score == pytest.approx(float(scores[i, int(hit.document[1:])]), rel=1e-5, abs=1e-5)


@given(lis.query_document_embeddings(queries=(1, 3), documents=(1, 4)), st.integers(1, 6))
def test_imputation_never_ranks_a_document_below_its_maxsim(pair: tuple[Embeddings, Embeddings], k: int) -> None:
    """The stand-in is the most that a token which was not retrieved can have."""
    queries, documents = pair
    scores = reference.maxsim_all_pairs(queries, documents)
    for i, ranking in enumerate(reference.xtr_rankings(nearest(queries, documents, k))):
        for hit in ranking:
            assert hit.score >= float(scores[i, int(hit.document[1:])]) - 1e-5


@given(lis.query_document_embeddings(queries=(1, 3), documents=(1, 6)), st.integers(1, 8))
def test_the_k_best_are_the_first_of_all(pair: tuple[Embeddings, Embeddings], k: int) -> None:
    hits = nearest(*pair, 5)
    for cut, whole in zip(reference.xtr_rankings(hits, k), reference.xtr_rankings(hits), strict=True):
        assert cut == whole.truncate(k)


@given(lis.query_document_embeddings(queries=(1, 3), values="repeated"), seeds)
def test_the_order_of_a_tokens_hits_does_not_matter(pair: tuple[Embeddings, Embeddings], seed: int) -> None:
    hits = nearest(*pair, 4)
    generator = np.random.default_rng(seed)
    order = [
        row
        for first, last in zip(hits.offsets[:-1], hits.offsets[1:], strict=True)
        for row in first + generator.permutation(last - first)
    ]
    shuffled = TokenHits(
        [hits.documents[row] for row in order], hits.similarities[order], hits.offsets, hits.query_offsets
    )
    assert reference.xtr_rankings(shuffled) == reference.xtr_rankings(hits)


# In-batch scores


def test_in_batch_scores_worked_out_by_hand() -> None:
    queries = pack([[1, 0], [0, 1]])
    documents = pack([[1, 0], [0.5, 0.25]], [[0.75, 0.5]], [], [[-1, -1]])
    # Token 0 retrieves 1 and 0.75; token 1 retrieves 0.5 and 0.25.
    np.testing.assert_array_equal(
        reference.xtr_all_pairs(queries, documents, 2), [[(1 + 0.25) / 2, (0.75 + 0.5) / 2, 0, 0]]
    )
    np.testing.assert_array_equal(reference.xtr_all_pairs(queries, documents, 1), [[1.0, 0.5, 0, 0]])


def test_a_retrieved_similarity_below_0_counts_as_it_is() -> None:
    scores = reference.xtr_all_pairs(pack([[1, 0]]), pack([[-0.5, 0], [-1, 0]]), 1)
    np.testing.assert_array_equal(scores, [[-0.5]])


def test_of_equal_similarities_the_first_document_retrieves() -> None:
    same = pack([[1, 0]], [[1, 0]], [[1, 0]])
    np.testing.assert_array_equal(reference.xtr_all_pairs(pack([[1, 0]]), same, 2), [[1, 1, 0]])


@given(lis.query_document_embeddings(), st.integers(0, 3))
def test_when_all_is_retrieved_the_score_is_the_mean_instead_of_the_sum(
    pair: tuple[Embeddings, Embeddings], more: int
) -> None:
    queries, documents = pair
    scores = reference.xtr_all_pairs(queries, documents, max(len(documents.tokens) + more, 1))
    sums = reference.maxsim_all_pairs(queries, documents)
    expected = np.where(np.isfinite(sums), sums, 0.0) / np.maximum(queries.lengths, 1)[:, None]
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


@given(lis.query_document_embeddings(), st.integers(1, 6))
def test_a_score_is_the_mean_of_maxsim_over_the_tokens_that_each_query_token_retrieved(
    pair: tuple[Embeddings, Embeddings], k: int
) -> None:
    queries, documents = pair
    scores = reference.xtr_all_pairs(queries, documents, k)
    for i, query in enumerate(queries):
        contributions = np.full((len(query), len(documents)), -np.inf)
        for s, token in enumerate(query):
            similarities = np.array([np.sum(token.astype(float) * other) for other in documents.tokens.astype(float)])
            retrieved = np.zeros(len(documents.tokens), bool)
            retrieved[sorted(range(len(similarities)), key=lambda t: -similarities[t])[:k]] = True
            alone = TokenEmbeddings(token[None], offsets_of([1]))
            contributions[s] = reference.maxsim_all_pairs(alone, reference.keep(documents, retrieved))
        found = np.isfinite(contributions)
        expected = np.where(found, contributions, 0.0).sum(axis=0) / np.maximum(found.sum(axis=0), 1)
        np.testing.assert_allclose(scores[i], expected, rtol=1e-5, atol=1e-5)


@given(lis.query_document_embeddings(values="unit", documents=(1, 5)), st.integers(1, 4), seeds)
def test_documents_in_another_order_have_the_same_scores(
    pair: tuple[Embeddings, Embeddings], k: int, seed: int
) -> None:
    queries, documents = pair
    found = queries.tokens.astype(float) @ documents.tokens.astype(float).T
    assume(np.diff(np.sort(found, axis=1), axis=1).min(initial=1.0) > 1e-9)  # no ties: order is what breaks them
    order = np.random.default_rng(seed).permutation(len(documents))
    moved = TokenEmbeddings(
        np.concatenate([documents[int(j)] for j in order]), offsets_of([len(documents[int(j)]) for j in order])
    )
    np.testing.assert_array_equal(
        reference.xtr_all_pairs(queries, moved, k), reference.xtr_all_pairs(queries, documents, k)[:, order]
    )


@st.composite
def smooth(draw: st.DrawFn) -> tuple[Embeddings, Embeddings]:
    """Batches in which a small step changes neither what is retrieved nor what wins."""
    generator = np.random.default_rng(draw(seeds))
    width = draw(st.integers(1, 4))
    counts = st.lists(st.integers(0, 3), min_size=1, max_size=3)
    queries, documents = (
        TokenEmbeddings(generator.standard_normal((sum(each), width)), offsets_of(each))
        for each in (draw(counts), draw(counts))
    )
    ordered = np.sort(queries.tokens @ documents.tokens.T, axis=1)
    assume(np.diff(ordered, axis=1).min(initial=1.0) > 1e-3)
    return queries, documents


@given(smooth(), st.integers(1, 7), seeds)
def test_gradients_are_the_slopes_of_the_scores(
    central_differences: Differences, pair: tuple[Embeddings, Embeddings], k: int, seed: int
) -> None:
    queries, documents = pair
    upstream = np.random.default_rng(seed).standard_normal((len(queries), len(documents)))

    def objective(query_tokens: Floats, document_tokens: Floats) -> float:
        moved = (
            TokenEmbeddings(query_tokens, queries.offsets),
            TokenEmbeddings(document_tokens, documents.offsets),
        )
        return float(np.sum(upstream * reference.xtr_all_pairs(*moved, k)))

    grad_queries, grad_documents = reference.xtr_gradients(queries, documents, k, upstream)
    slopes = central_differences(lambda tokens: objective(tokens, documents.tokens), queries.tokens)
    np.testing.assert_allclose(grad_queries, slopes, atol=1e-8)
    slopes = central_differences(lambda tokens: objective(queries.tokens, tokens), documents.tokens)
    np.testing.assert_allclose(grad_documents, slopes, atol=1e-8)


def test_what_was_not_retrieved_has_no_gradient() -> None:
    queries, documents = pack([[1, 0]]), pack([[1, 0], [0.5, 0]], [[0.25, 0]])
    grad_queries, grad_documents = reference.xtr_gradients(queries, documents, 1, np.array([[2.0, 100.0]]))
    np.testing.assert_array_equal(grad_queries, [[2, 0]])
    np.testing.assert_array_equal(grad_documents, [[2, 0], [0, 0], [0, 0]])


def test_results_are_float32_unless_float64_came_in() -> None:
    single = pack([[1, 0]])
    double = TokenEmbeddings(single.tokens.astype(np.float64), single.offsets)
    assert reference.xtr_all_pairs(single, single, 1).dtype == np.float32
    assert reference.xtr_all_pairs(single, double, 1).dtype == np.float64


# What does not fit


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_is_a_whole_number_of_at_least_1(k: int) -> None:
    hits = TokenHits((), [], [0], [0])
    with pytest.raises(InvalidRanking):
        reference.xtr_rankings(hits, k)
    with pytest.raises(InvalidRanking):
        reference.xtr_all_pairs(pack([[1, 0]]), pack([[1, 0]]), k)


def test_widths_and_upstream_must_fit() -> None:
    with pytest.raises(InvalidEmbeddings):
        reference.xtr_all_pairs(pack([[1, 0]]), pack([[1]], width=1), 1)
    with pytest.raises(InvalidEmbeddings):
        reference.xtr_gradients(pack([[1, 0]]), pack([[1, 0]]), 1, np.ones(1))
