"""How each kernel is launched: one row per kernel, architecture and regime, looked up and never tuned at run time.

A kernel stands beside its rows and beside specimens of its calls, from which `tools/ahead_of_time.py` compiles every
row and checks what the row declares of its machine code. A regime is what decides the shape of the tiles: dtypes,
widths, what is computed. Each kernel module names its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    wide_loads: bool = True
    """Whether it reads memory 16 bytes at a time, and nothing of it in pieces of one or two bytes."""


class Specimen(NamedTuple):
    """A call of a kernel in a regime, told without tensors."""

    regime: str
    arguments: Mapping[str, Any]
    """Every parameter but the row's tiles. A string is the type of one that is known when the kernel runs: `*bf16`,
    `i64`, or `i64:16` for a number that 16 divides (pointers are taken to be aligned to 16 bytes). Anything else is
    the value of a constant; 1 and None stand for arguments that Triton makes constants of."""


class Kernel(NamedTuple):
    """A Triton function, its rows, and the calls that they are compiled for."""

    function: triton.JITFunction[Any]
    rows: tuple[Row, ...]
    specimens: tuple[Specimen, ...]

    @property
    def name(self) -> str:
        """What the function is called."""
        return self.function.__name__

    def row(self, architecture: Architecture, regime: str) -> Row:
        """The line for an architecture and a regime.

        Raises:
            TypeError: the table has none.
        """
        for row in self.rows:
            if (row.architecture, row.regime) == (architecture, regime):
                return row
        raise TypeError(f"{self.name} has no configuration for {regime!r} on {architecture}")

    def tile(self, device: torch.device, regime: str, name: str) -> int:
        """One of the row's constants for a device: what the number of programs is counted with."""
        return self.row(architecture_of(device), regime).tiles[name]


def launch(kernel: Kernel, device: torch.device, regime: str, programs: int, arguments: Mapping[str, Any]) -> None:
    """Run so many programs of a kernel on a device; none at all for 0.

    Raises:
        TypeError: there is no configuration for the device or the regime.
    """
    row = kernel.row(architecture_of(device), regime)
    if programs == 0:
        return
    if device.type == "cpu":
        kernel.function[(programs,)](**arguments, **row.tiles)
        return
    with torch.cuda.device(device):
        kernel.function[(programs,)](**arguments, **row.tiles, num_warps=row.warps, num_stages=row.stages)


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
    """How rows of two tensors are multiplied: 16-bit floats and bytes as they are, anything else in float32.

    Raises:
        TypeError: one of them has neither of these dtypes.
    """
    for tensor in (left, right):
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"Triton kernels take float32, float16, bfloat16 and int8, not {tensor.dtype}")
    return _DTYPES[left.dtype] if left.dtype == right.dtype else "single"


def ceil_div(count: int, size: int) -> int:
    """How many pieces of a size hold so many."""
    return -(-count // size)


def tensors_of(*items: Tokens) -> Iterator[Tensor | None]:
    """All that these operands hold: what `device_of` wants."""
    for each in items:
        yield from (each.values, each.spans, each.scales)


def device_of(*tensors: Tensor | None) -> torch.device:
    """The device that all of these are on.

    Raises:
        TypeError: they are on several, or on one that runs no Triton kernel.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) != 1:
        raise TypeError(f"tensors on {' and '.join(sorted(map(str, devices)))}; a kernel wants one device")
    device = devices.pop()
    architecture_of(device)
    return device
