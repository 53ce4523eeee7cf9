"""Residuals, packed in bytes, as the float32 weights of their buckets."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part

PERMUTES = processor().lanes == 16
"""Whether 16 numbers can be picked from 16 others in one instruction. Per token of 128 dimensions 3.3 ns with 2 bits
and 3.6 ns with 4, where the lookup by bytes takes 7.9 ns and 14.7 ns."""


def _by_bytes(builder: v.Builder, bits: int, source: v.Value, count: v.Value, table: v.Value, target: v.Value) -> None:
    """A wide table: one entry holds the weights of all dimensions in a byte."""
    each = 8 // bits
    kind, size = v.vector(v.FLOAT, each), v.constant(4 * each)

    def step(index: v.Value, _: list[v.Value]) -> list[v.Value]:
        byte = builder.zext(v.load(builder, v.BYTE, source, index), v.LONG)
        weights = v.load(builder, kind, table, builder.mul(byte, size))
        v.store(builder, weights, target, builder.mul(index, size))
        return []

    v.loop(builder, count, [], step)


def weights_of_16(builder: v.Builder, bits: int, weights: v.Value, source: v.Value, index: v.Value) -> v.Value:
    """The weights of dimensions 16 · index … + 15, picked from a vector of the weights repeated.

    What stands above a bucket's own bits in its lane is then of no account.
    """
    words, size = v.vector(v.WORD, 16), 2 * bits
    offset = builder.mul(index, v.constant(size))
    if bits == 4:
        spread = v.shuffle(builder, v.load(builder, v.vector(v.WORD, 2), source, offset), [0] * 8 + [1] * 8)
    else:
        spread = v.splat(builder, builder.zext(v.load(builder, ir.IntType(8 * size), source, offset), v.WORD), 16)
    shifts = ir.Constant(words, [ir.Constant(v.WORD, lane * bits % 32) for lane in range(16)])
    return v.call(builder, "llvm.x86.avx512.permvar.sf.512", v.FLOATS, weights, builder.lshr(spread, shifts))


def _by_vectors(
    builder: v.Builder, bits: int, source: v.Value, vectors: v.Value, weights: v.Value, target: v.Value
) -> None:
    def step(index: v.Value, _: list[v.Value]) -> list[v.Value]:
        found = weights_of_16(builder, bits, weights, source, index)
        v.store(builder, found, target, builder.mul(index, v.constant(64)))
        return []

    v.loop(builder, vectors, [], step)


def _unpacking(bits: int) -> Any:
    """An intrinsic (source, count, table, weights, target): addresses, and how many bytes."""

    def lower(context: Any, builder: v.Builder, _signature: Any, arguments: Any) -> Any:
        source, count, table, weights, target = cgutils.unpack_tuple(builder, arguments[0])
        source, table, weights, target = (
            builder.inttoptr(each, v.POINTER) for each in (source, table, weights, target)
        )
        if PERMUTES:
            vectors = builder.sdiv(count, v.constant(2 * bits))
            _by_vectors(builder, bits, source, vectors, v.load(builder, v.FLOATS, weights), target)
            done = builder.mul(vectors, v.constant(2 * bits))
            source = v.at(builder, source, done)
            target = v.at(builder, target, builder.mul(done, v.constant(32 // bits)))
            count = builder.sub(count, done)
        _by_bytes(builder, bits, source, count, table, target)
        return context.get_dummy_value()

    @intrinsic
    def unpack(_context: Any, arguments: Any) -> Any:
        return types.void(arguments), lower

    return unpack


_unpack_1, _unpack_2, _unpack_4 = (_unpacking(bits) for bits in (1, 2, 4))


@part
def unpack(codec: tuple[int, int, int, int], residuals: int, tokens: int, target: int) -> None:
    """The weights of the buckets of tokens that lie side by side, float32: as many for each as its bytes hold.

    codec: (bits, bytes of a token, wide table (256, 8 / bits), weights repeated (16,)), both tables float32.
    """
    bits, token_bytes, table, weights = codec
    count = tokens * token_bytes
    if bits == 1:
        _unpack_1((residuals, count, table, weights, target))
    elif bits == 2:
        _unpack_2((residuals, count, table, weights, target))
    else:
        _unpack_4((residuals, count, table, weights, target))
