"""How each kernel is launched: one row per kernel, architecture and regime, looked up and never tuned at run time.

A kernel stands beside its rows and beside specimens of its calls, from which `tools/ahead_of_time.py` compiles every
row and checks what the row declares of its machine code. A regime is what decides the shape of the tiles: dtypes,
widths, what is computed. Each kernel module names its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs

from lateinteraction.kernels.operands import Tokens

Architecture = Literal["sm_80", "sm_90", "sm_100", "gfx942", "interpreter"]
MatrixInstruction = Literal["mma.sync", "wgmma", "tcgen05", "mfma"]

INTERPRETED: bool = knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on the host: decided by TRITON_INTERPRET before the first import."""

_NVIDIA: tuple[tuple[tuple[int, int], Architecture], ...] = (
    ((12, 0), "sm_80"),  # Blackwell for desktops: neither wgmma nor tcgen05, and 99 KB of shared memory
    ((10, 0), "sm_100"),
    ((9, 0), "sm_90"),
    ((8, 0), "sm_80"),
)
_AMD: Mapping[str, Architecture] = {"gfx942": "gfx942", "gfx950": "gfx942"}


_DTYPES: Mapping[torch.dtype, Literal["half", "single", "int8"]] = {
    torch.float32: "single",
    torch.float16: "half",
    torch.bfloat16: "half",
    torch.int8: "int8",
}


class Row(NamedTuple):
    """One line of the table: how a kernel is compiled for an architecture in a regime."""

    architecture: Architecture
    regime: str
    tiles: Mapping[str, int]
    """Constants of the kernel that change its speed and nothing else."""
    warps: int = 4
    stages: int = 3
    matrix: MatrixInstruction | None = None
    """The one kind of matrix instruction that its machine code has; None where it must have none at all."""
    wide_loads: bool | Literal["some"] = True
    """Whether it reads memory 16 bytes at a time, and nothing of it in pieces of one or two bytes: some where rows are
    read so and what says which rows they are is not."""


class Specimen(NamedTuple):
    """A call of a kernel in a regime, told without tensors."""

    regime: str
    arguments: Mapping[str, Any]
    """Every parameter but the row's tiles. A string is the type of one that is known when the kernel runs: `*bf16`,
    `i64`, or `i64:16` for a number that 16 divides (pointers are taken to be aligned to 16 bytes). Anything else is
    the value of a constant, and so is None for a tensor that is absent. Counts and strides are told to Triton in
    `do_not_specialize`: it would compile again for each that is 1 or that 16 divides, in the middle of a call."""


class Kernel(NamedTuple):
    """A Triton function, its rows, and the calls that they are compiled for."""

    function: triton.JITFunction[Any]
    rows: tuple[Row, ...]
    specimens: tuple[Specimen, ...]

    @property
    def name(self) -> str:
        """What the function is called."""
        return self.function.__name__

    def __hash__(self) -> int:
        """By name: rows hold mappings."""
        return hash(self.name)

    def row(self, device: torch.device, regime: str) -> Row:
        """The line for a device and a regime.

        Raises:
            TypeError: the table has none.
        """
        return _row_of(self, device, regime)

    def tile(self, device: torch.device, regime: str, name: str) -> int:
        """One of the row's constants for a device: what the number of programs is counted with."""
        return self.row(device, regime).tiles[name]


@functools.cache
def _row_of(kernel: Kernel, device: torch.device, regime: str) -> Row:
    """Looked up once: a search of the table takes as long as a launch."""
    architecture = architecture_of(device)
    for row in kernel.rows:
        if (row.architecture, row.regime) == (architecture, regime):
            return row
    raise TypeError(f"{kernel.name} has no configuration for {regime!r} on {architecture}")


def launch(kernel: Kernel, device: torch.device, regime: str, programs: int, arguments: Mapping[str, Any]) -> None:
    """Run so many programs of a kernel on a device; none at all for 0.

    Raises:
        TypeError: there is no configuration for the device or the regime.
    """
    row = kernel.row(device, regime)
    if programs == 0:
        return
    if device.type == "cpu":
        kernel.function[(programs,)](**arguments, **row.tiles)
        return
    with torch.cuda.device(device):
        kernel.function[(programs,)](**arguments, **row.tiles, num_warps=row.warps, num_stages=row.stages)


@functools.cache
def architecture_of(device: torch.device) -> Architecture:
    """The architecture whose rows serve a device: its own, or the newest one whose instructions it has too.

    Raises:
        TypeError: no row serves it; the host does only under the interpreter.
    """
    if INTERPRETED:
        return "interpreter"
    if device.type != "cuda":
        raise TypeError(f"Triton kernels run on CUDA and ROCm devices, not on {device}")
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
        if name in _AMD:
            return _AMD[name]
    else:
        capability = torch.cuda.get_device_capability(device)
        name = f"compute capability {capability[0]}.{capability[1]}"
        for oldest, architecture in _NVIDIA:
            if capability >= oldest:
                return architecture
    raise TypeError(f"no configuration serves {name}, the architecture of {device}")


def precision_of(left: Tensor, right: Tensor) -> Literal["half", "single", "int8"]:
    """How rows of two tensors are multiplied: 16-bit floats and bytes as they are, other floats in float32.

    Raises:
        TypeError: one of them has neither of these dtypes, or one is int8 and the other is not.
    """
    for tensor in (left, right):
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"Triton kernels take float32, float16, bfloat16 and int8, not {tensor.dtype}")
    if left.dtype == right.dtype:
        return _DTYPES[left.dtype]
    if torch.int8 in (left.dtype, right.dtype):
        raise TypeError(f"rows of {left.dtype} with rows of {right.dtype}: int8 meets int8 alone")
    return "single"


def ceil_div(count: int, size: int) -> int:
    """How many pieces of a size hold so many."""
    return -(-count // size)


ALIGNED = 16
"""What divides a count of entries wherever a pointer is moved by it, or rows are read 16 bytes at once."""


RAGGED: Mapping[int, str] = {ALIGNED: "", 1: "ragged "}
"""What the name of a regime begins with, by the unit of its counts: with 1, rows of so many entries begin anywhere."""


def unit_of(*counts: int) -> int:
    """What counts are told to a kernel in units of, so that it knows how rows of so many entries are aligned."""
    return ALIGNED if all(count % ALIGNED == 0 for count in counts) else 1


def aligned(count: int) -> int:
    """A size of pieces, about so many entries each, that leaves every piece's pointer as aligned as the first one's."""
    return max(ALIGNED, count // ALIGNED * ALIGNED)


def tensors_of(queries: Tokens, documents: Tokens) -> dict[str, Tensor | None]:
    """All that these operands hold, by name: what `device_of` wants."""
    return {
        "query values": queries.values,
        "query spans": queries.spans,
        "query scales": queries.scales,
        "document values": documents.values,
        "document spans": documents.spans,
        "document scales": documents.scales,
    }


def device_of(operands: Mapping[str, Tensor | None]) -> torch.device:
    """The device of the first of these, which all others are on.

    Raises:
        TypeError: they are on several, or on one that runs no Triton kernel; spans or pairs that are not int64, with
            which addresses would be computed in 32 bits.
    """
    for name, tensor in operands.items():
        if tensor is not None and name.endswith(("spans", "pairs")) and tensor.dtype != torch.int64:
            raise TypeError(f"{name} of {tensor.dtype}, where int64 is wanted")
    devices = {name: tensor.device for name, tensor in operands.items() if tensor is not None}
    home = next(iter(devices.values()))
    away = [name for name, device in devices.items() if device != home]
    if away:
        raise TypeError(
            f"{', '.join(away)} on {devices[away[0]]}, but {next(iter(devices))} on {home}: a kernel wants one device. "
            f"Spans, or the offsets that they are made of, and pairs belong where the values are: move them to {home}."
        )
    architecture_of(home)
    return home
