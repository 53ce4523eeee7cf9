"""Makes the virtual environments of the libraries that ours is compared with: `python tools/peers.py [folder]`.

Each peer has its own below `.peers/`, because their requirements contradict each other and ours. Like
`environment.py`, whose parts it uses, it remembers what it installed and does nothing when nothing changed.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import environment
from environment import InstallationError

FOLDER = environment.ROOT / ".peers"
STAMP = "installed.json"
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """One environment: the arguments of one `pip install` after another, and where it finds what it lacks."""

    steps: tuple[tuple[str, ...], ...]
    lender: str | None = None

    @property
    def pins(self) -> tuple[str, ...]:
        """The requirements that name one version."""
        return tuple(each for step in self.steps for each in step if "==" in each)


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        # PyLate 1.6.0 asks for a fast-plaid that asks for torch 2.11 at most, whose wheels bring 5 GB of CUDA, and we
        # want every contestant on one torch. Its encoder needs neither: so both come last, without what they ask for.
        "pylate": Peer(
            (
                (TORCH,),
                (
                    TORCH,
                    "sentence-transformers==5.3.0",
                    "transformers==5.3.0",
                    "datasets",
                    "accelerate",
                    "pandas",
                    "fastkmeans==0.5.0",
                    "ujson==5.12.0",
                    "ninja==1.11.1.4",
                ),
                ("--no-deps", "pylate==1.6.0", "fast-plaid==1.4.6.2110"),
            )
        ),
        "sentence-transformers": Peer(((TORCH,), (TORCH, "sentence-transformers==6.2.0"))),
        # The last release whose ONNX backend pip can install: 6.2.0 asks for transformers 5, its optimum-onnx for less
        # than 4.58; installed against its will, that one fails to import a name that transformers 5 dropped.
        "sentence-transformers-onnx": Peer(
            ((TORCH,), (TORCH, "sentence-transformers[onnx]==5.3.0", "transformers<4.58"))
        ),
        "maxsim-cpu": Peer((("maxsim-cpu==0.1.0", "numpy==2.4.6"),)),
    }
)


def main(arguments: Sequence[str], wanted: Mapping[str, Peer] = PEERS) -> int:
    """Bring every environment up to date; the exit status."""
    parent = Path(arguments[0]).absolute() if arguments else FOLDER
    try:
        with Path(__file__).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name, peer in wanted.items():
                bring_up_to_date(parent / name, peer)
    except InstallationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; the next call starts over", file=sys.stderr)
        return 130
    return 0


def bring_up_to_date(folder: Path, peer: Peer) -> None:
    """Install what the stamp does not vouch for; an environment made by hand that holds the same is taken as it is."""
    expected = stamp_of(folder, peer)
    if read_stamp(folder) == expected:
        return
    if not is_satisfied(folder, peer):
        install(folder, peer)
    (folder / STAMP).write_text(json.dumps(expected), encoding="utf-8")


def stamp_of(folder: Path, peer: Peer) -> dict[str, object]:
    """What is written into a whole environment: scripts in it name its place, so the place is part of it."""
    return {"steps": [list(step) for step in peer.steps], "folder": str(folder), "python": list(sys.version_info[:2])}


def read_stamp(folder: Path) -> object:
    """What was installed; None when unknown."""
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_satisfied(folder: Path, peer: Peer) -> bool:
    """Whether the environment is whole, lies where it was made, and holds each pinned version."""
    if (folder / STAMP).exists() or (folder / "unfinished").exists() or not environment.has_pip(folder):
        return False
    pins = [pin.split("==") for pin in peer.pins]
    code = "import importlib.metadata as m, sys; print(sys.prefix); print(*map(m.version, sys.argv[1:]))"
    names = [name.partition("[")[0] for name, _ in pins]
    found = subprocess.run(
        [environment.python_of(folder), "-c", code, *names], capture_output=True, text=True, check=False
    )
    if found.returncode:
        return False
    prefix, versions = found.stdout.splitlines()
    wanted = [version for _, version in pins]
    return prefix == str(folder) and [each.partition("+")[0] for each in versions.split()] == wanted


def install(folder: Path, peer: Peer) -> None:
    """Make it from nothing: these environments are never mended."""
    environment.create(folder)
    if peer.lender is not None:
        borrow(folder, peer.lender)
    install_step(folder, ("--upgrade", "pip"))
    index = os.environ.get("TORCH_INDEX") or environment.cpu_index()
    for step in peer.steps:
        # PyTorch's index serves torch alone.
        install_step(folder, (*step, "--extra-index-url", index) if index and is_torch(step) else step)
    (folder / "unfinished").unlink()
    print(f"{folder.name}: {environment.megabytes(folder):,.0f} MB installed")


def is_torch(step: Sequence[str]) -> bool:
    """Whether a step installs torch and nothing else."""
    return len(step) == 1 and step[0].startswith("torch==")


def borrow(folder: Path, lender: str) -> None:
    """Let an environment find what it lacks in one beside it; what it holds itself comes first."""
    own = next(folder.glob("lib/python*/site-packages"))
    theirs = folder.parent / lender / own.relative_to(folder)
    (own / f"borrowed-from-{lender}.pth").write_text(f"{theirs}\n", encoding="utf-8")


def install_step(folder: Path, arguments: Sequence[str]) -> None:
    """One `pip install`, announced and timed."""
    print(f"  {' '.join(arguments):.90} …", end="", flush=True)
    began = time.monotonic()
    try:
        environment.run_pip(folder, "install", *arguments)
    finally:
        print(f" {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
