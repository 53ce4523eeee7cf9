"""This side of the requests: a peer is one long-living process that answers one request at a time."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".peers"
THREADS = 2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
MODULES: Mapping[str, str] = MappingProxyType(
    {
        "pylate": "pylate_worker",
        "sentence-transformers": "st_worker",
        "sentence-transformers-onnx": "st_onnx_worker",
        "maxsim-cpu": "maxsim_cpu_worker",
    }
)
"""The worker of each environment."""
SCORING = "pylate_scoring_worker"
"""A second worker for the environment of PyLate: its scores alone, without a model."""


class PeerFailure(Exception):
    """A peer could not do what it was asked for, or ended."""


class PeersNotInstalled(Exception):
    """Environments are missing; says how to make them."""


@frozen
class Embeddings:
    """Rows (T, D) of texts one after another, and the offsets (N + 1,) of the texts in them."""

    tokens: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def of(self, text: int) -> NDArray[np.float32]:
        """The rows of one text."""
        return self.tokens[self.offsets[text] : self.offsets[text + 1]]


class Peer:
    """A running worker. As a context manager it ends with its block.

    Args:
        name: what to call it in errors.
        command: how to start it.
        seconds: how long one answer may take; then it is ended.
        threads: how many it may use.
    """

    def __init__(self, name: str, command: Sequence[str], *, seconds: float = 1800.0, threads: int = THREADS) -> None:
        self.name = name
        self._seconds = seconds
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            cwd=ROOT,
            env=surroundings(threads),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, action: str, **arguments: object) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            PeerFailure: it answered with an error, ended, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(self._seconds, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps({"action": action, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            raise PeerFailure(f"{self.name} ended during {action!r}:\n{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailure(f"{self.name}, {action!r}: {answer['error']}")
        return answer

    def encode(self, texts: Sequence[str], **arguments: object) -> Embeddings:
        """What it makes of these texts."""
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "texts.json", Path(folder) / "rows.npz"
            given.write_text(json.dumps(list(texts)), encoding="utf-8")
            self.ask("encode", texts=str(given), out=str(made), **arguments)
            with np.load(made, allow_pickle=False) as file:
                return Embeddings(file["tokens"], file["offsets"])

    def _last_words(self, most: int = 2_000) -> str:
        self._process.wait()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - most))
        return self._log.read().decode(errors="replace")


def surroundings(threads: int = THREADS) -> dict[str, str]:
    """The environment of every contestant: no network, the same number of threads, nothing of ours to import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "COVERAGE"))}
    given = dict.fromkeys(THREAD_VARIABLES, str(threads))
    return kept | given | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


def interpreter(name: str) -> Path:
    """The Python of a peer's environment."""
    return ENVIRONMENTS / name / "bin" / "python"


def start(name: str, worker: str | None = None, *, threads: int = THREADS) -> Peer:
    """The worker of a peer, or another one, in its environment."""
    command = [str(interpreter(name)), "-m", f"benchmarks.peers.{worker or MODULES[name]}"]
    return Peer(name, command, threads=threads)


def check_installed(names: Sequence[str] = tuple(MODULES)) -> None:
    """Say what is missing.

    Raises:
        PeersNotInstalled: with the command that installs it.
    """
    missing = [name for name in names if not interpreter(name).exists()]
    if missing:
        raise PeersNotInstalled(
            f"not installed below {ENVIRONMENTS.name}: {', '.join(missing)}. Type `make peers`: it installs them, "
            "5 GB in all, and compares."
        )
