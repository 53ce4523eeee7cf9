"""A worker's side of the requests: one JSON object a line in, one JSON object a line out, arrays through files.

Runs with the interpreter of a peer: the standard library and NumPy alone. What libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Rows = Sequence[Any]  # arrays (tokens, dimension) of a text each
Answer = dict[str, object]


def serve(actions: Mapping[str, Callable[..., Answer]]) -> None:
    """Answer requests `{"action": name, …}` until there are no more; a failing one is answered with its error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = actions[request.pop("action")](**request)
        except Exception as error:  # whatever a peer raises is news for whoever asked
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def read_texts(path: str) -> list[str]:
    """A JSON list of texts."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_rows(path: str, rows: Rows) -> Answer:
    """All rows in one array `tokens` (T, D), and `offsets` (N + 1,) of the texts in it, as an .npz file."""
    lengths = [len(each) for each in rows]
    tokens = np.concatenate([np.asarray(each, np.float32) for each in rows])
    np.savez(path, tokens=tokens, offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    return {"texts": len(lengths), "tokens": int(tokens.shape[0]), "dimension": int(tokens.shape[1])}


def timed(call: Callable[[], object]) -> Answer:
    """Wall and CPU seconds of one call, and the peak memory of this process so far (MB)."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_rss_mb": peak_memory() // 1_000_000}


def memory_growth(call: Callable[[], object], kept: int = 0) -> Answer:
    """Bytes by which one call raises the peak of this process above what is resident before it, less what it `kept`.

    Everybody is measured with this, each in a fresh process that has made the same call on something tiny before.
    """
    _give_back_free_memory()
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # the peak starts anew from what is resident
    before = resident_memory()
    call()
    return {"growth": peak_memory() - before - kept}


def _give_back_free_memory() -> None:
    """The C library keeps what was freed; a call that gets it again would seem to need nothing."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def resident_memory() -> int:
    """Bytes of this process that are resident; the peak where the system does not tell."""
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int:
    """Most bytes that this process has had resident.

    `ru_maxrss` would not do on Linux: it starts from what the process that started this one had.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))
