"""The configuration table is whole, and every device finds its rows in it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lateinteraction.kernels import gpu
from lateinteraction.kernels.gpu import configurations, pairs
from lateinteraction.kernels.gpu.configurations import Kernel, architecture_of, device_of, launch

MODULES = [importlib.import_module(f"{gpu.__name__}.{each.name}") for each in pkgutil.iter_modules(gpu.__path__)]
KERNELS = {value.name: value for module in MODULES for value in vars(module).values() if isinstance(value, Kernel)}
ARCHITECTURES = {"sm_80", "sm_90", "sm_100", "gfx942", "interpreter"}


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_has_each_of_its_regimes_once_on_every_architecture(name: str) -> None:
    kernel = KERNELS[name]
    places = [(row.architecture, row.regime) for row in kernel.rows]
    regimes = {regime for _, regime in places}
    assert sorted(places) == sorted((architecture, regime) for architecture in ARCHITECTURES for regime in regimes)
    assert {specimen.regime for specimen in kernel.specimens} == regimes


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_row_and_call_together_name_all_parameters(name: str) -> None:
    kernel = KERNELS[name]
    for specimen in kernel.specimens:
        for row in kernel.rows:
            if row.regime == specimen.regime:
                assert not row.tiles.keys() & specimen.arguments.keys()
                assert row.tiles.keys() | specimen.arguments.keys() == set(kernel.function.arg_names)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_nothing_is_compiled_again_for_another_count_or_stride(name: str) -> None:
    """Triton makes a constant of a number that is 1 and a property of 16 being a divisor, unless it is told not to."""
    kernel = KERNELS[name]
    told = kernel.function.kwargs["do_not_specialize"] or ()
    for specimen in kernel.specimens:
        given = {each: kind for each, kind in specimen.arguments.items() if each in _run_time(kernel)}
        numbers = {each: kind for each, kind in given.items() if kind is not None and not str(kind).startswith("*")}
        assert set(numbers.values()) <= {"i32"}
        assert numbers.keys() <= set(told)


def _run_time(kernel: Kernel) -> set[str]:
    parameters = inspect.signature(kernel.function.fn).parameters.values()
    return {each.name for each in parameters if each.annotation != "tl.constexpr"}


def test_rows_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, device = pairs.PAIR_SCORES, torch.device("cpu")
    row = kernel.row(device, "half")
    assert row is next(each for each in kernel.rows if each[:2] == ("interpreter", "half"))
    monkeypatch.setattr(configurations, "architecture_of", None)
    assert kernel.row(device, "half") is row


def test_a_table_that_was_replaced_is_looked_up_anew() -> None:
    kernel, device = pairs.PAIR_SCORES, torch.device("cpu")
    row = kernel.row(device, "half")._replace(warps=1)
    assert kernel._replace(rows=(row,)).row(device, "half") is row


def test_kernels_are_launched_from_the_table_alone() -> None:
    """A `kernel[grid](…)` elsewhere would run what no row declares and nothing has compiled."""
    found = []
    for path in sorted(Path(gpu.__path__[0]).glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found += [path.name for call in calls if isinstance(call.func, ast.Subscript)]
    assert set(found) == {"configurations.py"}


@pytest.fixture
def no_device_is_known() -> Iterator[None]:
    """Architectures are remembered by device; these tests change what a device is."""
    architecture_of.cache_clear()
    yield
    architecture_of.cache_clear()


@pytest.mark.usefixtures("no_device_is_known")
@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_80"),  # 99 KB of shared memory, and neither wgmma nor tcgen05
    ],
)
def test_a_device_is_served_by_the_rows_whose_instructions_it_has(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], architecture: str
) -> None:
    monkeypatch.setattr(configurations, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert architecture_of(torch.device("cuda", 0)) == architecture


@pytest.mark.usefixtures("no_device_is_known")
def test_a_device_without_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    with pytest.raises(TypeError, match=r"compute capability 7\.5"):
        architecture_of(torch.device("cuda", 0))
    with pytest.raises(TypeError, match="not on cpu"):
        device_of({"values": torch.ones(1)})


def test_a_regime_without_a_row_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="_pair_scores has no configuration for 'quarter' on interpreter"):
        launch(pairs.PAIR_SCORES, torch.device("cpu"), "quarter", 0, {})
