"""One loop over all tokens of several documents, a tile at a time: what lets loads run ahead across documents.

A loop over documents around a loop over their tokens would start every document with a wait for codes, and then with
one for what the codes point to. So the steps of several documents are numbered through, and each finds by its number
whose tile it is, in registers, before anything is loaded: the compiler can then load for steps to come.

Device functions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lateinteraction.kernels.gpu.configurations import INTERPRETED

FEWEST_PROGRAMS = 2 if INTERPRETED else 4096
"""Programs below which each takes one document: several rounds for every processor of the largest devices.

Few where they are interpreted, so that small tests walk through several documents."""


def documents_per_program(documents: int, tiles: int, most: int) -> int:
    """How many documents a program walks through, where each is visited once for each of `tiles` query tiles."""
    return min(most, max(1, documents * tiles // FEWEST_PROGRAMS))


@triton.jit
def plan_walk(spans, item_stride, end_stride, first, count, N, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The walk through documents first (int64) … first + count − 1 of N, of which there are GROUP at most.

    Returns starts int64, lengths, and the numbers of the first step and of the step after the last, all (GROUP,), and
    how many steps there are. Where there is no document the length is −1, which makes no step, nor does an empty one.
    """
    local = tl.arange(0, GROUP)
    documents = first + local
    there = (local < count) & (documents < N)
    pointers = spans + documents * item_stride
    starts = tl.load(pointers, mask=there, other=0)
    ends = tl.load(pointers + end_stride, mask=there, other=-1)
    lengths = tl.cast(ends - starts, tl.int32)
    steps = tl.cdiv(lengths, BLOCK_M)
    after = tl.cumsum(steps, 0)
    return starts, lengths, after - steps, after, tl.sum(steps)


@triton.jit
def find_step(walk, step, BLOCK_M: tl.constexpr):
    """Whose tile a step is: its first row, int64; how many tokens are left from there; the place in the group.

    Exactly one document has the step, so every sum has one term, and 64 bits can be summed as two halves: on most
    devices one instruction each.
    """
    starts, lengths, before, after = walk[0], walk[1], walk[2], walk[3]
    here = (before <= step) & (step < after)
    done = tl.cast(step - before, tl.int64) * BLOCK_M
    rows = starts + done
    low = tl.sum(tl.where(here, tl.cast(rows, tl.int32), 0))
    high = tl.sum(tl.where(here, tl.cast(rows >> 32, tl.int32), 0))
    first = (tl.cast(high, tl.int64) << 32) | (tl.cast(low, tl.int64) & 0xFFFFFFFF)
    left = tl.sum(tl.where(here, lengths - tl.cast(done, tl.int32), 0))
    place = tl.sum(tl.where(here, tl.arange(0, lengths.shape[0]), 0))
    return first, left, place


@triton.jit
def store_empty(maxima, walk, first, s, S):
    """Maxima −∞ of query tokens s (int64) for the walk's documents without tokens, which no step visits."""
    documents = first + tl.arange(0, walk[1].shape[0])
    empty = (walk[1] == 0)[:, None] & (s < S)[None, :]
    tl.store(maxima + documents[:, None] * S + s[None, :], float("-inf"), mask=empty)
