"""Gradients by Triton: the reference's to the last bit, however what chose a document token is brought together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

pytest.importorskip("triton")

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.reference.maxsim import through_winners
from lateinteraction.kernels.gpu import gradients
from lateinteraction.kernels.gpu.gradients import maxsim_all_pairs_gradients, maxsim_pairs_gradients
from lateinteraction.kernels.gpu.normalisation import WIDTHS, inverse_norms
from lateinteraction.kernels.operands import Tokens

Floats = NDArray[np.floating[Any]]
Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("poisoned_memory")
seeds = st.integers(0, 2**32 - 1)
law = settings(
    max_examples=max(8, settings.default.max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The interpreter takes a tenth of a second for an example."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-7, torch.float16: 2**-11}
"""What one rounding may change, relative to the value: to nearest, but the interpreter cuts bfloat16 off."""
dtypes = st.sampled_from(DTYPES)
either_way = st.booleans()
both_ways = pytest.mark.parametrize("grouped", [False, True], ids=["walked", "grouped"])


@contextmanager
def grouping(wanted: bool) -> Iterator[None]:
    """Have entries grouped by tile although they are few, or walked through."""
    before = gradients.FEW_ENTRIES, gradients.FEW_SIMILARITIES
    gradients.FEW_ENTRIES, gradients.FEW_SIMILARITIES = (-1, -1) if wanted else before
    try:
        yield
    finally:
        gradients.FEW_ENTRIES, gradients.FEW_SIMILARITIES = before


@frozen
class World:
    queries: Any
    documents: Any
    winners: Tensor
    """(S, N) as a kernel would have it: anything in rows that no query has."""

    @property
    def exact(self) -> NDArray[np.int64]:
        return reference.maxsim_winners(self.queries.packed, self.documents.packed)


def eighths(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (generator.integers(-8, 9, shape) / 8).astype(np.float32)


def world(make: Make, seed: int, *, values: Make = eighths, width: int | None = None, **options: Any) -> World:
    """Three queries and documents of up to 37 tokens: more than two tiles of the interpreter's 16."""
    generator = np.random.default_rng(seed)
    width = width or int(generator.choice([1, 3, 16, 24]))
    lengths = [[int(generator.integers(0, most)) for most in each] for each in ((7, 7, 7), (38, 38, 3))]
    sides = [make(generator, each, values(generator, sum(each), width), **options) for each in lengths]
    chosen = reference.maxsim_winners(sides[0].packed, sides[1].packed)
    dtype = torch.int16 if generator.random() < 0.5 else torch.int32
    winners = torch.from_numpy(generator.integers(-9, 99, (len(sides[0].tokens.values), 3))).to(dtype)
    winners[torch.from_numpy(sides[0].rows)] = torch.from_numpy(chosen).to(dtype)
    return World(*sides, winners)


def upstream_of(world: World, seed: int, *, values: Make = eighths) -> NDArray[np.float32]:
    """For every score; NaN where the document is empty, because it is not to be read there."""
    upstream = values(np.random.default_rng(seed), 3, 3)
    upstream[:, np.diff(world.documents.packed.offsets) == 0] = np.nan
    return upstream


def expected_of(world: World, upstream: Floats) -> tuple[Floats, Floats]:
    wanted = np.nan_to_num(upstream.astype(np.float64))
    return reference.maxsim_all_pairs_gradients(world.queries.packed, world.documents.packed, wanted)


def scattered(side: Any, packed: Floats) -> Tensor:
    """Values of packed tokens at their rows; 0 in rows that nobody has."""
    result = torch.zeros(side.tokens.values.shape, dtype=torch.float64)
    result[torch.from_numpy(side.rows)] = torch.from_numpy(np.asarray(packed, np.float64))
    return result


def found_of(world: World, upstream: Floats, *, unit: bool = False) -> tuple[Tensor, Tensor]:
    return maxsim_all_pairs_gradients(
        world.queries.tokens, world.documents.tokens, world.winners, torch.from_numpy(upstream), unit=unit
    )


def equal(found: Sequence[Tensor], world: World, expected: Sequence[Floats]) -> None:
    for each, side, wanted in zip(found, (world.queries, world.documents), expected, strict=True):
        assert each.dtype == side.tokens.values.dtype
        assert torch.equal(each, rounded(scattered(side, wanted), each.dtype))


def rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """To nearest; but the interpreter cuts float32 off where bfloat16 ends."""
    if dtype != torch.bfloat16:
        return exact.to(dtype)
    return (exact.float().view(torch.int32) & -0x10000).view(torch.float32).to(dtype)


@law
@given(grouped=either_way, dtype=dtypes, seed=seeds)
def test_gradients_are_those_of_the_reference_to_the_last_bit(
    ragged: Make, grouped: bool, dtype: torch.dtype, seed: int
) -> None:
    given_ = world(ragged, seed, dtype=dtype)
    upstream = upstream_of(given_, seed)
    with grouping(grouped):
        found = found_of(given_, upstream)
    equal(found, given_, expected_of(given_, upstream))


@law
@given(grouped=either_way, seed=seeds)
def test_pairs_have_the_gradients_of_their_scores_however_often_an_item_is_listed(
    ragged: Make, grouped: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    given_ = world(ragged, seed)
    listed = generator.integers(0, 3, (int(generator.integers(0, 7)), 2))
    upstream = eighths(generator, len(listed))
    queries, documents = given_.queries, given_.documents
    lengths, empty = np.diff(queries.packed.offsets), np.diff(documents.packed.offsets) == 0
    spread = np.zeros((3, 3), np.float32)
    np.add.at(spread, tuple(listed.T), upstream)
    upstream[empty[listed[:, 1]]] = np.nan
    winners = generator.integers(-9, 99, (len(listed), queries.tokens.longest))
    for (query, document), row in zip(listed, winners, strict=True):
        start = queries.packed.offsets[query]
        row[: lengths[query]] = given_.exact[start : start + lengths[query], document]
    arguments = torch.from_numpy(listed), torch.from_numpy(winners).to(torch.int16), torch.from_numpy(upstream)
    with grouping(grouped):
        found = maxsim_pairs_gradients(queries.tokens, documents.tokens, *arguments, unit=False)
    equal(found, given_, expected_of(given_, spread))


def normals(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return generator.standard_normal(shape).astype(np.float32)


@law
@given(grouped=either_way, dtype=dtypes, seed=seeds)
def test_sums_are_float32_and_only_the_result_is_rounded(
    ragged: Make, grouped: bool, dtype: torch.dtype, seed: int
) -> None:
    given_ = world(ragged, seed, values=normals, dtype=dtype)
    upstream = upstream_of(given_, seed, values=normals)
    with grouping(grouped):
        found = found_of(given_, upstream)
    for each, side, exact, terms in zip(
        found,
        (given_.queries, given_.documents),
        expected_of(given_, upstream),
        sums_of_absolute_terms(given_, upstream),
        strict=True,
    ):
        # Two bfloat16 (cut off, here) hold a weight to 2⁻¹⁴; float32 sums are right to some of their own roundings.
        allowed = ROUNDING[dtype] * np.abs(exact) + (2**-21 if dtype == torch.float32 else 2**-14) * terms
        assert (each.double() - scattered(side, exact)).abs().le(scattered(side, allowed) + 2**-25).all()


def sums_of_absolute_terms(world: World, upstream: Floats) -> tuple[Floats, Floats]:
    """What the error of a sum is relative to."""
    absolute = [
        TokenEmbeddings(np.abs(side.packed.tokens), side.packed.offsets) for side in (world.queries, world.documents)
    ]
    rows = np.where(world.exact >= 0, world.exact + world.documents.packed.offsets[:-1], -1)
    weights = np.abs(np.nan_to_num(upstream.astype(np.float64)))
    return through_winners(*absolute, rows, np.repeat(weights, np.diff(world.queries.packed.offsets), axis=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-7, 1e6])
def test_weights_may_be_far_beyond_what_sixteen_bits_hold(ragged: Make, dtype: torch.dtype, size: float) -> None:
    values = np.full((1, 16), 1 / size, np.float32) if size > 1 else np.full((1, 16), 512, np.float32)
    generator = np.random.default_rng(0)
    sides = [ragged(generator, [1], values, dtype=dtype) for _ in range(2)]
    given_ = World(*sides, torch.zeros(len(sides[0].tokens.values), 1, dtype=torch.int16))
    found = found_of(given_, np.array([[size]], np.float32))
    for each, side in zip(found, sides, strict=True):
        rounded = each[torch.from_numpy(side.rows)].double()
        assert torch.allclose(rounded, torch.from_numpy(side.packed.tokens) * size, rtol=2**-7, atol=0)


@both_ways
def test_a_token_that_everybody_chose_is_summed_as_any_other(ragged: Make, grouped: bool) -> None:
    generator = np.random.default_rng(1)
    sides = [ragged(generator, [n], eighths(generator, n, 8)) for n in (70, 33)]
    winners = torch.full((len(sides[0].tokens.values), 1), 17, dtype=torch.int16)
    given_ = World(*sides, winners)
    with grouping(grouped):
        _, found = found_of(given_, np.array([[0.5]], np.float32))
    expected = np.zeros((33, 8))
    expected[17] = 0.5 * sides[0].packed.tokens.sum(axis=0)
    assert torch.equal(found, scattered(sides[1], expected).float())


@both_ways
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_call_gives_the_same_bits(ragged: Make, grouped: bool, dtype: torch.dtype) -> None:
    given_ = world(ragged, 7, values=normals, dtype=dtype)
    upstream = np.nan_to_num(upstream_of(given_, 7, values=normals))
    with grouping(grouped):
        first, second = found_of(given_, upstream), found_of(given_, upstream)
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left, right)


def through_norms(world: World, upstream: Floats) -> list[Tensor]:
    """Gradients by torch's autograd, in float64, of values before x / ‖x‖."""
    leaves = [torch.from_numpy(side.packed.tokens).requires_grad_() for side in (world.queries, world.documents)]
    norms = [torch.linalg.vector_norm(each, dim=1, keepdim=True) for each in leaves]
    units = [torch.where(n > 0, each / n.clamp(min=1e-300), 0) for each, n in zip(leaves, norms, strict=True)]
    weights = torch.from_numpy(np.nan_to_num(upstream.astype(np.float64)))
    total = sum((each.sum() * 0 for each in leaves), torch.zeros((), dtype=torch.float64))
    starts = world.documents.packed.offsets
    query_of = np.repeat(np.arange(3), np.diff(world.queries.packed.offsets))
    own = world.winners[torch.from_numpy(world.queries.rows)]
    for s, j in np.argwhere(own.numpy() >= 0):
        total = total + weights[query_of[s], j] * (units[0][s] @ units[1][int(starts[j] + own[s, j])])
    total.backward()
    return [torch.nan_to_num(leaf.grad) for leaf in leaves]


@law
@given(grouped=either_way, seed=seeds)
def test_with_unit_the_gradients_are_those_before_the_normalisation(ragged: Make, grouped: bool, seed: int) -> None:
    given_ = world(ragged, seed, values=normals, width=5)
    upstream = upstream_of(given_, seed, values=normals)
    sides = [
        side._replace(tokens=side.tokens._replace(scales=inverse_norms(side.tokens.values)))
        for side in (given_.queries, given_.documents)
    ]
    given_ = World(*sides, given_.winners)
    expected = through_norms(given_, upstream)
    with grouping(grouped):
        found = found_of(given_, upstream, unit=True)
    for each, side, wanted in zip(found, sides, expected, strict=True):
        torch.testing.assert_close(each.double(), scattered(side, wanted.numpy()), rtol=1e-4, atol=1e-5)


def test_a_row_of_zeros_has_no_direction_and_so_no_gradient() -> None:
    values = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    tokens = Tokens(values, torch.tensor([[0, 2]]), 2, inverse_norms(values))
    winners = torch.tensor([[1], [0]], dtype=torch.int16)
    for found in maxsim_all_pairs_gradients(tokens, tokens, winners, torch.ones(1, 1), unit=True):
        assert found[0].tolist() == [0.0, 0.0]


@law
@given(seeds)
def test_scales_are_constants_that_multiply_twice(ragged: Make, seed: int) -> None:
    """The value is scaled, and its gradient is the token's times the scale. Powers of two: nothing rounds."""
    generator = np.random.default_rng(seed)
    lengths = [4, 0, 3], [19, 0, 2]
    sides = [
        ragged(
            generator, n, eighths(generator, sum(n), 3), scales=np.exp2(generator.integers(-2, 3, sum(n))).astype("f")
        )
        for n in lengths
    ]
    winners = torch.zeros(len(sides[0].tokens.values), 3, dtype=torch.int32)
    winners[torch.from_numpy(sides[0].rows)] = torch.from_numpy(
        reference.maxsim_winners(sides[0].packed, sides[1].packed)
    ).int()
    given_ = World(*sides, winners)
    upstream = upstream_of(given_, seed)
    scales = [side.tokens.scales[torch.from_numpy(side.rows)].numpy()[:, None] for side in sides]
    expected = [value * scale for value, scale in zip(expected_of(given_, upstream), scales, strict=True)]
    equal(found_of(given_, upstream), given_, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dimensions", [100, 129, 300, 1000, 1024])
def test_rows_of_every_width_are_summed_whole(ragged: Make, dtype: torch.dtype, dimensions: int) -> None:
    given_ = world(ragged, 3, width=dimensions, dtype=dtype)
    upstream = upstream_of(given_, 3)
    equal(found_of(given_, upstream), given_, expected_of(given_, upstream))


def test_an_expanded_upstream_and_winners_of_any_strides_are_read_as_they_are(ragged: Make) -> None:
    given_ = world(ragged, 11)
    one = torch.ones(()).expand(3, 3)
    turned = given_.winners.mT.contiguous().mT
    found = maxsim_all_pairs_gradients(given_.queries.tokens, given_.documents.tokens, turned, one, unit=False)
    equal(found, given_, expected_of(given_, np.ones((3, 3), np.float32)))


@pytest.mark.parametrize(("queries", "documents"), [(0, 0), (0, 2), (2, 0)])
def test_nothing_has_gradients_of_its_shape(queries: int, documents: int) -> None:
    sides = [Tokens(torch.ones(2 * n, 4), torch.arange(2 * n).view(n, 2) // 2 * 2, 0) for n in (queries, documents)]
    winners = torch.zeros(2 * queries, documents, dtype=torch.int16)
    found = maxsim_all_pairs_gradients(*sides, winners, torch.ones(queries, documents), unit=False)
    listed = maxsim_pairs_gradients(
        *sides, torch.zeros(0, 2, dtype=torch.int64), winners.new_zeros(0, 0), torch.ones(0), unit=False
    )
    for result in (found, listed):
        assert [each.shape for each in result] == [each.values.shape for each in sides]
        assert not any(each.any() for each in result)


def test_mixed_dtypes_give_each_side_its_own(ragged: Make) -> None:
    given_ = world(ragged, 5, width=16)
    halves = given_.documents.tokens._replace(values=given_.documents.tokens.values.to(torch.bfloat16))
    mixed = World(given_.queries, given_.documents._replace(tokens=halves), given_.winners)
    upstream = upstream_of(given_, 5)
    equal(found_of(mixed, upstream), mixed, expected_of(given_, upstream))


@pytest.mark.parametrize(
    "values", [torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.int8), torch.ones(2, WIDTHS[-1] + 1)]
)
def test_what_cannot_be_computed_is_refused(values: Tensor) -> None:
    tokens = Tokens(values, torch.tensor([[0, 2]]), 2)
    winners = torch.zeros(2, 1, dtype=torch.int16)
    with pytest.raises(TypeError, match=r"takes? "):
        maxsim_all_pairs_gradients(tokens, tokens, winners, torch.ones(1, 1), unit=False)
