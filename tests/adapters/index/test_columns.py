"""What columns share: blocks, ranges, merged dictionaries, and the way into a file and back."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import ids, metadata, postings, texts, tombstones, updates
from lateinteraction.adapters.index.arrays import Arrays, InMemory
from lateinteraction.adapters.index.columns import (
    BLOCK,
    Column,
    MergedDictionary,
    blocks_of,
    found_in,
    in_memory,
    of_arrays,
    ranges,
    store,
)
from lateinteraction.adapters.index.files import FileWriter, StoredFile
from lateinteraction.adapters.index.ids import Ids
from lateinteraction.adapters.index.metadata import MetadataColumns
from lateinteraction.adapters.index.postings import Postings
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.adapters.index.texts import Texts
from lateinteraction.adapters.index.updates import MetadataView, Updates
from lateinteraction.domain.filters import Comparison


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 12))
def test_blocks_hold_as_many_neighbours_as_fit(sizes: list[int], limit: int) -> None:
    blocks = [sizes[block] for block in blocks_of(np.array(sizes, np.int64), limit)]
    assert [size for block in blocks for size in block] == sizes
    assert all(sum(block) <= limit or len(block) == 1 for block in blocks)
    assert all(sum(block) + following[0] > limit for block, following in pairwise(blocks))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4)), max_size=8))
def test_ranges_are_those_of_python(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = [place for start, length in pairs for place in range(start, start + length)]
    assert [int(place) for place in ranges(starts, lengths)] == expected


def test_columns_of_nothing_have_their_dtype() -> None:
    arrays = in_memory([Column("a", np.uint32, ()), Column("b", np.uint8, (np.array([1], np.uint8),))])
    assert arrays["a"].dtype == np.uint32
    assert len(arrays["a"]) == 0
    assert arrays["b"].dtype == np.uint8


@given(st.lists(st.integers(0, 30), unique=True, max_size=12), st.lists(st.integers(0, 40), max_size=12))
def test_rows_are_found_among_known_ones(known: list[int], rows: list[int]) -> None:
    rising = np.array(sorted(known), np.uint32)
    items, places = found_in(rising, np.array(rows, np.int64))
    assert [int(item) for item in items] == [item for item, row in enumerate(rows) if row in known]
    assert [int(rising[place]) for place in places] == [row for row in rows if row in known]


@given(st.lists(st.sets(st.binary(max_size=3), max_size=6), max_size=4))
def test_dictionaries_merge_into_one_that_is_sorted(sources: list[set[bytes]]) -> None:
    entries = [[(content, content, code) for code, content in enumerate(sorted(source))] for source in sources]
    merged = MergedDictionary([iter(each) for each in entries], [len(each) + 1 for each in entries])
    content = b"".join(map(bytes, merged.blocks()))
    expected = sorted(set().union(*sources))
    assert content == b"".join(expected)
    assert [int(length) for length in merged.lengths] == [len(each) for each in expected]
    for codes, source in zip(merged.codes, sources, strict=True):
        assert [expected[code] for code in codes[:-1]] == sorted(source)
        assert codes[-1] == -1  # it never came up


def test_a_large_dictionary_comes_in_blocks() -> None:
    content = [f"{number:08d}".encode() * 1000 for number in range(300)]
    merged = MergedDictionary([iter([(each, each, code) for code, each in enumerate(content)])], [300])
    sizes = [len(block) for block in merged.blocks()]
    assert sum(sizes) == 300 * 8000
    assert max(sizes) < BLOCK + 8000


DOCUMENTS = [("a", "late interaction", {"year": 1999}), ("é", "", {}), ("c", "interaction", {"year": None, "x": "é"})]


def segment() -> dict[str, NDArray[Any]]:
    names, contents, values = zip(*DOCUMENTS, strict=True)
    return (
        ids.build(names)
        | texts.build(contents)
        | metadata.build(values)
        | postings.build(content.split() for content in contents)
        | tombstones.build(np.array([False, True, False]))
        | updates.build({1: {"year": 7}})
        | {"empty": np.empty(0, np.uint32)}
    )


def stored(folder: Path, columns: Any) -> Arrays:
    storage = FolderStorage(folder, create=True)
    with FileWriter(storage, "s-0000000000000001-00", "segment") as file:
        store(file, columns)
        record = file.publish()
    return StoredFile.open(storage, record)


def test_columns_in_a_file_are_those_in_memory(tmp_path: Path) -> None:
    arrays, file = segment(), stored(tmp_path, of_arrays(segment()))
    for name, array in arrays.items():
        assert file.whole(name).dtype == array.dtype
        np.testing.assert_array_equal(file.whole(name), array, err_msg=name)


def test_columns_of_a_file_answer_as_those_in_memory(tmp_path: Path) -> None:
    for arrays in (InMemory(segment()), stored(tmp_path, of_arrays(segment()))):
        assert list(Ids(arrays).rows_of(["c", "a", "b", "é"])) == [2, 0, -1, 1]
        assert Texts(arrays).at([0, 1, 2]) == [text for _, text, _ in DOCUMENTS]
        assert MetadataColumns(arrays, 3).at([2, 0]) == [DOCUMENTS[2][2], DOCUMENTS[0][2]]
        assert list(MetadataColumns(arrays, 3).matching(Comparison("year", "<", 2000))) == [True, False, False]
        assert list(Updates(arrays).rows) == [1]
        assert Updates(arrays).metadata.at([0]) == [{"year": 7}]
        assert [list(each.rows) for each in Postings(arrays, 3).of(["interaction", "none"])] == [[0, 2], []]
        assert list(tombstones.live(arrays, 3)) == [True, False, True]


def test_merged_columns_stream_into_a_file(tmp_path: Path) -> None:
    source = stored(tmp_path / "source", of_arrays(segment()))
    kept = np.array([0, 2])
    view = MetadataView(MetadataColumns(source, 3), Updates(InMemory(updates.build({0: {"year": 5}}, Updates(source)))))
    columns = chain(
        ids.merged([(Ids(source), kept)]),
        texts.merged([(Texts(source), kept)]),
        updates.merged([(view, kept)]),
        postings.merged([(Postings(source, 3), kept)]),
    )
    folded = stored(tmp_path / "folded", columns)
    assert Ids(folded).at([0, 1]) == ["a", "c"]
    assert Texts(folded).at([0, 1]) == ["late interaction", "interaction"]
    assert MetadataColumns(folded, 2).at([0, 1]) == [{"year": 5}, DOCUMENTS[2][2]]
    assert [list(each.rows) for each in Postings(folded, 2).of(["interaction", "late"])] == [[0, 1], [0]]


@pytest.mark.parametrize("column", ["ids", "texts"])
def test_an_array_of_no_bytes_can_be_read(column: str, tmp_path: Path) -> None:
    file = stored(tmp_path, of_arrays(texts.build([""], column)))
    assert Texts(file, column).at([0]) == [""]
    assert len(Texts(file, column).joined(np.array([0]))) == 0
