"""Gradients on the host take nothing on trust: winners, and whose a row is."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from lateinteraction.kernels import cpu
from lateinteraction.kernels.operands import Tokens

QUERIES = Tokens(torch.arange(12.0).reshape(6, 2), torch.tensor([[0, 2], [3, 6]]), 4)
DOCUMENTS = Tokens(torch.arange(20.0).reshape(10, 2), torch.tensor([[1, 4], [4, 4], [5, 10]]), 5)
PAIRS = torch.tensor([[0, 0], [1, 2], [0, 1]])


def of_all_pairs(winners: Tensor, queries: Tokens = QUERIES, documents: Tokens = DOCUMENTS) -> tuple[Tensor, Tensor]:
    upstream = torch.ones(len(queries.spans), len(documents.spans))
    return cpu.maxsim_all_pairs_gradients(queries, documents, winners, upstream, unit=False)


def of_pairs(winners: Tensor, queries: Tokens = QUERIES, documents: Tokens = DOCUMENTS) -> tuple[Tensor, Tensor]:
    return cpu.maxsim_pairs_gradients(queries, documents, PAIRS, winners, torch.ones(3), unit=False)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
@pytest.mark.parametrize("winner", [3, 32_767, -2, -32_768])
def test_a_winner_that_is_no_token_of_its_document_is_refused(winner: int, dtype: torch.dtype) -> None:
    """Also one that would be a token of another one."""
    _, winners = cpu.maxsim_all_pairs_winners(QUERIES, DOCUMENTS)
    _, listed = cpu.maxsim_pairs_winners(QUERIES, DOCUMENTS, PAIRS)
    winners, listed = winners.type(dtype), listed.type(dtype)
    of_all_pairs(winners)
    of_pairs(listed)
    winners[4, 0] = listed[0, 1] = winner
    for call in (lambda: of_all_pairs(winners), lambda: of_pairs(listed)):
        with pytest.raises(IndexError, match="winners"):
            call()


def test_an_empty_document_has_no_winner() -> None:
    _, winners = cpu.maxsim_all_pairs_winners(QUERIES, DOCUMENTS)
    winners[0, 1] = 0
    with pytest.raises(IndexError, match="winners"):
        of_all_pairs(winners)


def test_winners_of_what_no_query_has_may_be_anything() -> None:
    _, winners = cpu.maxsim_all_pairs_winners(QUERIES, DOCUMENTS)
    _, listed = cpu.maxsim_pairs_winners(QUERIES, DOCUMENTS, PAIRS)
    expected = of_all_pairs(winners), of_pairs(listed)
    winners[2] = 32_767
    listed[0, 2:] = listed[1, 3:] = -32_768
    for found, wanted in zip((of_all_pairs(winners), of_pairs(listed)), expected, strict=True):
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("spans", [[[0, 3], [2, 5]], [[2, 5], [0, 3]], [[1, 2], [0, 6]], [[1, 4], [3, 3], [1, 4]]])
@pytest.mark.parametrize("side", ["queries", "documents"])
def test_a_row_of_two_items_has_no_gradient(spans: list[list[int]], side: str) -> None:
    """Both would write it, from two threads."""
    shared = QUERIES._replace(spans=torch.tensor(spans), longest=6)
    sides = {"queries": QUERIES, "documents": DOCUMENTS} | {side: shared}
    _, winners = cpu.maxsim_all_pairs_winners(**sides)
    with pytest.raises(ValueError, match=re.escape("spans that overlap")):
        of_all_pairs(winners, **sides)
    _, listed = cpu.maxsim_pairs_winners(**sides, pairs=PAIRS[:1])
    with pytest.raises(ValueError, match=re.escape("spans that overlap")):
        cpu.maxsim_pairs_gradients(**sides, pairs=PAIRS[:1], winners=listed, upstream=torch.ones(1), unit=False)


@pytest.mark.parametrize("spans", [[[3, 6], [0, 3]], [[2, 2], [1, 4], [2, 2], [0, 1], [4, 6]], [[6, 6], [0, 6]], []])
def test_items_without_tokens_and_in_any_order_share_no_row(spans: list[list[int]]) -> None:
    apart = QUERIES._replace(spans=torch.tensor(spans, dtype=torch.int64).view(-1, 2), longest=6)
    _, winners = cpu.maxsim_all_pairs_winners(apart, DOCUMENTS)
    gradient, _ = of_all_pairs(winners, apart)
    for start, end in spans:
        own = apart._replace(spans=torch.tensor([[start, end]]))
        assert torch.equal(of_all_pairs(winners, own)[0][start:end], gradient[start:end])
