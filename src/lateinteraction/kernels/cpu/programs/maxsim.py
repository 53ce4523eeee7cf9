"""Scores, with or without winners: documents pass through the cache once for each block of query panels, in pieces.

The best similarities of every lane stay in the first-level cache; no table of similarities exists anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lateinteraction.kernels.cpu.kinds import FLOAT32
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.memory import float32s, int16s, int32s, int64s, numbers
from lateinteraction.kernels.cpu.programs.panels import size_of
from lateinteraction.kernels.cpu.programs.products import (
    PANEL,
    ROWS,
    keep_maxima,
    keep_maxima_of_bytes,
    keep_winners,
    keep_winners_of_bytes,
)
from lateinteraction.kernels.cpu.programs.rows import PER_STEP, ready, widen
from lateinteraction.kernels.cpu.programs.sums import PARTIAL, floats_of, summing

ONE_PANEL_PIECE = 6 * 2**10
"""Bytes of rows that are made ready at a time for a single panel.

They stay in the first-level cache, and are few enough that the processor reads ahead while it computes: int8 takes
15 ns per document token by pieces of 2 … 6 KiB and 18.5 by 24 KiB, float16 45 and 57 (1,000 documents of 20–300
tokens, on a busy machine).
"""
PIECE = 256 * 2**10
"""The same for more panels, each of which reads the piece again: from the second-level cache."""
SPARE = PARTIAL
"""Lanes that sums may read beyond the last: their values do not count."""

documents_at = numbers(7)
"""values, kind, dimension, scales, scale_step, spans, documents."""
queries_at = numbers(6)
"""packed, starts, lane_scales, places, queries, panels that are taken at once; of a block, its own."""
place_at = numbers(3)
"""Of a query: first lane, tokens, first row of the values."""
_out_at = numbers(7)


def _maximising(bytewise: bool, with_winners: bool) -> Any:
    """A part that takes rows first … last − 1 against a range of panels: the best similarity (and row) of each lane.

    Lanes count from that of the first panel.
    """
    keep: Any = {
        (False, False): keep_maxima,
        (False, True): keep_winners,
        (True, False): keep_maxima_of_bytes,
        (True, True): keep_winners_of_bytes,
    }[bytewise, with_winners]

    @part
    def run(document: Any, first: int, last: int, panels: Any, maxima: int, winners: int, room: int) -> None:
        values, kind, dimension, scales, scale_step = document
        packed, starts, first_panel, last_panel = panels
        steps = (dimension + PER_STEP - 1) // PER_STEP if bytewise else dimension
        clear(maxima, winners, (last_panel - first_panel) * PANEL)
        limit = piece_rows(last_panel - first_panel, steps)
        done = first
        while done < last:  # a range with this step might raise, for all that numba knows
            count = min(limit, last - done)
            piece = values + done * dimension * size_of(kind)
            if bytewise:
                ready(piece, count, dimension, steps, room)
                piece = room
            elif kind != FLOAT32:
                widen(kind, (piece, count * dimension, room))
                piece = room
            for panel in range(first_panel, last_panel):
                block = piece, count, 4 * steps, steps, packed + panel * steps * PANEL * 4, starts + panel * PANEL * 4
                lanes = (panel - first_panel) * PANEL * 4
                if with_winners:
                    keep(block, scales + done * scale_step, scale_step, (maxima + lanes, winners + lanes), done - first)
                else:
                    keep(block, scales + done * scale_step, scale_step, (maxima + lanes,), done - first)
            done += count

    return run


@part
def piece_rows(panels: int, steps: int) -> int:
    """Rows of so many steps that are taken at a time."""
    return max(1, (ONE_PANEL_PIECE if panels == 1 else PIECE) // (4 * max(1, steps)) // ROWS) * ROWS


@part
def clear(maxima: int, winners: int, lanes: int) -> None:
    """Begin: nothing found yet, in any lane. Without winners their address is 0."""
    for lane in range(lanes):
        float32s(maxima)[lane] = -np.inf
    if winners != 0:
        for lane in range(lanes):
            int32s(winners)[lane] = -1


def _scaled(builder: v.Builder, pointers: list[v.Value], index: v.Value) -> v.Value:
    return builder.fmul(*(floats_of(builder, pointer, index) for pointer in pointers))


_sum_of_scaled = summing(_scaled)


def _scoring(bytewise: bool, with_winners: bool) -> Any:
    """A program: scores of pairs `first` … `last` − 1, or of a block of queries with documents `first` … `last` − 1.

    Arguments, addresses but for first and last:
        documents, queries: as `operands` gives them; a block of queries, or all where each begins a panel of its own.
        pairs: int64 (P, 2), or 0 for all.
        room: for maxima and, behind them, winners of all lanes, with SPARE more of each, and for a piece of rows.
        out: scores, and bytes from a pair to the next and a query to the next; winners, whether they are int16, and
            bytes from a pair to the next and a token to the next. A token's place is its row of the values in all
            pairs, and its number in the query in listed ones.
    """
    maximise = _maximising(bytewise, with_winners)

    @part
    def write(winners: int, short: int, step: int, best: int, count: int) -> None:
        for token in range(count):
            if short != 0:
                int16s(winners + token * step)[0] = int32s(best)[token]
            else:
                int32s(winners + token * step)[0] = int32s(best)[token]

    def program(documents: int, queries: int, pairs: int, first: int, last: int, room: int, out: int) -> None:
        values, kind, dimension, scales, scale_step, spans, _ = documents_at(documents)
        packed, starts, lane_scales, places, count, panels = queries_at(queries)
        scores, score_step, query_step, winners, short, winner_step, token_step = _out_at(out)
        maxima, best = room, room + 4 * (panels * PANEL + SPARE)
        rows = best + 4 * (panels * PANEL + SPARE)
        document = values, kind, dimension, scales, scale_step
        for item in range(first, last):
            own, first_query, last_query = item, 0, count
            if pairs != 0:
                first_query, own = int64s(pairs)[2 * item], int64s(pairs)[2 * item + 1]
                last_query = first_query + 1
            lane, tokens, _ = place_at(places + first_query * 24)
            first_panel = lane // PANEL
            last_panel = first_panel + ((tokens + PANEL - 1) // PANEL if pairs != 0 else panels)
            start, end = int64s(spans)[2 * own], int64s(spans)[2 * own + 1]
            own_panels = packed, starts, first_panel, last_panel
            maximise(document, start, end, own_panels, maxima, best, rows)
            for query in range(first_query, last_query):
                lane, tokens, row = place_at(places + query * 24)
                found = lane - first_panel * PANEL
                score = float32s(scores + item * score_step + query * query_step)
                if end == start:  # not −∞ · scale, which may be 0
                    score[0] = -np.inf if tokens > 0 else 0
                else:
                    score[0] = _sum_of_scaled((maxima + 4 * found, lane_scales + 4 * lane), tokens)
                if with_winners:
                    target = winners + item * winner_step + (0 if pairs != 0 else row * token_step)
                    write(target, short, token_step, best + 4 * found, tokens)

    return program


scores = _scoring(bytewise=False, with_winners=False)
scores_of_bytes = _scoring(bytewise=True, with_winners=False)
winners = _scoring(bytewise=False, with_winners=True)
winners_of_bytes = _scoring(bytewise=True, with_winners=True)
