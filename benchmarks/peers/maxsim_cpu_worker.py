# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""maxsim-cpu 0.1.0 answering requests; runs with the interpreter of .peers/maxsim-cpu.

Its threads follow RAYON_NUM_THREADS, which the process is started with. It has one function for documents of several
lengths, which takes a list of arrays; they are views of one packed array here, made before anything is timed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import maxsim_cpu
import numpy as np

from benchmarks.peers.serving import Answer, serve, timed


@lru_cache(maxsize=1)
def load(file: str) -> Any:
    """The query and the documents of a file with `query`, `tokens` and `offsets`; the last one is kept."""
    with np.load(file, allow_pickle=False) as arrays:
        offsets = arrays["offsets"]
        return arrays["query"], np.split(arrays["tokens"], offsets[1:-1])


def scores(file: str, out: str) -> Answer:
    """The score of every document."""
    query, documents = load(file)
    np.save(out, np.asarray(maxsim_cpu.maxsim_scores_variable(query, documents), np.float32))
    return {}


def time(file: str) -> Answer:
    """Score them; nothing is written."""
    query, documents = load(file)
    return timed(lambda: maxsim_cpu.maxsim_scores_variable(query, documents))


if __name__ == "__main__":
    serve({"scores": scores, "time": time})
