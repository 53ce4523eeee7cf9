"""Inverse norms of rows."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.memory import float32s
from lateinteraction.kernels.cpu.programs.panels import size_of
from lateinteraction.kernels.cpu.programs.rows import widen
from lateinteraction.kernels.cpu.programs.sums import PARTIAL

_DOUBLES = v.vector(v.DOUBLE, PARTIAL)


def _write_norm(_context: Any, row: Any, rounds: Any) -> Any:
    """The norm of 16 · rounds float32, as float64: squares are exact, and no norm is too large or too small."""

    def lower(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        row, rounds = arguments
        pointer = builder.inttoptr(row, v.POINTER)

        def step(index: v.Value, carried: list[v.Value]) -> list[v.Value]:
            offset = builder.mul(index, v.constant(4 * PARTIAL))
            value = builder.fpext(v.load(builder, v.vector(v.FLOAT, PARTIAL), pointer, offset), _DOUBLES)
            return [builder.fadd(carried[0], builder.fmul(value, value))]

        partial = v.loop(builder, rounds, [v.zero(_DOUBLES)], step)[0]
        while partial.type.count > 1:
            half = partial.type.count // 2
            low, high = (v.shuffle(builder, partial, range(first, first + half)) for first in (0, half))
            partial = builder.fadd(low, high)
        total = builder.extract_element(partial, v.constant(0, v.WORD))
        return v.call(builder, "llvm.sqrt.f64", v.DOUBLE, total)

    return types.float64(row, rounds), lower


_norm: Any = intrinsic(_write_norm)


def inverse_norms(values: int, kind: int, dimension: int, first: int, last: int, out: int, room: int) -> None:
    """1 / ‖row‖ of rows first … last − 1, float32 at their places in `out`; 0 of a row of zeros.

    room: for a row of float32, and zeros up to a multiple of 16 numbers.
    """
    rounds = (dimension + PARTIAL - 1) // PARTIAL
    for row in range(first, last):
        widen(kind, (values + row * dimension * size_of(kind), dimension, room))
        norm = _norm(room, rounds)
        float32s(out)[row] = 1 / norm if norm != 0 else 0.0
