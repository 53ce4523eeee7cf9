"""Rows beyond 2³¹ elements are found and written where they are.

Memory is addressed that is mapped but, except for a few pages, not there. Tensors begin in its middle: an offset that
has wrapped around in 32 bits meets the zeros before them, which is a wrong result and not a crash.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels import cpu
from lateinteraction.kernels.cpu import maxsim
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Tokens

MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's; Python names it from 3.13 on
BEYOND = 2**31
D = 16
FAR = BEYOND // D + 3
"""A row of D elements that begins beyond 2³¹ of them."""

FLOATS = torch.float32, torch.float16, torch.bfloat16


def sparse(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, with as many before them; pages that are written become real."""
    size = int(np.prod(shape)) * dtype.itemsize
    try:
        region = mmap.mmap(-1, 2 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError:
        pytest.skip("this system gives no address space without memory behind it")
    return torch.from_numpy(np.frombuffer(region, np.uint8)[size:]).view(dtype).view(shape)


def items(seed: int, lengths: list[int]) -> TokenEmbeddings[Any]:
    """Whole numbers, exact in every dtype and every order."""
    values = np.random.default_rng(seed).integers(-8, 9, (sum(lengths), D)).astype(np.float32)
    return TokenEmbeddings(values, offsets_of(lengths))


def tokens(packed: TokenEmbeddings[Any], dtype: torch.dtype, first: int) -> Tokens:
    """The same, from row `first` on."""
    values = sparse(first + len(packed.tokens), D, dtype=dtype)
    values[first:] = torch.from_numpy(packed.tokens)
    spans = torch.from_numpy(np.stack([packed.offsets[:-1], packed.offsets[1:]], axis=1) + first)
    return Tokens(values, spans, int(np.diff(packed.offsets).max()))


@pytest.fixture
def _sparse_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operation allocates, of the size of its inputs, is not there either."""
    room = maxsim.room
    large = 2**28

    def given(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (sparse if np.prod(shape) > large else room)(*shape, dtype=dtype)

    monkeypatch.setattr(maxsim, "room", given)
    monkeypatch.setattr(torch, "zeros_like", lambda like: sparse(*like.shape, dtype=like.dtype))


@pytest.mark.usefixtures("_sparse_outputs")
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8])
@pytest.mark.parametrize("far", ["queries", "documents"])
def test_tokens_beyond_two_to_the_31_elements_are_scored(dtype: torch.dtype, far: str) -> None:
    """With so many documents, winners of far queries lie as far, and are read from there by the gradients."""
    queries, documents = items(0, [3, 40]), items(1, [9, 2, 30] + [1] * (D - 3))
    rows = (FAR, 0) if far == "queries" else (0, FAR)
    sides = tokens(queries, dtype, rows[0]), tokens(documents, dtype, rows[1])
    expected = reference.maxsim_all_pairs(queries, documents)
    scores, winners = cpu.maxsim_all_pairs_winners(*sides)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(winners[rows[0] :], reference.maxsim_winners(queries, documents))
    np.testing.assert_array_equal(cpu.maxsim_all_pairs(*sides), expected)
    pairs = torch.tensor([[1, 0], [0, 2], [1, 15]])
    listed, own = cpu.maxsim_pairs_winners(*sides, pairs)
    np.testing.assert_array_equal(listed, expected[[1, 0, 1], [0, 2, 15]])
    np.testing.assert_array_equal(cpu.maxsim_top_k(*sides, 1)[1][:, 0], expected.argmax(axis=1))
    if far == "documents":  # winners of far queries would lie in memory that is there
        retrieved, _, _ = cpu.xtr_all_pairs(*sides, 5)
        np.testing.assert_allclose(retrieved, reference.xtr_all_pairs(queries, documents, 5), rtol=1e-6)
    if dtype == torch.int8:
        return
    upstream = np.ones(expected.shape, np.float32)
    gradients = cpu.maxsim_all_pairs_gradients(*sides, winners, torch.from_numpy(upstream), unit=False)
    wanted = reference.maxsim_all_pairs_gradients(queries, documents, upstream)
    for gradient, first, value in zip(gradients, rows, wanted, strict=True):
        np.testing.assert_array_equal(gradient[first:].float(), value)
    upstream[...] = 0
    upstream[[1, 0, 1], [0, 2, 15]] = 1
    gradients = cpu.maxsim_pairs_gradients(*sides, pairs, own, torch.ones(3), unit=False)
    wanted = reference.maxsim_all_pairs_gradients(queries, documents, upstream)
    for gradient, first, value in zip(gradients, rows, wanted, strict=True):
        np.testing.assert_array_equal(gradient[first:].float(), value)


def test_scales_beyond_two_to_the_31_rows_are_read() -> None:
    row = BEYOND + 5
    values, scales = sparse(row + 2, 1, dtype=torch.int8), sparse(row + 2)
    values[row:, 0], scales[row:] = torch.tensor([3, 4]), torch.tensor([0.5, 0.25])
    far = Tokens(values, torch.tensor([[row, row + 2]]), 2, scales)
    one = Tokens(torch.tensor([[1], [2]], dtype=torch.int8), torch.tensor([[0, 2]]), 2)
    assert cpu.maxsim_all_pairs(one, far).tolist() == [[4.5]]
    assert cpu.maxsim_all_pairs(far, one).tolist() == [[5.0]]


def test_codes_beyond_two_to_the_31_tokens_are_read() -> None:
    row = BEYOND + 5
    codes = sparse(row + 3, dtype=torch.int32)
    codes[row:] = torch.tensor([1, 0, 2])
    scores = torch.tensor([[-5.0, -6.0], [1.0, 4.0], [2.0, 3.0]])
    spans, query = torch.tensor([[row, row + 3], [row + 1, row + 2]]), torch.tensor([[0, 2]])
    assert cpu.centroid_interaction(CentroidTable(scores), query, codes, spans).tolist() == [[6.0, -11.0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_tables_beyond_two_to_the_31_numbers_are_looked_up(dtype: torch.dtype) -> None:
    count, width = BEYOND // 40 + 5, 40
    values = sparse(count, width, dtype=dtype)
    values[count - 2], values[count - 1, 7] = 2, 9
    steps = None if dtype == torch.float32 else torch.ones(width)
    table = CentroidTable(values, steps, None if steps is None else torch.zeros(width))
    codes = torch.tensor([count - 2, count - 1, 0], dtype=torch.int32)
    spans, queries = torch.tensor([[0, 3], [1, 2]]), torch.tensor([[0, width], [7, 8]])
    found = cpu.centroid_interaction(table, queries, codes, spans)
    assert found.tolist() == [[2.0 * width + 7, 9.0], [9.0, 9.0]]


def test_residuals_beyond_two_to_the_31_bytes_are_decoded() -> None:
    """One byte a token; codes and norms lie farther yet."""
    row, generator = BEYOND + 5, np.random.default_rng(0)
    centroids = torch.from_numpy(generator.integers(-4, 5, (3, 8)).astype(np.float32))
    codec = Codec(centroids, torch.zeros(1), torch.tensor([-0.5, 0.5]))
    near_codes = torch.from_numpy(generator.integers(0, 3, 50).astype(np.int32))
    near = torch.from_numpy(generator.integers(0, 256, (50, 1)).astype(np.uint8))
    norms = torch.from_numpy(generator.integers(1, 5, 50).astype(np.float16))
    values = torch.from_numpy(generator.integers(-4, 5, (4, 8)).astype(np.float32))
    queries, spans = Tokens(values, torch.tensor([[0, 4]]), 4), torch.tensor([[0, 47], [47, 50]])
    scores = cpu.centroid_scores(values, centroids)
    expected = cpu.residual_maxsim(queries, scores, codec, Compressed(near_codes, near, norms, spans))
    far = [sparse(row + 50, *each.shape[1:], dtype=each.dtype) for each in (near_codes, near, norms)]
    for each, own in zip(far, (near_codes, near, norms), strict=True):
        each[row:] = own
    found = cpu.residual_maxsim(queries, scores, codec, Compressed(*far, spans + row))
    assert torch.equal(found, expected)
    assert float(found.abs().min()) > 0
