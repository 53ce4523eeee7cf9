"""Who may import whom: the contracts of pyproject.toml hold, and a planted violation breaks them."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

# What each ring may import besides itself, the rings below it and the standard library.
THIRD_PARTY = {
    "domain/": {"attrs", "numpy"},
    "application/": {"attrs", "numpy"},
    "kernels/cpu/": {"llvmlite", "numba", "numpy", "torch"},
    "kernels/gpu/": {"torch", "triton"},
    "kernels/": {"numpy", "torch"},
    "testing/": {"attrs", "hypothesis", "numpy", "pytest"},
    "api/": {"attrs", "numpy"},
}
# These may name a type of an outer ring, or of torch, for the type checker alone.
TYPES_FROM_ANYWHERE = ("__init__.py", "api/", "entrypoints/")


def lint_imports(root: Path, source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """import-linter over the package in `source`, with the contracts of `root`."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache", *options]
    return subprocess.run(
        [*command, "--config", root / "pyproject.toml"],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )


def imported(path: str, tree: ast.Module) -> set[str]:
    """The modules that a module imports, wherever in it."""
    if path.startswith(TYPES_FROM_ANYWHERE):
        parts = [node.orelse if isinstance(node, ast.If) and _is_for_types(node) else [node] for node in tree.body]
        tree = ast.Module([node for part in parts for node in part], [])
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _is_for_types(node: ast.If) -> bool:
    return ast.unparse(node.test) == "TYPE_CHECKING"


def strangers(path: str, tree: ast.Module) -> set[str]:
    """Third-party packages that a module imports and its ring does not allow."""
    allowed = next((names for ring, names in THIRD_PARTY.items() if path.startswith(ring)), None)
    if allowed is None:
        return set()
    packages = {name.partition(".")[0] for name in imported(path, tree)}
    return packages - allowed - sys.stdlib_module_names - {"lateinteraction"}


@pytest.fixture
def copied_package(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "src"


def test_every_import_contract_is_kept(root: Path) -> None:
    outcome = lint_imports(root, root / "src")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("contract", "module", "planted"),
    [
        ("rings", "adapters/flat.py", "import lateinteraction.application.retrieval"),
        ("rings", "application/retrieval.py", "import lateinteraction.adapters.flat"),
        ("rings", "wiring/__init__.py", "import lateinteraction.api"),
        ("adapters", "adapters/flat.py", "import lateinteraction.adapters.huggingface"),
        ("adapters", "adapters/neural/scorer.py", "import lateinteraction.adapters.flat"),
        ("pure", "domain/text.py", "import torch"),
        ("pure", "application/retrieval.py", "import transformers"),
        ("kernels", "kernels/eager/maxsim.py", "import lateinteraction.domain.text"),
        ("compilers", "kernels/eager/maxsim.py", "import numba"),
        ("kernels-protected", "wiring/__init__.py", "import lateinteraction.kernels"),
        ("adapters-protected", "application/retrieval.py", "import lateinteraction.adapters.flat"),
        ("acyclic", "domain/errors.py", "import lateinteraction.domain.ports"),
    ],
)
def test_a_planted_import_breaks_its_contract(
    root: Path, copied_package: Path, contract: str, module: str, planted: str
) -> None:
    with (copied_package / "lateinteraction" / module).open("a") as file:
        file.write(f"\n{planted}\n")
    outcome = lint_imports(root, copied_package, "--contract", contract)
    assert outcome.returncode == 1, outcome.stdout
    assert "0 kept, 1 broken" in outcome.stdout


def test_every_contract_has_a_planted_violation(root: Path) -> None:
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    planted = next(mark for mark in test_a_planted_import_breaks_its_contract.pytestmark if mark.name == "parametrize")
    assert {contract["id"] for contract in contracts} == {contract for contract, _, _ in planted.args[1]}


def test_a_module_that_belongs_to_no_ring_breaks_the_first_contract(root: Path, copied_package: Path) -> None:
    (copied_package / "lateinteraction" / "stray.py").write_text('"""Belongs nowhere."""\n')
    outcome = lint_imports(root, copied_package)
    assert outcome.returncode == 1
    assert "stray" in outcome.stdout + outcome.stderr


def test_the_listed_rings_import_nothing_but_what_is_listed(modules: dict[str, ast.Module]) -> None:
    assert {path: found for path, tree in modules.items() if (found := strangers(path, tree))} == {}


def test_an_unlisted_package_is_noticed_wherever_it_is_imported() -> None:
    hidden = ast.parse("def f():\n    from pandas.core import frame")
    assert strangers("domain/text.py", hidden) == {"pandas"}
    assert strangers("adapters/flat.py", hidden) == set()


def test_api_and_entrypoints_know_adapters_as_types_only(modules: dict[str, ast.Module]) -> None:
    outer = {path: tree for path, tree in modules.items() if path.startswith(TYPES_FROM_ANYWHERE)}
    found = {path: [name for name in imported(path, tree) if ".adapters" in name] for path, tree in outer.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_type_only_import_is_told_from_a_real_one() -> None:
    tree = ast.parse("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\nimport scipy")
    assert imported("api/model.py", tree) == {"numpy", "scipy"}
    assert imported("domain/text.py", tree) == {"torch", "numpy", "scipy"}
