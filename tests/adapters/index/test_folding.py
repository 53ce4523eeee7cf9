"""When segments are folded: few of them after any number of additions, and each document copied seldom."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.folding import COMPRESS_AT, FANOUT, MOST_TOKENS, Size, folded, groups, kind_of
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings


def after(additions: list[Size]) -> tuple[list[Size], int]:
    """The segments that these additions leave, and how many documents were written in all."""
    segments: list[Size] = []
    written = 0
    for incoming in additions:
        count = folded(segments, incoming)
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
