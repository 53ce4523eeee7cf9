from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.application.numbering import Numbers
from lateinteraction.domain.text import DocumentId


class Held:
    """An index that has some ids, and counts how often it is asked."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = frozenset(map(DocumentId, ids))
        self.asked = 0

    def __call__(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]:
        self.asked += 1
        return self.ids & frozenset(ids)


def test_numbers_begin_at_zero_and_go_on() -> None:
    numbers = Numbers(Held([]))
    assert numbers.take(2) == ["0", "1"]
    assert numbers.take(0) == []
    assert numbers.take(2) == ["2", "3"]


def test_what_is_an_id_already_is_left_out() -> None:
    assert Numbers(Held(["0", "2", "x"])).take(3) == ["1", "3", "4"]
    assert Numbers(Held(["0"])).take(3, {DocumentId("2")}) == ["1", "3", "4"]


@given(st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40))), max_size=5))
def test_no_number_is_given_twice_nor_one_that_is_taken(calls: list[tuple[int, set[int], set[int]]]) -> None:
    held = Held([])
    numbers = Numbers(held)
    given_: list[str] = []
    for count, more, besides in calls:
        held.ids |= {DocumentId(str(number)) for number in more}
        named = {DocumentId(str(number)) for number in besides}
        new = numbers.take(count, named)
        assert len(new) == count
        assert not (held.ids | named | set(given_)) & set(new)
        given_ += new
    assert len(set(given_)) == len(given_)
    assert [int(number) for number in given_] == sorted(map(int, given_))


def test_an_index_that_was_numbered_before_is_asked_few_times() -> None:
    held = Held([str(number) for number in range(100_000)])
    assert Numbers(held).take(2) == ["100000", "100001"]
    assert held.asked < 40
