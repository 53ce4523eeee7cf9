"""Queries are compared a block at a time, and work is shared out whichever side there is much of."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.kernels import cpu
from lateinteraction.kernels.cpu import maxsim, operands, threads
from lateinteraction.kernels.cpu.operands import panels_of
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.operands import Tokens, spans_of

PANEL = processor().panel
WithThreads = Callable[[Callable[[], list[Tensor]]], list[list[Tensor]]]


def normal(lengths: list[int], width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tokens:
    values = 20 * torch.randn((sum(lengths), width), generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    return Tokens(values.type(dtype), spans_of(offsets), max(lengths))


@pytest.fixture
def shares_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], list[tuple[int, int]]]:
    """What each thread gets in a call, of four that there may be."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    seen: list[list[tuple[int, int]]] = []
    run = threads.run

    def watched(task: Callable[[int, int], None], ranges: list[tuple[int, int]]) -> None:
        seen.append(ranges)
        run(task, ranges)

    monkeypatch.setattr(maxsim, "run", watched)

    def shares(call: Callable[[], Tensor]) -> list[tuple[int, int]]:
        seen.clear()
        call()
        (ranges,) = seen
        return ranges

    return shares


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("panels", [1, 3])
def test_blocks_of_queries_change_no_bit(
    with_threads: WithThreads, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, panels: int
) -> None:
    queries = normal([3, PANEL, 0, 2 * PANEL + 1, 0, 0, 7, PANEL - 1, 1], 24, 0, dtype)
    documents = normal([30, 0, 400, 5], 24, 1, dtype)
    pairs = torch.tensor([[8, 2], [3, 0]])

    def everything() -> list[Tensor]:
        scores, winners = cpu.maxsim_all_pairs_winners(queries, documents)
        best = cpu.maxsim_top_k(queries, documents, 3)
        return [
            scores,
            winners,
            cpu.maxsim_all_pairs(queries, documents),
            *best,
            cpu.maxsim_pairs(queries, documents, pairs),
        ]

    assert len(panels_of(queries, apart=False).blocks()) == 1
    expected = everything()
    monkeypatch.setattr(operands, "BLOCK", 1)
    monkeypatch.setattr(operands, "FEWEST_PANELS", panels)
    assert len(panels_of(queries, apart=False).blocks()) > 1
    for found in with_threads(everything):
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("lengths", [[32] * 1000, [1] * 5000, [1, 3000] * 10, [0] * 50, [40_000]])
def test_blocks_are_all_queries_once_and_stay_in_cache(lengths: list[int]) -> None:
    panels = panels_of(normal(lengths, 128), apart=False)
    blocks = panels.blocks()
    assert [query for block in blocks for query in range(block.first, block.last)] == list(range(len(lengths)))
    assert sum(block.given[5] for block in blocks) == len(panels.packed)
    if max(lengths) < 1000:
        assert max(block.given[5] for block in blocks) * 4 * 128 * PANEL <= max(operands.BLOCK, 16 * 4 * 128 * PANEL)


def test_many_queries_of_one_document_are_work_for_several_threads(
    shares_of: Callable[[Callable[[], Tensor]], list[tuple[int, int]]],
) -> None:
    queries, documents = normal([8] * 2000, 128), normal([60], 128, 1)
    shares = shares_of(lambda: cpu.maxsim_all_pairs(queries, documents))
    assert len(shares) == 4
    assert shares[-1][1] == len(panels_of(queries, apart=False).blocks())


def test_many_documents_are_shared_out_themselves(
    shares_of: Callable[[Callable[[], Tensor]], list[tuple[int, int]]],
) -> None:
    queries, documents = normal([8] * 2000, 128), normal([2] * 300, 128, 1)
    shares = shares_of(lambda: cpu.maxsim_all_pairs(queries, documents))
    assert len(shares) == 4
    assert shares[-1][1] == 300


def test_what_a_list_is_packed_into_is_work_for_several_threads(
    shares_of: Callable[[Callable[[], Tensor]], list[tuple[int, int]]],
) -> None:
    query = normal([32], 128)
    documents = list(normal([128] * (kernels.ROWS_PER_LIST // 128), 128, 1).values.split(128))
    shares = shares_of(lambda: kernels.maxsim_listed(query, documents))
    assert len(shares) >= 2


def test_a_list_of_documents_scores_as_all_of_them_to_the_last_bit() -> None:
    query, packed = normal([32], 128), normal([300, 20, 1, 4000] * 9, 128, 1)
    listed = list(packed.values.split((packed.spans[:, 1] - packed.spans[:, 0]).tolist()))
    assert len(packed.values) > 2 * kernels.ROWS_PER_LIST
    assert torch.equal(kernels.maxsim_listed(query, listed), kernels.maxsim_all_pairs(query, packed))


def test_who_has_several_calls_gives_each_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    weights, work = np.ones(100, np.int64), 1e12
    assert len(threads.shares(weights, work)) == 4
    with kernels.at_most(2):
        assert len(threads.shares(weights, work)) == 2
        with kernels.at_most(1):
            assert threads.shares(weights, work) == [(0, 100)]
            with ThreadPoolExecutor(1) as pool:
                assert len(pool.submit(threads.shares, weights, work).result()) == 4
        assert len(threads.shares(weights, work)) == 2
    with kernels.at_most(9):
        assert len(threads.shares(weights, work)) == 4
