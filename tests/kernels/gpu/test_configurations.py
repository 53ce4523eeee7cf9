"""The configuration table is whole, and every device finds its rows in it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
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


def test_kernels_are_launched_from_the_table_alone() -> None:
    """A `kernel[grid](…)` elsewhere would run what no row declares and nothing has compiled."""
    found = []
    for path in sorted(Path(gpu.__path__[0]).glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found += [path.name for call in calls if isinstance(call.func, ast.Subscript)]
    assert set(found) == {"configurations.py"}


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


def test_a_device_without_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    with pytest.raises(TypeError, match=r"compute capability 7\.5"):
        architecture_of(torch.device("cuda", 0))
    with pytest.raises(TypeError, match="not on cpu"):
        device_of(torch.ones(1))


def test_a_regime_without_a_row_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="_pair_scores has no configuration for 'quarter' on interpreter"):
        launch(pairs.PAIR_SCORES, torch.device("cpu"), "quarter", 0, {})
