"""Lists made on the device: nothing is lost, nothing is twice, and all of it is in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from lateinteraction.kernels.gpu.grouping import (
    entries_by_tile,
    listed_by,
    owners_of,
    winners_by_document,
    winners_by_listing,
)
from lateinteraction.kernels.operands import Tokens

pytestmark = pytest.mark.usefixtures("poisoned_memory")
seeds = st.integers(0, 2**32 - 1)
law = settings(
    max_examples=max(8, settings.default.max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The interpreter takes a tenth of a second for an example."""
TILE = 16


def scattered_items(generator: np.random.Generator, count: int, longest: int) -> Tokens:
    """Items in any order with gaps between them; `longest` may be more than any of them has."""
    lengths = generator.integers(0, longest + 1, count)
    starts, row = np.zeros(count, np.int64), 0
    for item in generator.permutation(count):
        row += int(generator.integers(0, 3))
        starts[item] = row
        row += int(lengths[item])
    spans = torch.from_numpy(np.stack([starts, starts + lengths], axis=1))
    return Tokens(torch.zeros(row + 2, 1), spans, longest)


@law
@given(seeds)
def test_every_row_has_the_item_whose_span_names_it_or_none(seed: int) -> None:
    items = scattered_items(np.random.default_rng(seed), 4, 9)
    owners = owners_of(items)
    expected = torch.full_like(owners, -1)
    for item, (start, end) in enumerate(items.spans.tolist()):
        expected[start:end] = item
    assert torch.equal(owners, expected)


@law
@given(st.lists(st.integers(0, 4), max_size=12))
def test_every_item_has_its_own_pairs_in_rising_order(items: list[int]) -> None:
    listing = listed_by(torch.tensor(items, dtype=torch.int64), 5)
    for item in range(5):
        start, end = listing.bounds[item : item + 2].tolist()
        assert listing.order[start:end].tolist() == [pair for pair, own in enumerate(items) if own == item]
    assert listing.bounds[-1] == len(items)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
@law
@given(seed=seeds)
def test_winners_are_turned_and_rows_that_nobody_has_chose_nothing(dtype: torch.dtype, seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = int(generator.integers(1, 20)), int(generator.integers(1, 9))
    if generator.random() < 0.3:  # rows that begin where 16 divides
        shape = 16 * int(generator.integers(1, 3)), 16
    winners = torch.from_numpy(generator.integers(-1, 99, shape)).to(dtype)
    owners = torch.from_numpy(generator.integers(-1, 2, shape[0])).int()
    expected = torch.where(owners[:, None] >= 0, winners, -1).mT
    found = winners_by_document(winners, owners)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_winners_of_pairs_stand_in_the_order_of_the_listing_and_end_with_the_query() -> None:
    winners = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.int16)
    listing = listed_by(torch.tensor([1, 0, 1]), 2)
    found = winners_by_listing(winners, listing, torch.tensor([2, 3, 0]))
    assert found.tolist() == [[4, 5, 6], [1, 2, -1], [-1, -1, -1]]


@pytest.mark.parametrize("listed", [False, True], ids=["all pairs", "listed"])
@law
@given(seed=seeds)
def test_every_tile_has_the_entries_that_chose_a_token_of_it_in_rising_order(listed: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    documents = scattered_items(generator, 3, 2 * TILE + 3)
    lengths = (documents.spans[:, 1] - documents.spans[:, 0]).numpy()
    if listed:
        of_document, width = np.sort(generator.integers(0, 3, int(generator.integers(1, 7)))), 5
        bounds = torch.from_numpy(np.searchsorted(of_document, np.arange(4)))
    else:
        of_document, width, bounds = np.arange(3), int(generator.choice([*range(1, 40), *[16, 32] * 8])), None
    winners = np.full((len(of_document), width), -1)
    for row, document in enumerate(of_document):
        winners[row] = generator.integers(-1, max(lengths[document], 1), width) if lengths[document] else -1
    groups = entries_by_tile(torch.from_numpy(winners).to(torch.int16), bounds, documents, TILE)
    for document in range(3):
        own = winners[of_document == document].ravel()
        first = int((of_document < document).sum()) * width
        for tile in range(-(-int(lengths[document]) // TILE)):
            start, end = groups.ranges[document, tile].tolist()
            packed = groups.entries[first + start : first + end].numpy()
            entries, tokens = np.divmod(packed, TILE)
            np.testing.assert_array_equal(entries, np.flatnonzero((own >= 0) & (own // TILE == tile)))
            np.testing.assert_array_equal(tokens + tile * TILE, own[entries])


def test_entries_that_32_bits_cannot_hold_take_64() -> None:
    """Told by shapes alone: one document, and winners that are a view of one number."""
    documents = Tokens(torch.zeros(0, 1), torch.zeros(0, 2, dtype=torch.int64), 5)
    few, many = (torch.zeros(1, dtype=torch.int16).expand(0, width) for width in (2**26, 2**27 + 1))
    assert entries_by_tile(few, None, documents, TILE).entries.dtype == torch.int32
    assert entries_by_tile(many, None, documents, TILE).entries.dtype == torch.int64
