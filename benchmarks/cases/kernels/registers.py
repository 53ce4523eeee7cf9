"""How many multiplications and additions one thread makes where nothing waits for memory: the arithmetic of a core.

A loop of fused multiply-adds on vectors that stay in registers, in LLVM's own words, compiled for this processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llvmlite.binding as llvm

CHAINS = 12
"""Sums that do not wait for each other: a multiply-add takes 4 cycles and two start in each; 16 registers hold 12."""
STEPS = 1_000_000


def multiply_adds() -> tuple[Callable[[], object], float]:
    """A call, and how many multiplications and additions it makes."""
    features = llvm.get_host_cpu_features()
    lanes = 16 if features.get("avx512f") else 8 if features.get("avx") else 4
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, flags = llvm.get_host_cpu_name(), features.flatten()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=name, features=flags, opt=3, codemodel="jitdefault", jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_program(lanes)), machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, ctypes.c_float)(engine.get_function_address("run"))

    def call() -> float:
        assert engine, "the code lives as long as its engine"
        return function(STEPS, 0.5)

    return call, 2.0 * lanes * CHAINS * STEPS


def _program(lanes: int) -> str:
    """Each chain is x ← x · factor + factor from a start of its own; all are returned, so that none is left out."""
    vector = f"<{lanes} x float>"
    splat = f"shufflevector {vector} %seed, {vector} poison, <{lanes} x i32> zeroinitializer"
    fma = f"@llvm.fma.v{lanes}f32"
    carried = "\n".join(
        f"  %x{chain} = phi {vector} [ {_constant(lanes, chain + 1)}, %entry ], [ %y{chain}, %loop ]"
        for chain in range(CHAINS)
    )
    steps = "\n".join(
        f"  %y{chain} = call {vector} {fma}({vector} %x{chain}, {vector} %factor, {vector} %factor)"
        for chain in range(CHAINS)
    )
    total = "\n".join(
        f"  %t{chain} = fadd {vector} {f'%t{chain - 1}' if chain > 1 else '%y0'}, %y{chain}"
        for chain in range(1, CHAINS)
    )
    return f"""
declare {vector} {fma}({vector}, {vector}, {vector})
define float @run(i64 %count, float %given) {{
entry:
  %seed = insertelement {vector} poison, float %given, i32 0
  %factor = {splat}
  br label %loop
loop:
  %step = phi i64 [ 0, %entry ], [ %next, %loop ]
{carried}
{steps}
  %next = add i64 %step, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %end
end:
{total}
  %sum = extractelement {vector} %t{CHAINS - 1}, i32 0
  ret float %sum
}}
"""


def _constant(lanes: int, value: int) -> str:
    return "<" + ", ".join([f"float {value}.0"] * lanes) + ">"
