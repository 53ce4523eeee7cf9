"""The steps of k-means in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lateinteraction.domain import reference
from lateinteraction.kernels.gpu import kmeans

pytestmark = pytest.mark.usefixtures("poisoned_memory")
few = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=max(8, settings.default.max_examples // 10),
)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def dyadic(generator: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(generator.integers(-4, 5, shape).astype(np.float32) / 8)


@few
@given(seeds, dtypes, st.sampled_from([1, 15, 17, 70]), st.sampled_from([1, 3, 33]))
def test_the_nearest_is_the_lowest_of_the_best_in_one_range_and_in_many(
    seed: int, dtype: torch.dtype, clusters: int, width: int
) -> None:
    generator = np.random.default_rng(seed)
    values, centroids = dyadic(generator, int(generator.integers(0, 20)), width), dyadic(generator, clusters, width)
    expected = reference.kmeans_assign(values.numpy(), centroids.numpy())
    for fewest in (1000, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kmeans, "FEWEST_TILES", fewest)
            found = kmeans.kmeans_assign(values.to(dtype), centroids)
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_of_16_bits_see_what_16_bits_cannot_hold_of_a_centroid(dtype: torch.dtype) -> None:
    centroids = torch.tensor([[0.5, 0.25], [0.5 + 2.0**-18, 0.25], [0.5, 0.25 + 2.0**-19]])
    assert kmeans.kmeans_assign(torch.ones(1, 2, dtype=dtype), centroids).tolist() == [1]


@few
@given(seeds, st.integers(-30, 30))
def test_the_parts_of_a_centroid_add_up_to_it(seed: int, exponent: int) -> None:
    centroids = torch.from_numpy(np.random.default_rng(seed).standard_normal((5, 7)).astype(np.float32)) * 2.0**exponent
    bfloat = kmeans.parts_of(centroids, torch.bfloat16)
    assert torch.equal(bfloat.double().sum(0), centroids.double())
    half = kmeans.parts_of(centroids, torch.float16)
    assert half.isfinite().all()
    total = half.double().sum(0)
    power = (total / centroids.double()).flatten()[int(centroids.abs().argmax())].log2().round().exp2()
    largest = (centroids.abs().max() * power).double()
    assert ((total - centroids.double() * power).abs() <= largest * 2.0**-22).all()


@few
@given(seeds, dtypes, st.sampled_from([1, 5, 33]))
def test_centroids_move_to_the_means_of_their_tokens(seed: int, dtype: torch.dtype, width: int) -> None:
    generator = np.random.default_rng(seed)
    values, centroids = dyadic(generator, int(generator.integers(0, 30)), width), dyadic(generator, 4, width)
    codes = torch.from_numpy(generator.integers(0, 3, len(values)).astype(np.int32))  # the last one has none
    before = centroids.clone()
    moved = kmeans.kmeans_update(values.to(dtype), codes, centroids)
    expected = reference.kmeans_update(values.numpy(), codes.numpy(), centroids.numpy())
    np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(moved[3], centroids[3])
    assert torch.equal(centroids, before)
    assert torch.equal(kmeans.kmeans_update(values.to(dtype), codes, centroids), moved)


def test_tokens_that_cancel_out_leave_their_centroid_where_it_is() -> None:
    values = torch.tensor([[1.0, -2.0], [-1.0, 2.0]])
    centroids = torch.tensor([[0.3, 0.4]])
    assert torch.equal(kmeans.kmeans_update(values, torch.zeros(2, dtype=torch.int32), centroids), centroids)


def test_other_dtypes_are_refused() -> None:
    ones, codes = torch.ones(2, 2), torch.zeros(2, dtype=torch.int32)
    for values, centroids in ((ones.to(torch.int8), ones), (ones, ones.half()), (ones.double(), ones)):
        with pytest.raises(TypeError):
            kmeans.kmeans_assign(values, centroids)
        with pytest.raises(TypeError):
            kmeans.kmeans_update(values, codes, centroids)
