"""In-batch XTR by Triton: the reference's retrieval to the last tie, whatever is held at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

pytest.importorskip("triton")

from lateinteraction.domain import reference
from lateinteraction.kernels.gpu import xtr
from lateinteraction.kernels.gpu.xtr import BLOCK, xtr_all_pairs
from lateinteraction.kernels.operands import Tokens, spans_of

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("poisoned_memory")
seeds = st.integers(0, 2**32 - 1)
law = settings(
    max_examples=max(8, settings.default.max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The interpreter takes a tenth of a second for an example."""


@contextmanager
def holding(keys: int) -> Iterator[None]:
    """Have fewer keys held at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xtr, "KEYS_AT_ONCE", keys)
        patch.setattr(xtr, "aligned", lambda count: max(1, count))
        yield


def eighths(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (generator.integers(-8, 9, shape) / 8).astype(np.float32)


def in_rows(side: Any) -> Any:
    """The items in the order of their rows, as the reference counts rows for ties."""
    rising = np.argsort(side.tokens.spans[:, 0].numpy(), kind="stable")
    packed = side.packed
    tokens = np.concatenate([packed.tokens[:0], *(packed[int(item)] for item in rising)])
    offsets = np.concatenate([[0], np.cumsum(packed.lengths[rising])])
    spans = side.tokens.spans[torch.from_numpy(rising)]
    return side._replace(packed=type(packed)(tokens, offsets), tokens=side.tokens._replace(spans=spans))


def sides_of(make: Make, generator: np.random.Generator, lengths: list[int], width: int, **options: Any) -> list[Any]:
    queries = [int(generator.integers(0, 5)) for _ in range(3)]
    made = [make(generator, each, eighths(generator, sum(each), width), **options) for each in (queries, lengths)]
    return [made[0], in_rows(made[1])]


def check(found: tuple[Tensor, Tensor, Tensor], queries: Any, documents: Any, k: int) -> None:
    scores, winners, finders = found
    expected = reference.xtr_all_pairs(queries.packed, documents.packed, k)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6, atol=1e-7)
    own = winners[torch.from_numpy(queries.rows)].numpy()
    counts = [(own[start:end] >= 0).sum(axis=0) for start, end in pairwise(queries.packed.offsets)]
    np.testing.assert_array_equal(finders.numpy(), np.reshape(counts, expected.shape))
    # The winner of a document is its best token, where that was retrieved at all.
    best = reference.maxsim_winners(queries.packed, documents.packed)
    assert np.all((own == best) | (own == -1))
    similar = queries.packed.tokens @ documents.packed.tokens.T
    for row, chosen in zip(similar, own, strict=True):
        order = np.argsort(-row, kind="stable")[:k]
        retrieved = np.unique(np.searchsorted(documents.packed.offsets, order, side="right") - 1)
        np.testing.assert_array_equal(np.flatnonzero(chosen >= 0), retrieved)


@law
@given(seed=seeds, k=st.integers(1, 12), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_what_is_retrieved_is_what_the_reference_retrieves(ragged: Make, seed: int, k: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(seed)
    lengths = [int(generator.integers(0, 9)) for _ in range(3)]
    queries, documents = sides_of(ragged, generator, lengths, int(generator.choice([1, 3, 40])), dtype=dtype)
    check(xtr_all_pairs(queries.tokens, documents.tokens, k), queries, documents, k)


@pytest.mark.parametrize("keys", [500, 2**24])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("lengths", [[0, 70, 3 * BLOCK, 1], [2 * BLOCK + 5, 4 * BLOCK - 5]])
def test_choosing_blocks_first_retrieves_the_same_however_few_keys_are_held(
    ragged: Make, lengths: list[int], k: int, keys: int
) -> None:
    """Two dimensions make many ties, within blocks and across them."""
    generator = np.random.default_rng(k)
    queries, documents = sides_of(ragged, generator, lengths, 2)
    assert sum(lengths) / BLOCK + k * BLOCK < sum(lengths) / 2
    with holding(keys):
        check(xtr_all_pairs(queries.tokens, documents.tokens, k), queries, documents, k)


def test_of_equal_tokens_those_of_the_lowest_rows_are_retrieved() -> None:
    queries = Tokens(torch.ones(1, 2), torch.tensor([[0, 1]]), 1)
    documents = Tokens(torch.ones(300, 2), spans_of(torch.arange(0, 301, 10)), 10)
    _, winners, finders = xtr_all_pairs(queries, documents, 25)
    assert winners[0].tolist() == [0, 0, 0] + [-1] * 27
    assert finders[0].tolist() == [1, 1, 1] + [0] * 27
    _, winners, _ = xtr_all_pairs(queries, documents, 3)
    assert winners[0].tolist() == [0] + [-1] * 29


def test_similarities_that_are_all_negative_are_retrieved_as_any_other() -> None:
    queries = Tokens(torch.tensor([[1.0]]), torch.tensor([[0, 1]]), 1)
    documents = Tokens(torch.tensor([[-3.0], [-1.0], [-2.0]]), torch.tensor([[0, 1], [1, 2], [2, 3]]), 1)
    scores, winners, finders = xtr_all_pairs(queries, documents, 2)
    assert scores.tolist() == [[0.0, -1.0, -2.0]]
    assert winners.tolist() == [[-1, 0, 0]]
    assert finders.tolist() == [[0, 1, 1]]


def test_scales_count_and_bytes_are_multiplied_as_bytes() -> None:
    values = torch.tensor([[3, 0], [2, 1], [0, 127]], dtype=torch.int8)
    queries = Tokens(torch.tensor([[1, 1]], dtype=torch.int8), torch.tensor([[0, 1]]), 1, torch.tensor([2.0]))
    documents = Tokens(values, torch.tensor([[0, 2], [2, 3]]), 2, torch.tensor([1.0, 4.0, 0.5]))
    scores, winners, _ = xtr_all_pairs(queries, documents, 2)
    assert scores.tolist() == [[24.0, 127.0]]
    assert winners.tolist() == [[1, 0]]


def test_nan_is_retrieved_last_and_gives_nan_only_where_it_is() -> None:
    queries = Tokens(torch.ones(1, 1), torch.tensor([[0, 1]]), 1)
    documents = Tokens(torch.tensor([[torch.nan], [-5.0]]), torch.tensor([[0, 1], [1, 2]]), 1)
    assert xtr_all_pairs(queries, documents, 1)[0].tolist() == [[0.0, -5.0]]
    assert xtr_all_pairs(queries, documents, 2)[0].isnan().tolist() == [[True, False]]


@pytest.mark.parametrize(("queries", "documents"), [(0, 0), (0, 2), (2, 0)])
def test_nothing_retrieves_nothing(queries: int, documents: int) -> None:
    sides = [Tokens(torch.ones(n, 2), spans_of(torch.arange(n + 1)), 1) for n in (queries, documents)]
    scores, winners, finders = xtr_all_pairs(*sides, 3)
    assert scores.shape == winners.shape == finders.shape == (queries, documents)
    assert not scores.any()


def test_the_same_call_gives_the_same_bits(ragged: Make) -> None:
    generator = np.random.default_rng(4)
    values = generator.standard_normal((160, 8)).astype(np.float32)
    queries, documents = ragged(generator, [5, 3], values[:8]), ragged(generator, [70, 82], values[8:])
    first, second = (xtr_all_pairs(queries.tokens, documents.tokens, 2) for _ in range(2))
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left[: len(right)], right)
