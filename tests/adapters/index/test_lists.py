"""Inverted lists, against walking them document by document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import lists as module
from lateinteraction.adapters.index import payloads
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.codebook import Codebook, train
from lateinteraction.adapters.index.lists import ROWS, STARTS, Lists, build_lists
from lateinteraction.adapters.index.payloads import (
    PreparedQuery,
    Residuals,
    encode_residual,
    offsets_array,
    read_payload,
)
from lateinteraction.adapters.index.search import Hits, SearchOptions, SegmentView, search
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import CorruptIndex

seeds = st.integers(0, 2**32 - 1)
CENTROIDS = 7
Codes = NDArray[np.int32]


@pytest.fixture(params=[2**16, 3], ids=["one block", "blocks of three"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Documents of a block: as many as two bytes count, or few, so that there are several."""
    monkeypatch.setattr(module, "BLOCK", request.param)
    return int(request.param)


def drawn(seed: int) -> tuple[np.random.Generator, Codes, NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 5, int(generator.integers(0, 12)))
    return generator, generator.integers(0, CENTROIDS, int(lengths.sum()), dtype=np.int32), lengths


def expected_gains(
    codes: Codes, lengths: NDArray[np.int64], centroids: NDArray[np.int64], similarities: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The formula, read aloud."""
    gains: list[float] = []
    for own in np.split(codes, np.cumsum(lengths)[:-1]) if len(lengths) else []:
        gain = np.float32(0)
        for token, row in enumerate(centroids):
            least = similarities[token].min()
            found = [similarities[token, place] - least for place, code in enumerate(row) if code in own]
            gain += max(found, default=np.float32(0))
        gains.append(float(gain))
    return np.array(gains, np.float32)


def stored(codes: Codes, lengths: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    return build_lists(codes, lengths, CENTROIDS)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("seed", range(40))
def test_a_document_gains_what_its_best_listing_is_above_the_least(seed: int) -> None:
    generator, codes, lengths = drawn(seed)
    centroids = np.stack([generator.permutation(CENTROIDS)[:3] for _ in range(4)])
    similarities = -np.sort(-generator.standard_normal((4, 3)).astype(np.float32), axis=1)
    lists = Lists(InMemory(stored(codes, lengths)), len(lengths))
    rows, gains = lists.gains(centroids, similarities)
    found = np.zeros(len(lengths), np.float32)
    found[rows] = gains
    np.testing.assert_allclose(found, expected_gains(codes, lengths, centroids, similarities), atol=1e-6)
    assert bool((np.diff(rows) > 0).all())
    assert bool((gains > 0).all())
    for one, again in zip(lists.gains(centroids, similarities), (rows, gains), strict=True):
        np.testing.assert_array_equal(one, again)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("seed", range(10))
def test_a_document_is_listed_once_under_each_centroid_of_its_tokens(seed: int) -> None:
    _, codes, lengths = drawn(seed)
    documents = np.repeat(np.arange(len(lengths)), lengths)
    assert len(stored(codes, lengths)[ROWS]) == len({*zip(documents, codes, strict=True)})


def test_a_listing_takes_two_bytes() -> None:
    _, codes, lengths = drawn(3)
    arrays = stored(codes, lengths)
    assert arrays[ROWS].dtype == np.uint16
    assert len(arrays[STARTS]) == CENTROIDS + 1


def test_documents_beyond_the_first_block_are_counted_on() -> None:
    """The last of 65,540 documents, with the real block."""
    lengths = np.zeros(65_540, np.int64)
    lengths[[3, 65_539]] = 1
    lists = Lists(InMemory(build_lists(np.array([1, 2], np.int32), lengths, CENTROIDS)), len(lengths))
    rows, gains = lists.gains(np.array([[2, 0]]), np.array([[1.0, 0.25]], np.float32))
    assert rows.tolist() == [65_539]
    assert gains.tolist() == [0.75]


def test_centroids_that_came_later_list_nothing() -> None:
    _, codes, lengths = drawn(5)
    lists = Lists(InMemory(stored(codes, lengths)), len(lengths))
    old, grown = np.array([[1, 2]]), np.array([[1, 2, CENTROIDS, CENTROIDS + 1000]])
    similarities = np.array([[0.5, 0.25, 0.5, 0.25]], np.float32)
    for one, other in zip(lists.gains(grown, similarities), lists.gains(old, similarities[:, :2]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_documents_gain_nothing() -> None:
    lists = Lists(InMemory(stored(np.empty(0, np.int32), np.empty(0, np.int64))), 0)
    rows, gains = lists.gains(np.array([[1, 2]]), np.array([[1.0, 0.5]], np.float32))
    assert rows.shape == gains.shape == (0,)


class Checking:
    """Arrays that remember which listings were verified."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._inner = InMemory(arrays)
        self.ranges: list[tuple[int, int]] = []

    def __contains__(self, name: object) -> bool:
        return name in self._inner

    def whole(self, name: str) -> NDArray[Any]:
        return self._inner.whole(name)

    def lazily(self, name: str) -> NDArray[Any]:
        return self._inner.lazily(name)

    def check(self, name: str, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
        assert name == ROWS
        self.ranges.extend(zip(map(int, firsts), map(int, lasts), strict=True))

    def check_all(self, name: str) -> None:
        raise AssertionError(f"all of {name}")


def test_only_the_listings_that_are_read_are_verified() -> None:
    _, codes, lengths = drawn(6)
    arrays = stored(codes, lengths)
    watched = Checking(arrays)
    Lists(watched, len(lengths)).gains(np.array([[2, 5]]), np.array([[1.0, 0.5]], np.float32))
    starts = arrays[STARTS]
    assert watched.ranges == [(starts[2], starts[3]), (starts[5], starts[6])]


@pytest.mark.parametrize(
    "change",
    [
        {ROWS: np.zeros(3, np.uint16)},
        {ROWS: np.zeros(0, np.int64)},
        {STARTS: np.zeros(4, np.int32)},
        {STARTS: np.array([1, 5])},
    ],
)
def test_arrays_that_make_no_lists_are_damage(change: dict[str, NDArray[Any]]) -> None:
    _, codes, lengths = drawn(7)
    with pytest.raises(CorruptIndex):
        Lists(InMemory({**stored(codes, lengths), **change}), len(lengths))


def test_a_listing_of_a_document_that_is_not_there_is_damage() -> None:
    _, codes, lengths = drawn(8)
    arrays = stored(codes, lengths)
    damaged = {**arrays, ROWS: np.full_like(arrays[ROWS], 60_000)}
    with pytest.raises(CorruptIndex):
        Lists(InMemory(damaged), len(lengths)).gains(np.arange(CENTROIDS)[None], np.ones((1, CENTROIDS), np.float32))


# ── In a search ─────────────────────────────────────────────────────────────────────────────────────────────────────


def corpus() -> tuple[Residuals, Lists, TokenEmbeddings[torch.Tensor], Codebook]:
    """Documents of words of some topics, and queries of one document's words."""
    generator = np.random.default_rng(1)
    words = generator.standard_normal((400, 32), np.float32)
    lengths = generator.integers(5, 30, 800)
    owners = np.repeat(generator.integers(0, 20, 800), lengths)
    tokens = words[owners * 20 + generator.integers(0, 20, len(owners))]
    tokens = torch.from_numpy(tokens + 0.4 * generator.standard_normal(tokens.shape, np.float32))
    tokens = torch.nn.functional.normalize(tokens, dim=1)
    codebook = train(tokens, 300, 4)
    arrays = {**offsets_array(lengths), **encode_residual(tokens, codebook)}
    payload = read_payload(InMemory(arrays), codebook)
    assert isinstance(payload, Residuals)
    lists = Lists(InMemory(build_lists(payload.codes(), lengths, len(codebook))), len(lengths))
    offsets = offsets_of(lengths)
    rows = np.concatenate([generator.integers(offsets[item], offsets[item + 1], 8) for item in range(0, 800, 40)])
    return payload, lists, TokenEmbeddings(tokens[rows], offsets_of([8] * 20)), codebook


@pytest.fixture(scope="module")
def listed() -> tuple[Residuals, Lists, TokenEmbeddings[torch.Tensor], Codebook]:
    return corpus()


def overlap(found: list[Any], truth: list[Any], k: int) -> float:
    shared = [len({*map(int, a.rows[:k])} & {*map(int, b.rows[:k])}) for a, b in zip(found, truth, strict=True)]
    return sum(shared) / (k * len(truth))


def places(hits: Hits) -> set[tuple[int, int]]:
    return {(int(segment), int(row)) for segment, row in zip(hits.segments, hits.rows, strict=True)}


def test_lists_find_what_a_scan_of_all_codes_finds(listed: Any) -> None:
    payload, lists, queries, _ = listed
    scan = search([SegmentView(payload)], queries, 10, SearchOptions("exact"))
    view, efforts = SegmentView(payload, lists=lists), [SearchOptions(candidates=100, probe=n) for n in (1, 4, 16)]
    found = [overlap(search([view], queries, 10, options), scan, 10) for options in efforts]
    assert found == sorted(found)
    assert found[2] > 0.97


def test_where_lists_reach_enough_documents_the_others_are_not_looked_at(listed: Any) -> None:
    payload, _, queries, codebook = listed
    half = np.where(np.arange(800) < 400, payload.lengths, 0)
    arrays = build_lists(payload.codes()[: half.sum()], half, len(codebook))
    view = SegmentView(payload, lists=Lists(InMemory(arrays), 800))
    for hits in search([view], queries, 10, SearchOptions(candidates=100)):
        assert int(hits.rows.max()) < 400


def test_where_lists_reach_too_few_documents_all_codes_are_looked_at(listed: Any) -> None:
    payload, _, queries, codebook = listed
    few = np.where(np.arange(800) < 20, payload.lengths, 0)
    arrays = build_lists(payload.codes()[: few.sum()], few, len(codebook))
    view = SegmentView(payload, lists=Lists(InMemory(arrays), 800))
    options = SearchOptions(candidates=100)
    for hits, scan in zip(
        search([view], queries, 10, options), search([SegmentView(payload)], queries, 10, options), strict=True
    ):
        np.testing.assert_array_equal(hits.rows, scan.rows)


def test_scores_by_way_of_lists_are_the_payloads_own(listed: Any) -> None:
    payload, lists, queries, _ = listed
    for hits, values in zip(search([SegmentView(payload, lists=lists)], queries, 10), queries, strict=True):
        np.testing.assert_array_equal(hits.scores, payload.score(PreparedQuery(values))[hits.rows])


def test_lists_return_nothing_that_may_not_be_returned_and_all_that_is_asked_for(listed: Any) -> None:
    payload, lists, queries, _ = listed
    generator = np.random.default_rng(2)
    for share in (0.9, 0.5, 0.1, 0.02):
        eligible = generator.random(800) < share
        view = SegmentView(payload, eligible, lists=lists)
        exact = search([SegmentView(payload, eligible)], queries, 5, SearchOptions("exact"))
        found = search([view], queries, 5, SearchOptions(candidates=100, probe=8))
        assert all(bool(eligible[hits.rows].all()) and len(hits) >= min(5, eligible.sum()) for hits in found)
        assert overlap(found, exact, 5) > 0.95


def test_a_search_with_more_hits_than_listed_documents_returns_them_all_the_same(listed: Any) -> None:
    payload, lists, queries, _ = listed
    (hits,) = search([SegmentView(payload, lists=lists)], queries.span(0, 1), 800, SearchOptions(candidates=1, probe=1))
    assert sorted(map(int, hits.rows)) == list(range(800))


@pytest.mark.parametrize("interaction", ["maxsim", "xtr"])
def test_a_shortlist_does_not_depend_on_which_segments_have_lists(
    listed: Any, interaction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists know of no similarity below a bound; what is read by its codes must not be held to less."""
    monkeypatch.setattr(payloads, "IN_BYTES", 2**30)  # tables of bytes round
    payload, _, queries, codebook = listed
    plain: list[SegmentView] = []
    with_lists: list[SegmentView] = []
    for rows in (np.arange(0, 400), np.arange(400, 800)):
        own = Residuals(InMemory(payload.taken(rows) | offsets_array(payload.lengths[rows])), codebook)
        plain.append(SegmentView(own))
        lists = Lists(InMemory(build_lists(own.codes(), own.lengths, len(codebook))), len(own))
        with_lists.append(SegmentView(own, lists=lists))
    options = SearchOptions(candidates=20, probe=4, interaction=interaction)
    expected = search(with_lists, queries, 20, options)
    for views in ([with_lists[0], plain[1]], [plain[0], with_lists[1]]):
        found = search(views, queries, 20, options)
        shared = [len(places(one) & places(other)) for one, other in zip(found, expected, strict=True)]
        assert sum(shared) >= 0.99 * 20 * len(shared)  # but for what is as good as the last


def unreached(payload: Residuals, lists: Lists, query: NDArray[Any], codebook: Codebook) -> NDArray[np.bool_]:
    """Documents that a query reaches by none of the lists that each token is nearest to."""
    prepared = PreparedQuery(torch.as_tensor(query))
    rows, _ = lists.gains(*prepared.nearest(codebook, 2, len(codebook)))
    return ~np.isin(np.arange(len(payload)), rows)


@pytest.mark.parametrize("interaction", ["maxsim", "xtr"])
def test_what_lists_do_not_reach_is_told_apart_by_its_codes(listed: Any, interaction: Any) -> None:
    """A bound of lists that reach too few would find all of it alike."""
    payload, lists, queries, codebook = listed
    options = SearchOptions(candidates=20, probe=2, interaction=interaction)
    for number in range(len(queries)):
        query = queries.span(number, number + 1)
        may = unreached(payload, lists, query.tokens, codebook)
        expected, found = (
            search([SegmentView(payload, may, lists=each)], query, 10, options)[0] for each in (None, lists)
        )
        np.testing.assert_array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("interaction", ["maxsim", "xtr"])
def test_documents_of_another_segment_do_not_stand_for_those_that_lists_miss(listed: Any, interaction: Any) -> None:
    payload, _, queries, codebook = listed
    halves = []
    for rows in (np.arange(0, 400), np.arange(400, 800)):
        own = Residuals(InMemory(payload.taken(rows) | offsets_array(payload.lengths[rows])), codebook)
        halves.append((own, Lists(InMemory(build_lists(own.codes(), own.lengths, len(codebook))), len(own))))
    (first, lists), (second, _) = halves
    options = SearchOptions(candidates=20, probe=2, interaction=interaction)
    for number in range(len(queries)):
        query = queries.span(number, number + 1)
        may = unreached(first, lists, query.tokens, codebook)
        some = np.arange(400) % 4 == 0
        expected, found = (
            search([SegmentView(first, may, lists=each), SegmentView(second, some)], query, 10, options)[0]
            for each in (None, lists)
        )
        assert places(found) == places(expected)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("in_bytes", [True, False])
@pytest.mark.parametrize("chosen", [True, False])
def test_no_similarity_is_below_the_bound_that_is_given(
    listed: Any, few: bool, in_bytes: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bounds of one query, one after the other: what is kept of the first has no part in the second."""
    payload, _, queries, codebook = listed
    monkeypatch.setattr(payloads, "FEW", 2**30 if few else 0)
    monkeypatch.setattr(payloads, "IN_BYTES", 0 if in_bytes else 2**30)
    rows = np.arange(0, 800, 7) if chosen else None
    values = queries.span(3, 4).tokens
    query = PreparedQuery(values)
    table = codebook.centroids.numpy() @ values.numpy().T
    codes = np.split(payload.codes(), np.cumsum(payload.lengths)[:-1])
    for least in (np.full(len(values), 0.4, np.float32), np.linspace(-0.1, 0.3, len(values), dtype=np.float32), None):
        lifted = table if least is None else np.maximum(table, least)
        expected = [lifted[codes[row]].max(axis=0).sum() for row in (range(800) if rows is None else rows)]
        found = payload.approximate(query, rows, least)
        np.testing.assert_allclose(found, expected, atol=0.05 if in_bytes and not few else 1e-4)


def test_equal_scores_of_two_segments_come_in_their_order_whichever_has_lists(listed: Any) -> None:
    payload, lists, queries, _ = listed
    for views in (
        [SegmentView(payload), SegmentView(payload, lists=lists)],
        [SegmentView(payload, lists=lists), SegmentView(payload)],
    ):
        for hits in search(views, queries, 10, SearchOptions(candidates=100, probe=16)):
            np.testing.assert_array_equal(hits.segments, [0, 1] * 5)
            np.testing.assert_array_equal(hits.rows[::2], hits.rows[1::2])


def test_where_too_few_centroids_are_around_all_are_looked_at(listed: Any) -> None:
    _, _, queries, codebook = listed
    values = queries.span(0, 1).tokens[:2]
    around = codebook.around(values, 1)
    inside = len(around.members)
    assert inside < len(codebook)
    found, similarities = codebook.nearest(around, inside + 1)
    assert found.shape == similarities.shape == (2, inside + 1)
    expected = (values @ codebook.centroids.T).topk(inside + 1, dim=1).values
    torch.testing.assert_close(similarities, expected, atol=1e-5, rtol=0)


def test_a_segment_of_which_nothing_may_be_returned_returns_nothing(listed: Any) -> None:
    payload, lists, queries, _ = listed
    empty = SegmentView(payload, np.zeros(800, np.bool_), lists=lists)
    full = SegmentView(payload, lists=lists)
    for interaction in ("maxsim", "xtr"):
        options = SearchOptions(candidates=20, probe=2, interaction=interaction)
        for one, other in zip(
            search([empty, full], queries, 5, options), search([full], queries, 5, options), strict=True
        ):
            np.testing.assert_array_equal(one.rows, other.rows)
        assert all(not len(hits) for hits in search([empty], queries, 5, options))


def test_lists_find_the_same_after_the_codebook_has_grown() -> None:
    """Its later centroids list nothing here: each query token looks at as many of the first ones as before."""
    payload, _, queries, _ = corpus()
    decoded = payload.decode()
    before = train(decoded.tokens, 100, 4)
    after = before.denser(torch.cat([decoded.tokens, queries.tokens]), 250)
    assert (len(before), len(after)) == (100, 250)
    arrays = InMemory({**offsets_array(payload.lengths), **encode_residual(decoded.tokens, before)})
    views: list[SegmentView] = []
    for codebook in (before, after):
        own = read_payload(arrays, codebook)
        assert isinstance(own, Residuals)
        lists = Lists(InMemory(build_lists(own.codes(), own.lengths, len(before))), len(own))
        views.append(SegmentView(own, lists=lists))
    for options in (SearchOptions(candidates=40, probe=4), SearchOptions(candidates=40, probe=4, interaction="xtr")):
        for one, other in zip(*(search([view], queries, 10, options) for view in views), strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)


def test_the_nearest_centroids_are_found_in_few_cells(listed: Any) -> None:
    _, _, queries, codebook = listed
    exact, similarities = codebook.nearest(codebook.around(queries.tokens, 10_000), 10)
    assert exact.shape == similarities.shape == (len(queries.tokens), 10)
    assert bool((similarities.diff(dim=1) <= 0).all())
    torch.testing.assert_close(
        similarities, (queries.tokens @ codebook.centroids.T).gather(1, exact), atol=1e-6, rtol=0
    )
    shares: list[float] = []
    for near in (1, 4, 8):
        own = [codebook.nearest(codebook.around(token[None], near), 10)[0][0] for token in queries.tokens[:40]]
        shares.append(sum(len({*map(int, a)} & {*map(int, b)}) for a, b in zip(own, exact, strict=False)) / 400)
    assert shares == sorted(shares)
    assert shares[2] > 0.85


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_table_made_in_part_scores_as_the_whole_one(listed: Any, count: int) -> None:
    payload, _, queries, codebook = listed
    whole, part = PreparedQuery(queries[0]), PreparedQuery(queries[0])
    whole.table(codebook)
    for start in range(0, 800, 200):
        rows = np.arange(start, start + count)
        np.testing.assert_array_equal(part_scores := payload.score(part, rows), payload.score(whole, rows))
        assert part_scores.shape == (count,)
