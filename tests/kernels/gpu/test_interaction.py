"""Centroid interaction in the interpreter, and the walk through several documents that it shares with residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lateinteraction.domain import reference
from lateinteraction.kernels.gpu import interaction, sums
from lateinteraction.kernels.gpu.walk import documents_per_program, find_step, plan_walk
from lateinteraction.kernels.operands import CentroidTable

pytestmark = pytest.mark.usefixtures("poisoned_memory")
Builder = Callable[..., Any]
few = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=max(8, settings.default.max_examples // 10),
)
seeds = st.integers(0, 2**32 - 1)


@triton.jit
def _steps(spans, firsts, lefts, places, N, count, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    walk = plan_walk(spans, 2, 1, tl.cast(0, tl.int64), count, N, GROUP, BLOCK_M)
    for step in range(walk[4]):
        first, left, place = find_step(walk, step, BLOCK_M)
        tl.store(firsts + step, first)
        tl.store(lefts + step, left)
        tl.store(places + step, place)


@few
@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 11)), max_size=6))
def test_a_walk_visits_every_tile_of_every_document_once(items: list[tuple[int, int]]) -> None:
    """Wherever they lie: rows have 64 bits."""
    spans = torch.tensor([[start, start + length] for start, length in items], dtype=torch.int64).reshape(-1, 2)
    expected = [
        (start + done, length - done, place)
        for place, (start, length) in enumerate(items)
        for done in range(0, length, 4)
    ]
    firsts = torch.full((len(expected) + 1,), -1, dtype=torch.int64)
    lefts, places = firsts.int(), firsts.int()
    _steps[(1,)](spans, firsts, lefts, places, len(items), len(items), 8, 4)
    found = list(zip(firsts.tolist(), lefts.tolist(), places.tolist(), strict=True))
    assert found == [*expected, (-1, -1, -1)]


def test_programs_take_one_document_each_until_there_are_enough_of_them() -> None:
    assert documents_per_program(0, 1, 16) == 1
    assert documents_per_program(10**9, 1, 16) == 16


def world(ragged: Builder, seed: int) -> tuple[torch.Tensor, Any, Any, torch.Tensor]:
    """A table (K, S) of multiples of 1/8, queries and documents among rows of nobody, and codes."""
    generator = np.random.default_rng(seed)
    queries, documents = (
        ragged(generator, lengths, np.zeros((sum(lengths), 1)))
        for lengths in (
            [int(n) for n in generator.choice([0, 1, 7, 8, 9], generator.integers(0, 3))],
            [int(n) for n in generator.choice([0, 1, 3, 4, 5, 9], generator.integers(0, 6))],
        )
    )
    tokens = len(queries.tokens.values)
    tokens = 16 if generator.random() < 0.3 and tokens <= 16 else tokens
    scores = generator.integers(-8, 9, (int(generator.integers(1, 9)), tokens)).astype(np.float32) / 8
    codes = generator.integers(0, len(scores), len(documents.tokens.values)).astype(np.int32)
    return torch.from_numpy(scores), queries, documents, torch.from_numpy(codes)


def expected(restored: np.ndarray, queries: Any, documents: Any, codes: torch.Tensor) -> np.ndarray:
    own = restored[:, queries.rows]
    return reference.centroid_interaction(
        own, queries.packed.offsets, codes.numpy()[documents.rows].astype(np.int64), documents.packed.offsets
    )


@few
@given(seeds)
def test_scores_are_the_references(ragged: Builder, seed: int) -> None:
    scores, queries, documents, codes = world(ragged, seed)
    spans = queries.tokens.spans, codes, documents.tokens.spans
    found = interaction.centroid_interaction(CentroidTable(scores), *spans)
    np.testing.assert_array_equal(found, expected(scores.numpy(), queries, documents, codes))
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, scores.shape).astype(np.uint8))
    steps, lows = torch.full((scores.shape[1],), 0.25), torch.full((scores.shape[1],), -3.0)
    table = CentroidTable(values, steps, lows)
    on_bytes = interaction.centroid_interaction(table, *spans)
    restored = (lows + steps * values.float()).numpy()
    np.testing.assert_array_equal(on_bytes, expected(restored, queries, documents, codes))
    assert torch.equal(on_bytes, interaction.centroid_interaction(table, *spans))


def test_documents_come_in_pieces_where_maxima_would_not_fit(ragged: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    documents = ragged(generator, [3, 0, 5, 2, 9], np.zeros((19, 1)))
    table = CentroidTable(torch.from_numpy(generator.standard_normal((7, 6)).astype(np.float32)))
    codes = torch.from_numpy(generator.integers(0, 7, len(documents.tokens.values)).astype(np.int32))
    spans = torch.tensor([[0, 4], [4, 4], [1, 6]])
    whole = interaction.centroid_interaction(table, spans, codes, documents.tokens.spans)
    assert torch.equal(whole[1], torch.zeros(5))
    assert whole[[0, 2], 1].tolist() == [-torch.inf, -torch.inf]
    monkeypatch.setattr(sums, "MAXIMA_BYTES", 2 * 6 * 4)
    monkeypatch.setattr(sums, "aligned", lambda count: max(1, count))
    assert torch.equal(interaction.centroid_interaction(table, spans, codes, documents.tokens.spans), whole)


def test_nan_reaches_only_the_scores_that_it_belongs_to() -> None:
    values = torch.zeros(3, 4)
    values[1, 2] = torch.nan
    codes, spans = torch.tensor([0, 1, 2, 2], dtype=torch.int32), torch.tensor([[0, 2], [2, 4]])
    found = interaction.centroid_interaction(CentroidTable(values), torch.tensor([[0, 2], [2, 4]]), codes, spans)
    assert found.isnan().tolist() == [[False, False], [True, False]]


def test_tables_that_do_not_fit_are_refused() -> None:
    codes, spans = torch.zeros(1, dtype=torch.int32), torch.tensor([[0, 1]])
    for values in (torch.zeros(2, 1, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.float16)):
        with pytest.raises(TypeError):
            interaction.centroid_interaction(CentroidTable(values), spans, codes, spans)
