"""Columns of texts: what goes in comes out, by row, merged and damaged."""

from __future__ import annotations

from itertools import compress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import texts
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.columns import in_memory, ranges
from lateinteraction.adapters.index.texts import Texts
from lateinteraction.domain.errors import CorruptIndex
from lateinteraction.testing import strategies

TEXTS = st.lists(strategies.texts(), max_size=8)


def stored(given: list[str], column: str = "texts") -> Texts:
    return Texts(InMemory(texts.build(given, column)), column)


class Watched:
    """Arrays that remember what was verified."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays = InMemory(arrays)
        self.verified: set[tuple[str, int]] = set()

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def whole(self, name: str) -> NDArray[Any]:
        self.check_all(name)
        return self._arrays.whole(name)

    def lazily(self, name: str) -> NDArray[Any]:
        return self._arrays.lazily(name)

    def check(self, name: str, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
        self._arrays.check(name, firsts, lasts)
        self.verified |= {(name, int(row)) for row in ranges(firsts, lasts - firsts)}

    def check_all(self, name: str) -> None:
        self.verified |= {(name, row) for row in range(len(self._arrays.lazily(name)))}

    def let_go(self) -> None:
        self._arrays.let_go()


@given(TEXTS)
def test_what_goes_in_comes_out(given: list[str]) -> None:
    column = stored(given)
    assert len(column) == len(given)
    assert column.at(range(len(given))) == given
    assert column.encoded(range(len(given))) == [text.encode() for text in given]


@given(TEXTS.filter(bool), st.data())
def test_any_rows_come_in_the_order_asked_for(given: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(given) - 1), max_size=12))
    column = stored(given)
    assert column.at(np.array(rows, np.int64)) == [given[row] for row in rows]
    assert bytes(column.joined(np.array(rows, np.int64))) == "".join(given[row] for row in rows).encode()
    assert [int(length) for length in column.lengths_of(np.array(rows, np.int64))] == [
        len(given[row].encode()) for row in rows
    ]


@given(TEXTS.filter(bool))
def test_neighbours_are_a_view(given: list[str]) -> None:
    arrays = texts.build(given)
    column = Texts(InMemory(arrays))
    joined = column.joined(np.arange(len(given)))
    assert np.shares_memory(joined, arrays["texts.bytes"]) or not joined.size


def test_only_the_texts_that_are_read_are_verified() -> None:
    arrays = Watched(texts.build(["zero", "one", "two", "three"]))
    column = Texts(arrays)
    arrays.verified.clear()
    column.at([1, 3])
    assert arrays.verified == {("texts.bytes", place) for place in (4, 5, 6, 10, 11, 12, 13, 14)}
    arrays.verified.clear()
    column.joined(np.array([0]))
    assert arrays.verified == {("texts.bytes", place) for place in range(4)}


def test_a_text_that_is_read_alone_is_verified_with_its_column_once() -> None:
    arrays = Watched(texts.build(["zero", "one"]))
    column = Texts(arrays)
    arrays.verified.clear()
    assert column.one(1) == "one"
    assert arrays.verified == {("texts.bytes", place) for place in range(7)}
    arrays.verified.clear()
    assert column.one(0) == "zero"
    assert arrays.verified == set()


@pytest.mark.parametrize("rows", [[-1], [2], [0, 5], [-(2**40)]])
def test_a_row_that_is_not_there_is_refused(rows: list[int]) -> None:
    with pytest.raises(IndexError):
        stored(["a", "b"]).at(rows)


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("texts.offsets", np.array([0, 3, 2, 4])),
        ("texts.offsets", np.array([1, 2, 3, 4])),
        ("texts.offsets", np.array([0, 2, 3, 5])),
        ("texts.offsets", np.array([0, -1, 3, 4])),
        ("texts.offsets", np.array([], np.int64)),
        ("texts.offsets", np.array([0, 1, 2, 4], np.int32)),
        ("texts.offsets", np.array([[0, 4]])),
        ("texts.bytes", np.zeros(3, np.uint8)),
        ("texts.bytes", np.zeros(4, np.int8)),
    ],
)
def test_offsets_that_do_not_fit_are_damage(name: str, planted: NDArray[Any]) -> None:
    arrays = texts.build(["a", "b", "cd"])
    Texts(InMemory(arrays))
    with pytest.raises(CorruptIndex, match=name.partition(".")[0]):
        Texts(InMemory(arrays | {name: planted}))


@pytest.mark.parametrize("name", ["texts.offsets", "texts.bytes"])
def test_an_array_that_is_missing_is_damage(name: str) -> None:
    arrays = texts.build(["a"])
    del arrays[name]
    with pytest.raises(CorruptIndex, match=name):
        Texts(InMemory(arrays))


def test_bytes_that_are_no_text_are_damage() -> None:
    arrays = texts.build(["a", "bc"]) | {"texts.bytes": np.array([0x61, 0xFF, 0x62], np.uint8)}
    column = Texts(InMemory(arrays))
    assert column.at([0]) == ["a"]
    with pytest.raises(CorruptIndex, match="0xff"):
        column.at([1])


@given(st.lists(TEXTS, max_size=4), st.data())
def test_merged_columns_are_those_of_the_kept_texts(parts: list[list[str]], data: st.DataObject) -> None:
    kept = [data.draw(st.lists(st.booleans(), min_size=len(part), max_size=len(part))) for part in parts]
    merged = texts.merged([(stored(part), np.flatnonzero(keep)) for part, keep in zip(parts, kept, strict=True)])
    remaining = [text for part, keep in zip(parts, kept, strict=True) for text in compress(part, keep)]
    assert_same(in_memory(merged), texts.build(remaining))


def assert_same(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_long_column_is_copied_in_bounded_blocks() -> None:
    given = ["x" * 300_000, "y" * 800_000, "z" * 2_000_000, "w" * 10, "v" * 1_000_000]
    content = next(texts.merged([(stored(given), np.arange(len(given)))]))
    assert [len(block) for block in content.blocks] == [300_000, 800_000, 2_000_000, 1_000_010]
