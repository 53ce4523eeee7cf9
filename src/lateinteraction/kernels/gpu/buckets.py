"""Packed buckets into their weights, in registers: the values that a product of matrices takes, and no load for any.

Device functions. A tile of words (M, W), of one byte or two each, becomes 8/b tiles of weights (M, W) for every byte of
a word: of P tiles, tile p has dimension w P + p of word w. A product sums over dimensions, so it takes them tile by
tile, as long as the query tokens come in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Device code has no unpacking into tuples: they are added.
# ruff: noqa: RUF005


@triton.constexpr_function
def tiles_of(BITS: int, WIDTH: int) -> int:
    """How many tiles of weights a tile of words of WIDTH bytes makes."""
    return WIDTH * (8 // BITS)


@triton.constexpr_function
def permutations(BITS: int, WIDTH: int) -> str:
    """PTX: a register of packed words into registers of two 16-bit weights each, by byte permutations.

    `prmt` takes four bytes out of eight; each half byte of its selector says which. Buckets of 1 and 2 bits, masked
    into half bytes, are such selectors of the bytes of the weights: one `prmt` finds the low bytes of four weights, one
    the high bytes, and two put them together. Of 16 weights the low eight and the high eight are looked up with the low
    three bits of a bucket, and the fourth bit, moved into a selector of its own, takes one of the two. A weight costs
    1.3 instructions, or 2.8 with 4 bits, where a tree of comparisons and selections costs 5 and 19.

    Outputs: for each tile p the weights of the words of the register, two to a register. Inputs: the register; for the
    low bytes of all weights, then for the high bytes, one register per four of them (each repeated, as the operands of
    `inline_asm_elementwise` are, for every word of the register).
    """
    words = 4 // WIDTH
    outputs = 16 // BITS
    tables = max(1, 2**BITS // 4)

    def table(high: int, part: int) -> str:
        return f"${outputs + 1 + words * (high * tables + part)}"

    code = [".reg .b32 packed, half, place, pick, low, high, low_top, high_top;"]
    # Two words of two bytes lie as a b c d; their first bytes, then their second, have to lie side by side.
    code.append(f"prmt.b32 packed, ${outputs}, ${outputs}, {'0x3120' if WIDTH == 2 else '0x3210'};")
    for pair in range(2):
        for slot in range(4 // BITS):
            code.append(f"shr.b32 half, packed, {16 * pair + BITS * slot};")
            code.append(f"and.b32 place, half, {({1: 0x11111111, 2: 0x33333333, 4: 0x77777777})[BITS]};")
            if BITS < 4:
                code += [f"prmt.b32 {name}, {table(high, 0)}, 0, place;" for high, name in enumerate(("low", "high"))]
            else:
                code += ["shr.b32 pick, half, 1;", "and.b32 pick, pick, 0x4444;", "or.b32 pick, pick, 0x3210;"]
                for high, name in enumerate(("low", "high")):
                    code.append(f"prmt.b32 {name}, {table(high, 0)}, {table(high, 1)}, place;")
                    code.append(f"prmt.b32 {name}_top, {table(high, 2)}, {table(high, 3)}, place;")
                    code.append(f"prmt.b32 {name}, {name}, {name}_top, pick;")
            for upper, selector in enumerate(("0x6240", "0x7351")):
                here = slot + upper * (4 // BITS)
                output = pair * (8 // BITS) + here if WIDTH == 2 else here * 2 + pair
                code.append(f"prmt.b32 ${output}, low, high, {selector};")
    return "{ " + " ".join(code) + " }"


@triton.constexpr_function
def operands(BITS: int, WIDTH: int) -> str:
    """The constraints of `permutations`: outputs that are written before all inputs are read, then inputs."""
    words = 4 // WIDTH
    return ",".join(["=&r"] * (16 // BITS) + ["r"] * (1 + words * 2 * max(1, 2**BITS // 4)))


@triton.jit
def split_last(values, PARTS: tl.constexpr):
    """A tile (N, W, PARTS) as a tuple of PARTS tiles (N, W), PARTS a power of two."""
    if PARTS == 1:
        return (tl.reshape(values, values.shape[:2]),)
    else:  # noqa: RET505 — one of the branches is compiled, and the other would not be
        even, odd = tl.split(tl.reshape(values, values.shape[:2] + (PARTS // 2, 2)))
        evens = split_last(even, PARTS // 2)
        odds = split_last(odd, PARTS // 2)
        parts = ()
        for each in tl.static_range(PARTS // 2):
            parts = parts + (evens[each], odds[each])
        return parts


@triton.jit
def load_weights(weights, BITS: tl.constexpr, TYPE: tl.constexpr, PERMUTE: tl.constexpr):
    """What `weights_of` looks weights up in: a tuple of tiles (1, 1).

    Loaded as tiles, not as numbers, for the compiler's sake: it moves the change of layout that a product wants from
    the weights up to the packed words only where everything it passes comes from loads.
    """
    place = tl.zeros((1, 1), tl.int32)
    loaded = ()
    for bucket in tl.static_range(1 << BITS):
        loaded = loaded + (tl.cast(tl.load(weights + bucket + place), TYPE),)
    if PERMUTE:
        COUNT: tl.constexpr = min(4, 1 << BITS)
        table = ()
        for high in tl.static_range(2):
            for first in tl.static_range(0, 1 << BITS, COUNT):
                packed = tl.zeros((1, 1), tl.int32)
                for each in tl.static_range(COUNT):
                    halves = tl.cast(tl.cast(loaded[first + each], tl.int16, bitcast=True), tl.int32)
                    packed |= ((halves >> (8 * high)) & 0xFF) << (8 * each)
                table = table + (packed,)
    else:
        table = loaded
    return table


@triton.jit
def weights_of(words, table, BITS: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr, PERMUTE: tl.constexpr):
    """The tiles of weights, a tuple, of a tile of packed words: uint8 with WIDTH 1, int16 with 2."""
    if PERMUTE:
        halves = tl.inline_asm_elementwise(
            permutations(BITS, WIDTH),
            operands(BITS, WIDTH),
            (words,) + table,
            dtype=(tl.int16,) * tiles_of(BITS, WIDTH),
            is_pure=True,
            pack=4 // WIDTH,
        )
        tiles = ()
        for part in tl.static_range(tiles_of(BITS, WIDTH)):
            tiles = tiles + (tl.cast(halves[part], TYPE, bitcast=True),)
    else:
        tiles = ()
        for part in tl.static_range(tiles_of(BITS, WIDTH)):
            tiles = tiles + (choose(words >> (part * BITS), table, BITS),)
    return tiles


@triton.jit
def choose(buckets, weights, BITS: tl.constexpr):
    """The weight of each bucket, from a tuple of 2^b: selections bit by bit. Higher bits are not looked at."""
    left = weights
    for bit in tl.static_range(BITS):
        odd = ((buckets >> bit) & 1) != 0
        halved = ()
        for pair in tl.static_range(1 << (BITS - 1 - bit)):
            halved = halved + (tl.where(odd, left[2 * pair + 1], left[2 * pair]),)
        left = halved
    return left[0]
