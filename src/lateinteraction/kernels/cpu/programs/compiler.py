"""From a function to machine code that stands alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core import codegen, types
from numba.core import config as numba_config

from lateinteraction.kernels.cpu.processor import processor

_OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "nogil": True,
}


def part(function: Callable[..., Any]) -> Any:
    """A function that programs call; it becomes part of theirs."""
    return numba.njit(**_OPTIONS)(function)


def compiled(function: Callable[..., None], arguments: int) -> tuple[str, bytes]:
    """The symbol and the object file of a function of so many int64.

    It is called as numba calls its own: two addresses of 8 bytes each, for a result and an error, go before the
    arguments, and 0 comes back unless it raised. (Numba's wrapper for callers in C would need Python's runtime.)

    Raises:
        RuntimeError: the function needs the runtime of Python or numba; numba would compile for another processor than
            kernels were written for, or not at all.
    """
    config: Any = numba_config
    if config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set: kernels cannot be compiled, force the eager form instead")
    own = processor()
    name = config.CPU_NAME or own.name
    features = config.CPU_FEATURES if config.CPU_FEATURES is not None else codegen.get_host_cpu_features()
    if set(features.split(",")) != set(own.features.split(",")) or name != own.name:
        raise RuntimeError(
            f"numba compiles for {name} ({features}), not {own.name} ({own.features}): set its processor by "
            "environment variables alone, before the first use"
        )
    dispatcher = numba.njit(**_OPTIONS)(function)
    signature = (types.int64,) * arguments
    dispatcher.compile(signature)
    result = dispatcher.overloads[signature]
    _, _, (machine_code, bitcode) = result.library.serialize_using_object_code()
    if outside := _needed_from_outside(bitcode):
        raise RuntimeError(f"{function.__qualname__} needs {', '.join(outside)}, which no program may")
    return result.fndesc.llvm_func_name, machine_code


def _needed_from_outside(bitcode: bytes) -> list[str]:
    """What a module calls or reads that it does not define, but for instructions that LLVM calls functions."""
    module = llvm.parse_bitcode(bitcode)
    names = (each.name for each in (*module.functions, *module.global_variables) if each.is_declaration)
    return sorted(name for name in names if not name.startswith("llvm."))
