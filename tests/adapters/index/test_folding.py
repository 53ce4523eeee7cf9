"""When segments are folded: few of them after any number of additions, and each document copied seldom."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.folding import (
    ALIKE,
    COMPRESS_AT,
    FANOUT,
    FURTHER,
    MOST_TOKENS,
    SCANNED_TOKENS,
    Size,
    compress_at,
    folded,
    groups,
    kind_of,
    listed,
)
from lateinteraction.adapters.index.options import TABLED
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings


def after(additions: list[Size], least: int | None = None) -> tuple[list[Size], int]:
    """The segments that these additions leave, and how many documents were written in all."""
    segments: list[Size] = []
    written = 0
    for incoming in additions:
        count = folded(segments, incoming, compress_at=least)
        gone = segments[len(segments) - count :]
        whole = Size(
            incoming.documents + sum(each.documents for each in gone),
            incoming.tokens + sum(each.tokens for each in gone),
        )
        segments = [*segments[: len(segments) - count], whole]
        written += whole.documents
    return segments, written


def test_ten_thousand_single_additions_leave_few_segments_and_copy_each_document_five_times() -> None:
    segments, written = after([Size(1, 60)] * 10_000)
    levels = math.ceil(math.log(10_000, FANOUT))
    assert sum(each.documents for each in segments) == 10_000
    assert len(segments) <= (FANOUT - 1) * levels == 35
    assert written <= 10_000 * (levels + 1)


@given(st.lists(st.builds(Size, st.integers(1, 5000), st.integers(0, 1_000_000)), max_size=200))
def test_no_folding_goes_beyond_the_largest_segment(additions: list[Size]) -> None:
    segments, _ = after(additions)
    assert sum(each.documents for each in segments) == sum(each.documents for each in additions)
    assert all(each.tokens <= max(MOST_TOKENS, max(one.tokens for one in additions)) for each in segments)


@given(st.lists(st.builds(Size, st.integers(1, 5000), st.integers(0, 10_000)), min_size=1, max_size=300))
def test_segments_stay_few_whatever_the_sizes(additions: list[Size]) -> None:
    segments, _ = after(additions)
    levels = 1 + int(math.log(sum(each.documents for each in additions), FANOUT))
    assert len(segments) <= (FANOUT - 1) * (levels + 1)


LEAST = COMPRESS_AT // FURTHER


def test_residual_segments_halve_and_a_token_is_copied_once_for_each_doubling() -> None:
    segments, written = after([Size(1, 60)] * 10_000, LEAST)
    large = [each for each in segments if each.tokens >= LEAST]
    small = [each for each in segments if each.tokens < LEAST]
    assert len(large) <= math.log2(600_000 / LEAST) + 1
    assert all(earlier.tokens > ALIKE * later.tokens for earlier, later in itertools.pairwise(large))
    assert sum(each.tokens for each in small) < LEAST
    doublings = math.log2(600_000 / LEAST)
    assert written <= 10_000 * (math.ceil(math.log(LEAST / 60, FANOUT)) + 1 + doublings)


@given(st.lists(st.builds(Size, st.integers(1, 5000), st.integers(0, 50_000)), max_size=200))
def test_whatever_the_sizes_few_tokens_are_scored_exactly_and_residual_segments_fall(additions: list[Size]) -> None:
    segments, _ = after(additions, LEAST)
    assert sum(each.documents for each in segments) == sum(each.documents for each in additions)
    assert sum(each.tokens for each in segments if each.tokens < LEAST) < LEAST
    large = [each.tokens for each in segments if each.tokens >= LEAST]
    pairs = itertools.pairwise(large)
    assert all(earlier > ALIKE * later or earlier + later > MOST_TOKENS for earlier, later in pairs)


@given(st.lists(st.builds(Size, st.integers(1, 5000), st.integers(0, MOST_TOKENS)), max_size=50))
def test_compaction_joins_neighbours_as_long_as_they_fit(sizes: list[Size]) -> None:
    joined = list(groups(sizes))
    assert [number for group in joined for number in range(group.start, group.stop)] == list(range(len(sizes)))
    totals = [sum(each.tokens for each in sizes[group]) for group in joined]
    assert all(total <= MOST_TOKENS for total in totals)
    assert all(one + sizes[group.start].tokens > MOST_TOKENS for one, group in zip(totals, joined[1:], strict=False))


def test_the_codec_decides_how_segments_are_stored() -> None:
    def kinds(codec: str) -> list[str]:
        return [kind_of(IndexSettings(IndexOptions(codec)), tokens) for tokens in (1, COMPRESS_AT - 1, COMPRESS_AT)]

    assert kinds("float16") == ["vectors"] * 3
    assert kinds("int8") == ["int8"] * 3
    assert kinds("auto") == kinds("residual2") == ["vectors", "vectors", "residual"]


def test_large_segments_have_lists_and_those_of_a_forced_tier_as_it_says() -> None:
    counts = (0, 5_000 * 60, SCANNED_TOKENS, SCANNED_TOKENS + 1, 100_000 * 60)
    assert [listed(IndexSettings(), tokens, TABLED) for tokens in counts] == [False, False, False, True, True]
    assert all(listed(IndexSettings(IndexOptions(tier="listed")), tokens, 1) for tokens in counts)
    many = TABLED + 1
    assert not any(listed(IndexSettings(IndexOptions(tier="compressed")), tokens, many) for tokens in counts)


def test_where_no_query_is_compared_with_all_centroids_a_token_for_each_is_enough_for_lists() -> None:
    tokens = (TABLED, TABLED + 1)
    assert [listed(IndexSettings(), each, TABLED + 1) for each in tokens] == [False, True]
    assert not any(listed(IndexSettings(), each, TABLED) for each in tokens)


def test_a_tier_that_is_forced_decides_for_segments_of_any_size() -> None:
    for trained in (False, True):
        for tier in ("compressed", "listed"):
            settings = IndexSettings(IndexOptions("residual2", tier=tier))
            assert compress_at(settings, trained=trained) == 1
            assert [kind_of(settings, tokens, trained=trained) for tokens in (0, 1)] == ["vectors", "residual"]
        exact = IndexSettings(IndexOptions(tier="exact"))
        assert compress_at(exact, trained=trained) is None
        assert kind_of(exact, MOST_TOKENS, trained=trained) == "vectors"


def test_ten_thousand_single_additions_that_are_compressed_leave_few_segments() -> None:
    segments, written = after([Size(1, 60)] * 10_000, 1)
    assert len(segments) <= math.log2(10_000) + 1
    assert written <= 10_000 * (math.log2(10_000) + 1)


def test_once_there_is_a_codebook_smaller_segments_are_residual() -> None:
    settings = IndexSettings(IndexOptions("residual4"))
    assert compress_at(settings, trained=False) == COMPRESS_AT
    assert compress_at(settings, trained=True) == LEAST
    assert compress_at(IndexSettings(IndexOptions("float16")), trained=True) is None
    assert kind_of(settings, LEAST - 1, trained=True) == "vectors"
    assert kind_of(settings, LEAST, trained=True) == "residual"
    assert kind_of(settings, 1, trained=True, coded=True) == "residual"
