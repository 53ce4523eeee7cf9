"""What needs fresh processes: the time from a start to the first embedding, the memory that a stream holds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import Timing
from benchmarks.peers import process

TEXT = "Late interaction keeps an embedding for every token of a document."
_OURS = """
import sys
import lateinteraction as li
model = li.load_model(sys.argv[1], device="cpu", runtime=sys.argv[2])
print(model.encode_documents([sys.argv[3]], output="numpy").tokens.shape, flush=True)
"""
_LOADED = "print(sum(name in sys.modules for name in ('torch', 'transformers')))"
_SENTENCE_TRANSFORMERS = """
import sys
from sentence_transformers import MultiVectorEncoder
model = MultiVectorEncoder(sys.argv[1], device="cpu")
print(model.encode_document([sys.argv[2]], convert_to_numpy=True)[0].shape, flush=True)
"""
_PYLATE = """
import sys
from pylate import models
model = models.ColBERT(sys.argv[1], device="cpu")
print(model.encode([sys.argv[2]], is_query=False, show_progress_bar=False)[0].shape, flush=True)
"""
# Current memory after a warm-up, then the peak: whatever the model and the libraries hold is not counted.
_STREAM = """
import itertools, json, os, sys, warnings
import lateinteraction as li
from benchmarks.peers.serving import peak_memory
warnings.simplefilter("ignore", UserWarning)
folder, texts, count = sys.argv[1], json.load(open(sys.argv[2], encoding="utf-8")), int(sys.argv[3])
model = li.load_model(folder, device="cpu")
model.encode_documents(texts[:256], output="numpy")
resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
documents = itertools.islice(itertools.cycle(texts), count)
seen = rows = 0
for piece in model.stream_documents(documents):
    seen, rows = seen + len(piece.embeddings), rows + len(piece.embeddings.tokens)
assert seen == count, (seen, count)
print(json.dumps({"above_mb": (peak_memory() - resident) / 1e6, "rows": rows}))
"""


def cold_start_commands(torch_folder: Path, onnx_folder: Path) -> dict[str, list[str]]:
    """A small script for each contestant: import, load, embed one document."""
    peer = {name: str(process.interpreter(name)) for name in ("pylate", "sentence-transformers")}
    return {
        "cold start: ours, torch": [sys.executable, "-c", _OURS, str(torch_folder), "torch", TEXT],
        "cold start: ours, ONNX": [sys.executable, "-c", _OURS, str(onnx_folder), "onnx", TEXT],
        "cold start: sentence-transformers": [
            peer["sentence-transformers"], "-c", _SENTENCE_TRANSFORMERS, str(torch_folder), TEXT,
        ],
        "cold start: PyLate": [peer["pylate"], "-c", _PYLATE, str(torch_folder), TEXT],
    }  # fmt: skip


def cold_starts(commands: Mapping[str, Sequence[str]], repeats: int) -> dict[str, Timing]:
    """Seconds from starting a process to its first line of output, one after another; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(repeats + 1):
        for name, command in commands.items():
            took = to_first_line(command)
            if repeat:
                seconds[name].append(took)
    return {name: Timing(tuple(each), (float("nan"),) * len(each)) for name, each in seconds.items()}


def to_first_line(command: Sequence[str]) -> float:
    """Seconds from starting a process to its first line of output.

    Raises:
        PeerFailure: it ended without one.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=process.surroundings()
    ) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        took = time.perf_counter() - began
        _, errors = running.communicate()
    if not line:
        raise process.PeerFailure(f"{command[0]} gave no embedding:\n{errors[-2000:]}")
    return took


def heavy_modules_loaded(onnx_folder: Path) -> int:
    """How many of torch and transformers a process of ours has loaded after embedding with ONNX Runtime."""
    command = [sys.executable, "-c", _OURS + _LOADED, str(onnx_folder), "onnx", TEXT]
    return int(_output(command).splitlines()[-1])


def memory_of_stream(folder: Path, texts: Sequence[str], count: int, scratch: Path) -> tuple[float, int]:
    """Peak memory above the model (MB) of embedding a stream of so many documents, and the rows it gave."""
    given = scratch / "stream.json"
    given.write_text(json.dumps(list(texts)), encoding="utf-8")
    found = json.loads(_output([sys.executable, "-c", _STREAM, str(folder), str(given), str(count)]))
    return found["above_mb"], found["rows"]


def _output(command: Sequence[str]) -> str:
    environment = process.surroundings()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=process.ROOT, check=False)
    if done.returncode:
        raise process.PeerFailure(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout
