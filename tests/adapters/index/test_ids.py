"""Ids: rows of ids and ids of rows, whatever the ids, however they collide."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import ids
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.columns import in_memory
from lateinteraction.adapters.index.ids import HashedIds, Ids
from lateinteraction.domain.errors import CorruptIndex
from lateinteraction.testing import strategies

IDS = st.lists(strategies.document_ids(), max_size=10, unique=True)


def stored(given: list[str]) -> Ids:
    return Ids(InMemory(ids.build(given)))


def rows(found: NDArray[np.int64]) -> list[int]:
    return [int(row) for row in found]


@given(IDS, st.lists(strategies.document_ids(), max_size=10))
def test_the_row_of_an_id_is_where_it_was_put(given: list[str], others: list[str]) -> None:
    asked = [*others, *given, *others]
    found = stored(given).rows_of(asked)
    assert found.dtype == np.int64
    assert rows(found) == [given.index(each) if each in given else -1 for each in asked]


@given(IDS)
def test_the_id_of_a_row_is_what_was_put_there(given: list[str]) -> None:
    column = stored(given)
    assert len(column) == len(given)
    assert column.at(range(len(given))) == given
    assert rows(column.rows_of(column.at(range(len(given))))) == list(range(len(given)))


@given(st.lists(IDS, max_size=3), st.lists(strategies.document_ids(), max_size=6))
def test_ids_may_be_hashed_once_for_many_columns(columns: list[list[str]], asked: list[str]) -> None:
    hashed = HashedIds.of(asked)
    for column in map(stored, columns):
        assert rows(column.find(hashed)) == rows(column.rows_of(asked))


@pytest.mark.parametrize(
    "asked", ["", "\ud800", "a\x00", "A", "a\u0301", "ab", " a", "\N{FULLWIDTH LATIN SMALL LETTER A}"]
)
def test_what_only_resembles_an_id_is_unknown(asked: str) -> None:
    column = stored(["a", "\N{LATIN SMALL LETTER A WITH ACUTE}", "\x00a", "abc"])
    assert rows(column.rows_of([asked, "a", asked])) == [-1, 0, -1]


def test_a_column_of_nothing_knows_no_id() -> None:
    column = stored([])
    assert rows(column.rows_of(["a", "b"])) == [-1, -1]
    assert rows(column.rows_of([])) == []
    assert column.at([]) == []


def test_an_id_may_be_long_and_of_any_characters() -> None:
    given = ["x" * 100_000, "x" * 100_001, "\x00", "\N{RIGHT-TO-LEFT OVERRIDE}a", "💥" * 50, "../../etc/passwd"]
    assert rows(stored(given).rows_of(given[::-1])) == [5, 4, 3, 2, 1, 0]


def colliding(given: list[str], first: int, last: int) -> Ids:
    """A column in which the ids of these rows have one hash: that of the last of them."""
    arrays = ids.build(given)
    by_row = Ids(InMemory(arrays)).hashes_by_row().copy()
    by_row[first : last + 1] = by_row[last]
    order = np.argsort(by_row, kind="stable")
    return Ids(InMemory(arrays | {"ids.hashes": by_row[order], "ids.rows": order.astype(np.uint32)}))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_ids_of_one_hash_are_told_apart_by_their_bytes(length: int) -> None:
    given = [f"{'i' * length}{n}" for n in range(8)]
    column = colliding(given, 2, 6)
    assert rows(column.rows_of([given[6], given[0], given[6], given[7], "i"])) == [6, 0, 6, 7, -1]


def test_the_hash_is_the_published_one() -> None:
    arrays = ids.build(["b", "a"])
    hashes = {name: int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") for name in "ab"}
    assert [int(each) for each in arrays["ids.hashes"]] == sorted(hashes.values())
    assert ["ba"[row] for row in arrays["ids.rows"]] == sorted("ab", key=hashes.__getitem__)
    assert {name: array.dtype.str for name, array in arrays.items()} == {
        "ids.bytes": "|u1",
        "ids.offsets": "<i8",
        "ids.hashes": "<u8",
        "ids.rows": "<u4",
    }


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("ids.rows", np.array([0, 1, 3], np.uint32)),
        ("ids.rows", np.array([0, 1, 2**32 - 1], np.uint32)),
        ("ids.rows", np.array([0, 1, 1], np.uint32)),
        ("ids.rows", np.array([0, 1], np.uint32)),
        ("ids.rows", np.array([0, 1, 2], np.int64)),
        ("ids.hashes", np.array([2, 1, 3], np.uint64)),
        ("ids.hashes", np.array([1, 2], np.uint64)),
        ("ids.hashes", np.array([1, 2, 3], np.float64)),
    ],
)
def test_a_directory_that_does_not_fit_is_damage(name: str, planted: NDArray[Any]) -> None:
    column = Ids(InMemory(ids.build(["a", "b", "c"]) | {name: planted}))
    assert column.at([2]) == ["c"]
    with pytest.raises(CorruptIndex, match=name):
        column.rows_of(["a"])


def test_a_wrong_directory_never_gives_a_wrong_row() -> None:
    arrays = ids.build(["a", "b", "c"])
    column = Ids(InMemory(arrays | {"ids.rows": np.roll(arrays["ids.rows"], 1)}))
    assert rows(column.rows_of(["a", "b", "c"])) == [-1, -1, -1]


@given(st.lists(strategies.document_ids(), max_size=20, unique=True), st.integers(0, 20), st.data())
def test_merged_ids_are_those_that_were_kept(given: list[str], cut: int, data: st.DataObject) -> None:
    parts = [given[:cut], given[cut:]]
    kept = [data.draw(st.lists(st.booleans(), min_size=len(part), max_size=len(part))) for part in parts]
    merged = in_memory(
        ids.merged([(stored(part), np.flatnonzero(keep)) for part, keep in zip(parts, kept, strict=True)])
    )
    expected = ids.build([each for each, stays in zip(given, [*kept[0], *kept[1]], strict=True) if stays])
    assert sorted(merged) == sorted(expected)
    for name, array in expected.items():
        assert merged[name].dtype == array.dtype
        np.testing.assert_array_equal(merged[name], array, err_msg=name)


@given(IDS, st.integers(1, 12), st.data())
def test_the_lowest_ids_are_those_that_sorting_would_put_first(
    given: list[str], count: int, data: st.DataObject
) -> None:
    chosen = np.array(data.draw(st.lists(st.sampled_from(range(len(given))), unique=True)) if given else [], np.int64)
    found = stored(given).lowest(chosen, count)
    assert sorted(given[row] for row in rows(found)) == sorted(given[row] for row in rows(chosen))[:count]


@pytest.mark.parametrize("prefix", ["", "12345", "https://example.org/of/some/length/"])
@pytest.mark.parametrize("count", [1, 10, 499, 500, 600])
def test_the_lowest_of_many_ids_are_found_eight_bytes_at_a_time(prefix: str, count: int) -> None:
    generator = np.random.default_rng(0)
    given = [f"{prefix}{n}" for n in generator.permutation(1_000)]
    given += [prefix + "\x00" * n for n in range(1, 20)]  # as the zeros that stand for what is not there
    given += [f"{prefix}7{letter}" for letter in "\x00aé漢💥"]
    column, chosen = stored(given), generator.permutation(len(given))[:500]
    found = [given[row] for row in rows(column.lowest(chosen, count))]
    assert sorted(found) == sorted(given[row] for row in rows(chosen))[:count]


def test_few_ids_are_decoded_where_the_lowest_of_many_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    column, decoded = stored([f"document-{n:07}" for n in range(20_000)]), 0
    inner = Ids.at

    def counted(self: Ids, asked: Any) -> list[str]:
        nonlocal decoded
        decoded += len(asked)
        return inner(self, asked)

    monkeypatch.setattr(Ids, "at", counted)
    assert sorted(rows(column.lowest(np.arange(20_000)[::-1], 3))) == [0, 1, 2]
    assert decoded <= 64


def test_a_thousand_of_many_are_found_with_a_few_array_operations() -> None:
    given = [f"document-{n}" for n in range(20_000)]
    column = stored(given)
    asked = [given[n * 7919 % len(given)] for n in range(1000)]
    assert rows(column.rows_of([*asked, "document-20000"])) == [*(n * 7919 % 20_000 for n in range(1000)), -1]
