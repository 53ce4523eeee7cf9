"""Token embeddings: packed items, offsets that fit, views instead of copies."""

from __future__ import annotations

import pickle
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.embeddings import TokenEmbeddings, TokenTrace, check_offsets, offsets_of, read_only_integers
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.testing.strategies import lengths, token_embeddings

TOKENS = np.arange(12.0).reshape(6, 2)


@given(lengths())
def test_offsets_are_running_sums_of_the_lengths(counts: list[int]) -> None:
    offsets = offsets_of(counts)
    assert offsets.dtype == np.int64
    assert list(offsets) == [sum(counts[:place]) for place in range(len(counts) + 1)]
    check_offsets(offsets, sum(counts))


@given(token_embeddings())
def test_items_are_the_pieces_of_the_tokens(embeddings: TokenEmbeddings[Any]) -> None:
    assert len(embeddings) == len(embeddings.lengths) == len(list(embeddings))
    assert [len(item) for item in embeddings] == list(embeddings.lengths)
    assert sum(embeddings.lengths) == len(embeddings.tokens)
    assert all(item.shape[1] == embeddings.dimension for item in embeddings)
    if len(embeddings):
        np.testing.assert_array_equal(np.concatenate(list(embeddings)), embeddings.tokens)


@given(token_embeddings(items=(1, 6)), st.data())
def test_a_span_is_the_items_in_it(embeddings: TokenEmbeddings[Any], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(embeddings)))
    last = data.draw(st.integers(first, len(embeddings)))
    part = embeddings.span(first, last)
    assert len(part) == last - first
    assert part.dimension == embeddings.dimension
    for item, place in zip(part, range(first, last), strict=True):
        np.testing.assert_array_equal(item, embeddings[place])


def test_items_and_spans_are_views() -> None:
    embeddings = TokenEmbeddings(TOKENS, [0, 2, 2, 6])
    for view in (embeddings[0], embeddings[-1], embeddings.span(1, 3).tokens):
        assert np.shares_memory(view, TOKENS)
    assert embeddings.tokens is TOKENS


def test_items_are_counted_from_either_end() -> None:
    embeddings = TokenEmbeddings(TOKENS, [0, 2, 2, 6])
    for item in range(3):
        np.testing.assert_array_equal(embeddings[item - 3], embeddings[item])
    for outside in (3, -4, 100):
        with pytest.raises(IndexError, match=f"item {outside} of 3"):
            embeddings[outside]
    with pytest.raises(IndexError, match="item 0 of 0"):
        TokenEmbeddings(TOKENS[:0], [0])[0]


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (2, 1), (0, 4), (4, 4)])
def test_a_span_lies_within_the_items(first: int, last: int) -> None:
    with pytest.raises(IndexError, match=f"items {first} to {last} of 3"):
        TokenEmbeddings(TOKENS, [0, 2, 2, 6]).span(first, last)
    with pytest.raises(IndexError, match=f"items {first} to {last} of 3"):
        trace([0, 2, 2, 6]).span(first, last)


@pytest.mark.parametrize("shape", [(6,), (), (3, 2, 1), (0,)])
def test_tokens_have_two_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidEmbeddings, match="two dimensions"):
        TokenEmbeddings(np.zeros(shape), [0, 6])


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ([], "at least one entry"),
        (6, "one dimension"),
        ([[0, 6]], "one dimension"),
        ([1, 6], "run from 1 to 6"),
        ([0, 5], "run from 0 to 5"),
        ([0, 7], "run from 0 to 7"),
        ([0], "run from 0 to 0"),
        ([-1, 6], "run from -1 to 6"),
        ([0, 4, 2, 6], "fall after entry 1"),
        ([0, 7, 6], "fall after entry 1"),
        ([0, -1, 6], "fall after entry 0"),
        ([0.0, 6.0], "dtype float64"),
        ([False, True], "dtype bool"),
        (["0", "6"], "dtype <U1"),
        (None, "dtype object"),
        (np.array([0, 2**64 - 1], dtype=np.uint64), "run from 0 to"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets: Any, said: str) -> None:
    with pytest.raises(InvalidEmbeddings, match=said):
        TokenEmbeddings(TOKENS, offsets)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
def test_offsets_of_any_whole_number_become_int64(dtype: type[np.integer[Any]]) -> None:
    offsets = TokenEmbeddings(TOKENS, np.array([0, 2, 6], dtype=dtype)).offsets
    assert offsets.dtype == np.int64
    assert list(offsets) == [0, 2, 6]


def test_offsets_are_a_copy_that_cannot_be_written_to() -> None:
    given_ = np.array([0, 2, 6])
    embeddings = TokenEmbeddings(TOKENS, given_)
    given_[1] = 5
    assert list(embeddings.offsets) == [0, 2, 6]
    with pytest.raises(ValueError, match="read-only"):
        embeddings.offsets[1] = 5
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        embeddings.offsets = given_  # type: ignore[misc]


def test_offsets_that_are_read_only_already_are_shared() -> None:
    offsets = TokenEmbeddings(TOKENS, [0, 2, 6]).offsets
    assert read_only_integers(offsets) is offsets


def test_embeddings_are_compared_by_identity() -> None:
    embeddings = TokenEmbeddings(TOKENS, [0, 6])
    assert embeddings == embeddings
    assert embeddings != TokenEmbeddings(TOKENS, [0, 6])
    assert len({embeddings, TokenEmbeddings(TOKENS, [0, 6])}) == 2


@given(token_embeddings())
def test_embeddings_survive_pickling(embeddings: TokenEmbeddings[Any]) -> None:
    again = pickle.loads(pickle.dumps(embeddings))
    np.testing.assert_array_equal(again.tokens, embeddings.tokens)
    np.testing.assert_array_equal(again.offsets, embeddings.offsets)


def trace(offsets: list[int]) -> TokenTrace:
    count = offsets[-1]
    starts = np.arange(count)
    return TokenTrace(starts + 100, starts, starts + 1, offsets)


def test_a_trace_follows_the_items() -> None:
    whole = trace([0, 2, 2, 6])
    assert len(whole) == 3
    assert whole.characters(3) == (3, 4)
    part = whole.span(1, 3)
    assert list(part.offsets) == [0, 0, 4]
    assert list(part.token_ids) == [102, 103, 104, 105]
    assert (list(part.starts), list(part.ends)) == ([2, 3, 4, 5], [3, 4, 5, 6])
    assert len(whole.span(3, 3)) == 0


@pytest.mark.parametrize(
    ("token_ids", "starts", "ends", "offsets", "said"),
    [
        ([1, 2], [0, 1], [1, 2], [0, 1], "run from 0 to 1"),
        ([1, 2], [0], [1, 2], [0, 2], "2 token ids, 1 starts, 2 ends"),
        ([1, 2], [0, 1], [1], [0, 2], "2 token ids, 2 starts, 1 ends"),
        ([1], [-1], [0], [0, 1], "below 0"),
        ([1], [2], [1], [0, 1], "end before they start"),
    ],
)
def test_a_trace_is_of_as_many_tokens_and_of_spans(
    token_ids: list[int], starts: list[int], ends: list[int], offsets: list[int], said: str
) -> None:
    with pytest.raises(InvalidEmbeddings, match=said):
        TokenTrace(np.array(token_ids), np.array(starts), np.array(ends), offsets)


def test_a_trace_may_have_tokens_without_characters() -> None:
    assert TokenTrace(np.array([101]), np.array([0]), np.array([0]), [0, 1]).characters(0) == (0, 0)
