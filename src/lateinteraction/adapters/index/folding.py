"""When segments are folded together, and how their embeddings are stored then: arithmetic on sizes, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lateinteraction.adapters.index.options import TABLED
from lateinteraction.adapters.index.segments import Kind
from lateinteraction.adapters.index.settings import IndexSettings

FANOUT = 8
"""Segments of about one size that are folded into one. So n additions of one document leave at most 7 ⌈log₈ n⌉ segments
(35 after 10,000), and each document is copied ⌈log₈ n⌉ times."""

COMPRESS_AT = 2**17
"""Tokens of a segment from which a residual codec is used: some two thousand documents, which are scored exactly in
about as long as their codes would take to be looked at, and less exactly."""

SCANNED_TOKENS = 2**19
"""Tokens of a residual segment up to which all codes are looked at. That and inverted lists take a query, on a thread,
3.0 and 3.4 ms at 0.2 M tokens, 2.8 and 2.5 ms at 0.6 M, 3.7 and 3.5 ms at 1.2 M, 18.7 and 7.1 ms at 6 M; with 128
candidates 2.0 and 2.2, 2.4 and 1.9, 3.2 and 2.3."""

FURTHER = 16
"""By how much fewer tokens make a segment residual once there is a codebook: what is scored exactly takes a query some
30 ns a token, codes take 1. After 10,000 additions of one document a search takes 1.65 times that of a compacted index
with 8, 1.38 times with 16, 1.31 times with 32."""

ALIKE = 1.5
"""A residual segment is folded with what comes behind it where it has at most so many times its tokens. So they are
few, each at least so much larger than the next, and a token is copied once for each doubling up to `MOST_TOKENS`. By
`FANOUT` alone a search takes a third longer after 10,000 additions of one document."""

MOST_TOKENS = 2**22
"""Tokens of a segment that no folding goes beyond: 300 MB at 4 bits and 128 dimensions, rewritten at once."""


class Size(NamedTuple):
    """Of what is left of a segment."""

    documents: int
    tokens: int


def compress_at(settings: IndexSettings, *, trained: bool) -> int | None:
    """Tokens of a segment from which it is stored by a residual codec; None where none ever is.

    Args:
        settings: of the index.
        trained: whether there is a codebook already.
    """
    if settings.bits is None:
        return None
    if settings.options.tier != "auto":
        return 1
    return max(1, COMPRESS_AT // FURTHER) if trained else COMPRESS_AT


def folded(sizes: Sequence[Size], incoming: Size, *, compress_at: int | None = None) -> int:
    """How many of the last segments are folded together with an incoming one.

    Args:
        sizes: of the segments, in order.
        incoming: behind them.
        compress_at: tokens from which a segment is residual. Smaller ones are folded as soon as they have as many
            together, so that fewer tokens than that are ever scored exactly.
    """
    count = more = 0 if compress_at is None else _tail(sizes, incoming, compress_at)
    total = incoming
    while True:
        for size in sizes[len(sizes) - count : len(sizes) - count + more]:
            total = Size(total.documents + size.documents, total.tokens + size.tokens)
        before = sizes[: len(sizes) - count]
        run = _run(before, total)
        more = run if run + 1 >= FANOUT else _alike(before, total, compress_at)
        if not more:
            return count
        count += more


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


def kind_of(settings: IndexSettings, tokens: int, *, trained: bool = False, coded: bool = False) -> Kind:
    """How the embeddings of a segment are stored.

    Args:
        settings: of the index.
        tokens: of the segment.
        trained: whether there is a codebook already.
        coded: whether some are residuals already; nothing is gained by writing them as vectors, and each time that
            they became residuals again they would be others.
    """
    if settings.options.codec == "int8":
        return "int8"
    least = compress_at(settings, trained=trained)
    return "residual" if least is not None and (coded or tokens >= least) else "vectors"


def listed(settings: IndexSettings, tokens: int, centroids: int) -> bool:
    """Whether a residual segment has inverted lists.

    Looking at codes takes a table of all centroids, which is to be had for its own sake up to `TABLED` of them. Beyond,
    lists pay for as many tokens as there are centroids: a search of 300,000 documents with 212,000 centroids is spared
    half its time.

    Args:
        settings: of the index.
        tokens: of the segment.
        centroids: of the codebook.
    """
    if settings.options.tier != "auto":
        return settings.options.tier == "listed"
    return tokens > SCANNED_TOKENS or (centroids > TABLED and tokens >= centroids)


def _tail(sizes: Sequence[Size], incoming: Size, least: int) -> int:
    """How many of the last are too small to be compressed, where together with the incoming one they are not."""
    tail, tokens = 0, incoming.tokens
    while tail < len(sizes) and sizes[-1 - tail].tokens < least:
        tokens += sizes[-1 - tail].tokens
        tail += 1
    return tail if tokens >= least else 0


def _alike(sizes: Sequence[Size], total: Size, least: int | None) -> int:
    """1 where the last is residual as this is, of about its size at most, and fits into one segment with it."""
    if least is None or not sizes or min(sizes[-1].tokens, total.tokens) < least:
        return 0
    return int(sizes[-1].tokens <= ALIKE * total.tokens and sizes[-1].tokens + total.tokens <= MOST_TOKENS)


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
