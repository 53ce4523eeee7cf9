"""MaxSim of all pairs in Triton's interpreter, where tiles have 8 × 8 tokens and 16 dimensions: every edge is near."""

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
from lateinteraction.kernels.gpu import forward, maxima, pairs, sums
from lateinteraction.kernels.operands import Tokens, spans_of

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Builder = Callable[..., Any]
law = settings(
    max_examples=max(10, settings.default.max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The interpreter takes a tenth of a second for an example."""
seeds = st.integers(0, 2**32 - 1)
few = settings(law, max_examples=max(4, settings.default.max_examples // 10))
"""For cases of what `law` has tried."""
WIDTHS = (1, 15, 16, 17, 32)
"""Dimensions: within a tile, one tile, several tiles, the last of them whole or not."""


def dyadic(generator: np.random.Generator, count: int, width: int) -> NDArray[np.float32]:
    """Multiples of 1/8, so that sums are exact in any order and ties are exact; sometimes all products are negative."""
    values = generator.integers(-8, 9, (count, width)).astype(np.float32) / 8
    return -np.abs(values) if generator.random() < 0.2 else values


def lengths_of(generator: np.random.Generator, items: int) -> list[int]:
    """Empty items, items that fill tiles, and items one short of them or one beyond."""
    return [int(length) for length in generator.choice([0, 1, 3, 7, 8, 9, 17], items)]


def side(ragged: Builder, generator: np.random.Generator, items: int, width: int, **others: Any) -> Any:
    lengths = lengths_of(generator, items)
    return ragged(generator, lengths, dyadic(generator, sum(lengths), width), **others)


def world(ragged: Builder, seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    width = int(generator.choice(WIDTHS))
    queries = side(ragged, generator, int(generator.integers(0, 3)), width)
    return queries, side(ragged, generator, int(generator.integers(0, 4)), width)


def check(queries: Any, documents: Any) -> None:
    """Scores and winners are the reference's, to the last bit."""
    scores, winners = forward.maxsim_all_pairs_winners(queries.tokens, documents.tokens)
    np.testing.assert_array_equal(scores, reference.maxsim_all_pairs(queries.packed, documents.packed))
    np.testing.assert_array_equal(
        winners[torch.from_numpy(queries.rows)], reference.maxsim_winners(queries.packed, documents.packed)
    )


@law
@given(seeds)
def test_scores_and_winners_are_those_of_the_reference(ragged: Builder, seed: int) -> None:
    queries, documents = world(ragged, seed)
    check(queries, documents)
    np.testing.assert_array_equal(
        forward.maxsim_all_pairs(queries.tokens, documents.tokens),
        reference.maxsim_all_pairs(queries.packed, documents.packed),
    )


@few
@given(seeds, st.integers(1, 40))
def test_how_many_maxima_fit_in_memory_changes_nothing(ragged: Builder, seed: int, documents_at_once: int) -> None:
    queries, documents = world(ragged, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "MAXIMA_BYTES", 4 * len(queries.tokens.values) * min(documents_at_once, 3))
        patch.setattr(sums, "aligned", lambda count: max(1, count))
        check(queries, documents)


@few
@given(seeds)
def test_a_score_is_the_same_to_the_last_bit_whoever_else_is_in_the_call(ragged: Builder, seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = (
        ragged(generator, lengths, generator.standard_normal((sum(lengths), 17)).astype(np.float32))
        for lengths in ([9, 2], lengths_of(generator, 2))
    )
    together = forward.maxsim_all_pairs(queries.tokens, documents.tokens)
    for i in range(2):
        one = queries.tokens._replace(spans=queries.tokens.spans[i : i + 1])
        alone = forward.maxsim_all_pairs(one, documents.tokens)
        np.testing.assert_array_equal(alone, together[i : i + 1])
        long = one._replace(longest=pairs.SHORT + 1)  # by way of maxima in memory, as for long queries
        np.testing.assert_array_equal(forward.maxsim_all_pairs(long, documents.tokens), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@few
@given(seed=seeds)
def test_narrow_floats_are_multiplied_exactly_and_added_in_float32(
    ragged: Builder, dtype: torch.dtype, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = (
        ragged(generator, [3, 9], generator.standard_normal((12, 17)).astype(np.float32), dtype=dtype) for _ in range(2)
    )
    np.testing.assert_allclose(
        forward.maxsim_all_pairs(queries.tokens, documents.tokens),
        reference.maxsim_all_pairs(queries.packed, documents.packed),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("width", [16, 256, 257])
@pytest.mark.parametrize(("low", "high"), [(-128, -127), (127, 128), (-128, 128)])
def test_bytes_are_multiplied_exactly(ragged: Builder, width: int, low: int, high: int) -> None:
    """Also at the extremes, on both sides of the width where conversion to float takes another way."""
    generator = np.random.default_rng(width)
    queries, documents = (
        ragged(generator, [2, 0, 3], generator.integers(low, high, (5, width)), dtype=torch.int8) for _ in range(2)
    )
    check(queries, documents)


@few
@given(seeds, st.sampled_from([(False, True), (True, False), (True, True)]))
def test_a_token_is_its_row_times_its_scale(ragged: Builder, seed: int, scaled: tuple[bool, bool]) -> None:
    """Scales of 0 among them, which make all tokens equal."""
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
    check(queries, documents)


@few
@given(seeds)
def test_unlike_dtypes_are_multiplied_in_float32(ragged: Builder, seed: int) -> None:
    generator = np.random.default_rng(seed)
    dtypes = generator.permutation(3)[:2]
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    queries, documents = (
        ragged(generator, [2, 9], generator.integers(-127, 128, (11, 17)), dtype=kinds[kind]) for kind in dtypes
    )
    check(queries, documents)


@few
@given(seeds)
def test_nan_stays_where_it_is_and_wins_there(ragged: Builder, seed: int) -> None:
    generator = np.random.default_rng(seed)
    built = []
    for _ in range(2):
        lengths = lengths_of(generator, 3)
        values = dyadic(generator, sum(lengths), 17)
        values[generator.random(values.shape) < 0.01] = np.nan
        built.append(ragged(generator, lengths, values))
    check(*built)


def test_infinite_similarities_are_numbers_like_others(ragged: Builder) -> None:
    generator = np.random.default_rng(0)
    documents = ragged(
        generator, [3, 2, 9], np.array([[-np.inf], [-np.inf], [-np.inf], [1], [np.inf], *[[-1.0]] * 9], np.float32)
    )
    check(ragged(generator, [2, 1], np.ones((3, 1), np.float32)), documents)


def test_rows_may_be_shared_by_items(ragged: Builder) -> None:
    values = torch.from_numpy(dyadic(np.random.default_rng(0), 12, 16))
    spans = torch.tensor([[2, 12], [0, 12], [5, 5], [2, 3], [2, 12]])
    tokens = Tokens(values, spans, 12)
    scores = forward.maxsim_all_pairs(tokens, tokens)
    table = values @ values.T
    for i, (a, b) in enumerate(spans.tolist()):
        for j, (c, d) in enumerate(spans.tolist()):
            expected = table[a:b, c:d].amax(1).sum() if c < d else -torch.inf if a < b else 0.0
            assert scores[i, j] == expected


@pytest.mark.parametrize("winners", [torch.int16, torch.int32])
def test_winners_have_the_narrowest_dtype_that_counts_all_tokens(winners: torch.dtype, ragged: Builder) -> None:
    queries, documents = world(ragged, 1)
    tokens = documents.tokens if winners == torch.int16 else documents.tokens._replace(longest=40_000)
    assert forward.maxsim_all_pairs_winners(queries.tokens, tokens)[1].dtype == winners


@pytest.mark.parametrize("queries", [0, 1, 2])
@pytest.mark.parametrize("documents", [0, 2])
def test_nothing_to_score_gives_empty_scores_and_empty_items_the_scores_of_nothing(
    queries: int, documents: int
) -> None:
    nothing = torch.empty(0, 16)
    found, winners = forward.maxsim_all_pairs_winners(
        Tokens(nothing, spans_of(torch.zeros(queries + 1, dtype=torch.int64)), 0),
        Tokens(nothing, spans_of(torch.zeros(documents + 1, dtype=torch.int64)), 0),
    )
    assert found.tolist() == [[0.0] * documents] * queries
    assert winners.shape == (0, documents)


def test_the_rows_of_the_table_give_what_the_small_tiles_of_the_interpreter_give(
    ragged: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiles that a device uses, once, where they cross document, queries and width: 64 × 64 tokens."""
    generator = np.random.default_rng(0)
    queries = ragged(generator, [40, 0, 30], dyadic(generator, 70, 35))
    documents = ragged(generator, [65, 0, 3], dyadic(generator, 68, 35))
    kernel = forward.ALL_PAIRS_MAXIMA
    (row,) = (row for row in kernel.rows if (row.architecture, row.regime) == ("sm_90", "single"))
    row = row._replace(architecture="interpreter")
    monkeypatch.setattr(forward, "ALL_PAIRS_MAXIMA", kernel._replace(rows=(row,)))
    np.testing.assert_array_equal(
        forward.maxsim_all_pairs(queries.tokens, documents.tokens),
        reference.maxsim_all_pairs(queries.packed, documents.packed),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8])
@pytest.mark.parametrize("wrong", [0, 1])
def test_a_dtype_that_it_cannot_compute_is_refused(dtype: torch.dtype, wrong: int) -> None:
    sides = [Tokens(torch.ones(3, 4), torch.tensor([[0, 3]]), 3) for _ in range(2)]
    sides[wrong] = sides[wrong]._replace(values=torch.ones(3, 4, dtype=dtype))
    with pytest.raises(TypeError, match=f"not {dtype}"):
        forward.maxsim_all_pairs(*sides)
    with pytest.raises(TypeError, match=f"not {dtype}"):
        pairs.maxsim_pairs(*sides, torch.zeros(1, 2, dtype=torch.int64))


def test_tensors_on_two_devices_are_refused() -> None:
    tokens = Tokens(torch.ones(3, 4), torch.tensor([[0, 3]]), 3)
    elsewhere = tokens._replace(spans=tokens.spans.to("meta"))
    with pytest.raises(TypeError, match=r"document spans on meta, but query values on cpu: .* move them to cpu"):
        forward.maxsim_all_pairs(tokens, elsewhere)
    with pytest.raises(TypeError, match="pairs on meta"):
        pairs.maxsim_pairs(tokens, tokens, torch.zeros(1, 2, dtype=torch.int64, device="meta"))


def test_spans_and_pairs_of_32_bits_are_refused() -> None:
    """With them row numbers would be multiplied in 32 bits."""
    tokens = Tokens(torch.ones(3, 4), torch.tensor([[0, 3]]), 3)
    with pytest.raises(TypeError, match=r"document spans of torch\.int32"):
        forward.maxsim_all_pairs(tokens, tokens._replace(spans=tokens.spans.int()))
    with pytest.raises(TypeError, match=r"pairs of torch\.int32"):
        pairs.maxsim_pairs(tokens, tokens, torch.zeros(1, 2, dtype=torch.int32))


def test_whole_rows_are_read_at_once_up_to_the_width_of_a_tile() -> None:
    """What the regimes promise: beyond this width a tile no longer holds a row."""
    for row in forward.ALL_PAIRS_MAXIMA.rows:
        if row.architecture != "interpreter" and row.regime in ("half", "half winners", "int8", "int8 winners"):
            assert row.tiles["WIDEST"] == maxima.WIDE
