"""LLVM's vector instructions, as far as kernels need them: plain IR of the width that this processor has.

Each function appends to the block that the builder stands in. Pointers are opaque and offsets are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from lateinteraction.kernels.cpu.processor import processor

Builder = Any
Value = Any

LANES = processor().lanes
BIT = ir.IntType(1)
BYTE = ir.IntType(8)
SHORT = ir.IntType(16)
WORD = ir.IntType(32)
LONG = ir.IntType(64)
HALF = ir.HalfType()
FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()
POINTER = ir.PointerType()


def vector(item: ir.Type, lanes: int = LANES) -> ir.VectorType:
    """The type of a vector."""
    return ir.VectorType(item, lanes)


def integer(bits: int) -> ir.Type:
    """The type of a whole number of so many bits."""
    return ir.IntType(bits)


FLOATS = vector(FLOAT)
WORDS = vector(WORD)


def constant(value: int, kind: ir.Type = LONG) -> Value:
    """A number known when compiling; of a vector, one in every lane."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, value)


def zero(kind: ir.Type) -> Value:
    """Zero, in every lane."""
    return ir.Constant(kind, None)


def at(builder: Builder, pointer: Value, offset: Value | int) -> Value:
    """The pointer, moved by so many bytes."""
    offset = constant(offset) if isinstance(offset, int) else offset
    return builder.gep(pointer, [offset], source_etype=BYTE)


def load(builder: Builder, kind: ir.Type, pointer: Value, offset: Value | int = 0) -> Value:
    """A number or vector that lies anywhere, aligned or not."""
    return builder.load(at(builder, pointer, offset), typ=kind, align=1)


def store(builder: Builder, value: Value, pointer: Value, offset: Value | int = 0) -> None:
    """Write a number or vector anywhere."""
    builder.store(value, at(builder, pointer, offset), align=1)


def fetch(builder: Builder, pointer: Value, offset: Value) -> None:
    """Ask for what will soon be loaded; it need not exist."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER, WORD, WORD, WORD])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [at(builder, pointer, offset), constant(0, WORD), constant(3, WORD), constant(1, WORD)])


def splat(builder: Builder, value: Value, lanes: int = LANES) -> Value:
    """The same number in every lane."""
    kind = vector(value.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, constant(0, WORD))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zero(vector(WORD, lanes)))


def shuffle(builder: Builder, value: Value, lanes: Sequence[int]) -> Value:
    """A vector of the named lanes."""
    mask = ir.Constant(vector(WORD, len(lanes)), [ir.Constant(WORD, lane) for lane in lanes])
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def call(builder: Builder, name: str, result: ir.Type, *arguments: Value) -> Value:
    """Call an intrinsic of LLVM."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def add_product(builder: Builder, left: Value, right: Value, total: Value) -> Value:
    """total + left · right: in one rounding where the processor can, in two elsewhere, everywhere the same on one."""
    if processor().fused:
        suffix = f"v{left.type.count}f32" if isinstance(left.type, ir.VectorType) else "f32"
        return call(builder, f"llvm.fma.{suffix}", left.type, left, right, total)
    return builder.fadd(total, builder.fmul(left, right))


def maximum(builder: Builder, left: Value, right: Value) -> Value:
    """The larger one in each lane; NaN where either is."""
    # One instruction of x86 is `left > right ? left : right`: it hands on NaN from the right only.
    larger = builder.select(builder.fcmp_ordered(">", left, right), left, right)
    return builder.select(builder.fcmp_unordered("uno", left, left), left, larger)


def beats(builder: Builder, later: Value, best: Value) -> Value:
    """Where the later number takes the place of the best so far: it is larger, or the first NaN."""
    larger = builder.fcmp_unordered(">", later, best)
    return builder.and_(larger, builder.fcmp_ordered("ord", best, best))


def beats_where_number(builder: Builder, later: Value, best: Value) -> Value:
    """Where the later number takes the place of the best so far, NaN being the least."""
    larger = builder.fcmp_unordered(">", later, best)
    return builder.and_(larger, builder.fcmp_ordered("ord", later, later))


def loop(
    builder: Builder,
    count: Value,
    carried: Sequence[Value],
    body: Callable[[Value, list[Value]], list[Value]],
) -> list[Value]:
    """Run the body for 0 … count − 1; what it returns is carried to the next round, and out of the last."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(LONG)
    index.add_incoming(constant(0), before)
    values: list[Value] = []
    for value in carried:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        values.append(phi)
    builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
    builder.position_at_end(inside)
    results = body(index, values)
    index.add_incoming(builder.add(index, constant(1)), builder.block)
    for phi, result in zip(values, results, strict=True):
        phi.add_incoming(result, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def keep_in_order(builder: Builder) -> None:
    """Let LLVM move no load across this place; costs no instruction.

    Without it LLVM fetches the operands of many steps ahead of their use, more than there are registers for, and spends
    half of the time writing them to the stack and back (165 instead of 257 GFLOP/s in `products`, of 255 there are).
    """
    builder.fence("seq_cst", "singlethread")
