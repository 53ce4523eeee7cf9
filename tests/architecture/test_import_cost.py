"""Importing is cheap, and the inner rings need no torch at all."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "accelerate",
    "pandas",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numba",
    "pyarrow",
    "scipy",
    "datasets",
    "bm25s",
}
BLOCKER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "tokenizers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""
INNER_RINGS = """
import importlib, pkgutil
import lateinteraction.application, lateinteraction.domain

count = 0
for package in (lateinteraction.domain, lateinteraction.application):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        count += 1
assert count > 10, count
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def heavy_modules_after(statements: str) -> set[str]:
    """Heavy packages that are loaded once the statements have run in a new process."""
    done = python(f"{statements}\nimport sys\nprint('\\n' + ' '.join(sys.modules))")
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    return loaded & HEAVY


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert heavy_modules_after("import lateinteraction") == set()


def test_importing_the_package_loads_no_numpy_either() -> None:
    done = python("import sys, lateinteraction; print('numpy' in sys.modules)")
    assert done.stdout.split() == ["False"], done.stderr


def test_the_help_of_the_command_loads_nothing_heavy() -> None:
    run_help = "from lateinteraction.entrypoints.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass"
    assert heavy_modules_after(run_help) == set()


def test_the_detector_sees_a_heavy_import() -> None:
    assert "torch" in heavy_modules_after("import torch")


def test_the_public_names_that_need_torch_are_loaded_when_used() -> None:
    assert heavy_modules_after("import lateinteraction; lateinteraction.Document('1', 'text')") == set()


def test_domain_and_application_run_without_torch() -> None:
    done = python(BLOCKER + INNER_RINGS)
    assert done.returncode == 0, done.stderr


def test_the_blocker_makes_torch_unavailable() -> None:
    done = python(BLOCKER + "import lateinteraction.kernels")
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr
