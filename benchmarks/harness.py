"""What every case shares: figures with targets, interleaved timing, result rows, the closing table.

A case is a module with `FIGURES` and `run(bench)`. It checks correctness before it times anything, times ours and
each peer in turn within one run, and reports every figure it declares; one that is missing is short. A module may name
`COLUMNS` of its own for its rows.
"""

from __future__ import annotations

import csv
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import quantiles
from types import MappingProxyType
from typing import Literal, NoReturn

from attrs import Factory, define, field, frozen

RESULTS = Path(__file__).parent / "results"
COLUMNS: tuple[str, ...] = (
    "when", "commit", "machine", "cores", "load", "python", "torch", "case", "name", "n",
    "p20_ms", "p50_ms", "p80_ms", "cpu_p50_ms", "peak_rss_mb", "value", "unit", "note",
)  # fmt: skip


@frozen
class Figure:
    """Something a case promises to measure. Without a target it is only reported."""

    name: str
    unit: str
    better: Literal[">=", "<="] | None = None
    target: float | None = None

    def met(self, value: float) -> bool:
        """Whether a measured value reaches the target."""
        if self.target is None:
            return True
        return value >= self.target if self.better == ">=" else value <= self.target


@frozen
class Seconds:
    """What one call took, here or in another process."""

    wall: float
    cpu: float


def clocked(call: Callable[[], object], number: int = 1) -> Callable[[], Seconds]:
    """The call that makes `number` of these in a row and tells what one took: short calls need several."""

    def measure() -> Seconds:
        cpu, wall = cpu_seconds(), time.perf_counter()
        for _ in range(number):
            call()
        elapsed, used = time.perf_counter() - wall, cpu_seconds() - cpu
        return Seconds(elapsed / number, used / number)

    return measure


@frozen
class Timing:
    """Wall and CPU seconds of repeated calls; those of child processes count as CPU time too."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @classmethod
    def of(cls, taken: Sequence[Seconds]) -> Timing:
        """The timing that these calls make up."""
        return cls(tuple(each.wall for each in taken), tuple(each.cpu for each in taken))

    @property
    def quantiles(self) -> tuple[float, float, float]:
        """p20, p50 and p80 of the wall time."""
        if len(self.wall) == 1:
            return self.wall * 3  # type: ignore[return-value]
        fifths = quantiles(self.wall, n=10, method="inclusive")
        return fifths[1], fifths[4], fifths[7]

    @property
    def p50(self) -> float:
        return self.quantiles[1]

    @property
    def cpu_p50(self) -> float:
        return sorted(self.cpu)[len(self.cpu) // 2]


@define
class Bench:
    """Collects what a case measures."""

    case: str
    figures: Sequence[Figure]
    columns: Sequence[str] = COLUMNS
    rows: list[dict[str, object]] = Factory(list)
    values: dict[str, tuple[float, str]] = Factory(dict)
    skipped: dict[str, str] = Factory(dict)
    environment: Mapping[str, object] = field(factory=lambda: _environment())

    def interleaved(self, calls: Mapping[str, Callable[[], object]], repeats: int = 11) -> dict[str, Timing]:
        """Time each call `repeats` times in turn, after one warm-up of each; one result row per call."""
        for call in calls.values():
            call()
        return self.in_turn({name: clocked(call) for name, call in calls.items()}, repeats)

    def in_turn(self, contestants: Mapping[str, Callable[[], Seconds]], repeats: int) -> dict[str, Timing]:
        """The same for calls that tell their own seconds, such as a worker's; warming up is their affair."""
        taken: dict[str, list[Seconds]] = {name: [] for name in contestants}
        for _ in range(repeats):
            for name, contestant in contestants.items():
                taken[name].append(contestant())
        timings = {name: Timing.of(each) for name, each in taken.items()}
        for name, timing in timings.items():
            self.row(name, timing=timing)
        return timings

    def row(
        self,
        name: str,
        *,
        timing: Timing | None = None,
        value: float | None = None,
        unit: str = "",
        note: str = "",
        more: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Keep one result row; `more` is for columns that only this case has."""
        row: dict[str, object] = {**self.environment, "case": self.case, "name": name, "unit": unit, "note": note}
        row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        if timing is not None:
            p20, p50, p80 = timing.quantiles
            row |= {"n": len(timing.wall), "p20_ms": f"{p20 * 1e3:.3f}", "p50_ms": f"{p50 * 1e3:.3f}"}
            row |= {"p80_ms": f"{p80 * 1e3:.3f}", "cpu_p50_ms": f"{timing.cpu_p50 * 1e3:.3f}"}
        if value is not None:
            row["value"] = f"{value:.7g}"
        self.rows.append({column: each for column, each in {**row, **more}.items() if column in self.columns})

    def report(self, figure: str, value: float, peer: str = "") -> None:
        """State the value of a declared figure, and what stands beside it."""
        declared = next(one for one in self.figures if one.name == figure)
        self.values[figure] = (value, peer)
        self.row(figure, value=value, unit=declared.unit, note=peer)

    def skip(self, figure: str, reason: str) -> None:
        """Say that a declared figure cannot be measured on this machine. That is no short figure."""
        assert any(one.name == figure for one in self.figures), figure
        self.skipped[figure] = reason
        print(f"skipped: {figure}: {reason}")

    def append_results(self) -> Path:
        """Append the rows to `benchmarks/results/<case>.csv`."""
        path = RESULTS / f"{self.case}.csv"
        path.parent.mkdir(exist_ok=True)
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            if fresh:
                writer.writeheader()
            writer.writerows(self.rows)
        return path

    def closing_table(self) -> tuple[str, bool]:
        """The table `figure · target · measured · beside · ok/short`, and whether every figure is met."""
        lines, all_met = [("figure", "target", "measured", "beside", "")], True
        for figure in self.figures:
            target = "reported" if figure.target is None else f"{figure.better} {figure.target:g} {figure.unit}"
            if figure.name in self.skipped:
                lines.append((figure.name, target, "not measured", self.skipped[figure.name], "skipped"))
                continue
            value, peer = self.values.get(figure.name, (None, ""))
            met = value is not None and figure.met(value)
            all_met &= met
            measured = "missing" if value is None else f"{value:.4g} {figure.unit}"
            lines.append((figure.name, target, measured, peer, "ok" if met else "SHORT"))
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines), all_met


def end_trial(bench: Bench, variables: str) -> NoReturn:
    """Print the table of a run that was made smaller by these variables, and end: it is never recorded."""
    print(bench.closing_table()[0])
    print(f"a trial, with {variables} of its own: nothing is recorded")
    raise SystemExit(0)


def cpu_seconds() -> float:
    """CPU time of this process, to the microsecond, and of the children it has waited for, to the clock tick."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def previous(case: str, name: str) -> list[dict[str, str]]:
    """Earlier rows of one name, oldest first."""
    path = RESULTS / f"{case}.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["name"] == name]


def _environment() -> dict[str, object]:
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
