"""Where things lie: the rows of an item, the row of a table that belongs to a code; how many blocks things make."""

from __future__ import annotations

from collections.abc import Sequence

from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.memory import int64s


@part
def span_of(spans: tuple[int, int, int], item: int) -> tuple[int, int]:
    """First row of an item and the one after its last; spans = (address, bytes between items, bytes within one)."""
    address, step, width = spans
    return int64s(address + item * step)[0], int64s(address + item * step + width)[0]


@part
def smaller(left: int, right: int) -> int:
    """The smaller of two numbers. `min` is a function of numba's that could raise, for all LLVM knows."""
    return left if left < right else right  # noqa: FURB136


@part
def blocks_of(count: int, size: int) -> int:
    """How many blocks of a size hold so many things."""
    return (count + size - 1) // size


def row_address(builder: v.Builder, table: Sequence[v.Value], code: v.Value) -> v.Value:
    """Where the row of a code is: in the table, or in a copy of its last rows that may be read beyond their end.

    table: (values, edge, inside, row_bytes); codes from `inside` on are in the edge, whose address is the one that
    row 0 would have there.
    """
    values, edge, inside, row_bytes = table
    start = builder.select(builder.icmp_signed("<", code, inside), values, edge)
    return builder.add(start, builder.mul(code, row_bytes))
