"""Who belongs to whom, found on the device: the item of each row, the pairs of each item, the winners of each tile.

The gradient of a document token is a sum over the query tokens that it won. Those have to be found without a host that
reads a tensor, and in an order that no race decides. Integers only.

Entries: the query tokens that a document meets, counted from 0 within the document. With all pairs entry e is row e of
`queries.values`; with listed pairs each pair of the document, in rising order, has `queries.longest` entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import RAGGED, Kernel, Row, Specimen, ceil_div, launch, unit_of
from lateinteraction.kernels.gpu.normalisation import DEVICES
from lateinteraction.kernels.operands import Tokens


class Listing(NamedTuple):
    """The pairs that each item is in: item i has order[bounds[i]] … order[bounds[i+1] − 1], rising."""

    order: Tensor
    """int64 (P,)."""
    bounds: Tensor
    """int64 (items + 1,)."""


class Groups(NamedTuple):
    """The entries of a document by tile of its tokens: those of tile b lie at ranges[j, b, 0] … ranges[j, b, 1] − 1."""

    entries: Tensor
    """int32 or int64, as many as winners: entry · tile + token within the tile, rising within a tile."""
    ranges: Tensor
    """int32 or int64 (N, tiles, 2), counted from where the winners of document j begin."""


@triton.jit(do_not_specialize=["span_stride", "end_stride", "tiles"])
def _owners(spans, span_stride, end_stride, owners, tiles, BLOCK_R: tl.constexpr):
    program = tl.program_id(0)
    item = tl.cast(program // tiles, tl.int64)
    start = tl.load(spans + item * span_stride)
    end = tl.load(spans + item * span_stride + end_stride)
    rows = start + tl.cast(program % tiles, tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    tl.store(owners + rows, tl.cast(tl.zeros_like(rows) + item, tl.int32), mask=rows < end)


@triton.jit(do_not_specialize=["row_units", "document_units"])
def _winners_by_document(
    winners,
    owners,
    turned,
    row_units,
    document_units,
    UNIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0)
    S = tl.cast(row_units, tl.int64) * UNIT
    N = tl.cast(document_units, tl.int64) * UNIT
    tiles = tl.cast(tl.cdiv(N, BLOCK_N), tl.int32)
    s = tl.cast(program // tiles, tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    j = tl.cast(program % tiles, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    owned = tl.load(owners + s, mask=s < S, other=-1) >= 0
    there = (s < S)[:, None] & (j < N)[None, :]
    tokens = tl.load(winners + s[:, None] * N + j[None, :], mask=there & owned[:, None], other=-1)
    tl.store(turned + j[None, :] * S + s[:, None], tokens, mask=there)


@triton.jit(do_not_specialize=["span_stride", "end_stride", "tiles", "units"])
def _entries_by_tile(
    winners,
    bounds,
    spans,
    span_stride,
    end_stride,
    entries,
    ranges,
    tiles,
    units,
    UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    program = tl.program_id(0)
    document = tl.cast(program // tiles, tl.int64)
    low = tl.cast(tl.cast(program % tiles, tl.int64) * BLOCK_T, tl.int32)
    length = tl.load(spans + document * span_stride + end_stride) - tl.load(spans + document * span_stride)
    width = tl.cast(units, tl.int64) * UNIT
    if bounds is None:
        origin = document * width
        count = width
    else:
        origin = tl.load(bounds + document) * width
        count = tl.load(bounds + document + 1) * width - origin
    count = tl.where(low < length, count, 0)

    # What the tiles before this one have, then what this one has, behind it: no program waits for another.
    before = tl.zeros((BLOCK_E,), tl.int32)
    for first in range(0, count, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        tokens = tl.cast(tl.load(winners + origin + e, mask=e < count, other=-1), tl.int32)
        before += tl.where((tokens >= 0) & (tokens < low), 1, 0)
    begin = tl.sum(tl.cast(before, tl.int64))
    end = begin
    for first in range(0, count, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        tokens = tl.cast(tl.load(winners + origin + e, mask=e < count, other=-1), tl.int32) - low
        here = (tokens >= 0) & (tokens < BLOCK_T)
        places = end + tl.cumsum(tl.where(here, 1, 0), 0) - 1
        tl.store(entries + origin + places, tl.cast(e * BLOCK_T + tokens, entries.dtype.element_ty), mask=here)
        end += tl.sum(tl.where(here, 1, 0))
    place = ranges + tl.cast(program, tl.int64) * 2
    tl.store(place, tl.cast(begin, ranges.dtype.element_ty))
    tl.store(place + 1, tl.cast(end, ranges.dtype.element_ty))


def owners_of(items: Tokens) -> Tensor:
    """The item of each row, int32 (R,); −1 where none has it. For spans that do not overlap."""
    spans, device = items.spans, items.spans.device
    owners = torch.full((items.values.shape[0],), -1, dtype=torch.int32, device=device)
    tiles = ceil_div(items.longest, OWNERS.tile(device, "spans", "BLOCK_R"))
    arguments = {
        "spans": spans,
        "span_stride": spans.stride(0),
        "end_stride": spans.stride(1),
        "owners": owners,
        "tiles": tiles,
    }
    launch(OWNERS, device, "spans", len(spans) * tiles, arguments)
    return owners


def listed_by(items: Tensor, count: int) -> Listing:
    """The pairs of each of `count` items, from the item (P,) of each pair."""
    given, order = torch.sort(items, stable=True)
    return Listing(order, torch.searchsorted(given, torch.arange(count + 1, device=items.device)))


def winners_by_document(winners: Tensor, owners: Tensor) -> Tensor:
    """Winners (N, S) from winners (S, N); −1 in rows that no query has."""
    device, (S, N) = winners.device, winners.shape
    turned = winners.new_empty(N, S)
    unit = unit_of(S, N)
    regime = f"{RAGGED[unit]}{winners.dtype.itemsize * 8}"
    blocks = (
        ceil_div(S, TURNED.tile(device, regime, "BLOCK_S")),
        ceil_div(N, TURNED.tile(device, regime, "BLOCK_N")),
    )
    units = {"row_units": S // unit, "document_units": N // unit, "UNIT": unit}
    arguments = {"winners": winners, "owners": owners, "turned": turned, **units}
    launch(TURNED, device, regime, blocks[0] * blocks[1], arguments)
    return turned


def winners_by_listing(winners: Tensor, listing: Listing, lengths: Tensor) -> Tensor:
    """Winners (P, longest) in the order of the listing; −1 beyond the length int64 (P,) of each pair's query."""
    tokens = torch.arange(winners.shape[1], device=winners.device)
    return torch.where(tokens < lengths[:, None], winners, -1)[listing.order]


def entries_by_tile(winners: Tensor, bounds: Tensor | None, documents: Tokens, tile: int) -> Groups:
    """The entries of every document by tile of so many tokens.

    Args:
        winners: (N, S) from `winners_by_document`, or (P, longest) from `winners_by_listing`.
        bounds: Those of the listing; None for all pairs.
    """
    spans, device = documents.spans, winners.device
    tiles = ceil_div(documents.longest, tile)
    unit = unit_of(winners.shape[1])
    # The most that one document may have; entry and token have to fit into one number.
    entries_at_most = winners.shape[1] if bounds is None else winners.numel()
    dtype = torch.int32 if entries_at_most * tile < 2**31 else torch.int64
    groups = Groups(
        torch.empty(winners.numel(), dtype=dtype, device=device),
        torch.empty(len(spans), tiles, 2, dtype=dtype, device=device),
    )
    arguments = {
        "winners": winners,
        "bounds": bounds,
        "spans": spans,
        "span_stride": spans.stride(0),
        "end_stride": spans.stride(1),
        "entries": groups.entries,
        "ranges": groups.ranges,
        "tiles": tiles,
        "units": winners.shape[1] // unit,
        "UNIT": unit,
        "BLOCK_T": tile,
    }
    launch(ENTRIES, device, f"{RAGGED[unit]}winners", len(spans) * tiles, arguments)
    return groups


_SPANS = {"spans": "*i64", "span_stride": "i32", "end_stride": "i32"}

OWNERS = Kernel(
    _owners,
    (
        *(Row(device, "spans", {"BLOCK_R": 256}, wide_loads=False) for device in DEVICES),
        Row("interpreter", "spans", {"BLOCK_R": 4}),
    ),
    (Specimen("spans", {**_SPANS, "owners": "*i32", "tiles": "i32"}),),
)
"""The item of each row."""

TURNED = Kernel(
    _winners_by_document,
    # Whole lines of 128 bytes on both sides.
    tuple(
        Row(device, f"{ragged}{bits}", {"BLOCK_S": block, "BLOCK_N": block}, wide_loads=not ragged)
        for ragged in RAGGED.values()
        for bits, block in ((16, 64), (32, 32))
        for device in DEVICES
    )
    + tuple(
        Row("interpreter", f"{ragged}{bits}", {"BLOCK_S": 8, "BLOCK_N": 4})
        for ragged in RAGGED.values()
        for bits in (16, 32)
    ),
    tuple(
        Specimen(
            f"{ragged}{bits}",
            {
                **dict.fromkeys(("winners", "turned"), f"*i{bits}"),
                "owners": "*i32",
                **dict.fromkeys(("row_units", "document_units"), "i32"),
                "UNIT": unit,
            },
        )
        for unit, ragged in RAGGED.items()
        for bits in (16, 32)
    ),
)
"""Winners (N, S) from winners (S, N)."""

ENTRIES = Kernel(
    _entries_by_tile,
    # 16 winners for each of 128 threads: two loads of 16 bytes where they have 16 bits.
    (
        *(
            Row(device, f"{ragged}winners", {"BLOCK_E": 2048}, wide_loads=not ragged)
            for ragged in RAGGED.values()
            for device in DEVICES
        ),
        *(Row("interpreter", f"{ragged}winners", {"BLOCK_E": 16}) for ragged in RAGGED.values()),
    ),
    tuple(
        Specimen(
            f"{ragged}winners",
            {
                "winners": winners,
                "bounds": bounds,
                **_SPANS,
                "entries": entries,
                "ranges": entries,
                **dict.fromkeys(("tiles", "units"), "i32"),
                "UNIT": unit,
                "BLOCK_T": 32,
            },
        )
        for unit, ragged in RAGGED.items()
        for winners, entries, bounds in (("*i16", "*i32", None), ("*i32", "*i32", "*i64"), ("*i16", "*i64", None))
    ),
)
"""The entries of each tile of document tokens."""
