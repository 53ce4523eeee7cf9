"""Arrays in memory answer as those of a file do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lateinteraction.adapters.index.arrays import Arrays, InMemory
from lateinteraction.adapters.index.files import FileWriter, StoredFile
from lateinteraction.domain.errors import CorruptIndex
from lateinteraction.testing.storage import MemoryStorage

CONTENT = {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "none": np.zeros(0, np.int64), "one": np.array(7)}


def in_a_file(arrays: dict[str, Any]) -> Arrays:
    storage = MemoryStorage()
    with FileWriter(storage, "s-1", "segment") as file:
        for name, array in arrays.items():
            file.add(name, array)
        return StoredFile.open(storage, file.publish())


@pytest.fixture(params=[InMemory, in_a_file])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    return request.param({name: array.copy() for name, array in CONTENT.items()})


@pytest.mark.parametrize("name", CONTENT)
def test_arrays_are_what_was_given(arrays: Arrays, name: str) -> None:
    arrays.check_all(name)
    for view in (arrays.whole(name), arrays.lazily(name)):
        assert np.array_equal(view, CONTENT[name])
        assert view.dtype == CONTENT[name].dtype
        assert not view.flags.writeable


def test_names_are_there_or_not(arrays: Arrays) -> None:
    assert [name in arrays for name in ("a", "none", "one", "b", 3)] == [True, True, True, False, False]


def test_an_array_that_is_not_there_is_a_damage(arrays: Arrays) -> None:
    nothing = np.zeros(0, np.int64)
    for read in (arrays.whole, arrays.lazily, arrays.check_all, lambda name: arrays.check(name, nothing, nothing)):
        with pytest.raises(CorruptIndex, match="'b'"):
            read("b")


@pytest.mark.parametrize(
    ("name", "pairs", "there"),
    [
        ("a", [], True), ("a", [(0, 3), (3, 3), (1, 2)], True), ("a", [(0, 4)], False), ("a", [(0, 1), (-1, 1)], False),
        ("a", [(2, 1)], False), ("a", [(4, 4)], False), ("none", [(0, 0)], True), ("none", [(0, 1)], False),
        ("one", [(0, 1)], True), ("one", [(1, 2)], False),
    ],
)  # fmt: skip
def test_rows_that_are_not_there_are_a_damage(
    arrays: Arrays, name: str, pairs: list[tuple[int, int]], there: bool
) -> None:
    firsts, lasts = np.array(pairs, np.int64).reshape(-1, 2).T
    if there:
        arrays.check(name, firsts, lasts)
    else:
        with pytest.raises(CorruptIndex):
            arrays.check(name, firsts, lasts)


def test_what_was_given_stays_writable_by_who_gave_it() -> None:
    own = np.zeros(3)
    InMemory({"own": own})
    own[0] = 1
    assert own.flags.writeable
