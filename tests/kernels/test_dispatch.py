"""Which form computes: by device and precision, or by somebody's word; what is missing is said."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lateinteraction import kernels
from lateinteraction.kernels import dispatch
from lateinteraction.kernels.form import Form
from lateinteraction.kernels.operands import Tokens

ONE = Tokens(torch.ones(1, 2), torch.tensor([[0, 1]]), 1)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda name: name != package)


@pytest.mark.parametrize(
    ("device", "dtype", "form"),
    [
        ("cpu", torch.float32, "cpu"),
        ("cpu", torch.int8, "cpu"),
        ("cpu", torch.float64, "eager"),
        ("cuda", torch.bfloat16, "gpu"),
        ("cuda", torch.float64, "eager"),
        ("mps", torch.float32, "eager"),
    ],
)
def test_device_and_precision_choose(device: str, dtype: torch.dtype, form: str) -> None:
    if form == "gpu" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton has no wheel for this platform")
    choice = kernels.form_for(device, dtype)
    assert choice.form == form
    assert choice.reason


@pytest.fixture
def _warned_of_nothing() -> Iterator[None]:
    dispatch._warn_of_slowness.cache_clear()
    yield
    dispatch._warn_of_slowness.cache_clear()


@pytest.mark.usefixtures("_warned_of_nothing")
def test_without_numba_the_eager_twin_computes_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "numba")
    with pytest.warns(RuntimeWarning, match="numba is not installed"):
        assert kernels.maxsim_all_pairs(ONE, ONE).tolist() == [[2.0]]
    choice = kernels.form_for("cpu", torch.float32)  # a second warning would be an error
    assert choice.form == "eager"
    assert "numba is not installed" in choice.reason


@pytest.mark.usefixtures("_warned_of_nothing")
def test_without_numba_nobody_is_warned_who_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors here."""
    without(monkeypatch, "numba")
    for device, dtype in (("cpu", torch.float64), ("mps", torch.float32), ("cuda", torch.float64)):
        kernels.form_for(device, dtype)
    with kernels.use("eager"):
        kernels.maxsim_all_pairs(ONE, ONE)
    monkeypatch.setenv(dispatch.VARIABLE, "eager")
    kernels.maxsim_all_pairs(ONE, ONE)


def test_importing_without_numba_warns_of_nothing(tmp_path: Path) -> None:
    script = (
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'numba' else found(name, package)\n"
        "import torch, lateinteraction.kernels as k\n"
        "print('imported')\n"
        "k.form_for('cpu', torch.float32)\n"
    )
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stdout.strip() == "imported"
    assert "numba is not installed" in result.stderr


def test_without_triton_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "triton")
    with pytest.raises(kernels.MissingForm, match=r"lateinteraction\[gpu\]"):
        kernels.form_for("cuda", torch.float32)
    with kernels.use("eager"):
        assert kernels.form_for("cuda", torch.float32).form == "eager"


def test_a_form_can_be_forced_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    with kernels.use("eager"):
        assert kernels.form_for("cpu").form == "eager"
        with kernels.use("cpu"):
            assert kernels.form_for("cpu").form == "cpu"
        assert kernels.form_for("cpu").form == "eager"
    assert "forced" in kernels.form_for("cpu").reason


def test_a_form_is_forced_for_one_thread_alone() -> None:
    seen: list[str] = []
    with kernels.use("eager"):
        thread = threading.Thread(target=lambda: seen.append(kernels.form_for("cpu").form))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_a_form_can_be_forced_for_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "eager")
    assert kernels.form_for("cpu").form == "eager"
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    with pytest.raises(kernels.MissingForm, match="fast"):
        kernels.form_for("cpu")
    with pytest.raises(kernels.MissingForm, match="fast"):
        kernels.maxsim_all_pairs(ONE, ONE)


def test_a_forced_form_that_cannot_compute_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with kernels.use("gpu"), pytest.raises(kernels.MissingForm, match="does not compute on cpu"):
        kernels.maxsim_all_pairs(ONE, ONE)
    with kernels.use("cpu"), pytest.raises(kernels.MissingForm, match="does not compute on cuda"):
        kernels.form_for("cuda")


@pytest.mark.parametrize("name", ["eager", "cpu", "gpu"])
def test_every_form_has_every_operation_as_it_is_written_down(name: dispatch.FormName) -> None:
    form = dispatch.load(name)
    for operation, declared in inspect.getmembers(Form, inspect.isfunction):
        if not operation.startswith("_"):
            assert inspect.signature(getattr(form, operation)) == inspect.signature(declared), operation


def test_the_public_functions_are_those_of_the_forms() -> None:
    operations = {name for name, _ in inspect.getmembers(Form, inspect.isfunction) if not name.startswith("_")}
    gradients = {name for name in operations if name.endswith("_gradients")}
    assert operations - gradients <= set(kernels.__all__)


def test_importing_the_kernels_imports_no_form() -> None:
    script = (
        "import sys, lateinteraction.kernels as k\n"
        "print([name for name in ('numba', 'llvmlite', 'triton') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
