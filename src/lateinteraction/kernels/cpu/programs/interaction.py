"""Centroid interaction: a document's maxima stay in registers while the rows of its codes go by.

With 32 query tokens in eight bits a document token costs one load and one maximum of 32 lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.blocks import COLUMNS
from lateinteraction.kernels.cpu.programs import running
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.lookup import row_address, span_of
from lateinteraction.kernels.cpu.programs.memory import float32s, int64s
from lateinteraction.kernels.cpu.programs.sums import bytes_of, floats_of, summing

WIDE_BYTES = 128
WIDE_FLOATS = 8 * v.LANES
"""Columns of a pass where there are as many: bytes of two vectors of AVX-512, float32 in half of the registers.

K = 16,384, uniform codes, ns per document token and 32 query tokens: bytes 0.53 by 128 columns, 0.96 by 64 and 0.76 by
256 with 1,024 columns; float32 1.9 by 128 and 2.3 by 64 with 128 columns.
"""


def _maxima_of_rows(item: Any, columns: int) -> Any:
    """An intrinsic (table, codes, count, out): the largest of `count` rows, at `columns` places, written to out."""
    kind = v.vector(item, columns)

    def lower(context: Any, builder: v.Builder, _signature: Any, arguments: Any) -> Any:
        table, codes, count, out = arguments
        table = cgutils.unpack_tuple(builder, table)
        codes, out = (builder.inttoptr(address, v.POINTER) for address in (codes, out))

        def step(index: v.Value, best: list[v.Value]) -> list[v.Value]:
            code = builder.sext(v.load(builder, v.WORD, codes, builder.mul(index, v.constant(4))), v.LONG)
            row = builder.inttoptr(row_address(builder, table, code), v.POINTER)
            return running.raised(builder, best, v.load(builder, kind, row))

        best = v.loop(builder, count, running.nothing(kind), step)
        v.store(builder, running.settled(builder, best), out)
        return context.get_dummy_value()

    @intrinsic
    def maxima_of_rows(_context: Any, table: Any, codes: Any, count: Any, out: Any) -> Any:
        return types.void(table, codes, count, out), lower

    return maxima_of_rows


def _scanning(item: Any, wide_columns: int, sum_of: Any) -> Any:
    """A program: the scores of the documents `first` … `last` − 1."""
    narrow, wide = (_maxima_of_rows(item, columns) for columns in (COLUMNS, wide_columns))
    size = 1 if item == v.BYTE else 4

    @part
    def maxima_of_document(table: tuple[int, int, int], columns: int, codes: int, count: int, out: int) -> None:
        values, edge, inside = table
        row_bytes = columns * size
        done = 0
        while done < columns:  # the last pass may read into the next row
            here = done * size
            if done + wide_columns <= columns:
                wide((values + here, edge + here, inside, row_bytes), codes, count, out + here)
                done += wide_columns
            else:
                narrow((values + here, edge + here, inside, row_bytes), codes, count, out + here)
                done += COLUMNS

    def scan(given: int, first: int, last: int, scratch: int) -> None:
        """given: see `interaction.centroid_interaction`. scratch: for a row of the table and COLUMNS + 16 more."""
        g = int64s(given)
        table, columns, steps, lows, codes = (g[0], g[1], g[2]), g[3], g[4], g[5], g[6]
        queries, query_count, documents, document_count = (g[7], g[8], g[9]), g[10], (g[11], g[12], g[13]), g[14]
        scores = float32s(g[15])
        for document in range(first, last):
            start, end = span_of(documents, document)
            maxima_of_document(table, columns, codes + 4 * start, end - start, scratch)
            for query in range(query_count):
                token, last_token = span_of(queries, query)
                score = np.float32(0.0)
                if start >= end and token < last_token:
                    score = np.float32(-np.inf)
                elif token < last_token:
                    terms = scratch + size * token, steps + 4 * token, lows + 4 * token
                    score = sum_of(terms, last_token - token)
                scores[query * document_count + document] = score

    return scan


def _restored(builder: v.Builder, pointers: list[v.Value], index: v.Value) -> v.Value:
    maxima, steps, lows = pointers
    step, low = (floats_of(builder, each, index) for each in (steps, lows))
    return builder.fadd(low, builder.fmul(step, bytes_of(builder, maxima, index)))


scan_bytes = _scanning(v.BYTE, WIDE_BYTES, summing(_restored))
scan_floats = _scanning(
    v.FLOAT, WIDE_FLOATS, summing(lambda builder, pointers, index: floats_of(builder, pointers[0], index))
)
