"""Gradients through winners. Each row is summed by one owner, in rising order of what it was compared with.

An owner is an item of the side whose gradient is asked for. It is visited by its pairs: with all pairs, by every item
of the other side; else by those that an order names. So neither side waits for the other and nothing is added twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lateinteraction.kernels.cpu.kinds import FLOAT32
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.maxsim import documents_at
from lateinteraction.kernels.cpu.programs.memory import float32s, int16s, int32s, int64s, numbers
from lateinteraction.kernels.cpu.programs.panels import size_of
from lateinteraction.kernels.cpu.programs.rows import each, for_kind, load_floats, narrow, widen


def _add(builder: v.Builder, kind: int, row: v.Value, count: v.Value, sums: v.Value, factor: v.Value) -> None:
    source, target = (builder.inttoptr(address, v.POINTER) for address in (row, sums))

    def body(index: v.Value, lanes: int) -> None:
        floats, offset = load_floats(builder, kind, source, index, lanes), builder.mul(index, v.constant(4))
        total = v.load(builder, v.vector(v.FLOAT, lanes), target, offset)
        v.store(builder, v.add_product(builder, floats, v.splat(builder, factor, lanes), total), target, offset)

    each(builder, count, body)


add = for_kind(_add)
"""(kind, (row, count, sums, factor)): add factor · row to float32 sums."""


@part
def scale_of(scales: int, scale_step: int, row: int) -> float:
    """The scale of a row, or the one of all."""
    return float32s(scales + row * scale_step)[0]


@part
def _winner(address: int, short: int) -> int:
    return int16s(address)[0] if short != 0 else int32s(address)[0]


@part
def _finish(own: Any, row: int, unit: int, sums: int, out: int, room: int) -> None:
    """From the gradient of a scaled row, at `sums`, to that of the row, at `out`: the same place, of float32 rows."""
    values, kind, dimension, scales, scale_step = own
    total, scale = float32s(sums), scale_of(scales, scale_step, row)
    if unit != 0:
        vector = float32s(room)
        widen(kind, (values + row * dimension * size_of(kind), dimension, room))
        along = float32s(room + 4 * dimension)
        along[0] = 0
        for index in range(dimension):
            vector[index] *= scale
            along[0] += vector[index] * total[index]
        for index in range(dimension):  # a row of zeros has no direction; whatever NaN it may hold stays there
            total[index] = total[index] - along[0] * vector[index] if scale > 0 else 0
    if scale != 1:
        for index in range(dimension):
            total[index] *= scale
    if kind != FLOAT32:
        narrow(kind, (sums, dimension, out))


_visits_at = numbers(4)
_weights_at = numbers(8)


def _gradient(of_queries: bool) -> Any:
    """A program: the gradient of owners `first` … `last` − 1.

    Arguments, addresses but for first, last and unit:
        own, other: the owners and the other side, as `operands` gives documents.
        visits: how many of the other side there are; pairs int64 (P, 2), the numbers of pairs by owner, int64 (P,), and
            where each owner's begin, int64 (owners + 1,), which is 0 where all visit all.
        weights: winners, whether they are int16, and bytes from a pair to the next and a token to the next (as in
            `maxsim`); upstream float32, and bytes from a pair to the next and a query to the next; an int64 that
            becomes 1 where a winner is no token of its document, which is then left out.
        unit: whether scales are inverse norms.
        out: zeros, for the gradient.
        room: for 2 · dimension float32, and behind them the longest owner's rows unless they are float32.
    """

    @part
    def visit(own: Any, other: Any, own_first: int, own_last: int, span: Any, weight: Any, sums: int) -> None:
        dimension, (values, kind, scales, scale_step) = own[2], other
        other_first, other_last = span
        winners, short, token_step, upstream, wrong = weight
        tokens, length = own_last - own_first, other_last - other_first
        if not of_queries:
            tokens, length = length, tokens
        for token in range(tokens):
            winner = _winner(winners + token * token_step, short)
            if np.uint64(winner) >= np.uint64(length):
                if winner != -1:
                    int64s(wrong)[0] = 1
                continue
            own_row, row = (token, other_first + winner) if of_queries else (winner, other_first + token)
            factor = float32s(upstream)[0] * scale_of(scales, scale_step, row)
            source = values + row * dimension * size_of(kind)
            add(kind, (source, dimension, sums + own_row * dimension * 4, factor))

    def program(
        own: int, other: int, visits: int, weights: int, first: int, last: int, unit: int, out: int, room: int
    ) -> None:
        values, kind, dimension, scales, scale_step, spans, _ = documents_at(own)
        other_values, other_kind, _, other_scales, other_scale_step, other_spans, _ = documents_at(other)
        others, pairs, order, bounds = _visits_at(visits)
        winners, short, winner_step, token_step, upstream, upstream_step, query_step, wrong = _weights_at(weights)
        owners = values, kind, dimension, scales, scale_step
        visitors = other_values, other_kind, other_scales, other_scale_step
        for owner in range(first, last):
            start, end = int64s(spans)[2 * owner], int64s(spans)[2 * owner + 1]
            target = out + start * dimension * size_of(kind)
            sums = target if kind == FLOAT32 else room + 8 * dimension
            if kind != FLOAT32:
                for index in range((end - start) * dimension):
                    float32s(sums)[index] = 0
            first_visit, last_visit = 0, others
            if bounds != 0:
                first_visit, last_visit = int64s(bounds)[owner], int64s(bounds)[owner + 1]
            for number in range(first_visit, last_visit):
                pair, visitor = number if of_queries else owner, number
                if bounds != 0:
                    pair = int64s(order)[number]
                    visitor = int64s(pairs)[2 * pair + (1 if of_queries else 0)]
                query = owner if of_queries else visitor
                span = int64s(other_spans)[2 * visitor], int64s(other_spans)[2 * visitor + 1]
                found = winners + pair * winner_step
                if bounds == 0:
                    found += (start if of_queries else span[0]) * token_step
                weight = found, short, token_step, upstream + pair * upstream_step + query * query_step, wrong
                visit(owners, visitors, start, end, span, weight, sums)
            for row in range(start, end):
                place = (row - start) * dimension
                _finish(owners, row, unit, sums + 4 * place, target + place * size_of(kind), room)

    return program


of_queries = _gradient(of_queries=True)
of_documents = _gradient(of_queries=False)
