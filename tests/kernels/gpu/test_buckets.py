"""Packed buckets into weights: the selections that the interpreter runs, and the PTX that a device runs instead.

PTX has no interpreter, so here is one for the few instructions used, as the PTX ISA defines them, on many registers at
once.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from lateinteraction.kernels.gpu import buckets
from lateinteraction.kernels.gpu.buckets import load_weights, split_last, weights_of

Registers = NDArray[np.uint32]
formats = pytest.mark.parametrize("width", [1, 2])
bit_widths = pytest.mark.parametrize("bits", [1, 2, 4])


def prmt(a: Registers, b: Registers, selector: Registers) -> Registers:
    """PTX ISA, `prmt.b32`: byte n of the result is the byte of {b, a} that half byte n of the selector names."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(a)
    for n in range(4):
        half = selector >> np.uint32(4 * n) & np.uint32(15)
        byte = both >> (half & np.uint32(7)).astype(np.uint64) * np.uint64(8) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        byte = np.where(half & np.uint32(8), sign, byte)
        result |= (byte << np.uint64(8 * n)).astype(np.uint32)
    return result


OPERATIONS = {"prmt": prmt, "shr": lambda a, n: a >> n, "and": lambda a, b: a & b, "or": lambda a, b: a | b}


def run(code: str, inputs: dict[str, Registers]) -> dict[str, Registers]:
    """Execute it; what it leaves in registers."""
    held = dict(inputs)
    size = next(iter(inputs.values())).shape
    declared, *lines = [line.strip() for line in code.strip("{} ").rstrip(";").split(";")]
    assert declared.startswith(".reg .b32 ")
    for line in lines:
        operation, _, rest = line.partition(".b32 ")
        target, *sources = [each.strip() for each in rest.split(",")]
        values = [
            held[each] if each in held else np.full(size, int(each, 0), np.uint32)  # anything else is a number
            for each in sources
        ]
        assert target not in inputs, "an input is written"
        held[target] = OPERATIONS[operation](*values)
    return held


@triton.jit
def _tables(weights, out, BITS: tl.constexpr, COUNT: tl.constexpr):
    table = load_weights(weights, BITS, tl.float16, True)
    for each in tl.static_range(COUNT):
        tl.store(out + each + tl.zeros((1, 1), tl.int32), table[each])


def registers_of(weights: torch.Tensor, bits: int) -> Registers:
    """The registers that the device code looks weights up in."""
    count = 2 * max(1, 2**bits // 4)
    out = torch.zeros(count, dtype=torch.int32)
    _tables[(1,)](weights, out, bits, count)
    return out.numpy().view(np.uint32)


def looked_up(code: str, bits: int, width: int, words: NDArray[np.uint32], weights: torch.Tensor) -> NDArray[np.uint16]:
    """What the code makes of words (n, words to a register): 16-bit weights (tiles, n, words to a register)."""
    per = 4 // width
    packed = np.zeros(len(words), np.uint32)
    for n in range(per):
        packed |= words[:, n] << np.uint32(8 * width * n)
    outputs = 16 // bits
    inputs = {f"${outputs}": packed}
    for n, register in enumerate(registers_of(weights, bits)):
        for repeat in range(per):
            inputs[f"${outputs + 1 + per * n + repeat}"] = np.full(len(words), register, np.uint32)
    held = run(code, inputs)
    halves = np.stack([held[f"${n}"] for n in range(outputs)])
    pairs = np.stack([halves & np.uint32(0xFFFF), halves >> np.uint32(16)], axis=-1)  # (outputs, n, 2)
    tiles = pairs.reshape(outputs * 2 // per, per // 2, len(words), 2)
    return tiles.transpose(0, 2, 1, 3).reshape(outputs * 2 // per, len(words), per).astype(np.uint16)


def expected(bits: int, width: int, words: NDArray[np.uint32], weights: torch.Tensor) -> NDArray[np.uint16]:
    halves = weights.half().numpy().view(np.uint16)
    tiles = width * 8 // bits
    return np.stack([halves[words >> np.uint32(bits * tile) & np.uint32(2**bits - 1)] for tile in range(tiles)])


def every_word(width: int) -> NDArray[np.uint32]:
    generator = np.random.default_rng(0)
    each = np.arange(256**width, dtype=np.uint32)
    return np.stack([generator.permutation(each) for _ in range(4 // width)], axis=1)


def weights_for(bits: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(bits).standard_normal(2**bits).astype(np.float32))


@formats
@bit_widths
def test_the_device_code_looks_up_the_weight_of_every_bucket_of_every_word(bits: int, width: int) -> None:
    words, weights = every_word(width), weights_for(bits)
    found = looked_up(buckets.permutations(bits, width), bits, width, words, weights)
    np.testing.assert_array_equal(found, expected(bits, width, words, weights))


@formats
@bit_widths
def test_a_wrong_selector_anywhere_would_be_seen(bits: int, width: int) -> None:
    words, weights = every_word(width), weights_for(bits)
    code = buckets.permutations(bits, width)
    for right, wrong in (("0x6240", "0x6204"), ("0x7351", "0x5371"), ("place", "half")):
        changed = re.sub(rf"{right};", f"{wrong};", code, count=1)
        assert changed != code
        if right == "place" and bits == 4:
            continue  # its fourth bit makes `prmt` repeat a sign: seen only where weights have one
        found = looked_up(changed, bits, width, words, weights)
        assert (found != expected(bits, width, words, weights)).any()


@formats
@bit_widths
def test_every_register_of_the_device_code_has_its_constraint(bits: int, width: int) -> None:
    code, constraints = buckets.permutations(bits, width), buckets.operands(bits, width).split(",")
    used = {int(number) for number in re.findall(r"\$(\d+)", code)}
    assert max(used) < len(constraints)
    written = [int(number) for number in re.findall(r"\.b32 \$(\d+)", code)]
    assert sorted(written) == [n for n, constraint in enumerate(constraints) if constraint == "=&r"]


@triton.jit
def _selected(words, weights, out, BITS: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None]
    table = load_weights(weights, BITS, tl.float16, False)
    tiles = weights_of(tl.load(words + at), table, BITS, WIDTH, tl.float16, False)
    for tile in tl.static_range(TILES):
        tl.store(out + tile * SIZE + at, tiles[tile])


@formats
@bit_widths
def test_selections_find_the_same_weights(bits: int, width: int) -> None:
    words, weights = every_word(width)[:256, :1], weights_for(bits)
    out = torch.zeros((width * 8 // bits, 256), dtype=torch.float16)
    typed = words[:, 0].astype(np.uint16).view(np.int16) if width == 2 else words[:, 0].astype(np.uint8)
    _selected[(1,)](torch.from_numpy(typed), weights, out, bits, width, len(out), 256)
    np.testing.assert_array_equal(out.numpy().view(np.uint16), expected(bits, width, words, weights)[:, :, 0])


@triton.jit
def _split(values, out, PARTS: tl.constexpr):
    n, w, p = tl.arange(0, 2), tl.arange(0, 4), tl.arange(0, PARTS)
    places = n[:, None, None] * 4 * PARTS + w[None, :, None] * PARTS + p[None, None, :]
    parts = split_last(tl.load(values + places), PARTS)
    for part in tl.static_range(PARTS):
        tl.store(out + part * 8 + n[:, None] * 4 + w[None, :], parts[part])


@pytest.mark.parametrize("parts", [2, 4, 8, 16])
def test_a_tile_is_split_along_its_last_axis_in_order(parts: int) -> None:
    values = torch.arange(8 * parts).reshape(2, 4, parts)
    out = torch.zeros((parts, 2, 4), dtype=torch.int64)
    _split[(1,)](values, out, parts)
    assert torch.equal(out, values.permute(2, 0, 1))
