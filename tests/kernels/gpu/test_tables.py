"""The table of centroid scores, its eight bits and its best entries, in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lateinteraction.domain import reference
from lateinteraction.kernels.gpu import tables

pytestmark = pytest.mark.usefixtures("poisoned_memory")
few = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=max(8, settings.default.max_examples // 10),
)
seeds = st.integers(0, 2**32 - 1)
counts = st.sampled_from([1, 15, 16, 17, 40])


def dyadic(generator: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(generator.integers(-8, 9, shape).astype(np.float32) / 8)


@few
@given(seeds, counts, st.sampled_from([0, 1, 16, 17]), st.sampled_from([1, 16, 33]))
def test_scores_are_products_and_do_not_depend_on_their_neighbours(
    seed: int, count: int, tokens: int, width: int
) -> None:
    generator = np.random.default_rng(seed)
    centroids, values = dyadic(generator, count, width), dyadic(generator, tokens, width)
    found = tables.centroid_scores(values.half(), centroids)
    assert torch.equal(found, centroids @ values.T)
    for s in range(min(tokens, 2)):
        assert torch.equal(tables.centroid_scores(values[s : s + 1], centroids[-1:])[0, 0], found[-1, s])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_centroids_are_multiplied_in_all_their_24_bits(dtype: torch.dtype) -> None:
    centroids = torch.tensor([[1 + 2.0**-23, 0.0], [0.0, 1 - 2.0**-24]])
    assert torch.equal(tables.centroid_scores(torch.eye(2, dtype=dtype), centroids), centroids)


@few
@given(seeds, counts, st.sampled_from([0, 1, 4, 5, 16]))
def test_eight_bits_are_the_formula_to_the_last_bit(seed: int, count: int, tokens: int) -> None:
    generator = np.random.default_rng(seed)
    scores = (generator.standard_normal((count, tokens)) * 10.0 ** generator.integers(-9, 9)).astype(np.float32)
    if tokens:
        scores[:, 0] = 0.3  # a column of equal scores
    found, expected = tables.quantise_table(torch.from_numpy(scores)), reference.quantise_table(scores)
    for name in ("values", "steps", "lows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_halves_of_a_step_go_to_the_even_number() -> None:
    scores = torch.tensor([[0.0], [0.5], [1.5], [2.5], [255.0]])
    assert tables.quantise_table(scores).values[:, 0].tolist() == [0, 0, 2, 2, 255]


@few
@given(seeds, st.sampled_from([1, 31, 32, 33, 70]), st.sampled_from([1, 3, 4, 5, 99]), st.sampled_from([3, 16]))
def test_the_best_centroids_one_by_one_and_all_at_once(seed: int, count: int, nprobe: int, tokens: int) -> None:
    """Few are taken block by block, more than `MOST_ROUNDS` from all keys."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(-3, 4, (count, tokens)).astype(np.float32)
    for special in (-0.0, np.nan, -np.inf, np.inf):
        scores[generator.integers(count), generator.integers(3)] = special
    found = tables.probe(torch.from_numpy(scores), nprobe)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found, reference.probe(scores, nprobe))


def test_no_query_tokens_probe_nothing() -> None:
    assert tables.probe(torch.zeros(40, 0), 3).shape == (0, 3)


def test_other_dtypes_are_refused() -> None:
    half = torch.ones(2, 2, dtype=torch.float16)
    for call in (
        lambda: tables.centroid_scores(half.to(torch.int8), half.float()),
        lambda: tables.centroid_scores(half, half),
        lambda: tables.quantise_table(half),
        lambda: tables.probe(half, 1),
    ):
        with pytest.raises(TypeError):
            call()
