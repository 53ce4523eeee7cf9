"""The processor that is compiled for, and every operation on tokens as compiled for lesser ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from lateinteraction.kernels.cpu.processor import Processor, detect, processor

PROGRAM = Path(__file__).parent / "guarded_maxsim.py"
AVX2 = "avx,avx2,bmi,bmi2,f16c,fma,popcnt,sse3,sse4.1,sse4.2,ssse3"
AVX512 = f"{AVX2},avx512bw,avx512dq,avx512f,avx512vl"


def host(features: str) -> tuple[str, dict[str, bool]]:
    return "somelake", dict.fromkeys(features.split(","), True) | {"avx10.2": False}


def detected(features: str, triple: str = "x86_64-unknown-linux-gnu", **environment: str) -> Processor:
    return detect(environment, triple, host(features))


@pytest.mark.parametrize(
    ("features", "lanes", "rows", "fused", "halves", "byte_dots"),
    [
        ("sse2", 4, 6, False, False, False),
        ("avx,sse4.2,f16c", 4, 6, False, False, False),  # AVX without AVX2 has no whole numbers
        ("fma,avxvnni,avx512vnni", 4, 6, False, False, False),
        (AVX2, 8, 6, True, True, False),
        ("avx2", 8, 6, False, False, False),
        (f"{AVX2},avxvnni", 8, 6, True, True, True),
        (f"{AVX2},avx512f,avx512vnni", 8, 6, True, True, False),  # without the rest it is not of use
        (AVX512, 16, 12, True, True, False),
        (f"{AVX512},avxvnni", 16, 12, True, True, False),
        (f"{AVX512},avx512vnni", 16, 12, True, True, True),
    ],
)
def test_kernels_use_what_the_processor_has(
    features: str, lanes: int, rows: int, fused: bool, halves: bool, byte_dots: bool
) -> None:
    found = detected(features)
    assert found[2:] == (lanes, rows, fused, halves, byte_dots)
    assert found.panel == 2 * lanes
    assert found.few * 3 == rows


def test_a_processor_of_another_kind_gets_plain_instructions() -> None:
    assert detected("neon,dotprod,fp16fml", "aarch64-unknown-linux-gnu")[2:] == (4, 12, True, False, False)
    assert detected("neon", "arm64-apple-darwin23")[2:] == (4, 12, True, False, False)
    assert detected("v,zvl128b", "riscv64-unknown-linux-gnu")[2:] == (4, 6, False, False, False)


def test_what_numba_is_told_to_compile_for_is_what_counts() -> None:
    assert detected(AVX512, NUMBA_CPU_NAME="generic")[:3] == ("generic", "", 4)
    assert detected("sse2", NUMBA_CPU_FEATURES="+avx2,+fma,-avx512f").lanes == 8
    assert detected(AVX512, NUMBA_CPU_NAME="haswell")[:1] == ("haswell",)
    assert detected(AVX512, NUMBA_CPU_NAME="haswell").lanes == 16  # numba keeps the features of the host
    without = detected(f"{AVX512},avx512vnni", NUMBA_ENABLE_AVX="0")
    assert without.lanes == 4
    assert "-avx512f" in without.features


def test_this_processor_is_the_one_numba_compiles_for() -> None:
    from numba.core import codegen

    assert processor().name == os.environ.get("NUMBA_CPU_NAME", llvm.get_host_cpu_name())
    if not {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"} & os.environ.keys():
        assert set(processor().features.split(",")) == set(codegen.get_host_cpu_features().split(","))


def checked(**variables: str) -> list[int]:
    """Run the program of tests where numba is told of another processor; the kernels' lanes, rows, fused, byte_dots."""
    done = subprocess.run(
        [sys.executable, "-W", "error", PROGRAM],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(each) for each in done.stdout.split()]


def on(name: str, features: str) -> list[int]:
    if not all(llvm.get_host_cpu_features().get(feature) for feature in features.split(",")):
        pytest.skip(f"this processor cannot run code for {name}")
    return checked(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=",".join(f"+{each}" for each in features.split(",")))


linux = pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")


@linux
@pytest.mark.deep
def test_everything_is_right_on_this_processor() -> None:
    own = processor()
    assert checked() == [own.lanes, own.rows, own.fused, own.byte_dots]


@linux
def test_everything_is_right_on_a_plain_processor() -> None:
    assert checked(NUMBA_CPU_NAME="generic") == [4, 6, 0, 0]


@linux
@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "features", "shape"),
    [
        ("haswell", AVX2, [8, 6, 1, 0]),
        ("alderlake", f"{AVX2},avxvnni", [8, 6, 1, 1]),
        ("skylake-avx512", AVX512, [16, 12, 1, 0]),
        ("icelake-server", f"{AVX512},avx512vnni", [16, 12, 1, 1]),
    ],
)
def test_everything_is_right_on_other_processors(name: str, features: str, shape: list[int]) -> None:
    assert on(name, features) == shape
