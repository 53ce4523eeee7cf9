"""MaxSim on compressed tokens: residuals of a few tokens at a time are decoded into the first-level cache.

Tokens of as many documents as fit make a block, so that the products never run with few rows. The products go through
a tile of TOKENS · PANEL numbers, also in cache; from there each document's maxima are taken, in registers.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from lateinteraction.kernels.cpu.blocks import TOKENS
from lateinteraction.kernels.cpu.kinds import FLOAT32
from lateinteraction.kernels.cpu.programs import running
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.lookup import blocks_of, row_address, smaller, span_of
from lateinteraction.kernels.cpu.programs.memory import float32s, int32s, int64s
from lateinteraction.kernels.cpu.programs.products import PANEL, ROWS, similarity_block
from lateinteraction.kernels.cpu.programs.rows import intrinsic_of, widen
from lateinteraction.kernels.cpu.programs.sums import floats_of, summing
from lateinteraction.kernels.cpu.programs.unpacking import unpack

_sum = summing(lambda builder, pointers, index: floats_of(builder, pointers[0], index))


def maxsim(given: int, first: int, last: int, room: int) -> None:
    """Scores of the documents `first` … `last` − 1. given and room: see `residual.residual_maxsim`."""
    g, r = int64s(given), int64s(room)
    codec, codes, residuals, inverse_norms, norm_kind = (g[0], g[1], g[2], g[3]), g[4], g[5], g[6], g[7]
    documents, document_count = (g[8], g[9], g[10]), g[11]
    lanes = g[12] * PANEL
    decoded, row_bytes, own_codes, own_norms, ends, owners, maxima = r[0], r[1], r[2], r[3], r[4], r[5], r[6]
    tokens = pieces = 0
    for document in range(first, last):
        row, end = span_of(documents, document)
        _nothing(maxima + pieces * lanes * 4, lanes)
        if row >= end:
            _write_scores(given, document, document_count, maxima + pieces * lanes * 4)
        while row < end:
            count = smaller(TOKENS - tokens, end - row)
            unpack(codec, residuals + row * codec[1], count, decoded + tokens * row_bytes)
            for token in range(count):
                int32s(own_codes)[tokens + token] = int32s(codes)[row + token]
            norm_size = 4 if norm_kind == FLOAT32 else 2
            widen(norm_kind, (inverse_norms + row * norm_size, count, own_norms + tokens * 4))
            tokens += count
            row += count
            int64s(ends)[pieces], int64s(owners)[pieces] = tokens, document
            pieces += 1
            if tokens == TOKENS:
                _score_block(given, room, pieces)
                whole = pieces if row == end else pieces - 1
                for piece in range(whole):
                    _write_scores(given, int64s(owners)[piece], document_count, maxima + piece * lanes * 4)
                if row < end:
                    _copy(maxima + whole * lanes * 4, maxima, lanes)
                tokens = pieces = 0
    if pieces > 0:
        _score_block(given, room, pieces)
        for piece in range(pieces):
            _write_scores(given, int64s(owners)[piece], document_count, maxima + piece * lanes * 4)


@part
def _nothing(maxima: int, lanes: int) -> None:
    for lane in range(lanes):
        float32s(maxima)[lane] = -np.inf


@part
def _copy(source: int, target: int, count: int) -> None:
    for index in range(count):
        float32s(target)[index] = float32s(source)[index]


@part
def _write_scores(given: int, document: int, document_count: int, maxima: int) -> None:
    g = int64s(given)
    queries, scores = (g[19], g[20], g[21]), float32s(g[23])
    for query in range(g[22]):
        token, end = span_of(queries, query)
        scores[query * document_count + document] = _sum((maxima + 4 * token,), end - token)


@part
def _score_block(given: int, room: int, pieces: int) -> None:
    """Raise the maxima of the pieces of documents that are in the block."""
    g, r = int64s(given), int64s(room)
    panels, dimension, packed, columns = g[12], g[13], g[14], g[15]
    values, edge, inside = g[16], g[17], g[18]
    decoded, row_bytes, codes, norms, ends, maxima, tile = r[0], r[1], r[2], r[3], int64s(r[4]), r[6], r[7]
    tokens = ends[pieces - 1]
    for panel in range(panels):
        column = panel * PANEL * 4
        table = values + column, edge + column, inside, columns * 4
        _fetch((*table, codes, tokens))
        for block_of_rows in range(blocks_of(tokens, ROWS)):
            row = block_of_rows * ROWS
            count = smaller(ROWS, tokens - row)
            block = decoded + row * row_bytes, count, row_bytes, dimension, packed + column * dimension, 0
            similarity_block(block, (tile + row * PANEL * 4, PANEL * 4))
        start = 0
        for piece in range(pieces):
            rows = tile + start * PANEL * 4, codes + start * 4, norms + start * 4, ends[piece] - start
            _raise_maxima((*table, *rows, maxima + piece * panels * PANEL * 4 + column))
            start = ends[piece]


def _row(builder: v.Builder, table: tuple[v.Value, ...], codes: v.Value, token: v.Value) -> v.Value:
    code = builder.sext(v.load(builder, v.WORD, codes, builder.mul(token, v.constant(4))), v.LONG)
    return builder.inttoptr(row_address(builder, table, code), v.POINTER)


def _fetch_rows(builder: v.Builder, *arguments: v.Value) -> None:
    """Ask for the rows of the table that the tokens will need, so that they arrive while products are summed."""
    *table, codes, tokens = arguments
    codes = builder.inttoptr(codes, v.POINTER)

    def step(token: v.Value, _: list[v.Value]) -> list[v.Value]:
        row = _row(builder, tuple(table), codes, token)
        for line in range(0, PANEL * 4, 64):
            read, everywhere, data = (v.constant(number, v.WORD) for number in (0, 3, 1))
            v.call(builder, "llvm.prefetch.p0", ir.VoidType(), v.at(builder, row, line), read, everywhere, data)
        return []

    v.loop(builder, tokens, [], step)


def _raise(builder: v.Builder, *arguments: v.Value) -> None:
    """(table row of the code + similarity of the residual) · inverse norm, and its maximum over the tokens."""
    *table, tile, codes, norms, tokens, maxima = arguments
    tile, codes, norms, maxima = (builder.inttoptr(each, v.POINTER) for each in (tile, codes, norms, maxima))
    kind = v.vector(v.FLOAT, PANEL)

    def step(token: v.Value, best: list[v.Value]) -> list[v.Value]:
        similarity = v.load(builder, kind, tile, builder.mul(token, v.constant(4 * PANEL)))
        value = builder.fadd(v.load(builder, kind, _row(builder, tuple(table), codes, token)), similarity)
        norm = v.splat(builder, v.load(builder, v.FLOAT, norms, builder.mul(token, v.constant(4))), PANEL)
        return running.raised(builder, best, builder.fmul(value, norm))

    best = v.loop(builder, tokens, running.so_far(builder, v.load(builder, kind, maxima)), step)
    v.store(builder, running.settled(builder, best), maxima)


_fetch = intrinsic_of(_fetch_rows)
_raise_maxima = intrinsic_of(_raise)
