"""What this machine can do at best, measured in the run, and how far each kernel is from it.

The floor of an operation is the longer of two times: its bytes that must come from memory, at the rate at which one
thread reads 256 MB (the better of `torch.sum` and `torch.dot`); its multiplications and additions, at the best rate
found. For floats that is a loop of multiply-adds in registers (`registers`), since a BLAS may reach half of it; torch's
and NumPy's matrix products are measured too. For bytes it is `torch._int_mm`, which uses VNNI where there is one.
All in CPU time, one thread.
"""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen

from benchmarks.cases.kernels.inputs import Sizes
from benchmarks.cases.kernels.registers import multiply_adds
from benchmarks.harness import Bench, Figure, Timing, clocked

FIGURES = (
    Figure("machine: read bandwidth", "GB/s"),
    Figure("machine: fp32 arithmetic", "GFLOP/s"),
    Figure("machine: fp32 matrix products", "GFLOP/s"),
    Figure("machine: int8 matrix products", "GOP/s"),
)


@frozen
class Work:
    """What an operation cannot do without.

    Args:
        operations: multiplications and additions.
        read: bytes that no cache holds.
        integer: whether the products are of bytes.
    """

    operations: float = 0.0
    read: float = 0.0
    integer: bool = False


@frozen
class Machine:
    """Bytes and operations per second of one thread."""

    read: float
    floats: float
    integers: float

    def floor(self, work: Work) -> float:
        """The least seconds."""
        return max(work.read / self.read, work.operations / (self.integers if work.integer else self.floats))

    def share(self, work: Work, timing: Timing) -> float:
        """The floor as a percentage of the CPU time."""
        return 100 * self.floor(work) / timing.cpu_p50


def measure_machine(bench: Bench, sizes: Sizes) -> Machine:
    """Measure the rates, in turn."""
    stream = torch.ones(sizes.reduced(2**26, 2**12))
    side, rows = sizes.reduced(2048, 64), sizes.reduced(8192, 64)
    square, tall, small = torch.randn(side, side), torch.randn(rows, 128), torch.randn(128, 128)
    array = square.numpy()
    bytes_square, bytes_tall, bytes_small = (
        torch.randint(-127, 128, each.shape, dtype=torch.int8) for each in (square, tall, small)
    )
    in_registers, arithmetic = multiply_adds()
    calls = {
        "read: torch.sum": clocked(stream.sum),
        "read: torch.dot": clocked(lambda: torch.dot(stream, stream)),
        "fp32: in registers": clocked(in_registers),
        "fp32: torch 2048³": clocked(lambda: square @ square),
        "fp32: NumPy 2048³": clocked(lambda: np.matmul(array, array)),
        "fp32: torch [8192, 128]·[128, 128]": clocked(lambda: tall @ small, 4),
        "int8: torch 2048³": clocked(lambda: torch.ops.aten._int_mm(bytes_square, bytes_square), 2),
        "int8: torch [8192, 128]·[128, 128]": clocked(lambda: torch.ops.aten._int_mm(bytes_tall, bytes_small), 20),
    }
    for call in calls.values():
        call()
    timings = bench.in_turn(calls, sizes.repeats)
    cube, flat = 2.0 * side**3, 2.0 * rows * 128 * 128
    work = [stream.nbytes, stream.nbytes, arithmetic, cube, cube, flat, cube, flat]
    rates = [each / timing.cpu_p50 for each, timing in zip(work, timings.values(), strict=True)]
    machine = Machine(max(rates[:2]), max(rates[2:6]), max(rates[6:]))
    names = list(timings)
    for figure, own in zip(FIGURES, (slice(0, 2), slice(2, 3), slice(3, 6), slice(6, 8)), strict=True):
        best = int(np.argmax(rates[own]))
        bench.report(figure.name, rates[own][best] / 1e9, names[own][best])
    return machine
