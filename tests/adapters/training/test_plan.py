"""A plan is a function: every law of it holds for each step by itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from attrs import frozen
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.training.plan import BatchPlan, PlanOptions, drawn_negatives
from lateinteraction.domain.errors import InvalidExample, InvalidOption
from lateinteraction.domain.training import TrainingExample


@frozen(eq=False)
class Keys:
    """A source of which only what a plan reads is there."""

    name: str
    keys: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def example(self, row: int) -> TrainingExample:
        raise AssertionError("a plan reads no texts")

    def positives(self) -> NDArray[np.int64]:
        return self.keys

    def lengths(self) -> NDArray[np.int64]:
        return self.sizes


def source(keys: list[int], name: str = "a", seed: int = 0) -> Keys:
    return Keys(name, np.array(keys), np.random.default_rng(seed).integers(1, 500, len(keys)))


def distinct(rows: int, name: str = "a", seed: int = 0) -> Keys:
    return source(list(range(rows)), name, seed)


def options(size: int, **more: Any) -> PlanOptions:
    return PlanOptions(global_batch_size=size, **more)


keys = st.lists(st.integers(0, 12), min_size=1, max_size=60)
seeds = st.integers(0, 2**63)
windows = st.integers(1, 6)


def planned(given: list[int], size: int, **more: Any) -> BatchPlan:
    try:
        return BatchPlan([source(given)], options(size, **more))
    except InvalidExample:
        assume(False)
        raise


@given(keys, st.integers(1, 5), windows, seeds)
def test_no_batch_has_a_positive_or_a_row_twice(given: list[int], size: int, window: int, seed: int) -> None:
    plan = planned(given, size, window=window, seed=seed, epochs=2)
    for batch in plan:
        assert len(batch.rows) == size
        assert len({given[row] for row in batch.rows}) == size


@given(keys, st.integers(1, 5), windows, seeds)
def test_an_epoch_has_no_row_twice_and_as_many_batches_as_can_be(
    given: list[int], size: int, window: int, seed: int
) -> None:
    plan = planned(given, size, window=window, seed=seed)
    rows = [int(row) for batch in plan for row in batch.rows]
    assert len(set(rows)) == len(rows)
    batches, counts = len(plan), Counter(given).values()
    assert sum(min(count, batches) for count in counts) >= batches * size
    assert sum(min(count, batches + 1) for count in counts) < (batches + 1) * size


@given(st.integers(1, 80), st.integers(1, 8), seeds)
def test_of_distinct_positives_only_what_fills_no_batch_is_left_out(rows: int, size: int, seed: int) -> None:
    assume(rows >= size)
    plan = BatchPlan([distinct(rows)], options(size, seed=seed))
    assert len(plan) == rows // size


@given(keys, st.integers(1, 4), seeds)
def test_a_step_is_the_same_whenever_it_is_asked_for(given: list[int], size: int, seed: int) -> None:
    one, other = (planned(given, size, seed=seed, epochs=3, window=2) for _ in range(2))
    backwards = [one[step].rows for step in reversed(range(len(one)))][::-1]
    for step, batch in enumerate(other):
        assert (batch.step, batch.source) == (step, 0)
        np.testing.assert_array_equal(batch.rows, backwards[step])


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), seeds)
def test_processes_share_the_batch_that_one_would_have(world: int, seed: int) -> None:
    plan = BatchPlan([distinct(50)], options(12, seed=seed))
    shares = [plan[1].of_rank(rank, world) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate([share.rows for share in shares]), plan[1].rows)
    assert {len(share.rows) for share in shares} == {12 // world}


def test_processes_that_cannot_share_are_told() -> None:
    with pytest.raises(InvalidOption, match="12 on 5 processes"):
        BatchPlan([distinct(50)], options(12))[0].of_rank(0, 5)


def test_another_epoch_or_seed_is_another_order_of_the_same_rows() -> None:
    plan = BatchPlan([distinct(40)], options(4, epochs=2))
    first, second = ([plan[step].rows.tolist() for step in range(start, start + 10)] for start in (0, 10))
    assert first != second
    assert sorted(np.ravel(first)) == sorted(np.ravel(second)) == list(range(40))
    other = BatchPlan([distinct(40)], options(4, seed=1))
    assert [batch.rows.tolist() for batch in other] != first
    assert plan[10].epoch == 1


def test_what_is_left_out_is_not_always_the_same() -> None:
    plan = BatchPlan([distinct(11)], options(4, epochs=20))
    seen = [{int(row) for step in (2 * epoch, 2 * epoch + 1) for row in plan[step].rows} for epoch in range(20)]
    assert set.union(*seen) == set(range(11))


def test_batches_hold_like_lengths_and_do_not_come_by_length() -> None:
    data = distinct(6400)
    plan = BatchPlan([data], options(16))
    spread = np.mean([np.ptp(data.sizes[batch.rows]) for batch in plan])
    unsorted = np.mean([np.ptp(data.sizes[batch.rows]) for batch in BatchPlan([data], options(16, window=1))])
    assert spread < unsorted / 10
    means = np.array([data.sizes[batch.rows].mean() for batch in plan])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.2


# Several sources


def turns_of(plan: BatchPlan) -> list[int]:
    return [batch.source for batch in plan]


mixings = st.sampled_from(["proportional", "temperature", "round_robin", "weighted"])


@settings(max_examples=40)
@given(st.lists(st.integers(4, 40), min_size=1, max_size=4), mixings, seeds)
def test_each_source_comes_as_often_as_it_should_and_is_seen_evenly(rows: list[int], mixing: Any, seed: int) -> None:
    sources = [distinct(count, f"s{number}") for number, count in enumerate(rows)]
    weights = {f"s{number}": number + 1.0 for number in range(len(rows))} if mixing == "weighted" else None
    plan = BatchPlan(sources, options(4, mixing=mixing, weights=weights, seed=seed, epochs=2))
    batches = np.array(rows) // 4
    shares = {
        "proportional": batches,
        "temperature": batches**0.5,
        "round_robin": np.ones(len(rows)),
        "weighted": np.arange(len(rows)) + 1.0,
    }[mixing]
    found = np.bincount(turns_of(plan), minlength=len(rows))
    expected = shares / shares.sum() * len(plan)
    assert np.all(np.abs(found - expected) <= 2), "two cycles, each off by less than one"
    for number in range(len(rows)):  # no row comes a third time before all batches of its source came twice
        seen = Counter(int(row) for batch in plan if batch.source == number for row in batch.rows)
        rounds = -(-found[number] // batches[number])
        assert max(seen.values(), default=0) <= rounds


def test_in_turn_means_in_turn() -> None:
    plan = BatchPlan([distinct(8, "a"), distinct(20, "b")], options(4, mixing="round_robin"))
    assert turns_of(plan) == [0, 1] * 5


def test_a_source_without_weight_never_comes() -> None:
    sources = [distinct(8, "a"), distinct(20, "b")]
    assert set(turns_of(BatchPlan(sources, options(4, mixing="weighted", weights={"b": 1})))) == {1}


def test_sources_are_mixed_over_the_whole_epoch() -> None:
    turns = np.array(turns_of(BatchPlan([distinct(400, "a"), distinct(400, "b")], options(4))))
    assert 30 < turns[:100].sum() < 70


# Negatives


@given(seeds, st.integers(0, 9), st.integers(0, 9), st.integers(0, 10**6), st.integers(0, 20), st.integers(0, 20))
def test_negatives_are_drawn_without_repetition_and_always_alike(
    seed: int, epoch: int, number: int, row: int, available: int, wanted: int
) -> None:
    drawn, again = (drawn_negatives(seed, epoch, number, row, available=available, wanted=wanted) for _ in range(2))
    np.testing.assert_array_equal(drawn, again)
    assert len(drawn) == min(available, wanted)
    assert np.all(np.diff(drawn) > 0)
    assert np.all((drawn >= 0) & (drawn < max(available, 1)))


def test_other_negatives_are_drawn_in_another_epoch() -> None:
    drawn = {tuple(drawn_negatives(0, epoch, 0, 7, available=20, wanted=3)) for epoch in range(10)}
    assert len(drawn) > 5
    places = Counter(int(each) for row in range(400) for each in drawn_negatives(0, 0, 0, row, available=4, wanted=1))
    assert min(places.values()) > 60


# What is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_batch_size": 0}, {"global_batch_size": True}, {"epochs": 0}, {"steps": 0}, {"epochs": 1, "steps": 2},
        {"mixing": "alphabetical"}, {"alpha": 2}, {"window": 0}, {"seed": -1}, {"mixing": "weighted"},
        {"weights": {"a": 1}}, {"mixing": "weighted", "weights": {"a": -1}}, {"epochs": float("nan")},
        {"mixing": "weighted", "weights": {"a": True}}, {"epochs": float("inf")},
    ],
)  # fmt: skip
def test_options_that_make_no_plan_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        PlanOptions(**({"global_batch_size": 4} | wrong))


@pytest.mark.parametrize(
    ("sources", "more"),
    [
        ([], {}),
        ([distinct(9), distinct(9)], {}),
        ([distinct(9)], {"mixing": "weighted", "weights": {"b": 1}}),
        ([distinct(9)], {"mixing": "weighted", "weights": {"a": 0}}),
    ],
)
def test_sources_that_do_not_fit_the_options_are_refused(sources: list[Keys], more: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        BatchPlan(sources, options(4, **more))


@pytest.mark.parametrize("given", [[], [1, 2, 3], [1] * 50 + [2, 3]])
def test_a_source_that_fills_no_batch_is_named(given: list[int]) -> None:
    with pytest.raises(InvalidExample, match="source 'a' with"):
        BatchPlan([source(given)], options(4))


def test_a_step_that_the_run_does_not_have_is_no_step() -> None:
    plan = BatchPlan([distinct(8)], options(4))
    for step in (-1, 2):
        with pytest.raises(IndexError):
            plan[step]


def test_steps_may_be_said_outright_and_go_on_over_epochs() -> None:
    plan = BatchPlan([distinct(8)], options(4, steps=7))
    assert [batch.epoch for batch in plan] == [0, 0, 1, 1, 2, 2, 3]
    assert plan.steps_per_epoch == 2
    assert len(BatchPlan([distinct(8)], options(4, epochs=0.5))) == 1
