"""The best documents, over chunks, in Triton's interpreter; and the keys that carry a score and its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.domain import reference
from lateinteraction.kernels.gpu import forward, top_k
from lateinteraction.kernels.gpu.keys import as_keys
from lateinteraction.kernels.operands import Tokens, spans_of

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Builder = Callable[..., Any]
law = settings(
    max_examples=max(10, settings.default.max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The interpreter takes a tenth of a second for an example."""
few = settings(law, max_examples=max(4, settings.default.max_examples // 10))
"""For cases of what `law` has tried."""
seeds = st.integers(0, 2**32 - 1)


def world(ragged: Builder, generator: np.random.Generator, queries: int, documents: int) -> tuple[Any, Any]:
    """Few distinct tokens, so that scores are often equal; empty queries and documents."""
    sides = []
    for items in (queries, documents):
        lengths = [int(length) for length in generator.choice([0, 1, 2, 9], items, p=[0.2, 0.4, 0.3, 0.1])]
        values = generator.integers(-1, 2, (sum(lengths), 2)).astype(np.float32) / 2
        values[generator.random(values.shape) < 0.02] = np.nan
        sides.append(ragged(generator, lengths, values))
    return tuple(sides)


def ranked(scores: NDArray[np.floating], k: int) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """What must come out, by sorting: scores fall, NaN is last, equal scores stand by place."""
    places = np.lexsort((-scores, np.isnan(scores)), axis=1)[:, :k]
    return np.take_along_axis(scores, places, axis=1), places


@law
@given(seeds, st.integers(0, 9), st.integers(1, 8))
def test_the_best_are_those_of_sorting_all_scores(ragged: Builder, seed: int, k: int, keys_at_once: int) -> None:
    """However many documents a chunk has: fewer than k, or all."""
    generator = np.random.default_rng(seed)
    queries, documents = world(ragged, generator, int(generator.integers(0, 3)), int(generator.integers(0, 7)))
    expected, places = ranked(reference.maxsim_all_pairs(queries.packed, documents.packed), k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "KEYS_AT_ONCE", keys_at_once)
        patch.setattr(top_k, "aligned", lambda count: max(1, count))
        scores, found = top_k.maxsim_top_k(queries.tokens, documents.tokens, k)
    assert (scores.dtype, found.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(found, places)


@few
@given(seeds)
def test_the_scores_are_to_the_last_bit_those_of_all_pairs(ragged: Builder, seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = (
        ragged(generator, lengths, generator.standard_normal((sum(lengths), 17)).astype(np.float32))
        for lengths in ([9, 3], [2, 9, 1, 4])
    )
    scores, places = top_k.maxsim_top_k(queries.tokens, documents.tokens, 3)
    every = forward.maxsim_all_pairs(queries.tokens, documents.tokens)
    np.testing.assert_array_equal(scores, every.gather(1, places))
    np.testing.assert_array_equal(scores, every.sort(dim=1, descending=True).values[:, :3])


def test_no_more_scores_are_held_than_a_chunk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_k, "KEYS_AT_ONCE", 6)
    monkeypatch.setattr(top_k, "aligned", lambda count: max(1, count))
    asked: list[tuple[int, int]] = []
    write = top_k.write_all_pairs

    def watched(queries: Tokens, documents: Tokens, keys: torch.Tensor, *, first_place: int) -> None:
        asked.append((first_place, keys.shape[1]))
        assert keys.numel() <= 6
        write(queries, documents, keys, first_place=first_place)

    monkeypatch.setattr(top_k, "write_all_pairs", watched)
    tokens = Tokens(torch.arange(8.0)[:, None], spans_of(torch.arange(9)), 1)
    queries = Tokens(torch.ones(2, 1), spans_of(torch.arange(3)), 1)
    scores, places = top_k.maxsim_top_k(queries, tokens, 2)
    assert asked == [(0, 3), (3, 3), (6, 2)]
    assert scores.tolist() == [[7, 6]] * 2
    assert places.tolist() == [[7, 6]] * 2


@triton.jit
def _keys(scores, keys):
    tl.store(keys, as_keys(tl.load(scores), tl.zeros((), tl.int64)))


@pytest.mark.parametrize("score", [0.0, -0.0])
def test_the_sign_of_zero_makes_no_difference(score: float) -> None:
    """A sum that starts with 0 never is −0, but a key may be of anything."""
    keys = torch.empty(1, dtype=torch.int64)
    _keys[(1,)](torch.tensor([score]), keys)
    assert keys.tolist() == [2**32 - 1]


def read(keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scores, places = top_k._read(torch.from_numpy(keys[None]))
    return scores[0].numpy(), places[0].numpy()


def keys_of(scores: NDArray[np.float32], first_place: int) -> NDArray[np.int64]:
    """The keys of a query of one token 1 and documents of one token each."""
    documents = Tokens(torch.from_numpy(scores[:, None]), spans_of(torch.arange(len(scores) + 1)), 1)
    queries = Tokens(torch.ones(1, 1), torch.tensor([[0, 1]]), 1)
    keys = torch.empty(1, len(scores), dtype=torch.int64)
    forward.write_all_pairs(queries, documents, keys, first_place=first_place)
    return keys[0].numpy()


floats = st.floats(width=32) | st.sampled_from([0.0, -0.0, float("inf"), -float("inf"), 1e-45, -1e-45, 3.4028235e38])


@law
@given(st.lists(floats, min_size=2, max_size=6), st.integers(0, 2**32 - 10))
@example([0.0, -0.0, float("nan"), -float("inf")], 2**32 - 10)
def test_keys_sort_as_scores_and_places_do_and_give_them_back(scores: list[float], first: int) -> None:
    given_scores = np.array(scores, np.float32)
    keys = keys_of(given_scores, first)
    assert keys.min() > top_k.LEAST
    order, places = ranked(given_scores[None], len(scores))
    np.testing.assert_array_equal(np.argsort(-keys, kind="stable"), places[0])
    assert len(set(keys)) == len(keys)
    found, found_places = read(np.sort(keys)[::-1].copy())
    np.testing.assert_array_equal(found, order[0])
    np.testing.assert_array_equal(found_places, places[0] + first)
