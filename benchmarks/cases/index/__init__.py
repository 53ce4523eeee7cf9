"""The stored index: against the indexes of PyLate, fast-plaid and xtr-warp-rs at equal recall, and against its targets.

What is measured in each part stands in its module: `comparison`, `building`, `single`, `writing`, `lexical`, `scaling`.
Peers' indexes were built by `make peers-index`; figures that need one which is not there are not measured, and said so.
PARTS="building single" chooses parts, CORPORA="cranfield vaswani" what is compared on; with either, or with
DOCUMENTS=2000 or REPEATS=3, the run is a trial, which is never recorded.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

import torch

from benchmarks.cases.index import building, comparison, lexical, scaling, single, writing
from benchmarks.cases.index.contestants import CONFIGURATIONS
from benchmarks.cases.index.sizes import CHOICES, VARIABLES, Sizes
from benchmarks.harness import Bench, end_trial
from lateinteraction import kernels

PARTS: Mapping[str, ModuleType] = MappingProxyType(
    {
        "comparison": comparison,
        "building": building,
        "single": single,
        "writing": writing,
        "lexical": lexical,
        "scaling": scaling,
    }
)
FIGURES = tuple(figure for part in PARTS.values() for figure in part.FIGURES)


def run(bench: Bench) -> None:
    """Check and measure everything, or the parts that are chosen."""
    sizes = Sizes.chosen()
    chosen = (os.environ.get("PARTS") or " ".join(PARTS)).split()
    unknown = set(chosen) - set(PARTS)
    if unknown:
        raise SystemExit(f"error: no part is called {', '.join(sorted(unknown))}: they are {', '.join(PARTS)}")
    print(f"kernels: {kernels.form_for('cpu', torch.float32).reason}")
    for configuration in CONFIGURATIONS:
        print(configuration)
    parts = {name: part for name, part in PARTS.items() if name in chosen}
    bench.figures = [figure for part in parts.values() for figure in part.FIGURES]
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            scratch = Path(folder) / name
            scratch.mkdir()
            part.measure(bench, sizes, scratch)
    if not sizes.recorded:
        end_trial(bench, " or ".join((*VARIABLES, *CHOICES)))
