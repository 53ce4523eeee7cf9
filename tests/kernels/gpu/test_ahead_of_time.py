"""Machine code for accelerators that are not here holds what the table declares; and so does the tool that says so."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lateinteraction.kernels.gpu.configurations import Kernel, Row, Specimen

TOOL = Path(__file__).parents[3] / "tools" / "ahead_of_time.py"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("ahead_of_time", TOOL)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["ahead_of_time"] = module
    specification.loader.exec_module(module)
    return module


def run(cache: Path, *options: str) -> tuple[int, str]:
    """The tool's exit status and what it writes; compiled code is kept between runs of the tests."""
    # What is compiled is not covered by the tests, and tracing the compiler doubles its time.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    variables["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, TOOL, "--processes", "1", *options]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


@pytest.fixture
def cache(request: pytest.FixtureRequest) -> Path:
    return request.config.cache.mkdir("triton")


def wrong(lines: str) -> list[str]:
    codes = [json.loads(line) for line in lines.splitlines()]
    return [f"{code['kernel']} {code['regime']!r}: {fault}" for code in codes for fault in code["faults"]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_row_of_every_kernel_compiles_to_what_it_declares(
    architecture: str, tool: ModuleType, cache: Path
) -> None:
    status, lines = run(cache, "--first", "--json", "--architectures", architecture)
    assert wrong(lines) == []
    assert status == 0
    named = [kernel.name for kernel in tool.kernels_of(tool.modules(None))]
    assert [json.loads(line)["kernel"] for line in lines.splitlines()] == named
    assert len(named) >= 4


@pytest.mark.deep
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_compiles_to_what_it_declares(architecture: str, tool: ModuleType, cache: Path) -> None:
    status, lines = run(cache, "--json", "--architectures", architecture)
    assert wrong(lines) == []
    assert status == 0
    kernels = tool.kernels_of(tool.modules(None))
    assert len(lines.splitlines()) == len(list(tool.jobs(kernels, architecture, first=False)))


@pytest.mark.parametrize(
    ("changed", "declared", "fault"),
    [
        ({}, {}, ""),
        ({"stack": 8}, {}, "8 bytes of stack and 0 spills"),
        ({"spills": 1}, {}, "0 bytes of stack and 1 spills"),
        ({"shared": 227 * 1024}, {}, ""),
        ({"shared": 227 * 1024 + 1}, {}, "232449 bytes of shared memory; 232448 are there"),
        ({"architecture": "sm_80", "shared": 99 * 1024 + 1}, {}, "101376 are there"),
        ({"architecture": "gfx942", "shared": 64 * 1024 + 1}, {}, "65536 are there"),
        ({"rounded": 2}, {}, "2 instructions in TF32"),
        ({"short_addresses": ["%3 = …"]}, {}, "products of 32 bits: %3"),
        ({}, {"matrix": "mfma"}, "declares mfma, has none"),
        ({}, {"matrix": None}, "declares no matrix instruction, has 8 wgmma"),
        ({"wide": 0}, {}, "has 0 of 16 bytes"),
        ({"narrow": 1}, {}, "and 1 of one or two"),
        ({"wide": 0, "narrow": 1}, {"wide_loads": False}, ""),
        ({"narrow": 1}, {"wide_loads": "some"}, ""),
        ({"wide": 0}, {"wide_loads": "some"}, "declares some wide loads, has 0 of 16 bytes"),
    ],
)
def test_each_rule_can_be_broken(
    tool: ModuleType, changed: Mapping[str, Any], declared: Mapping[str, Any], fault: str
) -> None:
    code = tool.Code(
        kernel="_k",
        architecture="sm_90",
        regime="r",
        call="",
        shape="",
        registers=255,
        stack=0,
        spills=0,
        shared=0,
        matrix={"mma.sync": 0, "wgmma": 8, "tcgen05": 0, "mfma": 0},
        wide=1,
        narrow=0,
        rounded=0,
        short_addresses=[],
    )
    row = Row("sm_90", "r", {}, matrix="wgmma")
    found = tool.faults(code._replace(**changed), row._replace(**declared))
    assert bool(found) == bool(fault)
    assert fault in " and ".join(found)


TTIR = """
    %c64_i32 = arith.constant 64 : i32 loc(#loc1)
    %pid = tt.get_program_id x : i32 loc(#loc2)
    %columns = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32> loc(#loc3)
    %strided = arith.muli %columns, %c64_i32 : tensor<64xi32> loc(#loc3)
    %tile = arith.muli %pid, %c64_i32 : i32 loc(#loc4)
    %wide = arith.extsi %pid : i32 to i64 loc(#loc5)
    %far = arith.muli %wide, %stride : i64 loc(#loc6)
"""


@pytest.mark.parametrize(
    ("address", "products"),
    [
        ("%p = tt.addptr %base, %columns : tensor<64x!tt.ptr<f32>>, tensor<64xi32>", 0),
        ("%p = tt.addptr %base, %strided : tensor<64x!tt.ptr<f32>>, tensor<64xi32>", 0),  # known when it is compiled
        ("%p = tt.addptr %base, %far : !tt.ptr<f32>, i64", 0),
        ("%p = tt.addptr %base, %tile : !tt.ptr<f32>, i32", 1),
        ("%late = arith.extsi %tile : i32 to i64\n %p = tt.addptr %base, %late : !tt.ptr<f32>, i64", 1),
        ("%n = arith.shli %pid, %c64_i32 : i32\n %p = tt.addptr %base, %n : !tt.ptr<f32>, i32", 1),
        ("%p = tt.addptr %base, %tile : !tt.ptr<f32>, i32\n %q = tt.addptr %p, %tile : !tt.ptr<f32>, i32", 1),
        # What is read is a number of its own, wherever it was read from.
        ("%x = tt.load %where : !tt.ptr<i64>\n %p = tt.addptr %base, %x : !tt.ptr<f32>, i64", 0),
    ],
)
def test_products_of_32_bits_are_found_on_the_way_to_an_address(tool: ModuleType, address: str, products: int) -> None:
    assert len(tool.short_addresses(TTIR + address)) == products


def test_a_row_without_a_call_and_a_kernel_without_a_row_are_errors(tool: ModuleType) -> None:
    class Function:
        __name__ = "_k"

    row, call = Row("sm_90", "r", {}), Specimen("r", {})
    kernel = Kernel(Function(), (row,), (call,))
    assert len(list(tool.jobs([kernel], "sm_90", first=False))) == 1
    with pytest.raises(ValueError, match="no row for sm_80"):
        list(tool.jobs([kernel], "sm_80", first=False))
    with pytest.raises(ValueError, match="no specimen of 'r'"):
        list(tool.jobs([kernel._replace(specimens=())], "sm_90", first=False))


def test_two_kernels_of_one_name_are_an_error(tool: ModuleType) -> None:
    class Function:
        __name__ = "_k"

    module = ModuleType("m")
    module.first, module.second = (Kernel(Function(), (), ()) for _ in range(2))
    with pytest.raises(ValueError, match="two kernels are called _k"):
        tool.kernels_of([module])
    module.second = module.first  # imported under another name
    assert tool.kernels_of([module]) == [module.first]


PLANTED = """
import triton
import triton.language as tl
from lateinteraction.kernels.gpu.configurations import Kernel, Row, Specimen


@triton.jit
def _product(left, right, out, stride, M: tl.constexpr, STEP: tl.constexpr, ROUNDED: tl.constexpr, WIDE: tl.constexpr):
    m = tl.arange(0, M)
    if WIDE:
        rows = tl.cast(tl.program_id(0), tl.int64) * M + m
    else:
        rows = tl.program_id(0) * M + m
    a = tl.load(left + rows[:, None] * stride + m[None, :] * STEP)
    b = tl.load(right + m[:, None] * M * STEP + m[None, :] * STEP)
    tl.store(out + rows[:, None] * M + m[None, :], tl.dot(a, b, input_precision="tf32" if ROUNDED else "ieee"))


def row(architecture, regime, M=64, **others):
    return Row(architecture, regime, {"M": M}, stages=1, **others)


def call(regime, values="*bf16", stride="i64:16", step=1, rounded=False, wide=True):
    given = {"left": values, "right": values, "out": "*fp32", "stride": stride}
    return Specimen(regime, {**given, "STEP": step, "ROUNDED": rounded, "WIDE": wide})


PRODUCT = Kernel(
    _product,
    rows=(
        row("sm_90", "right", matrix="wgmma"),
        row("sm_90", "too small for wgmma", 32, matrix="wgmma"),
        row("sm_90", "declares nothing"),
        row("sm_90", "too large for registers", 128, matrix="mma.sync", warps=1),
        row("sm_90", "unaligned", matrix="wgmma"),
        row("sm_90", "short addresses", matrix="wgmma"),
        row("sm_90", "rounded", matrix="wgmma"),
        row("sm_90", "gathered", matrix="wgmma"),
        row("gfx942", "right", matrix="mfma"),
        row("gfx942", "declares nothing"),
        row("gfx942", "gathered", matrix="mfma"),
    ),
    specimens=(
        call("right"),
        call("too small for wgmma"),
        call("declares nothing"),
        call("too large for registers"),
        call("unaligned", stride="i64"),
        call("gathered", step=3),
        call("short addresses", stride="i32", wide=False),
        call("rounded", values="*fp32", rounded=True),
    ),
)
"""


def test_a_wrong_declaration_is_a_fault(tmp_path: Path, cache: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED)
    status, lines = run(cache, "--json", "--file", str(planted), "--architectures", "sm_90", "gfx942")
    found = {
        (code["architecture"], code["regime"]): " and ".join(code["faults"])
        for code in map(json.loads, lines.splitlines())
    }
    expected = {
        ("sm_90", "right"): [],
        ("sm_90", "too small for wgmma"): ["declares wgmma, has none", "declares wgmma, has 4 mma.sync"],
        ("sm_90", "declares nothing"): ["declares no matrix instruction, has 4 wgmma"],
        ("sm_90", "too large for registers"): ["bytes of stack"],
        ("sm_90", "unaligned"): ["declares wide loads"],
        ("sm_90", "gathered"): ["declares wide loads"],
        ("sm_90", "short addresses"): ["products of 32 bits", "arith.muli"],
        ("sm_90", "rounded"): ["in TF32"],
        ("gfx942", "right"): [],
        ("gfx942", "declares nothing"): ["declares no matrix instruction, has"],
        ("gfx942", "gathered"): ["declares wide loads"],
    }
    assert found.keys() == expected.keys()
    for case, faults in expected.items():
        assert bool(found[case]) == bool(faults), (case, found[case])
        assert all(fault in found[case] for fault in faults), (case, found[case])
    assert status == 1
