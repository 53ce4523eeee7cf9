"""k-means: which centroid is nearest, and where the centroids move."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.blocks import ASSIGNED, CENTROID_BYTES
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.lookup import blocks_of, smaller
from lateinteraction.kernels.cpu.programs.memory import float32s, int32s, int64s
from lateinteraction.kernels.cpu.programs.products import PANEL, ROWS, keep_winners
from lateinteraction.kernels.cpu.programs.rows import each, for_kind, load_floats, widen
from lateinteraction.kernels.cpu.programs.sums import square_root

_DOUBLE = ir.DoubleType()


def assign(given: int, first: int, last: int, room: int) -> None:
    """Codes of the tokens `first` … `last` − 1: the tokens are on the lanes, the centroids are the rows.

    given: values, kind, bytes of a row, dimension, centroids, how many, codes, a 1.0.
    room: for ASSIGNED panels, as many maxima and winners, and a row of float32.
    """
    g = int64s(given)
    values, kind, row_bytes, dimension, centroids, count, codes, one = g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]
    panel_bytes = dimension * PANEL * 4
    maxima = room + ASSIGNED * panel_bytes
    winners = maxima + ASSIGNED * PANEL * 4
    row = winners + ASSIGNED * PANEL * 4
    rows = (CENTROID_BYTES // (4 * dimension * ROWS + 1) + 1) * ROWS
    for group in range(blocks_of(last - first, ASSIGNED * PANEL)):
        start = first + group * ASSIGNED * PANEL
        tokens = smaller(ASSIGNED * PANEL, last - start)
        panels = blocks_of(tokens, PANEL)
        for lane in range(panels * PANEL):
            float32s(maxima)[lane] = -np.inf
            int32s(winners)[lane] = 0
        for lane in range(panels * PANEL):
            if lane < tokens:
                widen(kind, (values + (start + lane) * row_bytes, dimension, row))
            _put(row, dimension, room + lane // PANEL * panel_bytes + lane % PANEL * 4)
        for block_of_centroids in range(blocks_of(count, rows)):
            centroid = block_of_centroids * rows
            for panel in range(panels):
                block = (
                    centroids + centroid * dimension * 4,
                    smaller(rows, count - centroid),
                    dimension * 4,
                    dimension,
                    room + panel * panel_bytes,
                    0,
                )
                place = panel * PANEL * 4
                keep_winners(block, one, 0, (maxima + place, winners + place), centroid)
        for lane in range(tokens):
            int32s(codes)[start + lane] = int32s(winners)[lane]


@part
def _put(row: int, dimension: int, place: int) -> None:
    """A row into a lane of a panel. Lanes that no token has repeat the last one."""
    for index in range(dimension):
        float32s(place)[index * PANEL] = float32s(row)[index]


def sort_tokens(codes: int, count: int, centroids: int, starts: int, order: int) -> None:
    """Tokens by code, in the order they have among those of one code.

    starts: int64 (centroids + 1,), all 0: where the tokens of each code begin in the order. order: int64 (count,).
    """
    begin = int64s(starts)
    for token in range(count):
        begin[int32s(codes)[token]] += 1
    total = 0
    for code in range(centroids + 1):
        own = begin[code]
        begin[code] = total
        total += own
    for token in range(count):
        code = int32s(codes)[token]
        int64s(order)[begin[code]] = token
        begin[code] += 1
    for code in range(centroids):  # each now stands where the next one began
        begin[centroids - code] = begin[centroids - code - 1]
    begin[0] = 0


def update(given: int, first: int, last: int, room: int) -> None:
    """Centroids `first` … `last` − 1: sums in float64, each by one thread and in the order of the tokens.

    given: values, kind, bytes of a row, dimension, centroids, starts, order, the centroids to be. room: for a row of
    float64.
    """
    g = int64s(given)
    values, kind, row_bytes, dimension, before, starts, order = g[0], g[1], g[2], g[3], g[4], int64s(g[5]), int64s(g[6])
    sums = _float64s(room)
    for centroid in range(first, last):
        for index in range(dimension):
            sums[index] = 0.0
        for place in range(starts[centroid], starts[centroid + 1]):
            _add(kind, (values + order[place] * row_bytes, dimension, room))
        squares = 0.0
        for index in range(dimension):
            squares += sums[index] * sums[index]
        norm = square_root(squares)
        own, after = float32s(before + centroid * dimension * 4), float32s(g[7] + centroid * dimension * 4)
        for index in range(dimension):
            after[index] = own[index] if norm == 0 else np.float32(sums[index] / norm)


def _add_row(builder: v.Builder, kind: int, row: v.Value, dimension: v.Value, sums: v.Value) -> None:
    source, target = (builder.inttoptr(address, v.POINTER) for address in (row, sums))

    def body(index: v.Value, lanes: int) -> None:
        doubles, offset = v.vector(_DOUBLE, lanes), builder.mul(index, v.constant(8))
        value = builder.fpext(load_floats(builder, kind, source, index, lanes), doubles)
        v.store(builder, builder.fadd(v.load(builder, doubles, target, offset), value), target, offset)

    each(builder, dimension, body)


_add = for_kind(_add_row)


def _pointer(_context: Any, address: Any) -> Any:
    def convert(context: Any, builder: v.Builder, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), convert


_float64s: Any = intrinsic(_pointer)
