"""The kernels on an accelerator: `make gpu` runs this after the device tests; no network is needed.

Every shape of `shapes` by everybody who can compute it here: ours, called as a user calls it, torch, `torch.compile`,
and, where they are installed in this environment, late-interaction-kernels and flash-maxsim. Ours is checked against
float64 first, the others against ours. One call is one sample, with cold caches (`devices`); everybody has a turn in
each round. What does not fit the memory of the device is skipped, and said so. Figures in time are promises for an
H100; on other devices they are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from attrs import evolve, frozen

from benchmarks.cases.gpu import compressed, dense
from benchmarks.cases.gpu.dense import Contestant, Outcome
from benchmarks.cases.gpu.devices import Cuda, Device
from benchmarks.cases.gpu.shapes import RERANK, SHAPES, Dense, Residual, Shape, Table
from benchmarks.harness import Bench, Figure, Timing
from lateinteraction import kernels

COLUMNS = (
    "when", "commit", "device", "capability", "memory_gb", "runtime", "python", "torch", "triton", "peers", "case",
    "name", "n", "p20_ms", "p50_ms", "p80_ms", "floor_ms", "peak_memory_mb", "value", "unit", "note",
)  # fmt: skip
SECONDS_EACH = 0.3
"""What the samples of one contestant may take together; 7 to 50 of them are taken."""
RATES = ("bfloat16", "float16", "float32", "int8")

FIGURES = (
    Figure("device: copy", "GB/s"),
    *(Figure(f"device: {dtype} products", "TFLOP/s") for dtype in RATES),
    *(Figure(each.name, "ms", "<=" if each.target_ms else None, each.target_ms) for each in SHAPES),
    *(Figure(f"% of copy bandwidth: {each.name}", "%", ">=", 80.0) for each in SHAPES if each.saturates),
    *(Figure(f"% of floor: {each.name}", "%") for each in SHAPES),
    Figure(f"back to back: {RERANK.name}", "ms"),
)


@frozen
class Rates:
    """Bytes per second of a copy, read and written; multiplications and additions per second of products."""

    copy: float
    products: Mapping[str, float]

    def floor(self, shape: Shape) -> float:
        """The least seconds."""
        return max(shape.traffic / self.copy, shape.operations / self.products[shape.dtype])


def run(bench: Bench) -> None:
    """Measure on the accelerator of this machine."""
    if not torch.cuda.is_available():
        raise SystemExit(f"error: torch {torch.__version__} sees no accelerator here, and this case needs one")
    device = Cuda()
    if "H100" not in str(device.description()["device"]):
        print(f"{device.description()['device']}: figures in time are promises for an H100, and only reported here")
        bench.figures = [evolve(each, target=None) if each.unit == "ms" else each for each in bench.figures]
    print(f"kernels: {kernels.form_for(device.name).reason}")
    measure(bench, device, SHAPES)


def measure(bench: Bench, device: Device, shapes: Sequence[Dense | Residual | Table]) -> None:
    """Measure these shapes on this device."""
    bench.environment = {
        **{name: bench.environment[name] for name in ("when", "commit")},
        **device.description(),
    }
    rates = measure_rates(bench, device)
    for shape in shapes:
        free = device.free()
        if shape.needed > free:
            _skip(bench, shape, f"needs {shape.needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            continue
        print(f"{shape.name} …", flush=True)
        _measure_shape(bench, device, rates, shape)


def measure_rates(bench: Bench, device: Device) -> Rates:
    """What the device does at best: copying 16 bytes for each entry of a matrix, and square products of matrices."""
    side = device.side
    count = 16 * side**2
    rate = 2 * count / _timing(device, _copy_of(count, device)).p50
    bench.report("device: copy", rate / 1e9, f"{count / 1e9:.2g} GB read and written")
    products: dict[str, float] = {}
    for dtype in RATES:
        taken = _timing(device, _product_of(dtype, side, device)).p50
        products[dtype] = 2.0 * side**3 / taken
        bench.report(f"device: {dtype} products", products[dtype] / 1e12, f"{side}³ in {taken * 1e3:.3f} ms")
    return Rates(rate, products)


def _copy_of(count: int, device: Device) -> Callable[[], object]:
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device.name) for _ in range(2))
    return lambda: target.copy_(source)


def _product_of(dtype: str, side: int, device: Device) -> Callable[[], object]:
    if dtype == "int8":
        left = torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device.name)
        right = left.clone().T  # the layout that every accelerator takes
        return lambda: torch.ops.aten._int_mm(left, right)
    matrix = torch.randn(side, side, device=device.name).to(getattr(torch, dtype))
    return lambda: matrix @ matrix


def _measure_shape(bench: Bench, device: Device, rates: Rates, shape: Dense | Residual | Table) -> None:
    found, check = _prepared(device, shape)
    outcomes = found[""]()
    check(outcomes, None)
    runners = {"": found[""], **_fitting(found, outcomes, check, device)}
    del outcomes
    timings = _in_turn(device, runners)
    floor = rates.floor(shape)
    for name, timing in timings.items():
        peak = device.peak(runners[name])
        row = {"floor_ms": f"{floor * 1e3:.4f}", "peak_memory_mb": f"{peak / 1e6:.1f}"}
        bench.row(shape.name if not name else f"{shape.name}: {name}", timing=timing, more=row)
    own = timings[""].p50
    others = [f"{name} {timing.p50 / own:.2f}×" for name, timing in timings.items() if name]
    bench.report(shape.name, own * 1e3, ", ".join([f"floor {floor * 1e3:.3f} ms", *others]))
    bench.report(f"% of floor: {shape.name}", 100 * floor / own, f"{own / floor:.2f} × the floor")
    if shape.saturates:
        rate = shape.traffic / own
        bench.report(f"% of copy bandwidth: {shape.name}", 100 * rate / rates.copy, f"{rate / 1e9:.0f} GB/s")
    if shape.name == RERANK.name:
        _measure_back_to_back(bench, device, runners)


Check = Callable[[Outcome, Outcome | None], None]


def _prepared(device: Device, shape: Dense | Residual | Table) -> tuple[Mapping[str, Contestant], Check]:
    """Who computes a shape, and how their outcomes are checked: ours alone, then each of the others against ours."""
    if isinstance(shape, Dense):
        tensors = dense.make(shape, device)
        return dense.contestants(tensors, device), partial(_check_dense, tensors)
    if isinstance(shape, Residual):
        stored = compressed.store(shape, device)
        return compressed.contestants(stored), partial(_check_residual, stored)
    return compressed.table_contestants(shape, device), _check_table


def _check_dense(tensors: dense.Tensors, ours: Outcome, rival: Outcome | None) -> None:
    if rival is not None:
        dense.check_rival(ours, rival)
        return
    dense.check_ours(tensors, ours)
    dense.check_gradients(tensors)


def _check_residual(stored: compressed.Stored, ours: Outcome, rival: Outcome | None) -> None:
    if rival is None:
        compressed.check(stored, ours)
    else:
        dense.check_rival(ours, rival)


def _check_table(ours: Outcome, rival: Outcome | None) -> None:
    if rival is not None:
        compressed.check_table(ours, rival)


def _fitting(found: Mapping[str, Contestant], ours: Outcome, check: Check, device: Device) -> dict[str, Contestant]:
    """The others, without those that fail, run out of memory or compute something else: their loss, and said so."""
    fit: dict[str, Contestant] = {}
    for name, contestant in found.items():
        if not name:
            continue
        try:
            check(ours, contestant())
        except Exception as error:  # whatever a peer raises is news, and no end of the run
            print(f"  {name} is left out: {type(error).__name__}: {str(error).strip().splitlines()[0]:.160}")
            device.release()
        else:
            fit[name] = contestant
    return fit


def _in_turn(device: Device, contestants: Mapping[str, Contestant]) -> dict[str, Timing]:
    """So many rounds that the samples of the slowest take a while together; each call has run before."""
    slowest = max(device.sample(contestant) for contestant in contestants.values())
    rounds = max(7, min(50, int(SECONDS_EACH / max(slowest, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            samples[name].append(device.sample(contestant))
    return {name: _timing_of(each) for name, each in samples.items()}


def _timing(device: Device, call: Callable[[], object]) -> Timing:
    device.sample(call)
    return _timing_of([device.sample(call) for _ in range(7)])


def _timing_of(samples: Sequence[float]) -> Timing:
    return Timing(tuple(samples), (float("nan"),) * len(samples))


def _measure_back_to_back(bench: Bench, device: Device, contestants: Mapping[str, Contestant]) -> None:
    """The smallest job, as a loop of a program sees it: Python and launches included."""
    taken: dict[str, float] = {}
    for name, contestant in {**contestants, "CUDA graph": device.recorded(contestants[""])}.items():
        taken[name] = device.back_to_back(contestant, 100)
        bench.row(f"back to back: {RERANK.name}{name and ': '}{name}", value=taken[name] * 1e3, unit="ms")
    others = ", ".join(f"{name} {each / taken['']:.2f}×" for name, each in taken.items() if name)
    bench.report(f"back to back: {RERANK.name}", taken[""] * 1e3, others)


def _skip(bench: Bench, shape: Any, reason: str) -> None:
    """Every figure of a shape."""
    names = {shape.name, f"% of floor: {shape.name}", f"% of copy bandwidth: {shape.name}"}
    names |= {f"back to back: {shape.name}"}
    for figure in bench.figures:
        if figure.name in names:
            bench.skip(figure.name, reason)
