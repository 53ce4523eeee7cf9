"""MaxSim: the formula, its edges, its ties, its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.testing import strategies as lis

Floats = NDArray[np.floating]
Embeddings = TokenEmbeddings[Floats]
Differences = Callable[[Callable[[Floats], float], Floats], Floats]
seeds = st.integers(0, 2**32 - 1)


def pack(*items: list[list[float]], width: int = 2, dtype: type = np.float32) -> Embeddings:
    """Items written out as lists of tokens."""
    tokens = np.array([token for item in items for token in item], dtype).reshape(-1, width)
    return TokenEmbeddings(tokens, offsets_of([len(item) for item in items]))


def ragged(generator: np.random.Generator, lengths: list[int], width: int) -> Embeddings:
    return TokenEmbeddings(generator.standard_normal((sum(lengths), width)), offsets_of(lengths))


def narrowest_lead(queries: Embeddings, documents: Embeddings) -> float:
    """By how much the closest contest between two tokens of one document was won."""
    leads = [math.inf]
    for document in documents:
        if len(document) > 1:
            ordered = np.sort(queries.tokens @ document.T, axis=1)
            leads.extend(ordered[:, -1] - ordered[:, -2])
    return float(min(leads))


# A pair of batches whose winners do not change under a small step: MaxSim is differentiable there.
lengths = st.lists(st.integers(0, 3), min_size=1, max_size=3)
smooth = st.builds(
    lambda seed, left, right, width: (
        ragged(np.random.default_rng(seed), left, width),
        ragged(np.random.default_rng(seed + 1), right, width),
    ),
    seeds,
    lengths,
    lengths,
    st.integers(1, 4),
).filter(lambda pair: narrowest_lead(*pair) > 1e-3)


# The formula


def test_scores_worked_out_by_hand() -> None:
    queries = pack([[1, 0], [0, 1]], [[-1, 2]])
    documents = pack([[0.5, 0.25]], [[1, 0], [-1, 0.5]], [[-1, -1]])
    # query 0: ½ + ¼;  max(1, −1) + max(0, ½);  −1 − 1.  query 1: −½ + ½;  max(−1, 1 + 1);  1 − 2.
    np.testing.assert_array_equal(reference.maxsim_all_pairs(queries, documents), [[0.75, 1.5, -2.0], [0.0, 2.0, -1.0]])


@given(lis.query_document_embeddings())
def test_a_score_is_the_sum_over_query_tokens_of_the_best_similarity(pair: tuple[Embeddings, Embeddings]) -> None:
    queries, documents = pair
    scores = reference.maxsim_all_pairs(queries, documents)
    assert scores.shape == (len(queries), len(documents))
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            best = [
                max((math.fsum(map(float, s * t)) for t in document.astype(float)), default=-math.inf)
                for s in query.astype(float)
            ]
            expected = -math.inf if -math.inf in best else math.fsum(best)
            assert scores[i, j] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(lis.query_document_embeddings(values="repeated"))
def test_scores_of_dyadic_tokens_are_exact(pair: tuple[Embeddings, Embeddings]) -> None:
    queries, documents = pair
    scores = reference.maxsim_all_pairs(queries, documents)
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            exact = (query @ document.T).max(axis=1, initial=-np.inf).sum()  # float32: exact for multiples of 1/8
            assert scores[i, j] == exact


def test_an_empty_query_scores_0_with_everything_and_an_empty_document_otherwise_minus_infinity() -> None:
    scores = reference.maxsim_all_pairs(pack([], [[1, 0]]), pack([], [[-1, 0]]))
    np.testing.assert_array_equal(scores, [[0.0, 0.0], [-np.inf, -1.0]])


def test_no_queries_and_no_documents_make_empty_matrices() -> None:
    some = pack([[1, 0]], [[0, 1]])
    assert reference.maxsim_all_pairs(pack(), some).shape == (0, 2)
    assert reference.maxsim_all_pairs(some, pack()).shape == (2, 0)


@given(lis.query_document_embeddings(values="opposed"))
def test_negative_scores_stay_negative(pair: tuple[Embeddings, Embeddings]) -> None:
    queries, documents = pair
    assert np.all(reference.maxsim_all_pairs(queries, documents)[queries.lengths > 0] < 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sums_are_taken_in_float64_whatever_comes_in(dtype: type) -> None:
    """2²⁴ + 1 is no float32: the first query token's similarity would lose its 1, in whatever order it is summed."""
    queries = pack([[2.0**12, 1.0], [-(2.0**12), 0.0]], dtype=dtype)
    scores = reference.maxsim_all_pairs(queries, pack([[2.0**12, 1.0]], dtype=dtype))
    np.testing.assert_array_equal(scores, [[1.0]])
    assert scores.dtype == np.float32


def test_results_are_float32_unless_float64_came_in() -> None:
    single, double = pack([[1, 0]]), pack([[1, 0]], dtype=np.float64)
    assert reference.maxsim_all_pairs(single, single).dtype == np.float32
    for left, right in ((single, double), (double, single)):
        assert reference.maxsim_all_pairs(left, right).dtype == np.float64
        assert reference.maxsim_pairs(left, right, [0], [0]).dtype == np.float64
        assert {grad.dtype for grad in reference.maxsim_all_pairs_gradients(left, right, np.ones((1, 1)))} == {
            np.dtype(np.float64)
        }


# The laws


@given(lis.query_document_embeddings(), st.data())
def test_a_score_does_not_depend_on_its_neighbours(pair: tuple[Embeddings, Embeddings], data: st.DataObject) -> None:
    queries, documents = pair
    assume(len(queries) and len(documents))
    i = data.draw(st.integers(0, len(queries) - 1))
    j = data.draw(st.integers(0, len(documents) - 1))
    alone = reference.maxsim_all_pairs(queries.span(i, i + 1), documents.span(j, j + 1))
    np.testing.assert_array_equal(alone, reference.maxsim_all_pairs(queries, documents)[i : i + 1, j : j + 1])


@given(lis.query_document_embeddings(documents=(1, 1)), st.data())
def test_an_added_document_token_never_lowers_a_score(pair: tuple[Embeddings, Embeddings], data: st.DataObject) -> None:
    queries, documents = pair
    added = data.draw(lis.tokens(1, documents.dimension))
    longer = TokenEmbeddings(np.concatenate([documents.tokens, added]), offsets_of(documents.lengths + 1))
    assert np.all(reference.maxsim_all_pairs(queries, longer) >= reference.maxsim_all_pairs(queries, documents))


@given(lis.query_document_embeddings(documents=(1, 1)))
def test_a_repeated_document_changes_neither_scores_nor_winners(pair: tuple[Embeddings, Embeddings]) -> None:
    queries, documents = pair
    twice = TokenEmbeddings(np.concatenate([documents.tokens, documents.tokens]), offsets_of(2 * documents.lengths))
    np.testing.assert_array_equal(
        reference.maxsim_all_pairs(queries, twice), reference.maxsim_all_pairs(queries, documents)
    )
    np.testing.assert_array_equal(
        reference.maxsim_winners(queries, twice), reference.maxsim_winners(queries, documents)
    )


@pytest.mark.parametrize("width", [3, 16, 33, 96])
@pytest.mark.parametrize("length", [1, 5, 17])
def test_equal_tokens_tie_to_the_last_bit_wherever_they_stand(width: int, length: int) -> None:
    """In float64, where nothing is rounded away afterwards; a matrix product does not keep this."""
    generator = np.random.default_rng(width)
    queries, tokens = ragged(generator, [7], width), generator.standard_normal((length, width))
    twice = TokenEmbeddings(np.concatenate([tokens, tokens[:1], tokens]), offsets_of([2 * length + 1]))
    once = TokenEmbeddings(tokens, offsets_of([length]))
    np.testing.assert_array_equal(reference.maxsim_winners(queries, twice), reference.maxsim_winners(queries, once))
    np.testing.assert_array_equal(reference.maxsim_all_pairs(queries, twice), reference.maxsim_all_pairs(queries, once))
    alone = [reference.maxsim_all_pairs(queries, TokenEmbeddings(token[None], [0, 1]))[0, 0] for token in tokens]
    apart = TokenEmbeddings(tokens, np.arange(length + 1))
    np.testing.assert_array_equal(reference.maxsim_all_pairs(queries, apart)[0], alone)


# Pairs and groups


@given(lis.query_document_embeddings(queries=(1, 4), documents=(1, 6)), st.data())
def test_pairs_are_entries_of_the_matrix(pair: tuple[Embeddings, Embeddings], data: st.DataObject) -> None:
    queries, documents = pair
    rows = st.tuples(st.integers(0, len(queries) - 1), st.integers(0, len(documents) - 1))
    listed = np.array(data.draw(st.lists(rows, max_size=8)), np.int64).reshape(-1, 2)
    scores = reference.maxsim_pairs(queries, documents, listed[:, 0], listed[:, 1])
    np.testing.assert_array_equal(scores, reference.maxsim_all_pairs(queries, documents)[listed[:, 0], listed[:, 1]])


@given(lis.grouped_embeddings())
def test_groups_are_blocks_of_the_matrix(batch: tuple[Embeddings, Embeddings, NDArray[np.int64]]) -> None:
    queries, documents, groups = batch
    matrix = reference.maxsim_all_pairs(queries, documents)
    blocks = [matrix[i, groups[i] : groups[i + 1]] for i in range(len(queries))]
    expected = np.concatenate([np.empty(0, np.float32), *blocks])
    np.testing.assert_array_equal(reference.maxsim_grouped(queries, documents, groups), expected)


# Keep-masks


@given(lis.token_embeddings().flatmap(lambda items: st.tuples(st.just(items), lis.keep_masks(items))))
def test_keep_drops_the_masked_tokens_of_each_item_wherever_they_stand(case: tuple[Embeddings, NDArray]) -> None:
    embeddings, mask = case
    kept = reference.keep(embeddings, mask)
    assert len(kept) == len(embeddings)
    for item in range(len(embeddings)):
        own = mask[embeddings.offsets[item] : embeddings.offsets[item + 1]]
        np.testing.assert_array_equal(kept[item], embeddings[item][own])


def test_a_masked_token_is_absent_and_not_zero() -> None:
    document = pack([[-1, 0], [1, 0], [-0.5, 0]])
    kept = reference.keep(document, np.array([True, False, True]))
    np.testing.assert_array_equal(reference.maxsim_all_pairs(pack([[1, 0]]), kept), [[-0.5]])


def test_a_document_whose_tokens_are_all_masked_scores_minus_infinity() -> None:
    kept = reference.keep(pack([[1, 0]], [[1, 0]]), np.array([False, True]))
    np.testing.assert_array_equal(reference.maxsim_all_pairs(pack([[1, 0]]), kept), [[-np.inf, 1.0]])


# Winners


def test_winners_are_counted_within_their_document_and_ties_go_to_the_first() -> None:
    documents = pack([[0, 1], [1, 0], [1, 0]], [], [[1, 0], [1, 0]])
    np.testing.assert_array_equal(
        reference.maxsim_winners(pack([[1, 0]], [[0, 1]]), documents), [[1, -1, 0], [0, -1, 0]]
    )


@given(lis.query_document_embeddings())
def test_the_winner_is_the_first_token_that_no_other_beats(pair: tuple[Embeddings, Embeddings]) -> None:
    queries, documents = pair
    winners = reference.maxsim_winners(queries, documents)
    assert winners.shape == (len(queries.tokens), len(documents))
    for j, document in enumerate(documents):
        for token, winner in zip(queries.tokens.astype(float), winners[:, j], strict=True):
            if not len(document):
                assert winner == -1
                continue
            found = [float(np.sum(token * other)) for other in document.astype(float)]
            assert found[winner] >= max(found) - 1e-12
            assert all(other < found[winner] + 1e-12 for other in found[:winner])
            assert not any(np.array_equal(document[winner], other) for other in document[:winner])


# Gradients


@given(smooth, seeds)
def test_gradients_are_the_slopes_of_the_scores(
    central_differences: Differences, pair: tuple[Embeddings, Embeddings], seed: int
) -> None:
    queries, documents = pair
    upstream = np.random.default_rng(seed).standard_normal((len(queries), len(documents)))
    counted = np.where(documents.lengths > 0, upstream, 0.0)

    def objective(query_tokens: Floats, document_tokens: Floats) -> float:
        scores = reference.maxsim_all_pairs(
            TokenEmbeddings(query_tokens, queries.offsets), TokenEmbeddings(document_tokens, documents.offsets)
        )
        return float(np.sum(counted * np.where(np.isfinite(scores), scores, 0.0)))

    grad_queries, grad_documents = reference.maxsim_all_pairs_gradients(queries, documents, upstream)
    slopes = central_differences(lambda tokens: objective(tokens, documents.tokens), queries.tokens)
    np.testing.assert_allclose(grad_queries, slopes, atol=1e-8)
    slopes = central_differences(lambda tokens: objective(queries.tokens, tokens), documents.tokens)
    np.testing.assert_allclose(grad_documents, slopes, atol=1e-8)


@given(lis.query_document_embeddings(values="repeated"), seeds)
def test_the_whole_gradient_of_a_tie_goes_to_its_first_token(pair: tuple[Embeddings, Embeddings], seed: int) -> None:
    queries, documents = pair
    upstream = np.random.default_rng(seed).integers(-8, 8, (len(queries), len(documents))) / 8
    expected_queries, expected_documents = np.zeros(queries.tokens.shape), np.zeros(documents.tokens.shape)
    for i in range(len(queries)):
        for s in range(queries.offsets[i], queries.offsets[i + 1]):
            for j, document in enumerate(documents):
                found = [float(queries.tokens[s] @ token) for token in document]
                if found:
                    t = documents.offsets[j] + found.index(max(found))
                    expected_queries[s] += upstream[i, j] * documents.tokens[t]
                    expected_documents[t] += upstream[i, j] * queries.tokens[s]
    grad_queries, grad_documents = reference.maxsim_all_pairs_gradients(queries, documents, upstream)
    np.testing.assert_array_equal(grad_queries, expected_queries)
    np.testing.assert_array_equal(grad_documents, expected_documents)


def test_the_upstream_of_an_empty_document_is_not_read() -> None:
    queries, documents = pack([[1, 2]]), pack([], [[3, 4]])
    grad_queries, grad_documents = reference.maxsim_all_pairs_gradients(queries, documents, np.array([[np.nan, 2.0]]))
    np.testing.assert_array_equal(grad_queries, [[6, 8]])
    np.testing.assert_array_equal(grad_documents, [[2, 4]])


@given(lis.grouped_embeddings(values="dyadic"), seeds)
def test_gradients_of_groups_are_those_of_the_matrix_with_the_other_entries_0(
    batch: tuple[Embeddings, Embeddings, NDArray[np.int64]], seed: int
) -> None:
    queries, documents, groups = batch
    upstream = np.random.default_rng(seed).integers(-8, 8, len(documents)) / 8
    spread = np.zeros((len(queries), len(documents)))
    for i in range(len(queries)):
        spread[i, groups[i] : groups[i + 1]] = upstream[groups[i] : groups[i + 1]]
    for grouped, full in zip(
        reference.maxsim_grouped_gradients(queries, documents, groups, upstream),
        reference.maxsim_all_pairs_gradients(queries, documents, spread),
        strict=True,
    ):
        np.testing.assert_array_equal(grouped, full)


@given(lis.query_document_embeddings(), seeds)
def test_tokens_times_their_gradients_sum_to_the_weighted_scores(
    pair: tuple[Embeddings, Embeddings], seed: int
) -> None:
    """Euler's identity: MaxSim is linear along each side's own direction, ties or not."""
    queries, documents = pair
    upstream = np.random.default_rng(seed).standard_normal((len(queries), len(documents)))
    scores = reference.maxsim_all_pairs(queries, documents)
    expected = np.sum(upstream * np.where(np.isfinite(scores), scores, 0.0))
    grad_queries, grad_documents = reference.maxsim_all_pairs_gradients(queries, documents, upstream)
    assert np.sum(queries.tokens * grad_queries) == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert np.sum(documents.tokens * grad_documents) == pytest.approx(expected, rel=1e-4, abs=1e-3)


# What does not fit

narrow, wide, two = pack([[1]], width=1), pack([[1, 0]]), pack([[1, 0]], [[0, 1]])
misfits = {
    "widths": lambda: reference.maxsim_all_pairs(narrow, wide),
    "widths of pairs": lambda: reference.maxsim_pairs(narrow, wide, [0], [0]),
    "widths of groups": lambda: reference.maxsim_grouped(narrow, wide, np.array([0, 1])),
    "widths of winners": lambda: reference.maxsim_winners(narrow, wide),
    "a row that is not there": lambda: reference.maxsim_pairs(two, two, [0, 2], [0, 0]),
    "a negative row": lambda: reference.maxsim_pairs(two, two, [0], [-1]),
    "rows that are no numbers": lambda: reference.maxsim_pairs(two, two, [0.5], [0]),
    "rows in two dimensions": lambda: reference.maxsim_pairs(two, two, [[0]], [[0]]),
    "more rows of one kind": lambda: reference.maxsim_pairs(two, two, [0, 1], [0]),
    "groups that end early": lambda: reference.maxsim_grouped(two, two, np.array([0, 1, 1])),
    "too few groups": lambda: reference.maxsim_grouped(two, two, np.array([0, 2])),
    "upstream of another shape": lambda: reference.maxsim_all_pairs_gradients(two, wide, np.ones((1, 2))),
    "grouped upstream": lambda: reference.maxsim_grouped_gradients(two, two, np.array([0, 1, 2]), np.ones((2, 2))),
    "a mask of numbers": lambda: reference.keep(two, np.array([1, 0])),
    "a short mask": lambda: reference.keep(two, np.array([True])),
}


@pytest.mark.parametrize("what", misfits)
def test_what_does_not_fit_is_refused(what: str) -> None:
    with pytest.raises(InvalidEmbeddings):
        misfits[what]()
