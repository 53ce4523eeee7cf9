"""How the suite itself runs: without a network, and with what was asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = """
import os, pytest
from hypothesis import settings

def test_profile(): assert settings.default.max_examples == int(os.environ["EXPECTED"])

@pytest.mark.deep
def test_deep(): pass

@pytest.mark.gpu
def test_gpu(): pass
"""


def run_sample(root: Path, folder: Path, expected: int, *options: str, **variables: str) -> str:
    """The closing line of pytest on a few tests, with our conftest and configuration."""
    (folder / "test_sample.py").write_text(SAMPLE)
    unset = {"HYPOTHESIS_PROFILE", "CI", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        [*command, "-c", root / "pyproject.toml", "--rootdir", folder, folder / "test_sample.py"],
        env=inherited | variables | {"PYTHONPATH": str(root / "tests"), "EXPECTED": str(expected)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()[-1].rpartition(" in ")[0]


@pytest.mark.parametrize(
    ("variables", "expected", "closing"),
    [
        ({}, 25, "1 passed, 2 deselected"),
        ({"CI": "true"}, 100, "1 passed, 2 deselected"),
        ({"HYPOTHESIS_PROFILE": "deep", "CI": "true"}, 500, "2 passed, 1 deselected"),
    ],
)
def test_the_profile_decides_how_many_examples_and_whether_deep_tests_run(
    root: Path, tmp_path: Path, variables: dict[str, str], expected: int, closing: str
) -> None:
    assert run_sample(root, tmp_path, expected, **variables) == closing


@pytest.mark.parametrize("mark", ["gpu", "deep"])
def test_a_mark_that_is_asked_for_is_run(root: Path, tmp_path: Path, mark: str) -> None:
    assert run_sample(root, tmp_path, 25, "-m", mark) == "1 passed, 2 deselected"


def test_a_mark_that_nobody_declared_is_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "test_typo.py").write_text("import pytest\n\n@pytest.mark.dep\ndef test(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", root / "pyproject.toml", tmp_path / "test_typo.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "'dep' not found in `markers`" in done.stdout


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org"])
def test_no_test_reaches_the_network(host: str) -> None:
    with pytest.raises(AssertionError, match=f"tests need no network; this one asked for '{host}'"):
        socket.create_connection((host, 9), timeout=1)


def test_the_machine_itself_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
