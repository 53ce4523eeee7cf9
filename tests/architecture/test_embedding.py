"""The built wheel serves inside another program, and changes nothing of that program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be published."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("lateinteraction-*.whl"))


@pytest.fixture(scope="session")
def second_project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages, as another project would hold them."""
    folder = tmp_path_factory.mktemp("second") / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def embed(second_project: Path, folder: Path, statement: str = "") -> dict[str, Any]:
    """What the host program saw."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("host_program.py"), statement],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(second_project), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_wheel_holds_the_package_its_types_and_its_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "lateinteraction/py.typed" in names
    assert "lateinteraction/domain/text.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lateinteraction"}
    assert [name for name in names if "/test_" in name or "conftest" in name or name.endswith(".pyc")] == []


def test_the_wheel_holds_every_module(wheel: Path, modules: dict[str, object]) -> None:
    assert {f"lateinteraction/{path}" for path in modules} <= set(zipfile.ZipFile(wheel).namelist())


def test_a_host_finds_the_same_from_every_thread_and_itself_unchanged(second_project: Path, tmp_path: Path) -> None:
    seen = embed(second_project, tmp_path)
    assert Path(seen["location"]).is_relative_to(second_project)
    assert seen["agreed"] is True
    assert seen["changed"] == []


def test_every_change_to_the_host_is_noticed(second_project: Path, tmp_path: Path) -> None:
    changes = {
        "signal handlers": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "root logger": "logging.basicConfig(level=10)",
        "our loggers": "logging.getLogger('lateinteraction.api').setLevel(10)",
        "environment": "os.environ['TOKENIZERS_PARALLELISM'] = 'false'",
        "folder": "os.chdir('/')",
        "locale": "locale.setlocale(locale.LC_ALL, 'C')",
        "warning filters": "warnings.simplefilter('ignore')",
        "hooks": "sys.excepthook = print",
        "streams": "sys.stderr = open(os.devnull, 'w')",
        "recursion limit": "sys.setrecursionlimit(5000)",
        "multiprocessing": "multiprocessing.set_start_method('spawn', force=True)",
        "random state": "torch.manual_seed(7)",
        "numpy errors": "np.seterr(all='raise')",
        "torch threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
        "torch defaults": "torch.set_default_dtype(torch.float64)",
        "torch precision": "torch.set_float32_matmul_precision('medium')",
    }
    assert sorted(embed(second_project, tmp_path, "; ".join(changes.values()))["changed"]) == sorted(changes)
