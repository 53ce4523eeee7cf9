"""No program goes beyond what it was given, on this processor or as compiled for lesser ones; results are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

PROGRAM = Path(__file__).parent / "guarded.py"
AVX2 = "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")


def guarded(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", PROGRAM, *arguments]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)


def lanes(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("rule", ["end-read", "end-write", "front-underrun", "front-overrun"])
def test_going_beyond_would_be_seen(rule: str) -> None:
    done = guarded(rule)
    if rule == "front-overrun":
        assert "somebody has written beside" in done.stderr
    else:
        assert done.returncode == -signal.SIGSEGV


def test_nothing_goes_beyond_what_it_was_given() -> None:
    assert lanes(guarded()) >= 4


@pytest.mark.deep
def test_nothing_goes_beyond_what_it_was_given_where_vectors_are_short() -> None:
    assert lanes(guarded(NUMBA_CPU_NAME="generic")) == 4


@pytest.mark.deep
@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="the processor has no AVX2")
def test_nothing_goes_beyond_what_it_was_given_with_vectors_of_eight() -> None:
    assert lanes(guarded(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=AVX2)) == 8
