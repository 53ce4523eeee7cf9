"""The micro-kernels: products of a block of rows with a panel of query tokens, and what is made of them in registers.

A panel is 2 vectors of query tokens, one to a lane, laid out by step: [steps][PANEL] numbers of 32 bits. A step is one
dimension of float32 (`Floats`), four of int8 (`Bytes`) or two of int16 (`Shorts`). Rows are read where they lie, one
32-bit number at a time in all lanes: for ROWS rows 2 · ROWS sums stay in registers through all steps.

A similarity is one sum over the dimensions in rising order, whatever the block and whatever its neighbours. A block
with fewer rows than it has room for repeats the last one; nothing beyond it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from numba.core import cgutils, types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part

PANEL = processor().panel
ROWS = processor().rows
FEW = processor().few

Products = list[list[v.Value]]
"""By row of the block, then vector of the panel."""


class Floats(NamedTuple):
    """float32 with float32."""

    item = v.FLOAT
    start = False

    def add(self, builder: v.Builder, row: v.Value, query: v.Value, total: v.Value) -> v.Value:
        """One step of one vector."""
        return v.add_product(builder, row, query, total)

    def similarity(self, builder: v.Builder, total: v.Value) -> v.Value:
        """The sum as float32."""
        return total


class Bytes(NamedTuple):
    """Four int8 a step, rows raised by 128 to be unsigned, as the instruction wants; sums start at −128 Σ query."""

    item = v.WORD
    start = True

    def add(self, builder: v.Builder, row: v.Value, query: v.Value, total: v.Value) -> v.Value:
        """One step of one vector."""
        return v.call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * v.LANES}", v.WORDS, total, row, query)

    def similarity(self, builder: v.Builder, total: v.Value) -> v.Value:
        """The sum as float32."""
        return builder.sitofp(total, v.FLOATS)


class Shorts(NamedTuple):
    """Two int16 a step, widened from int8: plain IR, of which LLVM makes one multiplying and one adding instruction."""

    item = v.WORD
    start = True

    def add(self, builder: v.Builder, row: v.Value, query: v.Value, total: v.Value) -> v.Value:
        """One step of one vector."""
        # LLVM knows the instruction by this order; multiplying even and odd lanes apart takes three times as long.
        pairs = v.vector(v.SHORT, 2 * v.LANES), v.vector(v.WORD, 2 * v.LANES)
        products = builder.mul(*(builder.sext(builder.bitcast(each, pairs[0]), pairs[1]) for each in (row, query)))
        halves = [v.shuffle(builder, products, range(first, 2 * v.LANES, 2)) for first in (0, 1)]
        return builder.add(total, builder.add(*halves))

    def similarity(self, builder: v.Builder, total: v.Value) -> v.Value:
        """The sum as float32."""
        return builder.sitofp(total, v.FLOATS)


Scheme = Floats | Bytes | Shorts
INTEGERS: Scheme = Bytes() if processor().byte_dots else Shorts()


def _products(
    builder: v.Builder, scheme: Scheme, rows: list[v.Value], steps: v.Value, panel: v.Value, start: v.Value
) -> Products:
    """Similarities of some rows with a panel, before any scale."""
    totals = [v.load(builder, v.WORDS, start, 4 * v.LANES * i) if scheme.start else v.zero(v.FLOATS) for i in (0, 1)]

    def step(index: v.Value, sums: list[v.Value]) -> list[v.Value]:
        queries = [
            v.load(builder, v.vector(scheme.item), panel, builder.add(builder.mul(index, _bytes(PANEL)), _bytes(first)))
            for first in (0, v.LANES)
        ]
        results: list[v.Value] = []
        for row, own in zip(rows, zip(sums[::2], sums[1::2], strict=True), strict=True):
            value = v.splat(builder, v.load(builder, scheme.item, row, builder.mul(index, _bytes(1))))
            results += [scheme.add(builder, value, query, total) for query, total in zip(queries, own, strict=True)]
        v.keep_in_order(builder)
        return results

    sums = [scheme.similarity(builder, total) for total in v.loop(builder, steps, totals * len(rows), step)]
    return [sums[first : first + 2] for first in range(0, len(sums), 2)]


def _bytes(items: int) -> v.Value:
    return v.constant(4 * items)


def _places(builder: v.Builder, room: int, count: v.Value) -> list[v.Value]:
    """Which row of the block is in each place: the last one again in those beyond it."""
    last = builder.sub(count, v.constant(1))
    places = [v.constant(place) for place in range(room)]
    return [builder.select(builder.icmp_signed("<", place, last), place, last) for place in places]


def _kernel(scheme: Scheme, room: int, finish: Callable[..., None]) -> Any:
    """An intrinsic (block, more): the products of up to `room` rows, and what `finish` makes of them.

    block: (rows, count, stride, steps, panel, start), addresses but for count, steps and the stride in bytes.
    more: as many whole numbers as finish takes after (builder, products, places of the rows).
    """

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, more = (cgutils.unpack_tuple(builder, argument) for argument in arguments)
        rows, count, stride, steps, panel, start = block
        places = _places(builder, room, count)
        pointers = [builder.inttoptr(builder.add(rows, builder.mul(place, stride)), v.POINTER) for place in places]
        panel, start = (builder.inttoptr(address, v.POINTER) for address in (panel, start))
        finish(builder, _products(builder, scheme, pointers, steps, panel, start), places, *more)
        return context.get_dummy_value()

    @intrinsic
    def kernel(_context: Any, block: Any, more: Any) -> Any:
        return types.void(block, more), lower

    return kernel


def _store(builder: v.Builder, products: Products, places: list[v.Value], out: v.Value, stride: v.Value) -> None:
    """Write similarities: row by row at `out`, `stride` bytes apart."""
    for place, similarities in zip(places, products, strict=True):
        pointer = builder.inttoptr(builder.add(out, builder.mul(place, stride)), v.POINTER)
        for first, similarity in zip((0, v.LANES), similarities, strict=True):
            v.store(builder, similarity, pointer, 4 * first)


def _scaled(
    builder: v.Builder, products: Products, places: list[v.Value], scales: v.Value, scale_step: v.Value
) -> Products:
    """Similarities times the scale of their row; scale_step is 4 bytes, or 0 where one scale is for all."""
    scaled: Products = []
    for place, similarities in zip(places, products, strict=True):
        pointer = builder.inttoptr(builder.add(scales, builder.mul(place, scale_step)), v.POINTER)
        scale = v.splat(builder, v.load(builder, v.FLOAT, pointer))
        scaled.append([builder.fmul(similarity, scale) for similarity in similarities])
    return scaled


def _keep_maxima(builder: v.Builder, products: Products, maxima: v.Value, _first_row: v.Value) -> None:
    """Raise the PANEL maxima to the similarities that exceed them."""
    pointer = builder.inttoptr(maxima, v.POINTER)
    for first, column in zip((0, v.LANES), zip(*products, strict=True), strict=True):
        best = v.load(builder, v.FLOATS, pointer, 4 * first)
        v.store(builder, _fold(column, lambda a, b: v.maximum(builder, a, b), best), pointer, 4 * first)


def _keep_winners(
    builder: v.Builder,
    products: Products,
    maxima: v.Value,
    winners: v.Value,
    first_row: v.Value,
    beats: Callable[..., v.Value] = v.beats,
) -> None:
    """Maxima, and which row has each: its place in the block after first_row; the lowest of equals."""
    pointers = [builder.inttoptr(address, v.POINTER) for address in (maxima, winners)]
    first_row = builder.trunc(first_row, v.WORD)
    rows = [v.splat(builder, builder.add(first_row, v.constant(i, v.WORD))) for i in range(len(products))]

    def better(best: tuple[v.Value, v.Value], later: tuple[v.Value, v.Value]) -> tuple[v.Value, v.Value]:
        taken = beats(builder, later[0], best[0])
        return builder.select(taken, later[0], best[0]), builder.select(taken, later[1], best[1])

    for first, column in zip((0, v.LANES), zip(*products, strict=True), strict=True):
        kinds = zip((v.FLOATS, v.WORDS), pointers, strict=True)
        best = tuple(v.load(builder, kind, pointer, 4 * first) for kind, pointer in kinds)
        for value, pointer in zip(_fold(list(zip(column, rows, strict=True)), better, best), pointers, strict=True):
            v.store(builder, value, pointer, 4 * first)


def _keep_winners_and_all(
    builder: v.Builder, products: Products, maxima: v.Value, winners: v.Value, table: v.Value, first_row: v.Value
) -> None:
    """Winners, NaN being the least, and every similarity; the table gets up to FEW − 1 rows more than there are."""
    _keep_winners(builder, products, maxima, winners, first_row, v.beats_where_number)
    places = [builder.add(first_row, v.constant(i)) for i in range(len(products))]
    _store(builder, products, places, table, v.constant(4 * PANEL))


Item = TypeVar("Item")


def _fold(items: Sequence[Item], combine: Callable[[Item, Item], Item], start: Item) -> Item:
    """Combine neighbours, then neighbours of those: few steps wait for each other. Order is kept; start comes first."""
    while len(items) > 1:
        pairs = [combine(*pair) for pair in zip(items[::2], items[1::2], strict=False)]
        items = [*pairs, *items[2 * len(pairs) :]]
    return combine(start, items[0])


def _over_rows(scheme: Scheme, finish: Callable[..., None]) -> Any:
    """A part (block, scales, scale_step, out, first) for any number of rows, counted from `first`.

    Scales are float32 per row with a scale_step of 4, or a single one with a scale_step of 0. `finish` takes the scaled
    similarities of a block, what is in `out` and the number of its first row.
    """

    def scaled(builder: v.Builder, products: Products, places: list[v.Value], *more: v.Value) -> None:
        finish(builder, _scaled(builder, products, places, *more[:2]), *more[2:])

    whole, small = (_kernel(scheme, room, scaled) for room in (ROWS, FEW))

    @part
    def run(block: Any, scales: int, scale_step: int, out: Any, first: int) -> None:
        rows, count, stride, steps, panel, start = block
        done = 0
        while done + ROWS <= count:
            own = rows + done * stride, ROWS, stride, steps, panel, start
            whole(own, (scales + done * scale_step, scale_step, *out, first + done))
            done += ROWS
        while done < count:
            own = rows + done * stride, min(FEW, count - done), stride, steps, panel, start
            small(own, (scales + done * scale_step, scale_step, *out, first + done))
            done += FEW

    return run


similarity_block = _kernel(Floats(), ROWS, _store)
"""(block, (out, out_stride)): write similarities float32 of count ≤ ROWS rows at out, rows out_stride bytes apart."""

keep_maxima = _over_rows(Floats(), _keep_maxima)
"""(block, scales, scale_step, (maxima,), 0): raise float32 [PANEL] maxima by any number of rows; from −∞ at first."""
keep_winners = _over_rows(Floats(), _keep_winners)
"""(block, scales, scale_step, (maxima, winners), first): and int32 [PANEL] rows, counted from `first`; from −1."""
keep_maxima_of_bytes = _over_rows(INTEGERS, _keep_maxima)
keep_winners_of_bytes = _over_rows(INTEGERS, _keep_winners)
keep_winners_and_all = _over_rows(Floats(), _keep_winners_and_all)
"""(block, scales, scale_step, (maxima, winners, table), first): and all similarities, float32 [rows + FEW − 1][PANEL].

Here NaN is the least: begin with maxima of NaN and winners of 0.
"""
keep_winners_and_all_of_bytes = _over_rows(INTEGERS, _keep_winners_and_all)
