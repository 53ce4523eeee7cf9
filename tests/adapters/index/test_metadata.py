"""Metadata columns: they answer every filter as the documents themselves would, and give every value back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import metadata
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.metadata import MetadataColumns
from lateinteraction.domain.errors import CorruptIndex, InvalidFilter, InvalidText
from lateinteraction.domain.filters import And, Comparison, Filter, Not, Or, matches
from lateinteraction.domain.text import Document
from lateinteraction.testing import strategies

ALIKE = [
    *(None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, 0.5, 2**53, 2.0**53, 2**53 + 1, -(2**70), 1e308),
    *("", "0", "1", "é", "true", "\U0001f4a5", "\uffee"),
]
SCALARS = st.sampled_from(ALIKE) | strategies.scalars()
KEYS = st.sampled_from(["a", "b", "sparse", "meta.a"])
METADATA = st.dictionaries(KEYS, SCALARS, max_size=3)
OPERATORS = ["==", "!=", ">", ">=", "<", "<="]
COMPARISONS = st.builds(Comparison, KEYS, st.sampled_from(OPERATORS), SCALARS) | st.builds(
    Comparison, KEYS, st.sampled_from(["in", "not in"]), st.lists(SCALARS, max_size=5)
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.builds(
        lambda combination, conditions: combination(conditions),
        st.sampled_from([And, Or, Not]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
)


def stored(given: list[Any]) -> MetadataColumns:
    return MetadataColumns(InMemory(metadata.build(given)), len(given))


def truths(found: NDArray[np.bool_]) -> list[bool]:
    assert found.dtype == np.bool_
    return [bool(each) for each in found]


def exactly(value: object) -> str:
    """Python would take 1 for 1.0 and true."""
    return json.dumps(value, sort_keys=True)


@given(st.lists(METADATA, max_size=10), FILTERS)
def test_a_filter_means_the_same_as_on_the_documents(given: list[dict[str, Any]], where: Filter) -> None:
    assert truths(stored(given).matching(where)) == [matches(where, each) for each in given]


@given(st.lists(strategies.metadata(), max_size=10), strategies.filters())
def test_common_filters_mean_the_same_as_on_the_documents(given: list[dict[str, Any]], where: Filter) -> None:
    assert truths(stored(given).matching(where)) == [matches(where, each) for each in given]


@pytest.mark.parametrize("operator", [*OPERATORS, "in", "not in"])
@pytest.mark.parametrize("value", ALIKE, ids=repr)
def test_every_value_is_compared_with_every_other_as_python_would(operator: Any, value: Any) -> None:
    dense = [{"a": each} for each in ALIKE] + [{}]
    sparse = dense + [{"b": 1}] * (2 * len(ALIKE))
    where = Comparison("a", operator, [value, "0", None, 7] if "in" in operator else value)
    for documents in (dense, sparse):
        assert truths(stored(documents).matching(where)) == [matches(where, each) for each in documents]


@pytest.mark.parametrize("key", ["a", "nowhere"])
@pytest.mark.parametrize("operator", [*OPERATORS, "in", "not in"])
@pytest.mark.parametrize("value", [None, 1])
def test_a_key_that_a_document_lacks_is_null(key: str, operator: Any, value: Any) -> None:
    where = Comparison(key, operator, [value] if "in" in operator else value)
    documents: list[dict[str, Any]] = [{}, {"a": None}, {"a": 2}]
    assert truths(stored(documents).matching(where)) == [matches(where, each) for each in documents]


@given(st.lists(st.dictionaries(KEYS | st.text(max_size=3), SCALARS, max_size=4), max_size=10), st.data())
@example([{"a": 0.0}, {"a": -0.0}, {"a": 0}, {"a": False}, {"a": None}, {}], None)
def test_every_value_comes_back_with_its_type(given: list[dict[str, Any]], data: st.DataObject | None) -> None:
    rows = list(range(len(given)))
    if data is not None and given:
        rows = data.draw(st.lists(st.sampled_from(rows), max_size=12))
    assert exactly(stored(given).at(rows)) == exactly([given[row] for row in rows])


@given(st.lists(METADATA, max_size=10))
def test_values_are_sorted_and_distinct(given: list[dict[str, Any]]) -> None:
    columns = stored(given)
    for key in columns.keys:
        column = columns.column(key)
        assert column is not None
        values = column.decoded(range(len(column.values)))
        orders = [column.order(code) for code in range(len(values))]
        assert orders == sorted(orders)
        assert len({exactly(value) for value in values}) == len(values)
        assert {exactly(value) for value in values} == {exactly(each[key]) for each in given if key in each}


def test_arrays_are_those_of_the_format() -> None:
    arrays = metadata.build([{"year": 1999, "open": True}, {"year": 1999.5}, {"year": None}, {"year": "é"}, {}])
    assert bytes(arrays["metadata.keys"]) == b'["open", "year"]'
    assert bytes(arrays["metadata.1.bytes"]).decode() == 'null19991999.5"é"'
    assert [int(each) for each in arrays["metadata.1.offsets"]] == [0, 4, 8, 14, 18]
    assert [int(each) for each in arrays["metadata.1.indices"]] == [1, 2, 0, 3, -1]
    assert [int(each) for each in arrays["metadata.0.rows"]] == [0]
    assert [int(each) for each in arrays["metadata.0.indices"]] == [0]
    assert "metadata.1.rows" not in arrays
    assert {name.rpartition(".")[2]: array.dtype.str for name, array in arrays.items()} == {
        "keys": "|u1",
        "bytes": "|u1",
        "offsets": "<i8",
        "indices": "<i4",
        "rows": "<u4",
    }


def test_a_key_of_few_documents_takes_no_room_for_the_others() -> None:
    arrays = metadata.build([{f"key {row}": row} for row in range(300)])
    assert sum(array.nbytes for name, array in arrays.items() if name != "metadata.keys") < 300 * 40
    columns = MetadataColumns(InMemory(arrays), 300)
    assert columns.at([7, 299, 7]) == [{"key 7": 7}, {"key 299": 299}, {"key 7": 7}]
    assert list(np.flatnonzero(columns.matching(Comparison("key 7", ">", 6)))) == [7]


def test_a_long_list_of_values_is_looked_up_in_one_go() -> None:
    columns = stored([{"n": row} for row in range(2000)])
    chosen = columns.matching(Comparison("n", "in", list(range(0, 4000, 2))))
    assert truths(chosen) == [row % 2 == 0 for row in range(2000)]


def test_documents_without_metadata_have_none() -> None:
    columns = stored([{}, {}])
    assert len(columns) == 2
    assert columns.keys == ()
    assert columns.at([0, 1]) == [{}, {}]
    assert truths(columns.matching(Comparison("a", "==", None))) == [True, True]
    assert truths(stored([]).matching(Comparison("a", "==", None))) == []


def test_the_answer_is_the_callers_to_change() -> None:
    columns = stored([{"a": 1}])
    for where in (Comparison("a", "==", 1), Comparison("b", "==", None), And([Comparison("a", "==", 1)])):
        columns.matching(where)[:] = False
        assert truths(columns.matching(where)) == [True]


@pytest.mark.parametrize("size", [14_000, -14_000])
def test_whole_numbers_may_have_four_thousand_digits(size: int) -> None:
    value = (2 ** abs(size) - 1) * (1 if size > 0 else -1)
    columns = stored([{"a": value}, {"a": 0}])
    assert columns.at([0]) == [{"a": value}]
    assert truths(columns.matching(Comparison("a", ">", 0))) == [size > 0, False]


def test_a_number_that_could_not_be_read_again_is_refused() -> None:
    with pytest.raises(InvalidText, match="14,001 bits"):
        metadata.build([Document("1", "", {"a": 2**14_000}).metadata])


def test_what_is_no_filter_is_refused() -> None:
    with pytest.raises(InvalidFilter):
        stored([{"a": 1}]).matching({"field": "a", "operator": "==", "value": 1})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("rows", [[-1], [3]])
def test_a_row_that_is_not_there_is_refused(rows: list[int]) -> None:
    with pytest.raises(IndexError):
        stored([{"a": 1}, {}, {}]).at(rows)


DAMAGE: list[tuple[str, NDArray[Any]]] = [
    ("metadata.keys", np.frombuffer(b'["a"', np.uint8)),
    ("metadata.keys", np.frombuffer(b'{"a": 1}', np.uint8)),
    ("metadata.keys", np.frombuffer(b"[1, 2]", np.uint8)),
    ("metadata.keys", np.frombuffer(b"[" * 100_000, np.uint8)),
    ("metadata.keys", np.frombuffer(b"\xff", np.uint8)),
    ("metadata.0.offsets", np.array([0, 2, 1, 3])),
    ("metadata.0.bytes", np.frombuffer(b"1[12]", np.uint8)),
    ("metadata.0.bytes", np.frombuffer(b"1\xff\xff\xff\xff", np.uint8)),
    ("metadata.0.bytes", np.frombuffer(b"nulxx", np.uint8)),
    ("metadata.0.indices", np.array([0, 1, 0], np.int32)),
    ("metadata.0.indices", np.array([0, 2, 0, 0], np.int32)),
    ("metadata.0.indices", np.array([0, -2, 0, 0], np.int32)),
    ("metadata.0.indices", np.array([0, 1, 0, 0], np.int64)),
    ("metadata.1.rows", np.array([4], np.uint32)),
    ("metadata.1.rows", np.array([1, 0], np.uint32)),
    ("metadata.1.rows", np.array([0], np.int32)),
    ("metadata.1.indices", np.array([], np.int32)),
]


@pytest.mark.parametrize(("name", "planted"), DAMAGE)
def test_arrays_that_do_not_fit_are_damage(name: str, planted: NDArray[Any]) -> None:
    given = [{"a": 1, "b": 2}, {"a": "xy"}, {"a": 1}, {"a": 1}]
    arrays = metadata.build(given)
    where = And([Comparison("a", "<", 7), Comparison("a", ">=", "xx"), Comparison("b", "==", None)])

    def use(arrays: dict[str, NDArray[Any]]) -> None:
        columns = MetadataColumns(InMemory(arrays), len(given))
        columns.at(range(len(given)))
        columns.matching(where)

    use(arrays)
    with pytest.raises(CorruptIndex, match="metadata"):
        use(arrays | {name: planted})


@pytest.mark.parametrize("planted", [[0, 2], [0, -2]])
def test_a_filter_meets_the_number_of_a_value_that_is_not_there(planted: list[int]) -> None:
    arrays = metadata.build([{"a": 1}, {"a": 2}]) | {"metadata.0.indices": np.array(planted, np.int32)}
    with pytest.raises(CorruptIndex, match=r"metadata\.0\.indices"):
        MetadataColumns(InMemory(arrays), 2).matching(Comparison("a", "==", 1))


def test_a_column_that_is_not_used_is_not_read() -> None:
    arrays = metadata.build([{"a": 1, "b": 2}])
    del arrays["metadata.1.indices"]
    columns = MetadataColumns(InMemory(arrays), 1)
    assert truths(columns.matching(Comparison("a", "==", 1))) == [True]
    with pytest.raises(CorruptIndex, match=r"metadata\.1\.indices"):
        columns.matching(Comparison("b", "==", 1))
