"""Tombstones: which rows are documents no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import tombstones
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.domain.errors import CorruptIndex


@given(st.lists(st.booleans(), max_size=40))
def test_what_is_not_gone_is_live(gone: list[bool]) -> None:
    arrays = tombstones.build(np.array(gone, np.bool_))
    assert arrays["tombstones.bits"].nbytes == (len(gone) + 7) // 8
    live = tombstones.live(InMemory(arrays), len(gone))
    assert live.dtype == np.bool_
    assert [bool(each) for each in live] == [not each for each in gone]


def test_the_lowest_bit_of_a_byte_is_its_first_row() -> None:
    gone = np.zeros(10, np.bool_)
    gone[[0, 9]] = True
    assert [int(each) for each in tombstones.build(gone)["tombstones.bits"]] == [1, 2]


def test_nobody_can_bring_a_document_back_by_writing() -> None:
    live = tombstones.live(InMemory(tombstones.build(np.array([True]))), 1)
    with pytest.raises(ValueError, match="read-only"):
        live[0] = True


@pytest.mark.parametrize(
    "planted",
    [
        np.zeros(1, np.uint8),
        np.zeros(3, np.uint8),
        np.zeros(2, np.int8),
        np.zeros((1, 2), np.uint8),
        np.array([0, 0b100], np.uint8),
        np.array([0, 0b1000_0000], np.uint8),
    ],
)
def test_a_bitmap_of_another_segment_is_damage(planted: NDArray[Any]) -> None:
    with pytest.raises(CorruptIndex, match="tombstones"):
        tombstones.live(InMemory({"tombstones.bits": planted}), 10)


def test_a_missing_bitmap_is_damage() -> None:
    with pytest.raises(CorruptIndex, match="tombstones"):
        tombstones.live(InMemory({}), 0)
