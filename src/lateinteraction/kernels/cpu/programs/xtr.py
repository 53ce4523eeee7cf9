"""In-batch XTR: each query token's k best of all document tokens, and what they say of each document.

If a token retrieves anything of a document, it retrieves that document's best: so winners are those of MaxSim, where
they are not worse than the k-th best of all. Which that is, is found while similarities pass by: those that may be
among the best are put aside, and thinned out when there are 2 k of them. No table of similarities exists anywhere.

A similarity and its row are one number that is larger for what is better: the bits of the float32, made to rise with
it, above the row counted down. NaN is the least, −0 is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.kinds import FLOAT32
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.maxsim import documents_at, piece_rows, place_at, queries_at
from lateinteraction.kernels.cpu.programs.memory import float32s, int16s, int32s, int64s, numbers
from lateinteraction.kernels.cpu.programs.panels import size_of
from lateinteraction.kernels.cpu.programs.products import PANEL, keep_winners_and_all, keep_winners_and_all_of_bytes
from lateinteraction.kernels.cpu.programs.rows import PER_STEP, ready, widen

_LEAST = -(2**31)
_ROWS = 2**32 - 1


def _write_not_below(_context: Any, similarities: Any, limits: Any) -> Any:
    """A bit for each of PANEL similarities that is not below its limit, or NaN."""

    def lower(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointers = [builder.inttoptr(address, v.POINTER) for address in arguments]
        kind = v.vector(v.FLOAT, PANEL)
        value, limit = (v.load(builder, kind, pointer) for pointer in pointers)
        bits = builder.bitcast(builder.fcmp_unordered(">=", value, limit), v.integer(PANEL))
        return builder.zext(bits, v.LONG)

    return types.int64(similarities, limits), lower


def _write_lowest_bit(_context: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set; one must be."""

    def lower(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return v.call(builder, "llvm.cttz.i64", v.LONG, arguments[0], v.constant(1, v.BIT))

    return types.int64(bits), lower


_not_below: Any = intrinsic(_write_not_below)
_lowest_bit: Any = intrinsic(_write_lowest_bit)


@part
def _key(similarity: int, row: int) -> int:
    """The number that a float32, at this address, and its row are."""
    bits: Any = np.int64(int32s(similarity)[0])
    if np.isnan(float32s(similarity)[0]):
        bits = _LEAST
    elif bits == _LEAST:  # −0
        bits = 0
    elif bits < 0:
        bits = -(bits & 0x7FFFFFFF) - 1
    return bits * 2**32 + (_ROWS - row)


@part
def _thin_out(keys: int, count: int, k: int) -> int:
    """Bring the k largest of count > k keys to the front, and return the least of them (Hoare's selection)."""
    items = int64s(keys)
    low, high = 0, count - 1
    while low < high:
        pivot = items[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while items[left] > pivot:
                left += 1
            while items[right] < pivot:
                right -= 1
            if left <= right:
                items[left], items[right] = items[right], items[left]
                left += 1
                right -= 1
        if k - 1 <= right:
            high = right
        elif k - 1 >= left:
            low = left
        else:
            break
    return items[k - 1]


@part
def _put_aside(similarities: int, row: int, k: int, aside: Any) -> None:
    """Put aside what may be among the k best of each lane, from one row."""
    keys, counts, limits = aside
    bits = _not_below(similarities, limits)
    while bits != 0:
        lane = _lowest_bit(bits)
        bits &= bits - 1
        own, count = keys + lane * 2 * k * 8, int64s(counts)[lane] + 1
        int64s(own)[count - 1] = _key(similarities + 4 * lane, row)
        if count == 2 * k:
            _limit(_thin_out(own, count, k), limits + 4 * lane)
            count = k
        int64s(counts)[lane] = count


@part
def _limit(key: int, limit: int) -> None:
    """Write the similarity of a key; −∞ of a NaN, which everything may still replace."""
    bits = key >> 32
    if bits == _LEAST:
        float32s(limit)[0] = -np.inf
    elif bits < 0:
        int32s(limit)[0] = -(bits + 1) | _LEAST
    else:
        int32s(limit)[0] = bits


@part
def _begin(best: Any) -> None:
    """A document's best token is its first, for want of a number."""
    maxima, winners = best
    for lane in range(PANEL):
        float32s(maxima)[lane] = np.nan
        int32s(winners)[lane] = 0


@part
def _reset(counts: int, limits: int) -> None:
    for lane in range(PANEL):
        int64s(counts)[lane] = 0
        float32s(limits)[lane] = -np.inf


def _scanning(bytewise: bool) -> Any:
    """A part that takes one document's rows against one panel."""
    keep: Any = keep_winners_and_all_of_bytes if bytewise else keep_winners_and_all

    @part
    def run(document: Any, span: Any, panel: Any, best: Any, k: int, aside: Any, room: Any) -> None:
        values, kind, dimension, scales, scale_step = document
        first, last = span
        packed, start, steps = panel
        maxima, winners = best
        table, rows = room
        limit = piece_rows(1, steps)
        done = first
        while done < last:  # a range with this step might raise, for all that numba knows
            count = min(limit, last - done)
            piece = values + done * dimension * size_of(kind)
            if bytewise:
                ready(piece, count, dimension, steps, rows)
                piece = rows
            elif kind != FLOAT32:
                widen(kind, (piece, count * dimension, rows))
                piece = rows
            block = piece, count, 4 * steps, steps, packed, start
            own = table - (done - first) * 4 * PANEL
            keep(block, scales + done * scale_step, scale_step, (maxima, winners, own), done - first)
            if k > 0:
                for row in range(count):
                    _put_aside(table + row * 4 * PANEL, done + row, k, aside)
            done += count

    return run


_room_at = numbers(4)
_out_at = numbers(4)


def _scoring(bytewise: bool) -> Any:
    """A program: scores of queries `first` … `last` − 1 with all documents.

    Arguments, addresses but for first, last and k:
        documents, queries: as `operands` gives them; each query begins a panel of its own.
        k: tokens to retrieve, fewer than there are; or 0 for all.
        room: the best of each document, float32 and behind them int32 (documents, PANEL); what is put aside,
            int64 (PANEL, 2 k), int64 (PANEL,) and float32 (PANEL,); a piece's similarities; a piece of rows.
        out: scores float32 (Q, documents), winners (S, documents) and whether they are int16, finders int32
            (Q, documents).
    """
    scan = _scanning(bytewise)

    @part
    def settle(lane: int, scale: float, documents: Any, best: Any, least: int, out: Any) -> None:
        spans, count = documents
        maxima, rows = best
        scores, winners, short, finders = out
        for document in range(count):
            place = document * PANEL + lane
            start, end = int64s(spans)[2 * document], int64s(spans)[2 * document + 1]
            winner = int32s(rows)[place] if end > start else -1
            if winner >= 0 and _key(maxima + 4 * place, start + winner) < least:
                winner = -1
            if short != 0:
                int16s(winners)[document] = winner
            else:
                int32s(winners)[document] = winner
            if winner >= 0:
                float32s(scores)[document] += float32s(maxima)[place] * scale
                int32s(finders)[document] += 1

    def program(documents: int, queries: int, first: int, last: int, k: int, room: int, out: int) -> None:
        values, kind, dimension, scales, scale_step, spans, count = documents_at(documents)
        packed, starts, lane_scales, places, _, _ = queries_at(queries)
        maxima, aside, table, rows = _room_at(room)
        scores, winners, short, finders = _out_at(out)
        document = values, kind, dimension, scales, scale_step
        steps = (dimension + PER_STEP - 1) // PER_STEP if bytewise else dimension
        best_rows = maxima + count * PANEL * 4
        counts, limits = aside + PANEL * 2 * k * 8, aside + PANEL * (2 * k + 1) * 8
        for query in range(first, last):
            lane, tokens, row = place_at(places + query * 24)
            own_scores, own_finders = scores + query * count * 4, finders + query * count * 4
            for number in range(count):
                float32s(own_scores)[number] = 0
                int32s(own_finders)[number] = 0
            for done in range(0, tokens, PANEL):
                _reset(counts, limits)
                panel = (lane + done) // PANEL
                own_panel = packed + panel * steps * PANEL * 4, starts + panel * PANEL * 4, steps
                for number in range(count):
                    span = int64s(spans)[2 * number], int64s(spans)[2 * number + 1]
                    best = maxima + number * PANEL * 4, best_rows + number * PANEL * 4
                    _begin(best)
                    scan(document, span, own_panel, best, k, (aside, counts, limits), (table, rows))
                for token in range(min(PANEL, tokens - done)):
                    least = -(2**63)
                    if k > 0:
                        least = _thin_out(aside + token * 2 * k * 8, int64s(counts)[token], k)
                    own_winners = winners + (row + done + token) * count * (2 if short != 0 else 4)
                    own_out = own_scores, own_winners, short, own_finders
                    scale = float32s(lane_scales)[lane + done + token]
                    settle(token, scale, (spans, count), (maxima, best_rows), least, own_out)
            for number in range(count):
                if int32s(own_finders)[number] > 1:
                    float32s(own_scores)[number] /= np.float32(int32s(own_finders)[number])

    return program


scores = _scoring(bytewise=False)
scores_of_bytes = _scoring(bytewise=True)
