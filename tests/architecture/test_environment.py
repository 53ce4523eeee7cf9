"""The make targets set themselves up: what they install, when they do not, and what they say when they cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HIDE = "import sys; sys.modules['ensurepip'] = None; import runpy; sys.argv[:] = sys.argv[1:]; "


@pytest.fixture(scope="module")
def environment(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", root / "tools" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    return tmp_path / "environment with a space"


class Server(BaseHTTPRequestHandler):
    """Answers /torch/, and holds back its answer to anything else."""

    def do_GET(self) -> None:
        if self.path != "/torch/":
            time.sleep(1.0)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """make, as if typed by hand: not as a part of the make that may run these tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-C", str(root), *arguments]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=False)


def stamp_as_done(environment: ModuleType, folder: Path, project: dict[str, Any], changes: dict[str, str]) -> None:
    """An environment that says it is up to date, without being one."""
    folder.mkdir()
    stamp = {"fingerprint": environment.fingerprint(project), "folder": str(folder), "index": None} | changes
    environment.stamp_path(folder, "demo").write_text(json.dumps(stamp))


def test_nothing_is_done_when_nothing_changed(
    environment: ModuleType, folder: Path, project: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stamp_as_done(environment, folder, project, {})
    assert environment.main([str(folder), "demo"]) == 0
    assert [path.name for path in folder.iterdir()] == ["installed-demo.json"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", [{"fingerprint": "of another day"}, {"folder": "/elsewhere"}])
def test_something_is_done_when_something_changed(
    environment: ModuleType, folder: Path, project: dict[str, Any], change: dict[str, str]
) -> None:
    stamp_as_done(environment, folder, project, change)
    # There is no environment here to change, and a folder with other things in it is not taken for one.
    assert environment.main([str(folder), "demo"]) == 1


def test_another_index_for_torch_is_a_change(
    environment: ModuleType, folder: Path, project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp_as_done(environment, folder, project, {"index": "https://a.example"})
    monkeypatch.setenv("TORCH_INDEX", "https://a.example")
    assert environment.main([str(folder), "demo"]) == 0
    monkeypatch.setenv("TORCH_INDEX", "https://b.example")
    assert environment.main([str(folder), "demo"]) == 1


def test_the_fingerprint_follows_what_is_installed_and_not_how_it_is_linted(
    environment: ModuleType, project: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = environment.fingerprint(project)
    assert environment.fingerprint(project | {"tool": {}}) == before
    assert environment.fingerprint(project | {"dependency-groups": {"dev": ["pytest>=9"]}}) != before
    other = tmp_path / "constraints.txt"
    other.write_text("torch==2.14.0\n")
    monkeypatch.setattr(environment, "CONSTRAINTS", other)
    assert environment.fingerprint(project) != before


def test_a_folder_that_is_no_environment_is_left_alone(
    environment: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    assert environment.main([str(folder), "demo"]) == 1
    assert (folder / "letter.txt").read_text() == "dear"
    assert "holds something else than an environment" in capsys.readouterr().err


def test_two_versions_of_python_are_not_mixed(
    environment: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.8.10\n")
    assert environment.main([str(folder), "demo"]) == 1
    assert "was made with Python 3.8.10" in capsys.readouterr().err


def test_a_python_without_ensurepip_is_one_error_that_names_the_package(root: Path, folder: Path) -> None:
    script = root / "tools" / "environment.py"
    run = f"{HIDE}runpy.run_path({str(script)!r}, run_name='__main__')"
    command = [sys.executable, "-c", run, "environment.py", str(folder), "demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    assert f"sudo apt-get install {package}" in done.stderr
    assert not folder.exists()


def test_a_failing_installation_shows_what_pip_said_and_leaves_no_stamp(environment: ModuleType, folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "unfinished").touch()
    with pytest.raises(environment.InstallationError, match=r"(?s)no-such-package.*(No matching|No module)"):
        environment.run_pip(folder, "install", "--no-index", "no-such-package")
    assert [path.name for path in folder.iterdir()] == ["bin"]


def test_an_index_that_answers_is_told_from_one_that_does_not(environment: ModuleType, address: str) -> None:
    assert environment.answers(f"{address}/torch/", 10.0) is True
    assert environment.answers("http://127.0.0.1:9/torch/", 10.0) is False


def test_the_probe_of_an_index_waits_no_longer_than_it_says(environment: ModuleType, address: str) -> None:
    began = time.monotonic()
    assert environment.answers(f"{address}/slow/", 0.2) is False
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize("script", ["#!/bin/sh\necho Python 3.10.13\nexit 1\n", None])
def test_a_python_that_is_too_old_is_one_clear_error(root: Path, tmp_path: Path, script: str | None) -> None:
    python = tmp_path / "python3.10"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    done = make(root, "demo", f"PYTHON={python}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert ("Python 3.10.13" if script else "absent") in done.stderr
    assert not (tmp_path / "venv").exists()


def test_every_target_is_explained(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    shown = make(root).stdout
    wanted = [name for name in phony if not name.startswith("environment-") and name != "format"]
    assert [name for name in wanted if f"make {name} " not in shown] == []


def test_ci_runs_the_commands_that_a_person_types(root: Path) -> None:
    script = (root / ".ci" / "run").read_text()
    assert re.findall(r"^make (\S+)$", script, re.MULTILINE) == ["demo", "check", "test"]
    assert os.access(root / ".ci" / "run", os.X_OK)
