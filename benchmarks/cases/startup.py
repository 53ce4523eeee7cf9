"""What a person waits for: importing the package, `li --help`, and the first result of `li demo`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Bench, Figure, Timing, cpu_seconds

FIGURES = (
    Figure("import lateinteraction", "s", "<=", 0.3),
    Figure("li --help", "s", "<=", 0.4),
    Figure("torch loaded by either", "modules", "<=", 0),
    Figure("li demo, process start to first result", "s", "<=", 25.0),
    Figure("li demo, whole", "s"),
)


def run(bench: Bench) -> None:
    """Fresh processes, in turn."""
    command = str(Path(sys.executable).with_name("li"))
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, lateinteraction; print(sum(m == 'torch' for m in sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    helped = subprocess.run(
        [sys.executable, "-X", "importtime", command, "--help"], capture_output=True, text=True, check=True
    )
    bench.report("torch loaded by either", int(loaded.stdout) + helped.stderr.count("| torch\n"))
    timings = bench.interleaved(
        {
            "python -c pass": lambda: _spawn([sys.executable, "-c", "pass"]),
            "import lateinteraction": lambda: _spawn([sys.executable, "-c", "import lateinteraction"]),
            "li --help": lambda: _spawn([command, "--help"]),
        }
    )
    bench.report(
        "import lateinteraction",
        timings["import lateinteraction"].p50,
        f"python itself {timings['python -c pass'].p50:.3f} s",
    )
    bench.report("li --help", timings["li --help"].p50)
    first, whole, cpu = [], [], []
    for _ in range(3):
        cpu_start, start = cpu_seconds(), time.perf_counter()
        demo = subprocess.run([command, "demo", "--json"], capture_output=True, text=True, check=True)
        whole.append(time.perf_counter() - start)
        cpu.append(cpu_seconds() - cpu_start)
        timing = json.loads(demo.stdout)["timing"]
        # The command's own clock starts after Python and its imports; counted from its end, they are included.
        first.append(whole[-1] - (timing["total_s"] - timing["first_result_s"]))
    bench.row("li demo", timing=Timing(tuple(whole), tuple(cpu)))
    bench.report("li demo, process start to first result", sorted(first)[1])
    bench.report("li demo, whole", sorted(whole)[1])


def _spawn(arguments: Sequence[str]) -> None:
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "100"})
