"""Makes the environments of the indexes that ours is compared with: `python tools/peers_index.py [folder]`.

Their compiled parts ask for torch 2.11.0 exactly, which PyPI offers for Linux as a CUDA build of 5 GB alone. So there
is one copy of it: `index-t211` holds it, and the other environment, for what contradicts that one, looks there for
whatever it does not hold itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import environment
import peers
from environment import InstallationError
from peers import Peer

TORCH = "torch==2.11.0"
LENDER = "index-t211"
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        LENDER: Peer(
            ((TORCH,), (TORCH, "fast-plaid==1.7.0.2110", "xtr-warp-rs==2.1.0.2110", "numpy==2.4.6")),
        ),
        # What PyLate 1.6.0 asks for, named one by one: its own dependencies would bring torch a second time.
        "pylate-index": Peer(
            (
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
                ("--no-deps", "pylate==1.6.0", "fast-plaid==1.4.6.2110", "xtr-warp-rs==2.0.3.2110"),
            )
        ),
    }
)


def main(arguments: Sequence[str]) -> int:
    """Bring both up to date; the exit status."""
    parent = Path(arguments[0]).absolute() if arguments else peers.FOLDER
    try:
        with Path(__file__).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name, peer in PEERS.items():
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
    expected = peers.stamp_of(folder, peer)
    if peers.read_stamp(folder) == expected:
        return
    if not peers.is_satisfied(folder, peer):
        install(folder, peer)
    (folder / peers.STAMP).write_text(json.dumps(expected), encoding="utf-8")


def install(folder: Path, peer: Peer) -> None:
    """Make it from nothing; whoever does not hold torch borrows it."""
    environment.create(folder)
    if folder.name != LENDER:
        borrow(folder)
    peers.install_step(folder, ("--upgrade", "pip"))
    index = os.environ.get("TORCH_INDEX") or environment.cpu_index()
    for step in peer.steps:
        peers.install_step(folder, (*step, "--extra-index-url", index) if index and step == (TORCH,) else step)
    (folder / "unfinished").unlink()
    print(f"{folder.name}: {environment.megabytes(folder):,.0f} MB installed")


def borrow(folder: Path) -> None:
    """Let an environment find what it lacks in the lender's; what it holds itself comes first."""
    own = next(folder.glob("lib/python*/site-packages"))
    theirs = folder.parent / LENDER / own.relative_to(folder)
    (own / f"borrowed-from-{LENDER}.pth").write_text(f"{theirs}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
