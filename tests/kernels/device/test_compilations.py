"""A kernel that ran once is not compiled again for more documents, shorter queries or a later piece of a call."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from every_operation import CALLS, IN_TORCH, OPERATIONS, make
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import BaseBackend
from triton.runtime.interpreter import InterpretedFunction

from lateinteraction.kernels.dispatch import load
from lateinteraction.kernels.gpu import sums, top_k, xtr

SIZES = (((1, 1), (1, 1)), ((3, 17), (9, 20)), ((16, 32), (64, 48)), ((2, 40), (200, 33)), ((5, 7), (77, 100)))
"""Items and tokens of the longest: queries, documents. Some counts are 1, some are divided by 16."""

Call = tuple[str, Mapping[str, Any]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What would be launched; nothing runs, so that outputs hold anything."""
    found: list[Call] = []

    def run(function: Any, *, grid: object, warmup: bool, **arguments: Any) -> None:
        found.append((function, arguments))

    monkeypatch.setattr(InterpretedFunction, "run", run)
    return found


def constants_and_key(function: Any, arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What a caller decides, and what Triton finds in arguments of the run besides: both are compiled for."""
    constants, key = [], []
    for name, parameter in inspect.signature(function.fn).parameters.items():
        given = arguments[name]
        if parameter.annotation == "tl.constexpr" or given is None:
            constants.append(given)
            key.append(None)
            continue
        specialise = name not in (function.kwargs["do_not_specialize"] or ())
        kind, found = native_specialize_impl(BaseBackend, given, False, specialise, True)
        constants.append(kind if isinstance(given, torch.Tensor) else "")
        key.append(found)
    return tuple(constants), tuple(key)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(*call, id=f"{call[0]}, {str(call[1]).removeprefix('torch.')}") for call in CALLS],
)
def test_sizes_and_pieces_compile_nothing_new(
    name: str, dtype: torch.dtype, launches: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "MAXIMA_BYTES", 4 * 1_000)
    monkeypatch.setattr(top_k, "KEYS_AT_ONCE", 50)
    monkeypatch.setattr(xtr, "KEYS_AT_ONCE", 3_000)
    keys: dict[tuple[Any, ...], set[tuple[Any, ...]]] = defaultdict(set)
    for queries, documents in SIZES:
        world = make(0, dtype, queries=queries, documents=documents, width=64)
        OPERATIONS[name](load("gpu"), world)
    for function, arguments in launches:
        constants, key = constants_and_key(function, arguments)
        keys[(function.__name__, *constants)].add(key)
    assert bool(keys) != (name in IN_TORCH)
    for kernel, found in keys.items():
        assert len(found) == 1, (kernel, found)
        assert set(*found) <= {None, "D"}, (
            kernel,
            found,
        )  # every pointer is aligned, as rows were compiled and checked
