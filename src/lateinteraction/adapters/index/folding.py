"""When segments are folded together, and how their embeddings are stored then: arithmetic on sizes, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lateinteraction.adapters.index.segments import Kind
from lateinteraction.adapters.index.settings import IndexSettings

FANOUT = 8
"""Segments of about one size that are folded into one. So n additions of one document leave at most 7 ⌈log₈ n⌉ segments
(35 after 10,000), and each document is copied ⌈log₈ n⌉ times."""

COMPRESS_AT = 2**17
"""Tokens of a segment from which a residual codec is used: some two thousand documents, which are scored exactly in
about as long as their codes would take to be looked at, and less exactly."""

MOST_TOKENS = 2**22
"""Tokens of a segment that no folding goes beyond: 300 MB at 4 bits and 128 dimensions, rewritten at once."""


class Size(NamedTuple):
    """Of what is left of a segment."""

    documents: int
    tokens: int


def folded(sizes: Sequence[Size], incoming: Size, *, compressing: bool = False) -> int:
    """How many of the last segments are folded together with an incoming one.

    Args:
        sizes: of the segments, in order.
        incoming: behind them.
        compressing: whether large segments are stored by a residual codec; small ones are folded as soon as they are
            large together, so that no more than `COMPRESS_AT` tokens are ever scored exactly.
    """
    tail = _tail(sizes, incoming) if compressing else 0
    count, total = 0, incoming
    while True:
        run = _run(sizes[: len(sizes) - count], total)
        if run + 1 < FANOUT:
            return max(count, tail)
        for size in sizes[len(sizes) - count - run : len(sizes) - count]:
            total = Size(total.documents + size.documents, total.tokens + size.tokens)
        count += run


def groups(sizes: Sequence[Size]) -> Iterator[slice]:
    """Runs of neighbours that compaction makes one segment each: as long as they fit."""
    first = tokens = 0
    for number, size in enumerate(sizes):
        if number > first and tokens + size.tokens > MOST_TOKENS:
            yield slice(first, number)
            first, tokens = number, 0
        tokens += size.tokens
    if first < len(sizes):
        yield slice(first, len(sizes))


def kind_of(settings: IndexSettings, tokens: int, *, coded: bool = False) -> Kind:
    """How the embeddings of a segment are stored.

    Args:
        settings: of the index.
        tokens: of the segment.
        coded: whether some are residuals already; nothing is gained by writing them as vectors, and each time that
            they became residuals again they would be others.
    """
    if settings.options.codec == "int8":
        return "int8"
    return "residual" if settings.bits is not None and (coded or tokens >= COMPRESS_AT) else "vectors"


def _tail(sizes: Sequence[Size], incoming: Size) -> int:
    """How many of the last are too small to be compressed, where together with the incoming one they are not."""
    if incoming.tokens >= COMPRESS_AT:
        return 0
    tail, tokens = 0, incoming.tokens
    while tail < len(sizes) and sizes[-1 - tail].tokens < COMPRESS_AT:
        tokens += sizes[-1 - tail].tokens
        tail += 1
    return tail if tokens >= COMPRESS_AT else 0


def _run(sizes: Sequence[Size], total: Size) -> int:
    """How many of the last are no larger, in powers of `FANOUT`, and fit into one segment with it."""
    run, tokens = 0, total.tokens
    for size in reversed(sizes):
        tokens += size.tokens
        if _level(size.documents) > _level(total.documents) or tokens > MOST_TOKENS:
            break
        run += 1
    return run


def _level(documents: int) -> int:
    """⌊log₈ documents⌋."""
    level = 0
    while documents >= FANOUT ** (level + 1):
        level += 1
    return level
