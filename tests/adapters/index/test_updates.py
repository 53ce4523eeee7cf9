"""Updates of metadata: the view is the documents as they are now, and merging keeps exactly that."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index import metadata, updates
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.columns import in_memory
from lateinteraction.adapters.index.metadata import MetadataColumns
from lateinteraction.adapters.index.updates import MetadataView, Updates
from lateinteraction.domain.errors import CorruptIndex
from lateinteraction.domain.filters import Comparison, Filter, matches
from lateinteraction.testing import strategies

Documents = list[dict[str, Any]]
Changes = dict[int, dict[str, Any]]
SEGMENTS = st.lists(strategies.metadata().map(dict), max_size=8)


def stored(changes: Changes, before: Updates | None = None) -> Updates:
    return Updates(InMemory(updates.build(changes, before)))


def view(written: Documents, *steps: Changes) -> MetadataView:
    """A segment, and updates of it in several generations."""
    known: Updates | None = None
    for changes in steps:
        known = stored(changes, known)
    return MetadataView(MetadataColumns(InMemory(metadata.build(written)), len(written)), known)


def now(written: Documents, *steps: Changes) -> Documents:
    current = dict(enumerate(written))
    for changes in steps:
        current |= changes
    return list(current.values())


@st.composite
def segments(draw: st.DrawFn) -> tuple[Documents, list[Changes]]:
    written = draw(SEGMENTS)
    rows = st.integers(0, max(len(written) - 1, 0))
    changes = st.dictionaries(rows, strategies.metadata().map(dict), max_size=4 if written else 0)
    return written, draw(st.lists(changes, max_size=3))


def exactly(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@given(segments(), st.data())
def test_the_view_is_the_documents_as_they_are_now(
    segment: tuple[Documents, list[Changes]], data: st.DataObject
) -> None:
    written, steps = segment
    rows = data.draw(st.lists(st.integers(0, len(written) - 1), max_size=12)) if written else []
    current = now(written, *steps)
    assert exactly(view(written, *steps).at(rows)) == exactly([current[row] for row in rows])
    assert len(view(written, *steps)) == len(written)


@given(segments(), strategies.filters())
def test_a_filter_is_about_the_documents_as_they_are_now(
    segment: tuple[Documents, list[Changes]], where: Filter
) -> None:
    written, steps = segment
    found = view(written, *steps).matching(where)
    assert [bool(each) for each in found] == [matches(where, each) for each in now(written, *steps)]


@given(segments())
def test_updates_are_cumulative(segment: tuple[Documents, list[Changes]]) -> None:
    _, steps = segment
    known: Updates | None = None
    expected: Changes = {}
    for changes in steps:
        known = stored(changes, known)
        expected |= changes
        assert [int(row) for row in known.rows] == sorted(expected)
        assert exactly(known.metadata.at(range(len(known)))) == exactly([expected[row] for row in sorted(expected)])


@given(segments())
def test_updates_one_after_another_leave_the_same_arrays_as_at_once(segment: tuple[Documents, list[Changes]]) -> None:
    """To the last byte: nothing that was replaced is left in a dictionary."""
    _, steps = segment
    together: Changes = {}
    known: Updates | None = None
    for changes in steps:
        together |= changes
        arrays = updates.build(changes, known)
        known = Updates(InMemory(arrays))
        expected = updates.build(together)
        assert sorted(arrays) == sorted(expected)
        for name, array in expected.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@given(st.lists(segments(), max_size=3), st.data())
def test_merged_columns_are_those_of_the_kept_documents(
    parts: list[tuple[Documents, list[Changes]]], data: st.DataObject
) -> None:
    remaining: Documents = []
    kept: list[tuple[MetadataView, Any]] = []
    for written, steps in parts:
        stays = data.draw(st.lists(st.booleans(), min_size=len(written), max_size=len(written)))
        rows = np.flatnonzero(stays)
        kept.append((view(written, *steps), rows))
        remaining += [now(written, *steps)[row] for row in rows]
    found, expected = in_memory(updates.merged(kept)), metadata.build(remaining)
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_values_that_only_resemble_each_other_stay_apart_when_merged() -> None:
    first, second = [{"a": 1}, {"a": True}, {"a": "1"}], [{"a": 1.0}, {"a": None}, {"a": 1}]
    merged = in_memory(updates.merged([(view(first), np.arange(3)), (view(second), np.arange(3))]))
    columns = MetadataColumns(InMemory(merged), 6)
    assert exactly(columns.at(range(6))) == exactly([*first, *second])
    assert bytes(merged["metadata.0.bytes"]) == b'nulltrue11.0"1"'


def test_a_value_that_no_kept_document_has_is_forgotten() -> None:
    merged = in_memory(updates.merged([(view([{"a": "secret", "b": 1}, {"b": 2}], {1: {"b": 3}}), np.array([1]))]))
    assert bytes(merged["metadata.keys"]) == b'["b"]'
    assert bytes(merged["metadata.0.bytes"]) == b"3"


def test_many_values_are_merged_in_blocks() -> None:
    documents = [{"text": f"{row:07d}" * 40} for row in range(9000)]
    halves = [(view(documents[start::2]), np.arange(4500)) for start in (0, 1)]
    sizes, arrays = [], {}
    for column in updates.merged(halves):
        blocks = list(column.blocks)
        sizes.append(max(map(len, blocks)))
        arrays[column.name] = np.concatenate(blocks)
    assert max(sizes) < 1_200_000 < len(arrays["metadata.0.bytes"])
    merged = MetadataColumns(InMemory(arrays), 9000)
    assert merged.at([1, 4501]) == [documents[2], documents[3]]


def test_updates_of_nothing_change_nothing() -> None:
    unchanged = view([{"a": 1}], {})
    assert unchanged.at([0]) == [{"a": 1}]
    assert unchanged.keys == {"a"}
    assert [bool(each) for each in unchanged.matching(Comparison("a", "==", 1))] == [True]


def test_an_update_replaces_all_keys() -> None:
    changed = view([{"a": 1, "b": 2}, {"a": 3}], {0: {"c": 4}})
    assert changed.at([0, 1]) == [{"c": 4}, {"a": 3}]
    assert [bool(each) for each in changed.matching(Comparison("a", "==", None))] == [True, False]


@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [0, 1, 2]])
def test_rows_that_do_not_fit_are_damage(rows: list[int]) -> None:
    arrays = updates.build({0: {"a": 1}, 1: {"a": 2}}) | {"updates.rows": np.array(rows, np.uint32)}
    with pytest.raises(CorruptIndex):
        Updates(InMemory(arrays)).metadata.at([0, 1, 2][: len(rows)])


def test_updates_of_another_segment_are_damage() -> None:
    with pytest.raises(CorruptIndex, match="updates"):
        view([{"a": 1}], {1: {"a": 2}})
