"""Tables of centroid scores: made, put into eight bits, searched for the best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.kernels.cpu import tables
from lateinteraction.kernels.cpu.blocks import CENTROIDS, PANEL
from lateinteraction.kernels.cpu.processor import processor

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Table = NDArray[np.float32]
WithThreads = Callable[[Callable[[], tuple[Tensor, ...]]], list[tuple[Tensor, ...]]]
seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from([1, 2, 3, 7, 16, 17, 33, 128])
rows = st.sampled_from([1, 2, 5, 11, 12, 13, CENTROIDS - 1, CENTROIDS, CENTROIDS + 1, 200])
columns = st.sampled_from([0, 1, 3, 8, 15, 16, 31, 32, 33, 63, 64, 70])


def eighths(generator: np.random.Generator, *shape: int) -> Table:
    """Products of these, and their sums, are exact."""
    return (generator.integers(-8, 9, shape) / 8).astype(np.float32)


def drawn_tables(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Table]:
    shapes = st.tuples(st.integers(1, 2 * CENTROIDS + 3), st.integers(0, 20))
    return shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=numbers))


def tensor(array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(array)


# The table


@given(seeds, rows, columns, widths, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_a_table_has_the_products_of_the_reference(
    seed: int, count: int, tokens: int, width: int, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(seed)
    queries, centroids = eighths(generator, tokens, width), eighths(generator, count, width)
    found = tables.centroid_scores(tensor(queries).type(dtype), tensor(centroids))
    expected = reference.centroid_scores(TokenEmbeddings(queries, [0, tokens]), centroids)
    np.testing.assert_array_equal(found.numpy(), expected)


@given(seeds, st.integers(1, 40), st.integers(1, 70), widths, st.data())
def test_a_product_does_not_depend_on_what_is_beside_it(
    seed: int, count: int, tokens: int, width: int, data: st.DataObject
) -> None:
    generator = np.random.default_rng(seed)
    queries, centroids = (tensor(generator.standard_normal((n, width), np.float32)) for n in (tokens, count))
    k = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5))
    s = data.draw(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=5))
    whole = tables.centroid_scores(queries, centroids)
    assert torch.equal(tables.centroid_scores(queries[s], centroids[k]), whole[k][:, s])


def test_nan_stays_in_its_column() -> None:
    queries = torch.ones(3, 4)
    queries[1, 2] = torch.nan
    table = tables.centroid_scores(queries, torch.ones(30, 4))
    assert table.isnan().all(dim=0).tolist() == [False, True, False]
    assert table.isnan().sum() == 30


def test_strided_tokens_are_no_obstacle() -> None:
    queries, centroids = torch.randn(5, 16), torch.randn(9, 16)
    by_column = centroids.T.contiguous().T
    assert torch.equal(
        tables.centroid_scores(queries[::2], by_column), tables.centroid_scores(queries, centroids)[:, ::2]
    )


# In eight bits


def assert_same_bytes(table: Table) -> None:
    found, expected = tables.quantise_table(tensor(table)), reference.quantise_table(table)
    for name in ("values", "steps", "lows"):
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(expected, name))


@given(drawn_tables(st.floats(-1e6, 1e6, width=32, allow_subnormal=False)))
def test_bytes_are_those_of_the_reference(table: Table) -> None:
    assert_same_bytes(table)


@given(drawn_tables(st.integers(-510, 510).map(lambda n: n / 2)))
def test_halves_between_two_steps_go_to_the_even_one(table: Table) -> None:
    table[:1] = -255.0  # with −255 and 0 in a column a step is 1, or 2 with 255
    assert_same_bytes(table)


@given(seeds, st.integers(1, 200), st.integers(1, 40))
def test_a_byte_is_off_by_half_a_step_at_most(seed: int, count: int, tokens: int) -> None:
    scores = tensor(np.random.default_rng(seed).standard_normal((count, tokens), np.float32))
    values, steps, lows = tables.quantise_table(scores)
    assert steps is not None
    assert lows is not None
    assert bool(torch.all((lows + steps * values - scores).abs() <= steps * 0.5001 + 1e-6))
    assert torch.equal(values.amin(dim=0), torch.zeros(tokens, dtype=torch.uint8))
    if count > 1:
        assert torch.equal(values.amax(dim=0), torch.full((tokens,), 255, dtype=torch.uint8))


def test_equal_scores_are_0_steps_above_the_lowest() -> None:
    values, steps, lows = tables.quantise_table(torch.full((70, 3), 0.7))
    assert (int(values.max()), steps.tolist(), lows.tolist()) == (0, [0.0] * 3, [np.float32(0.7)] * 3)


def test_a_step_that_is_too_small_to_be_exact_makes_no_byte_overflow() -> None:
    smallest = 2.0**-149
    values = tables.quantise_table(torch.tensor([[0.0], [300 * smallest]])).values
    assert values.tolist() == [[0], [255]]


def test_nan_makes_steps_nan_and_leaves_other_columns_alone() -> None:
    scores = torch.randn(100, 20)
    expected = tables.quantise_table(scores)
    scores[77, 5] = torch.nan
    found = tables.quantise_table(scores)
    others = [column for column in range(20) if column != 5]
    assert found.steps is not None
    assert found.steps.isnan().nonzero().flatten().tolist() == [5]
    assert torch.equal(found.values[:, others], expected.values[:, others])
    assert not found.values[:, 5].any()


# The best centroids


@given(drawn_tables(st.integers(-4, 4).map(lambda n: n / 8)), st.integers(1, 3 * CENTROIDS))
def test_probes_are_those_of_the_reference_where_many_tie(table: Table, nprobe: int) -> None:
    np.testing.assert_array_equal(tables.probe(tensor(table), nprobe).numpy(), reference.probe(table, nprobe))


odd_numbers = st.sampled_from([-np.inf, -1e30, -1.0, -1e-45, -0.0, 0.0, 1e-45, 0.5, 1e30, np.inf, np.nan])


@given(drawn_tables(odd_numbers), st.integers(1, 3 * CENTROIDS))
def test_zeros_are_equal_and_nan_comes_after_everything(table: Table, nprobe: int) -> None:
    np.testing.assert_array_equal(tables.probe(tensor(table), nprobe).numpy(), reference.probe(table, nprobe))


def test_a_block_of_nan_is_behind_one_of_minus_infinities() -> None:
    table = np.full((3 * CENTROIDS, 1), -np.inf, np.float32)
    table[:CENTROIDS] = np.nan
    assert tables.probe(tensor(table), 1).tolist() == [[CENTROIDS]]
    np.testing.assert_array_equal(tables.probe(tensor(table), 500).numpy(), reference.probe(table, 500))


@given(seeds, st.integers(1, 5000), st.integers(1, 40))
def test_probes_of_many_centroids(seed: int, count: int, nprobe: int) -> None:
    table = np.random.default_rng(seed).standard_normal((count, 3), np.float32)
    np.testing.assert_array_equal(tables.probe(tensor(table), nprobe).numpy(), reference.probe(table, nprobe))


# What holds of all


def test_results_do_not_depend_on_the_number_of_threads(with_threads: WithThreads) -> None:
    queries, centroids = torch.randn(50, 24), torch.randn(777, 24)

    def call() -> tuple[Tensor, ...]:
        scores = tables.centroid_scores(queries, centroids)
        values, steps, lows = tables.quantise_table(scores)
        assert steps is not None
        assert lows is not None
        return scores, values, steps, lows, tables.probe(scores, 9)

    alone, *others = with_threads(call)
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(alone, other, strict=True))


def test_an_edge_has_the_last_rows_and_room() -> None:
    table = torch.arange(12, dtype=torch.uint8).view(4, 3)
    edge = tables.Edge.of(table, 8)
    assert edge.inside == 2  # 8 columns from row 2 on would end at 14 of 12
    assert edge.values.tolist() == [6, 7, 8, 9, 10, 11, 0, 0, 0, 0, 0]
    assert tables.Edge.of(table, 3).inside == 4
    assert tables.Edge.of(table[:1], 8).inside == 0


def test_panels_are_as_wide_as_the_processor_likes_them() -> None:
    assert processor().panel == PANEL
    packed = tables.panels_of_rows(torch.arange(6.0).view(3, 2), torch.tensor([1.0, 2.0, 10.0]))
    assert packed.shape == (1, 2, PANEL)
    assert packed[0, :, :3].tolist() == [[0.0, 4.0, 40.0], [1.0, 6.0, 50.0]]
    assert not packed[0, :, 3:].any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: tables.centroid_scores(torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3)),
        lambda: tables.centroid_scores(torch.ones(2, 3), torch.ones(2, 3).half()),
        lambda: tables.centroid_scores(torch.ones(2, 3, device="meta"), torch.ones(2, 3)),
        lambda: tables.quantise_table(torch.ones(2, 3).double()),
        lambda: tables.probe(torch.ones(2, 3, dtype=torch.int32), 1),
    ],
)
def test_what_cannot_be_computed_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="this form takes"):
        call()
