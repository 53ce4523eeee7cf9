"""Query tokens as the micro-kernels want them: panels [steps][PANEL] of 32-bit numbers, one token to a lane.

Lanes are given out in the order of the spans, and from a new panel at the beginning of each block of queries: those of
a block are as few panels as can be, and can be had without the others. Lanes that nobody has must be 0 before.
"""

from __future__ import annotations

from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.memory import float32s, int8s, int16s, int32s, int64s
from lateinteraction.kernels.cpu.programs.products import PANEL
from lateinteraction.kernels.cpu.programs.rows import BYTE_DOTS, PER_STEP, widen


def pack(
    values: int,
    kind: int,
    dimension: int,
    scales: int,
    spans: int,
    queries: int,
    block: int,
    places: int,
    packed: int,
    row: int,
) -> None:
    """Pack float32 panels; tokens are scaled here.

    Args:
        values: rows of this kind and dimension; scales of them at `scales`, or 0.
        spans: int64 (queries, 2).
        block: how many queries are a block.
        places: for int64 (queries, 3): first lane, tokens, first row of values.
        packed: for float32 [panels][dimension][PANEL].
        row: room for a row of float32.
    """
    numbers = float32s(row)
    lane = 0
    for query in range(queries):
        lane = _place(spans, query, block, lane, places)
        for token in range(int64s(spans)[2 * query], int64s(spans)[2 * query + 1]):
            widen(kind, (values + token * dimension * size_of(kind), dimension, row))
            scale = float32s(scales)[token] if scales != 0 else 1.0
            panel = float32s(packed + (lane // PANEL) * dimension * PANEL * 4)
            for step in range(dimension):
                panel[step * PANEL + lane % PANEL] = numbers[step] * scale
            lane += 1


def pack_bytes(
    values: int,
    dimension: int,
    scales: int,
    spans: int,
    queries: int,
    block: int,
    places: int,
    packed: int,
    starts: int,
    lane_scales: int,
) -> None:
    """Pack int8 panels. Arguments as of `pack`, and

    Args:
        starts: for int32 per lane: what the sums of products start at.
        lane_scales: for float32 per lane: what similarities are still to be multiplied by.
    """
    steps = (dimension + PER_STEP - 1) // PER_STEP
    lane = 0
    for query in range(queries):
        lane = _place(spans, query, block, lane, places)
        for token in range(int64s(spans)[2 * query], int64s(spans)[2 * query + 1]):
            scale = float32s(scales)[token] if scales != 0 else 1.0
            float32s(lane_scales)[lane] = scale
            if scale != 0:  # a token of zeros must tie with itself everywhere, so it is packed as zeros
                panel = packed + (lane // PANEL) * steps * PANEL * 4
                _pack_token(values + token * dimension, dimension, panel, lane % PANEL, starts + 4 * lane)
            lane += 1


@part
def _place(spans: int, query: int, block: int, lane: int, places: int) -> int:
    first, last = int64s(spans)[2 * query], int64s(spans)[2 * query + 1]
    if query % block == 0:
        lane = (lane + PANEL - 1) // PANEL * PANEL
    int64s(places)[3 * query] = lane
    int64s(places)[3 * query + 1] = last - first
    int64s(places)[3 * query + 2] = first
    return lane


@part
def _pack_token(token: int, dimension: int, panel: int, lane: int, start: int) -> None:
    total = 0
    for index in range(dimension):
        value = int8s(token)[index]
        place = (index // PER_STEP * PANEL + lane) * PER_STEP + index % PER_STEP
        if BYTE_DOTS:
            int8s(panel)[place] = value
        else:
            int16s(panel)[place] = value
        total += value
    int32s(start)[0] = -128 * total if BYTE_DOTS else 0


@part
def size_of(kind: int) -> int:
    """Bytes of a number of this kind."""
    return 4 if kind == 0 else 1 if kind == 3 else 2
