"""What kernels are built of: rows from memory, their products, maxima that let NaN through, winners.

Device functions. A tile of similarities has M tokens of one side along its first axis, N of the other along its second.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lateinteraction.kernels.gpu.configurations import INTERPRETED

# The interpreter multiplies bfloat16 wrongly without a word (triton issue 11584), so there everything is widened first.
_WIDENED: tl.constexpr = tl.constexpr(INTERPRETED)

_EXACT_IN_22_BITS: tl.constexpr = tl.constexpr(256)
"""Products of bytes, summed over so many dimensions, stay within ±2²²: 256 · 128 · 128."""


@triton.constexpr_function
def tile_width(D: int, widest: int) -> int:
    """How many columns of D a tile takes at once: all where `widest` allows, never fewer than a product wants (32)."""
    return min(max(32, 1 << (D - 1).bit_length()), widest)


@triton.jit
def load_rows(values, rows, first, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile of rows (int64, (M,)): their columns first … first + BLOCK_D − 1, 0 beyond D. Rows are not checked."""
    columns = first + tl.arange(0, BLOCK_D)
    places = values + rows[:, None] * D + columns[None, :]
    return tl.load(places) if D % BLOCK_D == 0 else tl.load(places, mask=columns[None, :] < D, other=0)


@triton.jit
def no_products(left, right, M: tl.constexpr, N: tl.constexpr):
    """Zeros (M, N) for `add_products` to start with: int32 where both sides (pointers or tiles) are int8."""
    left_type: tl.constexpr = left.dtype.element_ty if left.dtype.scalar.is_ptr() else left.dtype
    right_type: tl.constexpr = right.dtype.element_ty if right.dtype.scalar.is_ptr() else right.dtype
    if left_type == tl.int8 and right_type == tl.int8:
        zeros = tl.zeros((M, N), tl.int32)
    else:
        zeros = tl.zeros((M, N), tl.float32)
    return zeros


@triton.jit
def add_products(left, right, sums):
    """sums (M, N) + left (M, K) · right (N, K)ᵀ.

    int8 in int32; float16, or bfloat16, exactly, added up in float32; anything else, two dtypes included, in float32
    throughout and never in TF32.
    """
    if left.dtype == tl.int8 and right.dtype == tl.int8:
        sums = tl.dot(left, tl.trans(right), sums, out_dtype=tl.int32)
    elif left.dtype == right.dtype and left.dtype.primitive_bitwidth == 16 and not _WIDENED:
        sums = tl.dot(left, tl.trans(right), sums)
    else:
        sums = tl.dot(tl.cast(left, tl.float32), tl.trans(tl.cast(right, tl.float32)), sums, input_precision="ieee")
    return sums


@triton.jit
def as_floats(sums, D: tl.constexpr):
    """What `add_products` summed over D dimensions, as float32.

    Converting an int32 costs several times what an addition does. So a number within ±2²² is put into the low bits of
    the float 1.5 · 2²³, which is the same as adding it, and then 1.5 · 2²³ is taken off: exact.
    """
    if sums.dtype != tl.int32:
        floats = sums
    elif D <= _EXACT_IN_22_BITS:
        floats = tl.cast(sums + 0x4B400000, tl.float32, bitcast=True) - 12582912.0
    else:
        floats = tl.cast(sums, tl.float32)
    return floats


@triton.jit
def larger(left, right):
    """The larger of two numbers, elementwise; NaN if one of them is."""
    return tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(values, axis: tl.constexpr):
    """The largest along an axis; NaN if one of them is."""
    return tl.reduce(values, axis, larger)


@triton.jit
def beats(value, best):
    """Whether a number takes the place of an earlier one: it is larger, or the first NaN."""
    return ~(value <= best) & (best == best)


@triton.jit
def _better(left, left_place, right, right_place):
    # `beats` written out: the interpreter comes here for every element, and is slow to call functions.
    larger_or_first_nan = ~(right <= left) & (left == left)
    tie = (left == right) | ((left != left) & (right != right))
    right_wins = larger_or_first_nan | (tie & (right_place < left_place))
    return tl.where(right_wins, right, left), tl.where(right_wins, right_place, left_place)


@triton.jit
def winner(values, places, axis: tl.constexpr):
    """The largest along an axis and its place. Among equals the lowest place; NaN is larger than any number."""
    return tl.reduce((values, places), axis, _better)
