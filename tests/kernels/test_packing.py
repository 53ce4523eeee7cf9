"""Tokens from packed rows, padded batches and lists: what is copied, what is absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels.operands import Tokens

masks = st.tuples(st.integers(0, 4), st.integers(0, 6)).flatmap(lambda shape: arrays.arrays(np.bool_, shape))


def items_of(tokens: Tokens) -> list[list[list[float]]]:
    return [tokens.values[start:end].tolist() for start, end in tokens.spans.tolist()]


@given(masks)
def test_a_mask_may_keep_any_tokens(mask: np.ndarray) -> None:
    batch = torch.arange(mask.size * 2.0).view(*mask.shape, 2)
    tokens = kernels.padded(batch, torch.from_numpy(mask))
    assert items_of(tokens) == [row[kept].tolist() for row, kept in zip(batch, torch.from_numpy(mask), strict=True)]
    assert tokens.longest >= mask.sum(axis=1).max(initial=0)


def test_padding_at_the_end_is_not_copied_and_belongs_to_nobody() -> None:
    batch = torch.randn(3, 4, 2)
    batch[1, 2:], batch[2] = torch.nan, torch.nan
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    tokens = kernels.padded(batch, mask)
    assert tokens.values.data_ptr() == batch.data_ptr()
    assert tokens.spans.tolist() == [[0, 4], [4, 6], [8, 8]]
    assert not kernels.maxsim_all_pairs(tokens, tokens).isnan().any()
    assert kernels.padded(batch).values.data_ptr() == batch.data_ptr()
    assert kernels.padded(batch).spans.tolist() == [[0, 4], [4, 8], [8, 12]]


def test_packed_rows_are_not_copied() -> None:
    values, offsets = torch.randn(5, 2), torch.tensor([0, 2, 2, 5])
    tokens = kernels.packed(values, offsets, 3)
    assert tokens.values.data_ptr() == values.data_ptr()
    assert tokens.spans.data_ptr() == offsets.data_ptr()
    assert tokens.spans.tolist() == [[0, 2], [2, 2], [2, 5]]
    assert kernels.packed(values[:0], offsets[:1], 0).spans.shape == (0, 2)


def test_gradients_return_to_where_the_tokens_came_from() -> None:
    batch = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[False, True, True], [True, False, True]])
    query = Tokens(torch.randn(2, 4), torch.tensor([[0, 2]]), 2)
    kernels.maxsim_all_pairs(query, kernels.padded(batch, mask)).sum().backward()
    assert torch.equal(batch.grad.abs().sum(dim=2) > 0, mask & (batch.grad.abs().sum(dim=2) > 0))
    kept = [batch[i][mask[i]] for i in range(2)]
    best = [(query.values @ each.mT).argmax(dim=1) for each in kept]
    expected = torch.zeros_like(batch)
    for item, winners in enumerate(best):
        places = mask[item].nonzero()[:, 0][winners]
        expected[item].index_add_(0, places, query.values)
    assert torch.allclose(batch.grad, expected, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 4096])
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 2**32 - 1))
def test_a_list_of_documents_scores_as_the_documents_packed(rows: int, lengths: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    documents = generator.standard_normal((sum(lengths), 3)).astype(np.float32)
    query = generator.standard_normal((4, 3)).astype(np.float32)
    listed = list(torch.from_numpy(documents).split(lengths)) if lengths else []
    tokens = Tokens(torch.from_numpy(query), torch.tensor([[0, 4]]), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "ROWS_PER_LIST", rows)
        scores = kernels.maxsim_listed(tokens, listed)
    expected = reference.maxsim_all_pairs(
        TokenEmbeddings(query, offsets_of([4])), TokenEmbeddings(documents, offsets_of(lengths))
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
