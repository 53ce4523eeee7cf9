"""Filters: what they mean, their wire form, and what they refuse."""

from __future__ import annotations

import json
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.errors import InvalidFilter
from lateinteraction.domain.filters import (
    MAX_DEPTH,
    MAX_NODES,
    And,
    Comparison,
    Filter,
    Not,
    Or,
    filter_from_json,
    filter_to_json,
    matches,
)
from lateinteraction.domain.text import Document

OPERATORS = ["==", "!=", ">", ">=", "<", "<=", "in", "not in"]
SCALARS = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, 2**53, 2.0**53, 2**53 + 1, "", "0", "1", "true", "é"]
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.dates().map(str),
)
KEYS = st.sampled_from(["a", "b", "meta.a", "language", "ключ"])
METADATA = st.dictionaries(KEYS, SCALARS, max_size=4)
COMPARISONS = st.one_of(
    st.builds(Comparison, KEYS, st.sampled_from(OPERATORS[:6]), SCALARS),
    st.builds(Comparison, KEYS, st.sampled_from(OPERATORS[6:]), st.lists(SCALARS, max_size=4)),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.builds(
        lambda combination, conditions: combination(conditions),
        st.sampled_from([And, Or, Not]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


def kind(value: object) -> str:
    return {bool: "bool", int: "number", float: "number", str: "text"}.get(type(value), "null")


def meant(wire: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """The semantics written a second time, over the wire form and by kinds of value."""
    operator = wire["operator"]
    if "conditions" in wire:
        truths = [meant(condition, metadata) for condition in wire["conditions"]]
        return {"AND": False not in truths, "OR": True in truths, "NOT": False in truths}[operator]
    found, value = metadata.get(wire["field"].removeprefix("meta.")), wire["value"]
    if operator in ("in", "not in"):
        among = any(kind(found) == kind(each) and found == each for each in value)
        return among if operator == "in" else not among
    same = kind(found) == kind(value) and found == value
    if operator in ("==", "!="):
        return same if operator == "==" else not same
    if kind(found) != kind(value) or kind(found) not in ("number", "text"):
        return False
    return {">": found > value, ">=": found >= value, "<": found < value, "<=": found <= value}[operator]


@given(FILTERS, METADATA)
def test_a_filter_means_what_its_wire_form_says(where: Filter, metadata: dict[str, Any]) -> None:
    assert matches(where, metadata) is meant(filter_to_json(where), metadata)


@given(FILTERS)
def test_the_wire_form_gives_an_equal_filter_back(where: Filter) -> None:
    again = filter_from_json(json.loads(json.dumps(filter_to_json(where))))
    assert again == where
    assert hash(again) == hash(where)
    assert filter_to_json(again) == filter_to_json(where)


@given(FILTERS, METADATA)
def test_a_filter_survives_pickling(where: Filter, metadata: dict[str, Any]) -> None:
    again = pickle.loads(pickle.dumps(where))
    assert again == where
    assert matches(again, metadata) is matches(where, metadata)


@given(st.lists(FILTERS, min_size=1, max_size=3), METADATA)
def test_not_is_the_opposite_of_and(conditions: list[Filter], metadata: dict[str, Any]) -> None:
    assert matches(Not(conditions), metadata) is not matches(And(conditions), metadata)


@given(st.lists(FILTERS, min_size=1, max_size=3), METADATA)
def test_none_of_the_negations_holds_when_or_fails(conditions: list[Filter], metadata: dict[str, Any]) -> None:
    assert matches(Or(conditions), metadata) is matches(Not([Not([each]) for each in conditions]), metadata)


@given(KEYS, SCALARS, METADATA)
def test_unequal_is_the_opposite_of_equal(key: str, value: Any, metadata: dict[str, Any]) -> None:
    assert matches(Comparison(key, "!=", value), metadata) is not matches(Comparison(key, "==", value), metadata)


@given(KEYS, st.lists(SCALARS, min_size=1, max_size=5), METADATA)
def test_in_is_equal_to_any(key: str, values: list[Any], metadata: dict[str, Any]) -> None:
    among = matches(Comparison(key, "in", values), metadata)
    assert among is matches(Or([Comparison(key, "==", value) for value in values]), metadata)
    assert among is not matches(Comparison(key, "not in", values), metadata)


@given(SCALARS, SCALARS)
def test_at_least_is_more_or_equal_where_there_is_an_order(found: Any, value: Any) -> None:
    more, least = (Comparison("a", operator, value).holds(found) for operator in (">", ">="))
    less, most = (Comparison("a", operator, value).holds(found) for operator in ("<", "<="))
    if kind(found) == kind(value) and kind(value) in ("number", "text"):
        same = Comparison("a", "==", value).holds(found)
        assert [more, same, less].count(True) == 1
        assert (least, most) == (more or same, less or same)
    else:
        assert not any((more, least, less, most))


@pytest.mark.parametrize(
    ("operator", "value", "found", "expected"),
    [
        ("==", 1, 1.0, True),
        ("==", 1, True, False),
        ("==", True, 1, False),
        ("==", True, True, True),
        ("==", 0, False, False),
        ("==", "1", 1, False),
        ("==", None, None, True),
        ("==", None, 0, False),
        ("==", None, "", False),
        ("!=", 1, True, True),
        ("!=", None, None, False),
        ("!=", "x", None, True),
        ("==", 2**53 + 1, float(2**53), False),
        (">", 1, 2, True),
        (">", 1, 1.5, True),
        (">", 1, 1, False),
        (">=", 1, 1.0, True),
        ("<", "2024-05-01", "2024-04-30", True),
        ("<=", "2024-05-01T00:00:00", "2024-05-01", True),
        ("<", "b", "a", True),
        ("<", "a", "B", True),
        ("<", 2, "1", False),
        (">", "1", 2, False),
        ("<", 2, True, False),
        ("<", True, 0, False),
        (">=", True, True, False),
        ("<=", None, None, False),
        (">=", None, 1, False),
        ("in", [1, "a"], 1.0, True),
        ("in", [1, "a"], True, False),
        ("in", [None], None, True),
        ("in", [], None, False),
        ("not in", [], None, True),
        ("not in", ["a"], None, True),
        ("not in", [True], 1, True),
        ("not in", ["a", "b"], "b", False),
    ],
)
def test_comparisons_by_hand(operator: Any, value: Any, found: Any, expected: bool) -> None:
    assert matches(Comparison("key", operator, value), {"key": found, "other": "x"}) is expected


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("value", [None, True, 1, "a"])
def test_a_missing_key_is_null(operator: Any, value: Any) -> None:
    where = Comparison("key", operator, [value] if "in" in operator else value)
    assert matches(where, {}) is matches(where, {"key": None})


def test_a_filter_reads_the_metadata_of_a_document() -> None:
    document = Document("1", "text", {"language": "fr", "year": 1998})
    wire = {
        "operator": "AND",
        "conditions": [
            {"field": "meta.language", "operator": "in", "value": ["fr", "de"]},
            {"operator": "NOT", "conditions": [{"field": "meta.year", "operator": "<", "value": 1990}]},
            {
                "operator": "OR",
                "conditions": [
                    {"field": "year", "operator": "==", "value": 1998.0},
                    {"field": "missing", "operator": "==", "value": 1},
                ],
            },
        ],
    }
    where = filter_from_json(wire)
    assert where == And(
        [
            Comparison("language", "in", ["fr", "de"]),
            Not([Comparison("year", "<", 1990)]),
            Or([Comparison("year", "==", 1998), Comparison("missing", "==", 1)]),
        ]
    )
    assert matches(where, document.metadata)
    assert not matches(where, {**document.metadata, "year": 1989})


def test_the_prefix_is_taken_off_once_and_only_when_read() -> None:
    where = filter_from_json({"field": "meta.meta.a", "operator": "==", "value": 1})
    assert where == Comparison("meta.a", "==", 1)
    assert filter_to_json(where)["field"] == "meta.meta.a"
    assert filter_to_json(Comparison("metal", "==", 1))["field"] == "metal"
    assert Comparison("meta.a", "==", 1).field == "meta.a"


def test_filters_are_equal_when_they_mean_the_same_values() -> None:
    assert Comparison("a", "==", 1) == Comparison("a", "==", 1.0)
    assert hash(Comparison("a", "==", 1)) == hash(Comparison("a", "==", 1.0))
    assert Comparison("a", "==", 1) != Comparison("a", "==", True)
    assert Comparison("a", "in", [0]) != Comparison("a", "in", [False])
    assert And([Comparison("a", "==", 1)]) != Or([Comparison("a", "==", 1)])
    assert len({And([Comparison("a", "==", value)]) for value in (1, 1.0, True, "1", None)}) == 4


def test_a_filter_cannot_be_changed() -> None:
    values: list[Any] = [1, 2]
    where = Comparison("a", "in", values)
    values.append(3)
    assert where.value == (1, 2)
    conditions: list[Filter] = [where]
    combined = And(conditions)
    conditions.clear()
    assert combined.conditions == (where,)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        where.value = 3  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        combined.conditions = ()  # type: ignore[misc]


def test_a_filter_shows_what_it_was_made_of() -> None:
    where = Not([Comparison("a", "in", [1])])
    assert repr(where) == "Not(conditions=(Comparison(field='a', operator='in', value=(1,)),))"


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (None, "mapping"),
        ([], "mapping"),
        ("a == 1", "mapping"),
        ({}, "no key 'field'"),
        ({"operator": "AND"}, "no key 'field'"),
        ({"conditions": []}, "no key 'operator'"),
        ({"field": "a", "operator": "=="}, "no key 'value'"),
        ({"field": "a", "value": 1}, "no key 'operator'"),
        ({"field": "a", "operator": "==", "value": 1, "boost": 2}, "unknown key 'boost'"),
        ({"field": "a", "operator": "==", "value": 1, 7: 2}, "unknown key <int>"),
        ({"field": "a", "operator": "AND", "conditions": []}, "unknown key 'field'"),
        ({"field": "", "operator": "==", "value": 1}, "field = ''"),
        ({"field": "meta.", "operator": "==", "value": 1}, "field = ''"),
        ({"field": None, "operator": "==", "value": 1}, "field = None"),
        ({"field": ["a"], "operator": "==", "value": 1}, "field = <list>"),
        ({"field": "\ud800", "operator": "==", "value": 1}, "field = "),
        ({"field": "a", "operator": "=", "value": 1}, "one of ==, !=, >, >=, <, <=, in, not in"),
        ({"field": "a", "operator": "IN", "value": [1]}, "one of ==, !=, >, >=, <, <=, in, not in"),
        ({"field": "a", "operator": "AND", "value": [1]}, "one of ==, !=, >, >=, <, <=, in, not in"),
        ({"field": "a", "operator": None, "value": 1}, "operator None"),
        ({"field": "a", "operator": ["=="], "value": 1}, "operator <list>"),
        ({"field": "a", "operator": "==", "value": [1]}, "'==' with <list>"),
        ({"field": "a", "operator": ">", "value": {"b": 1}}, "'>' with <dict>"),
        ({"field": "a", "operator": "==", "value": float("nan")}, "with nan"),
        ({"field": "a", "operator": "<", "value": float("-inf")}, "with -inf"),
        ({"field": "a", "operator": "==", "value": "\udfff"}, "'==' with "),
        ({"field": "a", "operator": "==", "value": b"x"}, "<bytes>"),
        ({"field": "a", "operator": "in", "value": "abc"}, "a list of scalars"),
        ({"field": "a", "operator": "in", "value": None}, "a list of scalars"),
        ({"field": "a", "operator": "not in", "value": {"b": 1}}, "a list of scalars"),
        ({"field": "a", "operator": "in", "value": [1, [2]]}, "'in' with <list>"),
        ({"field": "a", "operator": "in", "value": [float("inf")]}, "with inf"),
        ({"operator": "AND", "conditions": []}, "at least one filter"),
        ({"operator": "OR", "conditions": {}}, "a list of filters"),
        ({"operator": "NOT", "conditions": {"field": "a", "operator": "==", "value": 1}}, "a list of filters"),
        ({"operator": "AND", "conditions": "ab"}, "a list of filters"),
        ({"operator": "AND", "conditions": [1]}, "mapping"),
        ({"operator": "and", "conditions": [{}]}, "one of AND, OR, NOT"),
        ({"operator": "==", "conditions": [{}]}, "one of AND, OR, NOT"),
        ({"operator": {}, "conditions": [{}]}, "one of AND, OR, NOT"),
        ({"operator": "AND", "conditions": [{"field": "a", "operator": "~", "value": 1}]}, "operator '~'"),
    ],
)
def test_what_is_no_filter_is_refused_with_what_is_known(wire: Any, said: str) -> None:
    with pytest.raises(InvalidFilter) as refused:
        filter_from_json(wire)
    assert said in str(refused.value)
    assert refused.value.remedy


JSON = st.recursive(
    st.one_of(SCALARS, st.sampled_from([*OPERATORS, "AND", "OR", "NOT", float("nan"), float("inf")])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.fixed_dictionaries({"field": KEYS, "operator": st.sampled_from(OPERATORS) | inner, "value": inner}),
        st.fixed_dictionaries({"operator": st.sampled_from(["AND", "OR", "NOT"]), "conditions": st.lists(inner)}),
        st.dictionaries(st.sampled_from(["field", "operator", "value", "conditions", "x"]), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(JSON, METADATA)
def test_any_json_is_a_filter_or_an_invalid_filter(wire: Any, metadata: dict[str, Any]) -> None:
    try:
        where = filter_from_json(wire)
    except InvalidFilter:
        return
    assert filter_from_json(filter_to_json(where)) == where
    assert matches(where, metadata) is meant(wire, metadata)


@pytest.mark.parametrize("combination", [And, Or, Not])
@pytest.mark.parametrize("conditions", [[], (), None, "ab", 3, [{"field": "a", "operator": "==", "value": 1}], [None]])
def test_a_combination_takes_a_list_of_filters(combination: Any, conditions: Any) -> None:
    with pytest.raises(InvalidFilter):
        combination(conditions)


@pytest.mark.parametrize("stranger", [None, {"field": "a", "operator": "==", "value": 1}, "a == 1", lambda _: True])
def test_only_a_filter_is_matched_or_written(stranger: Any) -> None:
    with pytest.raises(InvalidFilter, match="filter_from_json"):
        matches(stranger, {})
    with pytest.raises(InvalidFilter, match="filter_from_json"):
        filter_to_json(stranger)


def nested(depth: int) -> dict[str, Any]:
    wire: dict[str, Any] = {"field": "a", "operator": "==", "value": 1}
    for _ in range(depth - 1):
        wire = {"operator": "AND", "conditions": [wire]}
    return wire


def test_depth_is_bounded_in_the_wire_form() -> None:
    deepest = filter_from_json(nested(MAX_DEPTH))
    assert deepest.depth == MAX_DEPTH
    assert matches(deepest, {"a": 1})
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidFilter, match=f"more than {MAX_DEPTH} deep"):
            filter_from_json(nested(depth))


def test_depth_is_bounded_in_the_objects() -> None:
    where: Filter = Comparison("a", "==", 1)
    for _ in range(MAX_DEPTH - 1):
        where = Not([where])
    assert filter_from_json(filter_to_json(where)) == where
    with pytest.raises(InvalidFilter, match=f"more than {MAX_DEPTH} deep"):
        Not([where])


def test_size_is_bounded_in_the_wire_form_and_in_the_objects() -> None:
    one = {"field": "a", "operator": "==", "value": 1}
    largest = filter_from_json({"operator": "OR", "conditions": [one] * (MAX_NODES - 1)})
    assert largest.nodes == MAX_NODES
    with pytest.raises(InvalidFilter, match="more than 10,000 nodes"):
        filter_from_json({"operator": "OR", "conditions": [one] * MAX_NODES})
    with pytest.raises(InvalidFilter, match="more than 10,000 nodes"):
        Or([Comparison("a", "==", 1)] * MAX_NODES)


def test_a_list_of_values_is_one_node() -> None:
    where = Comparison("a", "in", list(range(50_000)))
    assert where.nodes == 1
    assert matches(where, {"a": 49_999.0})
    assert not matches(where, {"a": 50_000})


def test_shared_parts_count_as_often_as_they_occur() -> None:
    wire: dict[str, Any] = {"field": "a", "operator": "==", "value": 1}
    where: Filter = Comparison("a", "==", 1)
    for _ in range(3):
        wire = {"operator": "AND", "conditions": [wire] * 10}
        where = And([where] * 10)
    assert where.nodes == 1111
    assert filter_from_json(wire) == where
    for _ in range(20):
        wire = {"operator": "AND", "conditions": [wire] * 10}
    with pytest.raises(InvalidFilter, match="nodes"):
        filter_from_json(wire)
    with pytest.raises(InvalidFilter, match="nodes"):
        And([where] * 10)


def test_reading_stops_at_the_bound_and_not_at_the_end() -> None:
    class Watched(dict[str, Any]):
        reads = 0

        def __getitem__(self, key: str) -> Any:
            Watched.reads += key == "value"
            return super().__getitem__(key)

    one = Watched(field="a", operator="==", value=1)
    hundred = {"operator": "OR", "conditions": [one] * 100}
    with pytest.raises(InvalidFilter, match="nodes"):
        filter_from_json({"operator": "OR", "conditions": [hundred] * 1000})
    assert Watched.reads < MAX_NODES


def test_a_filter_that_contains_itself_is_refused() -> None:
    wire: dict[str, Any] = {"operator": "AND", "conditions": []}
    wire["conditions"].append(wire)
    with pytest.raises(InvalidFilter, match="deep"):
        filter_from_json(wire)


def test_no_value_is_too_hostile_for_the_message() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        for wire in (
            deep,
            {"field": deep, "operator": "==", "value": 1},
            {"field": "a", "operator": deep, "value": 1},
            {"field": "a", "operator": 10**5000, "value": 1},
            {"field": "a", "operator": "==", "value": deep},
            {"field": "a", "operator": "in", "value": deep},
            {"operator": "AND", "conditions": deep},
            {"operator": "x" * 100_000, "conditions": []},
        ):
            with pytest.raises(InvalidFilter) as refused:
                filter_from_json(wire)  # type: ignore[arg-type]
            assert len(str(refused.value)) < 300
    finally:
        while deep:  # taken apart by hand: freeing it whole recurses in some versions of Python
            deep = deep.pop()


def test_numbers_of_any_size_compare() -> None:
    assert matches(Comparison("a", "<", 10**400), {"a": 1.5})
    assert not matches(Comparison("a", "==", 10**400), {"a": 1.7e308})
