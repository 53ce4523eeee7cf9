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
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels.gpu import forward, pairs, sums
from lateinteraction.kernels.gpu.configurations import launch
from lateinteraction.kernels.operands import Tokens

MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's; Python names it from 3.13 on
BEYOND = 2**31
D = 16
FAR = BEYOND // D + 3
"""A row of D elements that begins beyond 2³¹ of them."""
HOST = torch.device("cpu")


def sparse(dtype: type[np.generic]) -> NDArray[Any]:
    """What follows the middle of 2³² zeros; pages that are written become real."""
    half = BEYOND + 2**16
    size = np.dtype(dtype).itemsize
    try:
        region = mmap.mmap(-1, 2 * half * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError:
        pytest.skip("this system gives no address space without memory behind it")
    return np.frombuffer(region, dtype)[half:]


def beginning(array: NDArray[Any], shape: tuple[int, ...]) -> Tensor:
    """A small tensor at an array's first element: kernels take its address, and their offsets from there."""
    return torch.from_numpy(array[: int(np.prod(shape))].reshape(shape))


def far_tokens(array: NDArray[Any], generator: np.random.Generator, lengths: list[int]) -> tuple[Tokens, Any]:
    """Items of dyadic tokens from row FAR on, and the same for the reference."""
    count = sum(lengths)
    values = generator.integers(-8, 9, (count, D)).astype(array.dtype)
    array[FAR * D : (FAR + count) * D] = values.reshape(-1)
    offsets = offsets_of(lengths)
    spans = torch.from_numpy(np.stack([offsets[:-1], offsets[1:]], axis=1) + FAR)
    packed = TokenEmbeddings(values.astype(np.float64), offsets)
    return Tokens(beginning(array, (1, D)), spans, max(lengths)), packed


@triton.jit
def _read_row(values, row, found, BITS: tl.constexpr, WIDTH: tl.constexpr):
    first = tl.load(row)
    if BITS == 32:
        first = tl.cast(first, tl.int32)
    columns = tl.arange(0, WIDTH)
    tl.store(found + columns, tl.load(values + first * WIDTH + columns))


@pytest.mark.parametrize(("bits", "expected"), [(64, 7.0), (32, 0.0)])
def test_this_memory_tells_64_bits_from_32(bits: int, expected: float) -> None:
    memory = sparse(np.float32)
    memory[FAR * D : (FAR + 1) * D] = 7
    found = torch.full((D,), torch.nan)
    _read_row[(1,)](beginning(memory, (1, D)), torch.tensor([FAR]), found, BITS=bits, WIDTH=D)
    assert found.tolist() == [expected] * D


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_tokens_beyond_two_to_the_31_elements_are_scored(dtype: type[np.generic]) -> None:
    """Documents there, then queries there: by way of pairs, and of maxima in memory."""
    generator = np.random.default_rng(0)
    far, packed_far = far_tokens(sparse(dtype), generator, [9, 2])
    near, packed_near = far_tokens(sparse(dtype), generator, [3, 8])
    near = near._replace(values=torch.from_numpy(packed_near.tokens.astype(dtype)), spans=near.spans - FAR)
    listed = torch.tensor([[1, 0], [0, 1]])

    expected = reference.maxsim_all_pairs(packed_near, packed_far)
    scores, winners = forward.maxsim_all_pairs_winners(near, far)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(winners, reference.maxsim_winners(packed_near, packed_far))
    np.testing.assert_array_equal(pairs.maxsim_pairs(near, far, listed), expected[[1, 0], [0, 1]])

    expected = reference.maxsim_all_pairs(packed_far, packed_near)
    np.testing.assert_array_equal(pairs.maxsim_pairs(far, near, listed), expected[[1, 0], [0, 1]])
    one = far._replace(spans=far.spans[:1])
    np.testing.assert_array_equal(forward.maxsim_all_pairs(one, near), expected[:1])


def test_scales_beyond_two_to_the_31_rows_are_read() -> None:
    values, scales = sparse(np.int8), sparse(np.float32)
    row = BEYOND + 5
    values[row : row + 2] = [3, 4]
    scales[row : row + 2] = [0.5, 0.25]
    far = Tokens(beginning(values, (1, 1)), torch.tensor([[row, row + 2]]), 2, beginning(scales, (1,)))
    one = Tokens(torch.tensor([[1], [2]], dtype=torch.int8), torch.tensor([[0, 2]]), 2)
    pair = torch.zeros(1, 2, dtype=torch.int64)
    assert pairs.maxsim_pairs(one, far, pair).tolist() == [4.5]
    assert pairs.maxsim_pairs(far, one, pair).tolist() == [5.0]


@pytest.mark.parametrize(("item", "row"), [(BEYOND + 3, 2), (2, BEYOND + 3)])
def test_spans_pairs_and_outputs_may_lie_as_far_apart(item: int, row: int) -> None:
    """Strides beyond 2³¹, as of columns of a huge table."""
    apart = BEYOND + 3
    spans, listed = sparse(np.int64), sparse(np.int64)
    scores, winners = np.full(2, np.nan, np.float32), sparse(np.int16)
    spans[[0, 1, apart, apart + 1]] = [0, 2, 2, 3]
    listed[[0, 1, apart, apart + 1]] = [0, 0, 1, 1]
    values = torch.tensor([[1.0], [2.0], [4.0]])
    arguments = {
        **dict.fromkeys(("query_values", "document_values"), values),
        **dict.fromkeys(("query_scales", "document_scales"), None),
        **dict.fromkeys(("query_spans", "document_spans"), beginning(spans, (1, 2))),
        **dict.fromkeys(("query_item", "document_item", "pair_item"), apart),
        **dict.fromkeys(("query_end", "document_end", "pair_side"), 1),
        "pairs": beginning(listed, (1, 2)),
        "scores": torch.from_numpy(scores),
        "first_place": 0,
        "winners": beginning(winners, (1, 2)),
        "winner_item": item,
        "winner_row": row,
        "D": 1,
        "LONG": False,
    }
    winners[[0, row, item]] = -7
    launch(pairs.PAIR_SCORES, HOST, "single", 2, arguments)
    assert scores.tolist() == [6, 16]
    assert winners[[0, row, item]].tolist() == [1, 1, 0]


def test_winners_of_all_pairs_may_have_rows_as_far_apart() -> None:
    apart = BEYOND + 3
    winners, spans = sparse(np.int16), sparse(np.int64)
    spans[[0, 1, apart, apart + 1]] = [0, 2, 1, 2]
    found = torch.full((2, 2), torch.nan)
    arguments = {
        **dict.fromkeys(("query_values", "document_values"), torch.tensor([[1.0], [2.0]])),
        **dict.fromkeys(("query_scales", "document_scales"), None),
        "spans": beginning(spans, (1, 2)),
        "item_stride": apart,
        "end_stride": 1,
        "maxima": found,
        "winners": beginning(winners, (1, 2)),
        "winner_stride": apart,
        "S": 2,
        "D": 1,
    }
    winners[[0, 1, apart, apart + 1]] = -7
    launch(forward.ALL_PAIRS_MAXIMA, HOST, "single", 2, arguments)
    assert found.tolist() == [[2, 4], [2, 4]]
    assert winners[[0, 1, apart, apart + 1]].tolist() == [1, 0, 1, 0]


def test_maxima_and_scores_may_have_rows_as_far_apart() -> None:
    apart = BEYOND + 3
    maxima, spans = sparse(np.float32), sparse(np.int64)
    scores = sparse(np.float32)
    maxima[[0, 1, apart, apart + 1]] = [1, 2, 4, 8]
    spans[[0, 1, apart, apart + 1]] = [0, 2, 1, 2]
    arguments = {
        "maxima": beginning(maxima, (1, 2)),
        "S": apart,
        "spans": beginning(spans, (1, 2)),
        "item_stride": apart,
        "end_stride": 1,
        "scores": beginning(scores, (1, 2)),
        "score_stride": apart,
        "N": 2,
        "first_place": 0,
    }
    launch(sums.SUMS_OF_MAXIMA, HOST, "any", 2, arguments)
    assert scores[[0, 1, apart, apart + 1]].tolist() == [3, 12, 2, 8]
