"""Nothing of the size of documents is copied, and no table of similarities is ever made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lateinteraction.kernels import cpu
from lateinteraction.kernels.cpu.operands import PIECE, documents_of, panels_of
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.operands import Tokens, spans_of


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that operations make anew."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        storages = {each.untyped_storage().data_ptr() for each in arguments if isinstance(each, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in storages:
            self.total += result.untyped_storage().nbytes()
        return result


def allocated(call: Callable[[], Any]) -> int:
    with Allocations() as counted:
        call()
    return counted.total


def normal(count: int, length: int, width: int, dtype: torch.dtype = torch.float32) -> Tokens:
    values = torch.randn(count * length, width).type(dtype)
    return Tokens(values, spans_of(torch.arange(0, count * length + 1, length)), length)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # what other threads allocate is not counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_documents_are_read_where_they_lie(dtype: torch.dtype) -> None:
    tokens = normal(3, 5, 8, dtype)._replace(scales=torch.ones(15))
    if dtype.is_floating_point:
        tokens.values.requires_grad_()
    documents = documents_of(tokens)
    assert tokens.scales is not None
    values, _, width, scales, scale_step, _, count = documents.given.tolist()
    assert (values, scales) == (tokens.values.data_ptr(), tokens.scales.data_ptr())
    assert (width, scale_step, count) == (8, 4, 3)


def test_spans_that_lie_in_order_are_read_where_they_lie() -> None:
    tokens = normal(3, 5, 8)
    plain = tokens._replace(spans=tokens.spans.contiguous())
    assert documents_of(plain).given[5] == plain.spans.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_scoring_allocates_scores_and_packed_queries_and_no_more(dtype: torch.dtype) -> None:
    queries, documents = normal(16, 32, 64, dtype), normal(16, 300, 64, dtype)
    packed = sum(each.untyped_storage().nbytes() for each in panels_of(queries, apart=False)[:4])
    pieces = PIECE + 8 * (16 * 32 + 2 * processor().panel) + 4096
    scores, winners = 16 * 16 * 4, 16 * 32 * 16 * 2
    assert allocated(lambda: cpu.maxsim_all_pairs(queries, documents)) <= scores + packed + pieces
    assert allocated(lambda: cpu.maxsim_all_pairs_winners(queries, documents)) <= scores + winners + packed + pieces
    table = 16 * 32 * 16 * 300 * 4  # what an einsum makes, before its gradient makes another one
    assert scores + winners + packed + pieces < table / 10


def test_gradients_allocate_gradients_and_no_more() -> None:
    queries, documents = normal(16, 32, 64), normal(16, 300, 64)
    _, winners = cpu.maxsim_all_pairs_winners(queries, documents)
    upstream = torch.ones(16, 16)
    own = 4 * (queries.values.numel() + documents.values.numel())
    found = allocated(lambda: cpu.maxsim_all_pairs_gradients(queries, documents, winners, upstream, unit=False))
    assert own <= found <= own + 8192


def test_the_best_documents_are_found_without_a_score_of_each() -> None:
    documents = normal(1, 1, 4)
    many = documents._replace(spans=documents.spans.repeat(100_000, 1))
    queries = normal(8, 2, 4)
    found = allocated(lambda: cpu.maxsim_top_k(queries, many, 5))
    assert found - 16 * 100_000 < 8 * 100_000 * 4 / 2  # the spans may be copied, the scores are not there


def test_xtr_allocates_no_table() -> None:
    queries, documents = normal(4, 32, 16), normal(40, 200, 16)
    assert allocated(lambda: cpu.xtr_all_pairs(queries, documents, 64)) < 4 * 32 * 40 * 200 * 4 / 4
