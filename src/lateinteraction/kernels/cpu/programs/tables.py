"""Tables of centroid scores: made, put into eight bits, searched for the best.

Letters: K centroids (rows), S query tokens (columns). Each program takes rows or columns `first` … `last` − 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from lateinteraction.kernels.cpu.blocks import CENTROIDS
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.lookup import blocks_of, smaller
from lateinteraction.kernels.cpu.programs.memory import float32s, int32s, int64s
from lateinteraction.kernels.cpu.programs.products import PANEL, ROWS, similarity_block
from lateinteraction.kernels.cpu.programs.rows import each, intrinsic_of

_ROUNDER = float(2**23)
"""Floats from here on are whole numbers: adding it rounds to the nearest, ties to even, and leaves the number in the
low bits."""

_MINUS_INFINITY = 0x0080_0000 - 2**31
"""Where `_ranked` puts −∞."""


def scores(given: int, first: int, last: int, tile: int) -> None:
    """Similarities of rows of centroids with all panels of query tokens, into a table float32 (K, S).

    given: see `tables.centroid_scores`. tile: room for ROWS · PANEL numbers.
    """
    g = int64s(given)
    centroids, dimension, panels, columns, table = g[0], g[1], g[2], g[3], g[4]
    for block_of_rows in range(blocks_of(last - first, ROWS)):
        row = first + block_of_rows * ROWS
        count = smaller(ROWS, last - row)
        for panel_number in range(blocks_of(columns, PANEL)):
            column = panel_number * PANEL
            panel = panels + column * dimension * 4
            block = centroids + row * dimension * 4, count, dimension * 4, dimension, panel, 0
            out = table + (row * columns + column) * 4
            if column + PANEL <= columns:
                similarity_block(block, (out, columns * 4))
            else:
                similarity_block(block, (tile, PANEL * 4))
                for place in range(count):
                    for lane in range(columns - column):
                        float32s(out)[place * columns + lane] = float32s(tile)[place * PANEL + lane]


def extremes(given: int, first: int, last: int, found: int) -> None:
    """The lowest and the highest of each column: float32 (2, S) at `found`; NaN where there is one.

    given: table, columns.
    """
    g = int64s(given)
    columns = g[1]
    for column in range(columns):
        float32s(found)[column] = np.inf
        float32s(found)[columns + column] = -np.inf
    for block in range(blocks_of(last - first, CENTROIDS)):  # which stay in cache while columns go by
        row = first + block * CENTROIDS
        _widen_extremes((g[0] + row * columns * 4, smaller(CENTROIDS, last - row), columns, found))


def _raise_extremes(builder: v.Builder, rows: v.Value, count: v.Value, columns: v.Value, found: v.Value) -> None:
    source, lows = (builder.inttoptr(address, v.POINTER) for address in (rows, found))
    row_bytes = builder.mul(columns, v.constant(4))
    highs = v.at(builder, lows, row_bytes)

    def body(column: v.Value, lanes: int) -> None:
        kind, offset = v.vector(v.FLOAT, lanes), builder.mul(column, v.constant(4))

        def step(row: v.Value, best: list[v.Value]) -> list[v.Value]:
            here = builder.add(offset, builder.mul(row, row_bytes))
            value = v.load(builder, kind, source, here)
            low = builder.fneg(v.maximum(builder, builder.fneg(best[0]), builder.fneg(value)))
            return [low, v.maximum(builder, best[1], value)]

        before = [v.load(builder, kind, pointer, offset) for pointer in (lows, highs)]
        for pointer, value in zip((lows, highs), v.loop(builder, count, before, step), strict=True):
            v.store(builder, value, pointer, offset)

    each(builder, columns, body)


_widen_extremes = intrinsic_of(_raise_extremes)


def quantise(given: int, first: int, last: int) -> None:
    """Rows of the table as bytes. given: table, columns, lows, steps, bytes."""
    g = int64s(given)
    columns = g[1]
    for row in range(first, last):
        _quantise_row((g[0] + row * columns * 4, columns, g[2], g[3], g[4] + row * columns))


def _as_bytes(builder: v.Builder, row: v.Value, columns: v.Value, lows: v.Value, steps: v.Value, out: v.Value) -> None:
    row, lows, steps, out = (builder.inttoptr(address, v.POINTER) for address in (row, lows, steps, out))

    def body(column: v.Value, lanes: int) -> None:
        kind, offset = v.vector(v.FLOAT, lanes), builder.mul(column, v.constant(4))
        score, low, step = (v.load(builder, kind, pointer, offset) for pointer in (row, lows, steps))
        value = builder.fdiv(builder.fsub(score, low), step)
        # No quotient where the step is 0 or NaN, nor of infinities; never above 255, even where the step is so small
        # that it was rounded by much.
        value = builder.select(builder.fcmp_ordered(">", step, v.zero(kind)), value, v.zero(kind))
        value = builder.select(builder.fcmp_ordered("ord", value, value), value, v.zero(kind))
        most = _floats(255.0, lanes)
        value = builder.select(builder.fcmp_ordered("<", value, most), value, most)
        words = builder.bitcast(builder.fadd(value, _floats(_ROUNDER, lanes)), v.vector(v.WORD, lanes))
        v.store(builder, builder.trunc(words, v.vector(v.BYTE, lanes)), out, column)

    each(builder, columns, body)


def _floats(value: float, lanes: int) -> v.Value:
    return ir.Constant(v.vector(v.FLOAT, lanes), [ir.Constant(v.FLOAT, value)] * lanes)


_quantise_row = intrinsic_of(_as_bytes)


def block_maxima(given: int, first: int, last: int) -> None:
    """The highest number of each column in blocks `first` … `last` − 1 of CENTROIDS rows; −∞ where all are NaN.

    given: table, K, S, and room for float32 (blocks, S).
    """
    g = int64s(given)
    columns = g[2]
    for block in range(first, last):
        row = block * CENTROIDS
        _highest((g[0] + row * columns * 4, smaller(CENTROIDS, g[1] - row), columns, g[3] + block * columns * 4))


def _maxima_of_block(builder: v.Builder, rows: v.Value, count: v.Value, columns: v.Value, out: v.Value) -> None:
    source, target = (builder.inttoptr(address, v.POINTER) for address in (rows, out))
    row_bytes = builder.mul(columns, v.constant(4))

    def body(column: v.Value, lanes: int) -> None:
        offset = builder.mul(column, v.constant(4))

        def step(row: v.Value, best: list[v.Value]) -> list[v.Value]:
            here = builder.add(offset, builder.mul(row, row_bytes))
            value = v.load(builder, v.vector(v.FLOAT, lanes), source, here)
            return [builder.select(builder.fcmp_ordered(">", value, best[0]), value, best[0])]

        best = v.loop(builder, count, [_floats(float("-inf"), lanes)], step)
        v.store(builder, best[0], target, offset)

    each(builder, columns, body)


_highest = intrinsic_of(_maxima_of_block)


def best(given: int, first: int, last: int, room: int) -> None:
    """The best of each column, best first: int64 (S, wanted). An entry with `wanted` blocks ahead of its own, by
    maximum and then by place, has as many entries ahead of itself: only the other blocks are looked into.

    given: table, K, S, block maxima, wanted, out. room: for 2 · wanted int64.
    """
    g = int64s(given)
    table, rows, columns, maxima, wanted = g[0], g[1], g[2], g[3], g[4]
    blocks = blocks_of(rows, CENTROIDS)
    promising, chosen = int64s(room), int64s(room + 8 * wanted)
    for column in range(first, last):
        found = _choose(promising, 0, smaller(wanted, blocks), (maxima + 4 * column, columns, 0, blocks))
        # A block whose maximum is −∞ may as well be one of NaN, which comes after −∞: then none is passed over.
        every = promising[0] >> 32 <= _MINUS_INFINITY
        count = 0
        for index in range(blocks if every else found):
            row = (index if every else _place_of(promising[index])) * CENTROIDS
            count = _choose(chosen, count, wanted, (table + 4 * column, columns, row, smaller(row + CENTROIDS, rows)))
        _write_in_order(chosen, count, g[5] + column * wanted * 8)


@part
def _choose(heap: Any, count: int, wanted: int, entries: tuple[int, int, int, int]) -> int:
    """Take the entries of a column that are among the `wanted` best into a heap of so many; how many it has now."""
    address, columns, first, last = entries
    numbers, words = float32s(address), int32s(address)
    for row in range(first, last):
        entry = _ranked(numbers[row * columns], words[row * columns], row)
        if count < wanted:
            _rise(heap, count, entry)
            count += 1
        elif entry > heap[0]:
            _sink(heap, count, entry)
    return count


@part
def _ranked(number: float, bits: int, place: int) -> Any:
    """A whole number that is higher where the float is, or where it is the same and the place is lower; NaN is lowest.

    Bits of floats rise with them above zero and fall below it; both zeros are one.
    """
    level = np.int64(bits) if bits >= 0 else np.int64(-(2**31)) - bits
    if number != number:  # NaN
        level = np.int64(-(2**31))
    return (level << 32) + (2**32 - 1 - place)


@part
def _place_of(entry: int) -> int:
    return 2**32 - 1 - (entry & (2**32 - 1))


@part
def _rise(heap: Any, count: int, entry: int) -> None:
    """One more entry, into a heap that has its lowest on top."""
    place = count
    while place > 0 and heap[(place - 1) // 2] > entry:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = entry


@part
def _sink(heap: Any, count: int, entry: int) -> None:
    """An entry in place of the lowest."""
    place = 0
    while 2 * place + 1 < count:
        child = 2 * place + 1
        if child + 1 < count and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = entry


@part
def _write_in_order(heap: Any, count: int, out: int) -> None:
    while count > 0:
        count -= 1
        lowest, last = heap[0], heap[count]
        int64s(out)[count] = _place_of(lowest)
        _sink(heap, count, last)
