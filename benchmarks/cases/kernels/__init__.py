"""The kernels on the CPU: every operation with its target, against peers and against what the machine can do.

Everybody works in one thread, in turn, and is judged by the median of CPU time; everybody is checked against float64
before. What is timed in each part stands in its module: `scoring`, `compressed`, `training`, `quality`, `floors`,
`scaling`. Ours is called as a user calls it, `kernels.maxsim_all_pairs` and so on. DOCUMENTS=50 REPEATS=2 gives a quick
trial, which is never recorded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.cases.kernels import compressed, floors, quality, scaling, scoring, training
from benchmarks.cases.kernels.inputs import VARIABLES, Sizes, threads
from benchmarks.harness import Bench, end_trial
from benchmarks.peers import process
from benchmarks.peers.process import Peer
from lateinteraction import kernels

PEERS = ("pylate", "maxsim-cpu")
FIGURES = (
    *scoring.FIGURES,
    *compressed.FIGURES,
    *training.FIGURES,
    *quality.FIGURES,
    *scaling.FIGURES,
    *floors.FIGURES,
)


def run(bench: Bench) -> None:
    """Check and measure everything; a trial ends with its table, and without a row."""
    sizes = Sizes.chosen()
    try:
        process.check_installed(PEERS)
    except process.PeersNotInstalled as error:
        raise SystemExit(f"error: the peers that this case compares with are {error}") from None
    print(f"kernels: {kernels.form_for('cpu', torch.float32).reason}")
    torch.manual_seed(0)
    with ExitStack() as stack, threads(1):
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {name: stack.enter_context(worker) for name, worker in start_peers().items()}
        measure(bench, sizes, workers, scratch)
    quality.measure(bench, sizes)
    scaling.measure(bench, sizes)
    if sizes.trial:
        end_trial(bench, " or ".join(VARIABLES))


def start_peers() -> dict[str, Peer]:
    """The workers, with one thread each."""
    return {
        "pylate": process.start("pylate", process.SCORING, threads=1),
        "maxsim-cpu": process.start("maxsim-cpu", threads=1),
    }


def measure(bench: Bench, sizes: Sizes, workers: Mapping[str, Peer], scratch: Path) -> None:
    """All that is judged by the CPU time of one thread on random tokens."""
    machine = floors.measure_machine(bench, sizes)
    with torch.no_grad():
        scoring.measure(bench, sizes, machine, workers, scratch)
        compressed.measure(bench, sizes, machine)
    training.measure(bench, sizes, machine, workers["pylate"], scratch)
