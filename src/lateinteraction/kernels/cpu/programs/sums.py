"""Sums over many lanes, in an order that neither the processor nor what lies beside the summands has a say in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.programs import vector as v

PARTIAL = 16
"""Partial sums: number i of the summands goes to sum i mod 16 on every processor, wide vectors or not."""

_PARTIALS = v.vector(v.FLOAT, PARTIAL)
_LANE_NUMBERS = ir.Constant(v.vector(v.LONG, PARTIAL), [ir.Constant(v.LONG, lane) for lane in range(PARTIAL)])

Term = Callable[[v.Builder, list[v.Value], v.Value], v.Value]
"""From addresses and the number of a round, 16 summands; those beyond the last are made but not added."""


def summing(term: Term) -> Any:
    """An intrinsic (addresses, count): the sum, float32, of `count` terms."""

    def lower(_context: Any, builder: v.Builder, _signature: Any, arguments: Any) -> Any:
        pointers = [builder.inttoptr(each, v.POINTER) for each in cgutils.unpack_tuple(builder, arguments[0])]
        count = arguments[1]

        def step(index: v.Value, carried: list[v.Value]) -> list[v.Value]:
            left = builder.sub(count, builder.mul(index, v.constant(PARTIAL)))
            counted = builder.icmp_signed("<", _LANE_NUMBERS, v.splat(builder, left, PARTIAL))
            terms = builder.select(counted, term(builder, pointers, index), v.zero(_PARTIALS))
            return [builder.fadd(carried[0], terms)]

        rounds = builder.sdiv(builder.add(count, v.constant(PARTIAL - 1)), v.constant(PARTIAL))
        return _total(builder, v.loop(builder, rounds, [v.zero(_PARTIALS)], step)[0])

    @intrinsic
    def sum_of(_context: Any, addresses: Any, count: Any) -> Any:
        return types.float32(addresses, count), lower

    return sum_of


def _square_root(_context: Any, number: Any) -> Any:
    def lower(_context: Any, builder: v.Builder, _signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        suffix = "f32" if kind == v.FLOAT else "f64"
        return v.call(builder, f"llvm.sqrt.{suffix}", kind, arguments[0])

    return number(number), lower


square_root: Any = intrinsic(_square_root)
"""(float32 or float64) of the same kind, by the processor's instruction: `math.sqrt` may call a function of C."""


def floats_of(builder: v.Builder, pointer: v.Value, index: v.Value) -> v.Value:
    """16 numbers float32."""
    return v.load(builder, _PARTIALS, pointer, builder.mul(index, v.constant(4 * PARTIAL)))


def bytes_of(builder: v.Builder, pointer: v.Value, index: v.Value) -> v.Value:
    """16 numbers uint8, as float32."""
    found = v.load(builder, v.vector(v.BYTE, PARTIAL), pointer, builder.mul(index, v.constant(PARTIAL)))
    return builder.uitofp(found, _PARTIALS)


def _total(builder: v.Builder, partial: v.Value) -> v.Value:
    """Halves are added until one number is left."""
    while partial.type.count > 1:
        half = partial.type.count // 2
        low, high = (v.shuffle(builder, partial, range(first, first + half)) for first in (0, half))
        partial = builder.fadd(low, high)
    return builder.extract_element(partial, v.constant(0, v.WORD))
