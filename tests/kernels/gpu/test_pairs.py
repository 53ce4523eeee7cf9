"""MaxSim of listed pairs in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.domain import reference
from lateinteraction.kernels.gpu import forward, pairs
from lateinteraction.kernels.operands import Tokens, winners_dtype

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Builder = Callable[..., Any]
law = settings(
    max_examples=max(10, settings.default.max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The interpreter takes a tenth of a second for an example."""
few = settings(law, max_examples=max(4, settings.default.max_examples // 10))
"""For cases of what `law` has tried."""
seeds = st.integers(0, 2**32 - 1)


def world(ragged: Builder, seed: int, **others: Any) -> tuple[np.random.Generator, Any, Any]:
    """Queries and documents of dyadic tokens, with empty ones, and lengths around those of tiles."""
    generator = np.random.default_rng(seed)
    width = int(generator.choice([1, 16, 17, 32]))
    sides = []
    for _ in range(2):
        lengths = [int(length) for length in generator.choice([0, 1, 7, 8, 9, 17], 3)]
        values = generator.integers(-8, 9, (sum(lengths), width)).astype(np.float32) / 8
        sides.append(ragged(generator, lengths, values, **others))
    return generator, *sides


def some_pairs(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Any pairs of three with three, in any order, some of them twice."""
    return generator.integers(0, 3, (count, 2))


def check(queries: Any, documents: Any, listed: NDArray[np.int64]) -> None:
    """Scores and winners are the reference's, to the last bit."""
    found = torch.from_numpy(listed)
    expected = reference.maxsim_pairs(queries.packed, documents.packed, *listed.T)
    np.testing.assert_array_equal(pairs.maxsim_pairs(queries.tokens, documents.tokens, found), expected)
    scores, winners = pairs.maxsim_pairs_winners(queries.tokens, documents.tokens, found)
    np.testing.assert_array_equal(scores, expected)
    assert winners.dtype == winners_dtype(documents.tokens)
    assert winners.shape == (len(listed), queries.tokens.longest)
    best = reference.maxsim_winners(queries.packed, documents.packed)
    offsets = queries.packed.offsets
    for (i, j), row in zip(listed, winners, strict=True):
        own = slice(offsets[i], offsets[i + 1])
        np.testing.assert_array_equal(row[: offsets[i + 1] - offsets[i]], best[own, j])


@law
@given(seeds, st.integers(0, 4))
def test_scores_and_winners_are_those_of_the_reference(ragged: Builder, seed: int, count: int) -> None:
    generator, queries, documents = world(ragged, seed)
    check(queries, documents, some_pairs(generator, count))


@few
@given(seeds)
def test_pairs_may_be_a_column_beside_others(ragged: Builder, seed: int) -> None:
    generator, queries, documents = world(ragged, seed)
    wide = torch.from_numpy(generator.integers(0, 3, (4, 5)))
    for listed in (wide[:, 1:3], wide[:, 1::2], wide.T.contiguous().T[:, :2], wide[::2, :2]):
        np.testing.assert_array_equal(
            pairs.maxsim_pairs(queries.tokens, documents.tokens, listed),
            pairs.maxsim_pairs(queries.tokens, documents.tokens, listed.clone(memory_format=torch.contiguous_format)),
        )


@few
@given(seeds)
def test_a_pair_scores_to_the_last_bit_what_it_scores_among_all_pairs(ragged: Builder, seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = (
        ragged(generator, [9, 3], generator.standard_normal((12, 17)).astype(np.float32)) for _ in range(2)
    )
    listed = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    found = pairs.maxsim_pairs(queries.tokens, documents.tokens, listed)
    np.testing.assert_array_equal(found.view(2, 2), forward.maxsim_all_pairs(queries.tokens, documents.tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_are_added_in_float32(ragged: Builder, dtype: torch.dtype) -> None:
    """In the dtype itself the sum would stop at 2,048 or 256, within a token and over tokens."""
    generator = np.random.default_rng(0)
    queries = ragged(generator, [40], np.ones((40, 70), np.float32), dtype=dtype)
    documents = ragged(generator, [3], np.ones((3, 70), np.float32), dtype=dtype)
    assert pairs.maxsim_pairs(queries.tokens, documents.tokens, torch.zeros(1, 2, dtype=torch.int64)) == 2800


@few
@given(seeds, st.sampled_from([(False, True), (True, False), (True, True)]))
def test_a_token_is_its_row_times_its_scale(ragged: Builder, seed: int, scaled: tuple[bool, bool]) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = (
        ragged(
            generator,
            [3, 0, 9],
            generator.integers(-128, 128, (12, 17)),
            dtype=torch.int8,
            scales=generator.choice([0, 0.25, 1, 2], 12).astype(np.float32) if own else None,
        )
        for own in scaled
    )
    check(queries, documents, some_pairs(generator, 3))


@few
@given(seeds)
def test_nan_stays_in_the_pairs_that_have_it_and_wins_there(ragged: Builder, seed: int) -> None:
    generator = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        values = generator.integers(-8, 9, (18, 16)).astype(np.float32) / 8
        values[generator.random(values.shape) < 0.01] = np.nan
        sides.append(ragged(generator, [9, 1, 8], values))
    check(*sides, some_pairs(generator, 3))


@pytest.mark.parametrize("longest", [pairs.SHORT, pairs.SHORT + 1])
@pytest.mark.parametrize("width", [16, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_every_regime_computes_the_same(ragged: Builder, dtype: torch.dtype, width: int, longest: int) -> None:
    """Whatever the lengths and widths that decide the shape of tiles on a device."""
    generator = np.random.default_rng(0)
    queries, documents = (
        ragged(generator, lengths, generator.integers(-8, 9, (sum(lengths), width)), dtype=dtype)
        for lengths in ([3, 0, 10], [9, 1, 0])
    )
    queries = queries._replace(tokens=queries.tokens._replace(longest=longest))
    check(queries, documents, np.array([[0, 0], [2, 0], [1, 1], [0, 2], [1, 2]]))


def test_long_documents_have_wide_winners() -> None:
    queries = Tokens(torch.ones(1, 1), torch.tensor([[0, 1]]), 1)
    values = torch.zeros(33_000, 1)
    values[32_999] = 1
    documents = Tokens(values, torch.tensor([[32_960, 33_000], [0, 8]]), 33_000)
    scores, winners = pairs.maxsim_pairs_winners(queries, documents, torch.tensor([[0, 0], [0, 1]]))
    assert winners.dtype == torch.int32
    assert winners.tolist() == [[39], [0]]
    assert scores.tolist() == [1, 0]
