"""Rows of any kind as float32 and back, rows as the integer products want them, and panels of query tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.kinds import BFLOAT16, FLOAT16, FLOAT32, INT8, SIZES
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part

BYTE_DOTS = processor().byte_dots
PER_STEP = 4 if BYTE_DOTS else 2
"""Dimensions of int8 rows that one step of the products takes."""

AHEAD = 4 * 2**10
"""How far ahead int8 rows are fetched, in bytes: scoring them takes 14.5 ns per token, and 15.5 without."""

Convert = Callable[[v.Builder, v.Value, int], v.Value]


def _words(builder: v.Builder, value: v.Value, lanes: int) -> v.Value:
    return builder.zext(value, v.vector(v.WORD, lanes))


def _masked(builder: v.Builder, words: v.Value, mask: int) -> v.Value:
    return builder.and_(words, v.constant(mask, words.type))


def _from_float16(builder: v.Builder, value: v.Value, lanes: int) -> v.Value:
    floats = v.vector(v.FLOAT, lanes)
    if processor().halves:
        return builder.fpext(builder.bitcast(value, v.vector(v.HALF, lanes)), floats)
    # Elsewhere LLVM would call a function that is not there. Exponents are moved from bias 15 to 127; what has none
    # (zero and below 2⁻¹⁴) gets that of 2⁻¹⁴, which is then taken off; what has the highest (∞, NaN) the highest.
    words = _words(builder, value, lanes)
    magnitude = builder.shl(_masked(builder, words, 0x7FFF), v.constant(13, words.type))
    exponent = _masked(builder, words, 0x7C00)
    moved = builder.add(magnitude, v.constant(112 << 23, words.type))
    least = v.constant(113 << 23, words.type)
    tiny = builder.fsub(builder.bitcast(builder.or_(magnitude, least), floats), builder.bitcast(least, floats))
    normal = builder.select(
        builder.icmp_unsigned("==", exponent, v.constant(0x7C00, words.type)),
        builder.or_(moved, v.constant(0x7F800000, words.type)),
        moved,
    )
    none = builder.icmp_unsigned("==", exponent, v.zero(words.type))
    bits = builder.select(none, builder.bitcast(tiny, words.type), normal)
    sign = builder.shl(_masked(builder, words, 0x8000), v.constant(16, words.type))
    return builder.bitcast(builder.or_(bits, sign), floats)


def _from_bfloat16(builder: v.Builder, value: v.Value, lanes: int) -> v.Value:
    words = builder.shl(_words(builder, value, lanes), v.constant(16, v.vector(v.WORD, lanes)))
    return builder.bitcast(words, v.vector(v.FLOAT, lanes))


def _from_int8(builder: v.Builder, value: v.Value, lanes: int) -> v.Value:
    return builder.sitofp(builder.sext(value, v.vector(v.WORD, lanes)), v.vector(v.FLOAT, lanes))


def _to_float16(builder: v.Builder, value: v.Value, lanes: int) -> v.Value:
    shorts, kind = v.vector(v.SHORT, lanes), v.vector(v.WORD, lanes)
    if processor().halves:
        return builder.bitcast(builder.fptrunc(value, v.vector(v.HALF, lanes)), shorts)
    bits = builder.bitcast(value, kind)
    magnitude = _masked(builder, bits, 0x7FFFFFFF)
    # To the nearest, ties to even, by adding just under half of what is cut off. Below 2⁻¹⁴ an addition of floats
    # rounds: in 0.5 the last bit counts 2⁻²⁴, as in the smallest float16.
    rounded = builder.lshr(
        _rounded(builder, builder.sub(magnitude, v.constant(112 << 23, kind)), 13), v.constant(13, kind)
    )
    half = v.constant(0x3F000000, kind)
    floats = v.vector(v.FLOAT, lanes)
    sum_of_both = builder.fadd(builder.bitcast(magnitude, floats), builder.bitcast(half, floats))
    tiny = builder.sub(builder.bitcast(sum_of_both, kind), half)
    result = builder.select(builder.icmp_unsigned("<", magnitude, v.constant(113 << 23, kind)), tiny, rounded)
    too_large = builder.icmp_unsigned(">=", magnitude, v.constant(143 << 23, kind))
    result = builder.select(too_large, v.constant(0x7C00, kind), result)
    nan = builder.icmp_unsigned(">", magnitude, v.constant(0x7F800000, kind))
    result = builder.select(nan, v.constant(0x7E00, kind), result)
    sign = builder.lshr(_masked(builder, bits, 0x80000000), v.constant(16, kind))
    return builder.trunc(builder.or_(result, sign), shorts)


def _to_bfloat16(builder: v.Builder, value: v.Value, lanes: int) -> v.Value:
    # By whole numbers: the instruction for it takes the smallest numbers for zero.
    kind = v.vector(v.WORD, lanes)
    bits = builder.bitcast(value, kind)
    rounded = builder.lshr(_rounded(builder, bits, 16), v.constant(16, kind))
    nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(nan, v.constant(0x7FC0, kind), rounded), v.vector(v.SHORT, lanes))


def _rounded(builder: v.Builder, bits: v.Value, cut: int) -> v.Value:
    """The bits with half of what `cut` bits count added: cutting them then rounds to the nearest, ties to even."""
    odd = _masked(builder, builder.lshr(bits, v.constant(cut, bits.type)), 1)
    return builder.add(bits, builder.add(odd, v.constant((1 << (cut - 1)) - 1, bits.type)))


ITEMS = {FLOAT32: v.FLOAT, FLOAT16: v.SHORT, BFLOAT16: v.SHORT, INT8: v.BYTE}
WIDEN: dict[int, Convert] = {
    FLOAT32: lambda _, value, __: value,
    FLOAT16: _from_float16,
    BFLOAT16: _from_bfloat16,
    INT8: _from_int8,
}
NARROW: dict[int, Convert] = {
    FLOAT32: WIDEN[FLOAT32],
    FLOAT16: _to_float16,
    BFLOAT16: _to_bfloat16,
    INT8: lambda builder, value, lanes: builder.fptosi(value, v.vector(v.BYTE, lanes)),
}


def load_floats(builder: v.Builder, kind: int, pointer: v.Value, index: v.Value, lanes: int) -> v.Value:
    """Numbers index … index + lanes − 1 of a row of this kind, as a vector of float32."""
    offset = builder.mul(index, v.constant(SIZES[kind]))
    return WIDEN[kind](builder, v.load(builder, v.vector(ITEMS[kind], lanes), pointer, offset), lanes)


def each(builder: v.Builder, count: v.Value, body: Callable[[v.Value, int], None], *more: int) -> None:
    """Run body(index, lanes) over 0 … count − 1: by `more` lanes while they fit, by LANES, then one by one."""

    def over(start: v.Value, lanes: int) -> Callable[[v.Value, list[v.Value]], list[v.Value]]:
        def step(index: v.Value, _: list[v.Value]) -> list[v.Value]:
            body(builder.add(start, builder.mul(index, v.constant(lanes))), lanes)
            return []

        return step

    done = v.constant(0)
    for lanes in (*more, v.LANES, 1):
        whole = builder.sdiv(builder.sub(count, done), v.constant(lanes))
        v.loop(builder, whole, [], over(done, lanes))
        done = builder.add(done, builder.mul(whole, v.constant(lanes)))


def intrinsic_of(write: Callable[..., None]) -> Any:
    """An intrinsic of one tuple of whole numbers, from what writes its instructions (builder, *numbers)."""

    def lower(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        write(builder, *cgutils.unpack_tuple(builder, arguments[0]))
        return context.get_dummy_value()

    @intrinsic
    def run(_context: Any, arguments: Any) -> Any:
        return types.void(arguments), lower

    return run


def for_kind(write: Callable[..., None]) -> Any:
    """A part (kind, arguments), from what writes the instructions for a kind (builder, kind, *arguments)."""
    float32, float16, bfloat16, int8 = (
        intrinsic_of(lambda builder, *arguments, kind=kind: write(builder, kind, *arguments)) for kind in ITEMS
    )

    @part
    def run(kind: int, arguments: Any) -> None:
        if kind == FLOAT32:
            float32(arguments)
        elif kind == FLOAT16:
            float16(arguments)
        elif kind == BFLOAT16:
            bfloat16(arguments)
        else:
            int8(arguments)

    return run


def _widen(builder: v.Builder, kind: int, row: v.Value, count: v.Value, out: v.Value) -> None:
    source, target = (builder.inttoptr(address, v.POINTER) for address in (row, out))

    def body(index: v.Value, lanes: int) -> None:
        floats = load_floats(builder, kind, source, index, lanes)
        v.store(builder, floats, target, builder.mul(index, v.constant(4)))

    each(builder, count, body)


def _narrow(builder: v.Builder, kind: int, row: v.Value, count: v.Value, out: v.Value) -> None:
    source, target = (builder.inttoptr(address, v.POINTER) for address in (row, out))

    def body(index: v.Value, lanes: int) -> None:
        floats = load_floats(builder, FLOAT32, source, index, lanes)
        v.store(builder, NARROW[kind](builder, floats, lanes), target, builder.mul(index, v.constant(SIZES[kind])))

    each(builder, count, body)


def _ready(builder: v.Builder, row: v.Value, count: v.Value, out: v.Value) -> None:
    source, target = (builder.inttoptr(address, v.POINTER) for address in (row, out))

    def body(index: v.Value, lanes: int) -> None:
        v.fetch(builder, source, builder.add(index, v.constant(AHEAD)))
        value = v.load(builder, v.vector(v.BYTE, lanes), source, index)
        if BYTE_DOTS:
            v.store(builder, builder.xor(value, v.constant(-128, value.type)), target, index)
        else:
            wide = builder.sext(value, v.vector(v.SHORT, lanes))
            v.store(builder, wide, target, builder.mul(index, v.constant(2)))

    each(builder, count, body, 4 * v.LANES)


widen = for_kind(_widen)
"""(kind, (row, count, out)): so many numbers from `row` as float32 at `out`; rows that lie side by side in one go."""
narrow = for_kind(_narrow)
"""(kind, (row, count, out)): float32 from `row`, rounded to a kind of floats at `out`; ties to even."""
_ready_row = intrinsic_of(_ready)


@part
def ready(rows: int, count: int, dimension: int, steps: int, out: int) -> None:
    """int8 rows as the integer products want them, 4 · steps bytes apart.

    What a row leaves over of its last step may be anything: queries are 0 there.
    """
    for row in range(count):
        _ready_row((rows + row * dimension, dimension, out + row * steps * 4))
