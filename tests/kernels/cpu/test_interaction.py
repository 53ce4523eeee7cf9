"""Centroid interaction: exact maxima, whatever the widths, and wherever documents lie."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain import reference
from lateinteraction.kernels.cpu import interaction
from lateinteraction.kernels.operands import CentroidTable, spans_of

pytestmark = pytest.mark.usefixtures("poisoned_memory")

WithThreads = Callable[[Callable[[], Tensor]], list[Tensor]]
seeds = st.integers(0, 2**32 - 1)
columns = st.sampled_from([0, 1, 2, 5, 16, 31, 32, 33, 48, 64, 65, 127, 128, 129, 160, 257, 300])
"""On both sides of what one pass takes: 32, and 32 to 128 where there are as many."""


@frozen
class World:
    """A table of whole numbers, so that sums are exact, and documents scattered among codes of no document."""

    scores: NDArray[np.float32]
    query_offsets: NDArray[np.int64]
    codes: NDArray[np.int32]
    spans: NDArray[np.int64]

    def expected(self) -> NDArray[np.floating]:
        lengths = self.spans[:, 1] - self.spans[:, 0]
        packed = np.concatenate([self.codes[:0], *(self.codes[start:end] for start, end in self.spans)])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return reference.centroid_interaction(self.scores, self.query_offsets, packed, offsets)

    def found(self, table: CentroidTable) -> NDArray[np.floating]:
        query_spans = spans_of(torch.from_numpy(self.query_offsets))
        arguments = query_spans, torch.from_numpy(self.codes), torch.from_numpy(self.spans)
        return interaction.centroid_interaction(table, *arguments).numpy()


def world(seed: int, tokens: int, centroids: int, longest: int = 9) -> World:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 256, (centroids, tokens)).astype(np.float32)
    cuts = np.sort(generator.integers(0, tokens + 1, int(generator.integers(0, 5))))
    lengths = generator.integers(0, longest, int(generator.integers(0, 6)))
    starts, place = np.zeros(len(lengths), np.int64), 0
    for item in generator.permutation(len(lengths)):
        place += int(generator.integers(0, 4))
        starts[item] = place
        place += int(lengths[item])
    codes = generator.integers(0, centroids, place + 3).astype(np.int32)
    spans = np.stack([starts, starts + lengths], axis=1)
    return World(scores, np.concatenate([[0], cuts, [tokens]]), codes, spans)


def as_bytes(scores: NDArray[np.float32]) -> CentroidTable:
    """Steps of 1 and lows of 0: scores are sums of the very bytes."""
    tokens = scores.shape[1]
    return CentroidTable(torch.from_numpy(scores.astype(np.uint8)), torch.ones(tokens), torch.zeros(tokens))


@given(seeds, columns, st.integers(1, 40))
def test_maxima_of_bytes_are_exact(seed: int, tokens: int, centroids: int) -> None:
    own = world(seed, tokens, centroids)
    np.testing.assert_array_equal(own.found(as_bytes(own.scores)), own.expected())


@given(seeds, columns, st.integers(1, 40))
def test_maxima_of_floats_are_exact(seed: int, tokens: int, centroids: int) -> None:
    own = world(seed, tokens, centroids)
    below_zero = World(own.scores - 300, own.query_offsets, own.codes, own.spans)
    np.testing.assert_array_equal(
        below_zero.found(CentroidTable(torch.from_numpy(below_zero.scores))), below_zero.expected()
    )


@given(seeds, st.integers(1, 70))
def test_steps_and_lows_belong_to_their_columns(seed: int, tokens: int) -> None:
    own, generator = world(seed, tokens, 20), np.random.default_rng(seed)
    steps, lows = (generator.integers(-8, 9, tokens).astype(np.float32) / 8 for _ in range(2))
    steps = np.abs(steps)
    restored = World(lows + steps * own.scores, own.query_offsets, own.codes, own.spans)
    table = CentroidTable(
        torch.from_numpy(own.scores.astype(np.uint8)), torch.from_numpy(steps), torch.from_numpy(lows)
    )
    np.testing.assert_array_equal(own.found(table), restored.expected())


@given(seeds, st.sampled_from([3, 32, 40, 130]), st.booleans())
def test_a_score_is_the_same_alone(seed: int, tokens: int, quantised: bool) -> None:
    """To the last bit, of a query without the others and of a document without the others."""
    own, generator = world(seed, tokens, 30), np.random.default_rng(seed)
    values = torch.from_numpy(generator.standard_normal((30, tokens), np.float32))
    table = CentroidTable(values)
    if quantised:
        bytes_of_all = torch.from_numpy(own.scores.astype(np.uint8))
        table = CentroidTable(bytes_of_all, torch.rand(tokens), torch.randn(tokens))
    together = own.found(table)
    codes, spans = torch.from_numpy(own.codes), torch.from_numpy(own.spans)
    for query, (start, end) in enumerate(pairwise(own.query_offsets)):
        alone = CentroidTable(*(None if each is None else each[..., start:end] for each in table))
        whole = torch.tensor([[0, end - start]])
        for document in range(len(spans)):
            score = interaction.centroid_interaction(alone, whole, codes, spans[document : document + 1])
            assert score.item() == together[query, document]


def test_a_document_may_be_listed_twice_and_backwards() -> None:
    own = world(7, 33, 20)
    twice = World(own.scores, own.query_offsets, own.codes, np.concatenate([own.spans[::-1], own.spans]))
    found = twice.found(as_bytes(own.scores))
    np.testing.assert_array_equal(found[:, : len(own.spans)], found[:, len(own.spans) :][:, ::-1])
    np.testing.assert_array_equal(found, twice.expected())


def test_nobody_scores_with_an_empty_document_and_an_empty_query_scores_0() -> None:
    table = as_bytes(np.full((2, 3), 7, np.float32))
    spans = torch.tensor([[0, 3], [1, 1]])
    for each in (table, CentroidTable(table.values.float())):
        found = interaction.centroid_interaction(
            each, spans, torch.zeros(2, dtype=torch.int32), torch.tensor([[0, 2], [1, 1]])
        )
        assert found.tolist() == [[21.0, -torch.inf], [0.0, 0.0]]


def test_nan_reaches_those_who_have_it() -> None:
    values = torch.randn(6, 40)
    values[4, 35] = torch.nan
    codes = torch.tensor([4, 0, 1, 2, 0, 4], dtype=torch.int32)
    queries, documents = torch.tensor([[0, 35], [30, 40]]), torch.tensor([[0, 2], [2, 4], [4, 6]])
    found = interaction.centroid_interaction(CentroidTable(values), queries, codes, documents)
    assert found.isnan().tolist() == [[False] * 3, [True, False, True]]


def test_infinities_are_numbers() -> None:
    values = torch.tensor([[-torch.inf, torch.inf], [1.0, 2.0]])
    codes, documents = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([[0, 1], [0, 2]])
    found = interaction.centroid_interaction(CentroidTable(values), torch.tensor([[0, 1], [1, 2]]), codes, documents)
    assert found.tolist() == [[-torch.inf, 1.0], [torch.inf, torch.inf]]


@given(seeds, st.sampled_from([3, 32, 40]))
def test_one_more_token_never_lowers_a_score(seed: int, tokens: int) -> None:
    own = world(seed, tokens, 30)
    longer = World(own.scores, own.query_offsets, own.codes, own.spans + np.array([0, 1]))
    table = as_bytes(own.scores)
    assert np.all(longer.found(table) >= own.found(table))


def test_results_do_not_depend_on_the_number_of_threads(with_threads: WithThreads) -> None:
    generator = np.random.default_rng(0)
    documents = torch.from_numpy(np.concatenate([[0], np.cumsum(generator.integers(0, 40, 100))]))
    codes = torch.from_numpy(generator.integers(0, 50, int(documents[-1])).astype(np.int32))
    table = CentroidTable(torch.from_numpy(generator.standard_normal((50, 40), np.float32)))
    queries = torch.tensor([[0, 32], [8, 40]])
    alone, *others = with_threads(lambda: interaction.centroid_interaction(table, queries, codes, spans_of(documents)))
    assert all(torch.equal(alone, other) for other in others)


def test_a_slice_of_a_table_is_a_table() -> None:
    values = torch.randn(9, 50)
    codes, spans = torch.arange(9, dtype=torch.int32), torch.tensor([[0, 9]])
    part = interaction.centroid_interaction(CentroidTable(values[:, 10:42]), torch.tensor([[0, 32]]), codes, spans)
    whole = interaction.centroid_interaction(CentroidTable(values), torch.tensor([[10, 42]]), codes, spans)
    assert torch.equal(part, whole)


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        (CentroidTable(torch.ones(2, 3).half()), torch.zeros(2, dtype=torch.int32)),
        (CentroidTable(torch.ones(2, 3, dtype=torch.uint8)), torch.zeros(2, dtype=torch.int32)),
        (CentroidTable(torch.ones(2, 3), torch.ones(3), torch.ones(3)), torch.zeros(2, dtype=torch.int32)),
        (CentroidTable(torch.ones(2, 3)), torch.zeros(2, dtype=torch.int64)),
        (CentroidTable(torch.ones(2, 3, device="meta")), torch.zeros(2, dtype=torch.int32)),
    ],
)
def test_what_cannot_be_computed_is_refused(table: CentroidTable, codes: Tensor) -> None:
    with pytest.raises(TypeError, match="this form takes"):
        interaction.centroid_interaction(table, torch.tensor([[0, 3]]), codes, torch.tensor([[0, 2]]))
