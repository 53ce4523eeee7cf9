"""k-means: the nearest centroid, and where centroids move."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain import reference
from lateinteraction.kernels.cpu import kmeans
from lateinteraction.kernels.cpu.blocks import ASSIGNED, PANEL

pytestmark = pytest.mark.usefixtures("poisoned_memory")

WithThreads = Callable[[Callable[[], Tensor]], list[Tensor]]
seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from([1, 2, 3, 8, 17, 33, 128])
counts = st.sampled_from([0, 1, 2, PANEL - 1, PANEL, PANEL + 1, ASSIGNED * PANEL, ASSIGNED * PANEL + 3])
centroid_counts = st.sampled_from([1, 2, 3, 11, 12, 13, 24, 25, 100, 700])
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def eighths(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Products of these, and their sums, are exact; many tie."""
    return (generator.integers(-8, 9, shape) / 8).astype(np.float32)


# Which is nearest


@given(seeds, counts, centroid_counts, widths, dtypes)
def test_codes_are_those_of_the_reference(
    seed: int, count: int, centroids: int, width: int, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(seed)
    tokens, rows = eighths(generator, count, width), eighths(generator, centroids, width)
    codes = kmeans.kmeans_assign(torch.from_numpy(tokens).type(dtype), torch.from_numpy(rows))
    assert codes.dtype == torch.int32
    np.testing.assert_array_equal(codes.numpy(), reference.kmeans_assign(tokens, rows))


def test_ties_go_to_the_lowest_even_across_blocks() -> None:
    """2,000 equal centroids of 128 dimensions are four blocks, of which the first has the first."""
    tokens, rows = torch.ones(PANEL + 1, 128), torch.zeros(2000, 128)
    rows[3:] = 1.0
    assert kmeans.kmeans_assign(tokens, rows).tolist() == [3] * (PANEL + 1)
    rows[1900, 5] = 2.0
    assert kmeans.kmeans_assign(tokens, rows).tolist() == [1900] * (PANEL + 1)


def test_all_may_be_far_below_zero() -> None:
    tokens, rows = torch.ones(3, 4), torch.full((30, 4), -1e30)
    rows[17] = -1e20
    assert kmeans.kmeans_assign(tokens, rows).tolist() == [17] * 3
    assert kmeans.kmeans_assign(tokens, torch.full((30, 4), -torch.inf)).tolist() == [0] * 3


def test_nan_is_found_first_as_the_reference_finds_it() -> None:
    generator = np.random.default_rng(0)
    tokens, rows = eighths(generator, 50, 8), eighths(generator, 40, 8)
    tokens[7] = np.nan
    np.testing.assert_array_equal(
        kmeans.kmeans_assign(torch.from_numpy(tokens), torch.from_numpy(rows)), reference.kmeans_assign(tokens, rows)
    )
    rows[[20, 30], 3] = np.nan
    found = kmeans.kmeans_assign(torch.from_numpy(tokens), torch.from_numpy(rows))
    np.testing.assert_array_equal(found, reference.kmeans_assign(tokens, rows))
    assert found.tolist() == [20] * 7 + [0] + [20] * 42


@given(seeds, st.integers(1, 300), st.integers(1, 90), widths)
def test_a_code_does_not_depend_on_other_tokens(seed: int, count: int, centroids: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    tokens, rows = (torch.from_numpy(generator.standard_normal((n, width), np.float32)) for n in (count, centroids))
    chosen = torch.from_numpy(generator.permutation(count)[:5])
    assert torch.equal(kmeans.kmeans_assign(tokens[chosen], rows), kmeans.kmeans_assign(tokens, rows)[chosen])


# Where they move


@given(seeds, st.integers(0, 80), st.integers(1, 20), widths, dtypes)
def test_centroids_move_as_those_of_the_reference(
    seed: int, count: int, centroids: int, width: int, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(seed)
    tokens, rows = eighths(generator, count, width), eighths(generator, centroids, width)
    codes = generator.integers(0, centroids, count).astype(np.int32)
    inputs = torch.from_numpy(tokens).type(dtype), torch.from_numpy(codes), torch.from_numpy(rows)
    # Sums of eighths are exact and so is the sum of their squares: what cancels out, cancels out here as well.
    np.testing.assert_allclose(kmeans.kmeans_update(*inputs), reference.kmeans_update(tokens, codes, rows), rtol=2e-7)


def test_centroids_without_tokens_or_whose_tokens_cancel_out_stay() -> None:
    rows = torch.randn(4, 20)
    tokens = torch.cat([torch.randn(1, 20), torch.ones(1, 20), -torch.ones(1, 20)])
    moved = kmeans.kmeans_update(tokens, torch.tensor([2, 1, 1], dtype=torch.int32), rows)
    assert torch.equal(moved[[0, 1, 3]], rows[[0, 1, 3]])
    torch.testing.assert_close(moved[2], tokens[0] / tokens[0].norm())


@given(seeds, st.integers(1, 60))
def test_a_centroid_knows_its_own_tokens_only(seed: int, count: int) -> None:
    """To the last bit, whatever lies between them."""
    generator = np.random.default_rng(seed)
    tokens = torch.from_numpy(generator.standard_normal((count, 9), np.float32))
    codes = torch.from_numpy(generator.integers(0, 3, count).astype(np.int32))
    rows = torch.from_numpy(generator.standard_normal((3, 9), np.float32))
    moved = kmeans.kmeans_update(tokens, codes, rows)
    for code in range(3):
        own = codes == code
        alone = kmeans.kmeans_update(tokens[own], codes[own] * 0, rows[code : code + 1])
        assert torch.equal(alone[0], moved[code])


def test_large_and_tiny_tokens_have_directions_too() -> None:
    tokens = torch.tensor([[3e38, 3e38], [3e38, 3e38], [1e-38, -1e-38]])
    moved = kmeans.kmeans_update(tokens, torch.tensor([0, 0, 1], dtype=torch.int32), torch.zeros(2, 2))
    torch.testing.assert_close(moved, torch.tensor([[1.0, 1.0], [1.0, -1.0]]) * 0.5**0.5)


def test_nan_moves_its_centroid_to_nan_and_no_other() -> None:
    tokens = torch.randn(6, 5)
    tokens[4, 2] = torch.nan
    moved = kmeans.kmeans_update(tokens, torch.tensor([0, 1, 0, 1, 1, 0], dtype=torch.int32), torch.zeros(3, 5))
    assert moved.isnan().all(dim=1).tolist() == [False, True, False]
    assert not moved[[0, 2]].isnan().any()


def test_results_do_not_depend_on_the_number_of_threads(with_threads: WithThreads) -> None:
    tokens, rows = torch.randn(3000, 20), torch.randn(70, 20)

    def call() -> Tensor:
        codes = kmeans.kmeans_assign(tokens, rows)
        return torch.cat([codes[:, None].expand(-1, 20), kmeans.kmeans_update(tokens, codes, rows)])

    alone, *others = with_threads(call)
    assert all(torch.equal(alone, other) for other in others)


def test_a_step_of_k_means_never_takes_tokens_further_from_their_centroids() -> None:
    tokens = torch.nn.functional.normalize(torch.randn(500, 12), dim=1)
    rows, closeness = tokens[:20].clone(), []
    for _ in range(6):
        codes = kmeans.kmeans_assign(tokens, rows)
        closeness.append(float((tokens * rows[codes]).sum()))
        rows = kmeans.kmeans_update(tokens, codes, rows)
    assert all(later >= earlier - 1e-3 for earlier, later in pairwise(closeness))


@pytest.mark.parametrize(
    "call",
    [
        lambda: kmeans.kmeans_assign(torch.ones(2, 3).double(), torch.ones(2, 3)),
        lambda: kmeans.kmeans_assign(torch.ones(2, 3), torch.ones(2, 3).half()),
        lambda: kmeans.kmeans_assign(torch.ones(2, 3, device="meta"), torch.ones(2, 3)),
        lambda: kmeans.kmeans_update(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64), torch.ones(2, 3)),
    ],
)
def test_what_cannot_be_computed_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="this form takes"):
        call()
