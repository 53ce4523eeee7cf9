"""Hierarchical token pooling: Ward's linkage, how many clusters, which, and in what order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.testing import strategies as lis

Floats = NDArray[np.floating]
Embeddings = TokenEmbeddings[Floats]
seeds = st.integers(0, 2**32 - 1)
factors = st.sampled_from([1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 100.0])
unit_batches = lis.token_embeddings(values="unit", each=(0, 12))


def directions(count: int, width: int, seed: int) -> Floats:
    drawn = np.random.default_rng(seed).standard_normal((count, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def single(tokens: Floats) -> Embeddings:
    return TokenEmbeddings(tokens, offsets_of([len(tokens)]))


def scipy_linkage(tokens: Floats) -> Floats:
    return linkage((1.0 - tokens @ tokens.T)[np.triu_indices(len(tokens), 1)], "ward")


# Ward's linkage


def test_merges_worked_out_by_hand() -> None:
    distances = np.array([[0, 1, 4], [1, 0, 3], [4, 3, 0]], dtype=float)
    first, second = reference.ward(distances)
    assert first == reference.Merge(0, 1, 1.0)
    # d² = ((1 + 1) 16 + (1 + 1) 9 − 1) / 3
    assert (second.left, second.right) == (2, 3)
    assert second.height == pytest.approx((49 / 3) ** 0.5)


@given(st.integers(2, 14), st.integers(2, 8), seeds)
def test_merges_are_scipys(count: int, width: int, seed: int) -> None:
    tokens = directions(count, width, seed)
    expected = scipy_linkage(tokens)
    assume(np.diff(expected[:, 2]).min(initial=1.0) > 1e-9)  # SciPy breaks ties in another way
    merges = reference.ward(1.0 - tokens @ tokens.T)
    assert [(merge.left, merge.right) for merge in merges] == [(int(a), int(b)) for a, b in expected[:, :2]]
    np.testing.assert_allclose([merge.height for merge in merges], expected[:, 2], rtol=1e-7, atol=1e-7)


@given(lis.token_embeddings(items=(1, 1), each=(0, 9)))
def test_heights_never_fall_and_every_node_is_merged_once(embeddings: Embeddings) -> None:
    tokens = embeddings.tokens.astype(float)
    merges = reference.ward(np.abs(1.0 - tokens @ tokens.T))
    heights = np.array([merge.height for merge in merges])
    assert np.all(np.diff(heights) >= -1e-12)
    assert sorted(node for merge in merges for node in (merge.left, merge.right)) == list(range(2 * len(merges)))


def test_of_equally_close_pairs_the_lowest_merges_first() -> None:
    merges = reference.ward(1.0 - np.eye(4))
    assert (merges[0].left, merges[0].right) == (0, 1)
    assert (merges[1].left, merges[1].right) == (2, 3)


# How many


@given(unit_batches, factors, st.integers(0, 3))
def test_output_lengths_follow_from_input_lengths(embeddings: Embeddings, factor: float, protected: int) -> None:
    pooled = reference.pool(embeddings, factor, protected=protected)
    rest = np.maximum(embeddings.lengths - protected, 0)
    expected = embeddings.lengths - rest + np.where(rest > 0, np.maximum(rest // factor, 1), 0).astype(int)
    np.testing.assert_array_equal(pooled.lengths, expected)


@given(unit_batches, factors, st.integers(0, 3))
def test_protected_tokens_stay_as_they_are(embeddings: Embeddings, factor: float, protected: int) -> None:
    pooled = reference.pool(embeddings, factor, protected=protected)
    for before, after in zip(embeddings, pooled, strict=True):
        np.testing.assert_array_equal(after[:protected], before[:protected])


@given(lis.token_embeddings())
def test_a_factor_of_1_changes_nothing(embeddings: Embeddings) -> None:
    pooled = reference.pool(embeddings, 1.0)
    np.testing.assert_array_equal(pooled.tokens, embeddings.tokens)
    np.testing.assert_array_equal(pooled.offsets, embeddings.offsets)


@given(lis.token_embeddings(values="unit", items=(1, 5)), factors, st.data())
def test_a_document_is_pooled_without_its_neighbours(
    embeddings: Embeddings, factor: float, data: st.DataObject
) -> None:
    item = data.draw(st.integers(0, len(embeddings) - 1))
    alone = reference.pool(embeddings.span(item, item + 1), factor)
    np.testing.assert_array_equal(alone.tokens, reference.pool(embeddings, factor)[item])


def test_orthogonal_tokens_are_not_all_thrown_together() -> None:
    """Every merge has height 1: a cut by height, as SciPy makes it, leaves one cluster where two were asked for."""
    tokens = single(np.eye(5))
    assert reference.pool(tokens, 2, protected=1).lengths[0] == 1 + 2
    assert reference.pool(tokens, 2, protected=1, flavour="pylate").lengths[0] == 1 + 1


# Which, and in what order


def test_pooling_worked_out_by_hand() -> None:
    east, north, north_east = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]
    tokens = np.array([[-1.0, 0.0], east, north, east, north_east])
    pooled = reference.pool(single(tokens), 2)
    mean = np.array([0.3, 0.9])
    np.testing.assert_allclose(pooled.tokens, [[-1, 0], east, mean / np.linalg.norm(mean)], rtol=1e-12)
    unscaled = reference.pool(single(tokens), 2, flavour="pylate")
    np.testing.assert_allclose(unscaled.tokens, [[-1, 0], east, mean], rtol=1e-12)


@given(st.integers(2, 14), st.integers(3, 8), factors.filter(lambda factor: factor > 1), seeds)
def test_clusters_are_those_of_scipy_in_the_order_of_their_first_tokens(
    count: int, width: int, factor: float, seed: int
) -> None:
    tokens = directions(count, width, seed)
    merges = scipy_linkage(tokens)
    assume(np.diff(merges[:, 2]).min(initial=1.0) > 1e-9)
    wanted = max(int(count // factor), 1)
    labels = fcluster(merges, wanted, "maxclust")
    expected = [tokens[labels == label].mean(axis=0) for label in dict.fromkeys(labels)]
    pooled = reference.pool(single(tokens), factor, protected=0)
    assert len(pooled.tokens) == wanted
    np.testing.assert_allclose(pooled.tokens, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-9)


@given(st.integers(1, 16), st.integers(3, 8), st.integers(2, 5), st.integers(0, 2), seeds)
def test_the_pylate_flavour_is_what_scipy_gives(count: int, width: int, factor: int, protected: int, seed: int) -> None:
    tokens = directions(count, width, seed)
    rest = tokens[protected:]
    expected = tokens
    if len(rest) > 1:
        merges = scipy_linkage(rest)
        assume(np.diff(merges[:, 2]).min(initial=1.0) > 1e-9)
        labels = fcluster(merges, max(len(rest) // factor, 1), "maxclust")
        means = [rest[labels == label].mean(axis=0) for label in range(1, labels.max() + 1)]
        expected = np.concatenate([tokens[:protected], means])
    pooled = reference.pool(single(tokens), factor, protected=protected, flavour="pylate")
    np.testing.assert_allclose(pooled.tokens, expected, atol=1e-12)


@given(unit_batches, factors)
def test_means_have_length_1(embeddings: Embeddings, factor: float) -> None:
    tokens = reference.pool(embeddings, factor, protected=0).tokens
    norms = np.linalg.norm(tokens, axis=1)
    opposed = norms == 0  # in one dimension 1 and −1 cancel out
    np.testing.assert_allclose(norms[~opposed], 1.0, rtol=1e-5)
    assert not opposed.any() or embeddings.dimension == 1


def test_tokens_that_cancel_out_have_a_mean_of_0() -> None:
    np.testing.assert_array_equal(reference.pool(single(np.array([[1.0], [-1.0]])), 2, protected=0).tokens, [[0.0]])


@pytest.mark.parametrize(
    ("given_dtype", "expected"), [(np.float16, np.float32), (np.float32, np.float32), (np.float64,) * 2]
)
def test_results_are_float32_unless_float64_came_in(given_dtype: type, expected: type) -> None:
    for factor in (1, 2):
        assert reference.pool(single(np.eye(4, dtype=given_dtype)), factor).tokens.dtype == expected
    assert reference.pool(TokenEmbeddings(np.empty((0, 3), given_dtype), [0, 0]), 2).tokens.dtype == expected


@pytest.mark.parametrize(
    "options",
    [{"factor": 0.5}, {"factor": float("nan")}, {"factor": float("inf")}, {"protected": -1}, {"flavour": "x"}],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        reference.pool(single(np.eye(3)), **{"factor": 2, **options})
