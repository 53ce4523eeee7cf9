"""Postings: what a plain count of terms would say, found by term, merged and damaged."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import postings
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.columns import in_memory
from lateinteraction.adapters.index.postings import Matches, Postings, PostingsBuilder
from lateinteraction.domain.errors import CorruptIndex

Documents = list[list[str]]
TERMS = st.sampled_from(["a", "ab", "b", "c", "é", "\U0001f4a5", "\uffee", "\x00", "zz"]) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3
)
DOCUMENTS = st.lists(st.lists(TERMS, max_size=8), max_size=8)


def stored(documents: Documents) -> Postings:
    return Postings(InMemory(postings.build(documents)), len(documents))


def pairs(matches: Matches) -> list[tuple[int, int]]:
    return list(zip(map(int, matches.rows), map(int, matches.counts), strict=True))


def counted(documents: Documents, term: str) -> list[tuple[int, int]]:
    counts = [(row, Counter(terms)[term]) for row, terms in enumerate(documents)]
    return [(row, count) for row, count in counts if count]


@given(DOCUMENTS, st.lists(TERMS, max_size=5))
def test_a_term_has_the_documents_that_have_it(documents: Documents, others: list[str]) -> None:
    asked = [*others, *(term for terms in documents for term in terms)]
    found = stored(documents).of(asked)
    assert [pairs(each) for each in found] == [counted(documents, term) for term in asked]
    assert {each.rows.dtype for each in found} <= {np.dtype(np.uint32)}
    assert {each.counts.dtype for each in found} <= {np.dtype(np.uint16)}


@given(DOCUMENTS)
def test_the_length_of_a_document_is_the_number_of_its_terms(documents: Documents) -> None:
    found = stored(documents)
    assert len(found) == len(documents)
    assert [int(each) for each in found.lengths] == [len(terms) for terms in documents]


@given(DOCUMENTS)
def test_terms_are_distinct_and_sorted_by_their_bytes(documents: Documents) -> None:
    terms = {term for each in documents for term in each}
    found = stored(documents).terms
    assert found.encoded(range(len(found))) == sorted(term.encode() for term in terms)


@given(DOCUMENTS, st.integers(0, 8))
def test_documents_may_come_one_at_a_time(documents: Documents, cut: int) -> None:
    builder = PostingsBuilder()
    for terms in documents[:cut]:
        builder.add(terms)
    assert_same(builder.build(), postings.build(documents[:cut]))
    for terms in documents[cut:]:
        builder.add(terms)
    assert_same(builder.build(), postings.build(documents))


def assert_same(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@given(st.lists(DOCUMENTS, max_size=4), st.data())
def test_merged_postings_are_those_of_the_kept_documents(parts: list[Documents], data: st.DataObject) -> None:
    kept = [data.draw(st.lists(st.booleans(), min_size=len(part), max_size=len(part))) for part in parts]
    merged = postings.merged([(stored(part), np.flatnonzero(stays)) for part, stays in zip(parts, kept, strict=True)])
    remaining = [
        terms for part, stays in zip(parts, kept, strict=True) for terms, stay in zip(part, stays, strict=True) if stay
    ]
    assert_same(in_memory(merged), postings.build(remaining))


def test_many_postings_are_merged_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "BLOCK", 50)
    documents = [[f"t{(row * 7 + place) % 97}" for place in range(row % 13)] + ["everywhere"] for row in range(200)]
    kept = [np.arange(0, 100, 2), np.arange(3, 100)]
    halves = [documents[:100], documents[100:]]
    arrays: dict[str, NDArray[Any]] = {}
    for column in postings.merged([(stored(half), rows) for half, rows in zip(halves, kept, strict=True)]):
        blocks = list(column.blocks)
        arrays[column.name] = np.concatenate(blocks)
        if column.name == "lexical.rows":
            assert len(blocks) > 10
            assert sorted(map(len, blocks))[-2:] == [50, 147]  # a term of its own is never cut
    remaining = [half[row] for half, rows in zip(halves, kept, strict=True) for row in rows]
    assert_same(arrays, postings.build(remaining))


def test_more_occurrences_than_fit_count_as_the_most() -> None:
    found = stored([["a"] * 65_535, ["a"] * 65_536, ["a"] * 70_000 + ["b"]])
    assert pairs(found.of(["a"])[0]) == [(0, 65_535), (1, 65_535), (2, 65_535)]
    assert [int(each) for each in found.lengths] == [65_535, 65_536, 70_001]


def test_arrays_are_those_of_the_format() -> None:
    arrays = postings.build([["b", "a", "b"], [], ["b", "é"]])
    assert {name: (array.dtype.str, [int(each) for each in array]) for name, array in arrays.items()} == {
        "lexical.terms.bytes": ("|u1", list("abé".encode())),
        "lexical.terms.offsets": ("<i8", [0, 1, 2, 4]),
        "lexical.offsets": ("<i8", [0, 1, 3, 4]),
        "lexical.rows": ("<u4", [0, 0, 2, 2]),
        "lexical.counts": ("<u2", [1, 2, 1, 1]),
        "lexical.lengths": ("<u4", [3, 0, 2]),
    }


@pytest.mark.parametrize("documents", [[], [[]], [[], []]])
def test_documents_without_terms_have_no_postings(documents: Documents) -> None:
    found = stored(documents)
    assert len(found) == len(documents)
    assert [pairs(each) for each in found.of(["a", ""])] == [[], []]
    assert found.of([]) == []


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("lexical.terms.offsets", np.array([0, 2, 1, 3])),
        ("lexical.terms.offsets", np.array([0, 1, 3])),
        ("lexical.offsets", np.array([0, 3, 1, 4])),
        ("lexical.offsets", np.array([0, 1, 4])),
        ("lexical.offsets", np.array([0, 1, 3, 5])),
        ("lexical.offsets", np.array([0, 1, 3, 4], np.int32)),
        ("lexical.counts", np.ones(3, np.uint16)),
        ("lexical.counts", np.ones(4, np.uint8)),
        ("lexical.rows", np.zeros(5, np.uint32)),
        ("lexical.rows", np.zeros(4, np.int64)),
        ("lexical.rows", np.array([0, 3, 0, 0], np.uint32)),
        ("lexical.rows", np.array([2**32 - 1, 0, 0, 0], np.uint32)),
        ("lexical.lengths", np.array([1, 2], np.uint32)),
        ("lexical.lengths", np.array([1, 2, 3], np.float32)),
    ],
)
def test_arrays_that_do_not_fit_are_damage(name: str, planted: NDArray[Any]) -> None:
    arrays = postings.build([["a", "b"], ["b", "c"], []])

    def use(arrays: dict[str, NDArray[Any]]) -> None:
        Postings(InMemory(arrays), 3).of(["a", "b", "c"])

    use(arrays)
    with pytest.raises(CorruptIndex, match=r"lexical\."):
        use(arrays | {name: planted})


@pytest.mark.parametrize("name", sorted(postings.build([["a"]])))
def test_an_array_that_is_missing_is_damage(name: str) -> None:
    arrays = postings.build([["a"]])
    del arrays[name]
    with pytest.raises(CorruptIndex, match=name):
        Postings(InMemory(arrays), 1)
