"""The case for accelerators, whole, on the CPU: all of it but CUDA's own events, memory and graphs.

The eager form computes; the two libraries are stood in for by modules with their names and signatures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.cases import gpu as case
from benchmarks.cases.gpu import compressed, dense, devices
from benchmarks.cases.gpu.devices import Cuda, Host
from benchmarks.cases.gpu.shapes import DENSE, DIMENSION, RERANK, RESIDUAL, SCANS, SHAPES, TABLES, Dense, Residual
from benchmarks.cases.kernels.inputs import threads
from benchmarks.harness import Bench, Timing
from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of

TINY = tuple(shape.tiny() for shape in SHAPES)
KINDS = tuple({(shape.operation, shape.dtype, shape.queries > 1): shape.tiny() for shape in (*DENSE, *SCANS)}.values())


class Untraced(Host):
    """The host without `torch.compile`, which takes its time with every shape."""

    def compiled(self, function: Any) -> Any:
        return function


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(case, "SECONDS_EACH", 0.0)
    with kernels.use("eager"), threads(1):
        yield


@pytest.fixture
def bench() -> Bench:
    return Bench("gpu", case.FIGURES, case.COLUMNS)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """A module of this name that can be imported and found."""
    module = ModuleType(name)
    module.__dict__.update(functions)
    module.__spec__ = type(sys.__spec__)(name, None)
    monkeypatch.setitem(sys.modules, name, module)


class Library:
    """late-interaction-kernels and flash-maxsim, computed by torch; `off` makes them wrong. Counts their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, off: float = 0.0) -> None:
        self.calls: list[str] = []
        self.off = off
        stand_in(monkeypatch, "late_interaction_kernels", maxsim=self.maxsim)
        stand_in(monkeypatch, "late_interaction_kernels.plaid", maxsim_residual_varlen=self.residual)
        stand_in(
            monkeypatch,
            "flash_maxsim",
            flash_maxsim=self.flash,
            flash_maxsim_batched=self.batched,
            flash_maxsim_batched_train=self.train,
        )

    def maxsim(self, queries: Tensor, documents: Tensor) -> Tensor:
        self.calls.append("maxsim")
        return dense.similarities_and_maxima(queries, documents) + self.off

    def flash(self, query: Tensor, documents: Tensor) -> Tensor:
        self.calls.append("flash_maxsim")
        return dense.similarities_and_maxima(query[None], documents)[0]

    def batched(self, queries: Tensor, documents: Tensor, *, shared_docs: bool) -> Tensor:
        assert shared_docs == (documents.dim() == 3)
        self.calls.append("flash_maxsim_batched")
        return dense.similarities_and_maxima(queries, documents)

    def train(self, queries: Tensor, documents: Tensor, *, shared_docs: bool) -> Tensor:
        assert shared_docs == (documents.dim() == 3)
        self.calls.append("flash_maxsim_batched_train")
        return dense.similarities_and_maxima(queries, documents)

    def residual(
        self,
        queries: Tensor,
        codes: Tensor,
        residuals: Tensor,
        offsets: Tensor,
        centroids: Tensor,
        weights: Tensor,
        bits: int,
        *,
        max_seqlen_d: int,
    ) -> Tensor:
        assert offsets.dtype == torch.int32
        assert int(offsets.diff().max()) == max_seqlen_d
        self.calls.append("maxsim_residual_varlen")
        slots = torch.arange(0, 8, bits)
        values = weights[(residuals[:, :, None] >> slots) & (2**bits - 1)].view(len(codes), -1)
        unit = torch.nn.functional.normalize(values + centroids.float()[codes.long()], dim=1)
        return dense.similarities_and_maxima(queries.float(), unit.view(len(offsets) - 1, max_seqlen_d, -1)) + self.off


def test_every_figure_is_reported(bench: Bench) -> None:
    case.measure(bench, Untraced(2**40), TINY)
    assert {figure.name for figure in case.FIGURES} == set(bench.values)
    assert all(np.isfinite(value) and value > 0 for value, _ in bench.values.values())
    assert not bench.skipped


def test_rows_tell_device_versions_quantiles_floor_and_memory(bench: Bench) -> None:
    case.measure(bench, Host(2**40), [RERANK.tiny()])
    ours = next(row for row in bench.rows if row["name"] == RERANK.name and "p50_ms" in row)
    assert set(ours) <= set(case.COLUMNS)
    assert ours["torch"] == torch.__version__
    assert ours["commit"]
    assert ours["device"]
    assert float(ours["p20_ms"]) <= float(ours["p50_ms"]) <= float(ours["p80_ms"])
    assert float(ours["floor_ms"]) > 0
    assert {"peak_memory_mb", "n"} <= set(ours)
    names = [str(row["name"]) for row in bench.rows]
    assert {f"{RERANK.name}: torch", f"{RERANK.name}: torch.compile"} <= set(names)
    assert f"back to back: {RERANK.name}: CUDA graph" in names


def test_what_does_not_fit_is_skipped_and_said_so(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    case.measure(bench, Host(free=2**20), SHAPES)
    shown = capsys.readouterr().out
    for shape in SHAPES:
        assert shape.name in bench.skipped
        assert f"skipped: {shape.name}: needs " in shown
    assert {figure.name for figure in case.FIGURES} == set(bench.values) | set(bench.skipped)
    assert bench.closing_table()[1]


def test_the_large_shapes_need_the_memory_of_their_tokens() -> None:
    needed = {shape.name: shape.needed / 1e9 for shape in SHAPES}
    assert 32.7 < needed["scan 1M × 128, best 100"] < 36
    assert 4.8 < needed["residual scan 1M × 128, 2 bits"] < 8
    assert needed[RERANK.name] < 3


@pytest.mark.parametrize(
    ("name", "flop", "megabytes"),
    [
        ("rerank 1 × 1,000 × 300", 2.46e9, 76.8),
        ("rerank 1 × 1,000 × 1,024", 8.39e9, 262),
        ("rerank 1 × 1,000 × 1,024, 1,024 query tokens", 268e9, 262),
        ("rerank 1 × 10,000 × 300", 24.6e9, 768),
        ("in-batch 32 × 64 × 180", 3.0e9, 3.2),
        ("in-batch 128 × 256 × 180", 48.3e9, 13),
        ("in-batch 128 × 1024 × 180", 193e9, 49),
        ("in-batch 256 × 512 × 180", 193e9, 26),
        ("in-batch 512 × 1024 × 180", 773e9, 54),
        ("in-batch 512 × 4096 × 180", 3092e9, 201),
        ("in-batch 512 × 1024 × 512", 2199e9, 141),
        ("distillation 32 × 32 × 180", 1.5e9, 47.5),
        ("scan 1M × 128, best 100", 1049e9, 32_800),
        ("scan 1M × 128, best 100, 16 queries", 16.8e12, 32_800),
        ("residual scan 1M × 128, 2 bits", 1049e9, 4_900),
        ("residual scan 1M × 128, 4 bits", 1049e9, 9_000),
    ],
)
def test_floors_are_made_of_these_operations_and_bytes(name: str, flop: float, megabytes: float) -> None:
    """Worked out by hand, in two or three digits."""
    shape = next(each for each in SHAPES if each.name == name)
    assert shape.operations == pytest.approx(flop, rel=0.02)
    assert shape.traffic / 1e6 == pytest.approx(megabytes, rel=0.06)


def test_the_floor_is_the_longer_of_moving_and_multiplying() -> None:
    rates = case.Rates(copy=3e12, products={"bfloat16": 790e12, "float16": 790e12, "float32": 50e12, "int8": 1.5e15})
    assert rates.floor(RERANK) * 1e6 == pytest.approx(25.6, rel=0.01)
    in_batch = next(each for each in DENSE if each.name == "in-batch 512 × 1024 × 180")
    assert rates.floor(in_batch) * 1e6 == pytest.approx(979, rel=0.01)


def test_the_targets_are_those_that_were_promised() -> None:
    promised = {
        "in-batch 128 × 128 × 300": ("<=", 0.110),
        "in-batch 512 × 512 × 180": ("<=", 1.3),
        "residual 10,000 × 300, 2 bits": ("<=", 0.15),
        "step 256 × 256 × 300": ("<=", 1.2),
        "residual scan 1M × 128, 2 bits": ("<=", 4.0),
        "% of copy bandwidth: rerank 1 × 1,000 × 1,024": (">=", 80.0),
        "% of copy bandwidth: rerank 1 × 10,000 × 300": (">=", 80.0),
        "% of copy bandwidth: rerank 1 × 10,000 × 300, int8": (">=", 80.0),
        "% of copy bandwidth: scan 1M × 128, best 100": (">=", 80.0),
    }
    assert {each.name: (each.better, each.target) for each in case.FIGURES if each.target is not None} == promised
    assert len({figure.name for figure in case.FIGURES}) == len(case.FIGURES)


def test_there_is_no_case_without_an_accelerator(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no accelerator here"):
        case.run(bench)


@pytest.mark.parametrize(("name", "promises"), [("NVIDIA H100 80GB HBM3", 5), ("NVIDIA L4", 0)])
def test_times_are_promised_for_one_device(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, promises: int
) -> None:
    class Named(Host):
        def description(self) -> dict[str, object]:
            return {**super().description(), "device": name}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(case, "Cuda", Named)
    monkeypatch.setattr(case, "measure", lambda *_: None)
    case.run(bench)
    assert len([each for each in bench.figures if each.unit == "ms" and each.target is not None]) == promises
    assert len([each for each in bench.figures if each.unit == "%" and each.target is not None]) == 4
    assert ("only reported here" in capsys.readouterr().out) == (promises == 0)


@pytest.mark.parametrize("shape", KINDS, ids=lambda shape: shape.name)
def test_everybody_computes_every_operation(monkeypatch: pytest.MonkeyPatch, shape: Dense) -> None:
    library = Library(monkeypatch)
    tensors = dense.make(shape, Host())
    found = dense.contestants(tensors, Host())
    ours = found[""]()
    dense.check_ours(tensors, ours)
    dense.check_gradients(tensors)
    assert len(ours) == (3 if shape.learns else 2 if shape.operation == "top" else 1)
    for name, contestant in found.items():
        outcome = contestant()
        dense.check_rival(ours, outcome)
        assert [each.shape for each in outcome] == [each.shape for each in ours], name
    rivals = {"int8": 0, "float32": 2}.get(shape.dtype, 4)
    assert len(found) == 1 + rivals
    assert bool(library.calls) == (rivals == 4)


def test_the_libraries_are_called_by_the_function_made_for_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(monkeypatch)
    functions = {}
    for shape in KINDS:
        library.calls.clear()
        found = dense.contestants(dense.make(shape, Host()), Host())
        if dense.FLASH in found:
            found[dense.FLASH]()
            functions[shape.operation, shape.queries > 1] = library.calls[-1]
    assert functions == {
        ("scores", False): "flash_maxsim",
        ("scores", True): "flash_maxsim_batched",
        ("pairs", True): "flash_maxsim_batched",
        ("step", True): "flash_maxsim_batched_train",
        ("pairs step", True): "flash_maxsim_batched_train",
        ("top", False): "flash_maxsim",
        ("top", True): "flash_maxsim_batched",
    }


def test_a_library_is_not_asked_for_what_it_cannot_address(monkeypatch: pytest.MonkeyPatch) -> None:
    Library(monkeypatch)
    tensors = dense.make(RERANK.tiny(), Host())
    monkeypatch.setattr(dense, "ADDRESSABLE", tensors.documents.numel())
    assert dense.LIK not in dense.contestants(tensors, Host())
    assert next(each for each in SCANS if each.queries == 1).elements > 2**31


def test_torch_in_pieces_is_torch_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = dense.make(RERANK.tiny(), Host())
    whole = dense.contestants(tensors, Host())[dense.TORCH]()
    monkeypatch.setattr(dense, "TABLE_VALUES", 1)
    assert torch.equal(dense.contestants(tensors, Host())[dense.TORCH]()[0], whole[0])


@pytest.mark.parametrize("shape", [RESIDUAL[0].tiny(), RESIDUAL[1].tiny()], ids=lambda shape: f"{shape.bits} bits")
def test_everybody_scores_what_is_stored(monkeypatch: pytest.MonkeyPatch, shape: Residual) -> None:
    library = Library(monkeypatch)
    stored = compressed.store(shape, Host())
    codec = reference.ResidualCodec(*(each.numpy() for each in stored.codec))
    kept = reference.CompressedEmbeddings(
        stored.compressed.codes.long().numpy(),
        stored.compressed.residuals.numpy(),
        offsets_of([shape.document_length] * shape.documents),
    )
    query = TokenEmbeddings(stored.query.values.float().numpy(), offsets_of([shape.query_length]))
    expected = reference.residual_maxsim(query, codec, kept)
    found = compressed.contestants(stored)
    for name, contestant in found.items():
        outcome = contestant()
        np.testing.assert_allclose(outcome[0].numpy(), expected, rtol=2e-3, atol=2e-3, err_msg=name)
        compressed.check(stored, outcome)
    assert set(found) == {"", dense.TORCH, dense.LIK}
    assert library.calls == ["maxsim_residual_varlen"]


def test_pieces_of_what_is_stored_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = RESIDUAL[0].tiny()
    stored = compressed.store(shape, Host())
    whole = compressed.contestants(stored)[dense.TORCH]()[0]
    monkeypatch.setattr(compressed, "PIECE", 2 * shape.document_length + 1)
    again = compressed.store(shape, Host())
    assert torch.equal(again.compressed.inverse_norms, stored.compressed.inverse_norms)
    assert torch.allclose(compressed.contestants(again)[dense.TORCH]()[0], whole, rtol=1e-5)


@pytest.mark.parametrize("shape", [TABLES[0].tiny(), TABLES[-1].tiny()], ids=lambda shape: shape.name)
def test_tables_agree(shape: Any) -> None:
    found = compressed.table_contestants(shape, Host())
    for contestant in found.values():
        compressed.check_table(found[""](), contestant())


def spoiled(monkeypatch: pytest.MonkeyPatch, name: str, output: int = 0) -> None:
    """Make one output of a kernel wrong by a thousandth."""
    right = getattr(kernels, name)

    def wrong(*arguments: Any) -> Any:
        made = right(*arguments)
        if isinstance(made, Tensor):
            return made * 1.002
        return tuple(each * 1.002 if place == output else each for place, each in enumerate(made))

    monkeypatch.setattr(kernels, name, wrong)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("maxsim_all_pairs", RERANK),
        ("maxsim_pairs", next(each for each in DENSE if each.operation == "pairs")),
        ("maxsim_top_k", SCANS[0]),
        ("residual_maxsim", RESIDUAL[0]),
        ("centroid_interaction", TABLES[-1]),
    ],
)
def test_a_wrong_kernel_is_never_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, shape: Any) -> None:
    spoiled(monkeypatch, name)
    if name == "centroid_interaction":  # torch's own is the truth there, and so what is left out
        case.measure(bench, Host(2**40), [shape.tiny()])
        assert not [row for row in bench.rows if str(row["name"]).endswith(": torch")]
        return
    with pytest.raises(AssertionError, match=r"scores are 0\.00\d+ apart"):
        case.measure(bench, Host(2**40), [shape.tiny()])
    assert shape.name not in bench.values


def test_wrong_gradients_are_never_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.maxsim_all_pairs
    monkeypatch.setattr(kernels, "maxsim_all_pairs", lambda *both: _twice_the_gradient(right(*both)))
    with pytest.raises(AssertionError, match="gradients are 1 apart"):
        case.measure(bench, Host(2**40), [next(each for each in DENSE if each.operation == "step").tiny()])


def _twice_the_gradient(scores: Tensor) -> Tensor:
    return scores.detach() + 2 * (scores - scores.detach())


def test_a_rival_that_is_wrong_or_fails_is_left_out_and_said_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Library(monkeypatch, off=1.0)

    def fails(query: Tensor, documents: Tensor) -> Tensor:
        raise RuntimeError("out of something\nand more")

    monkeypatch.setattr(sys.modules["flash_maxsim"], "flash_maxsim", fails)
    case.measure(bench, Host(2**40), [RERANK.tiny()])
    shown = capsys.readouterr().out
    assert "late-interaction-kernels is left out: AssertionError: scores are" in shown
    assert "flash-maxsim is left out: RuntimeError: out of something\n" in shown
    names = " ".join(str(row["name"]) for row in bench.rows)
    assert "torch.compile" in names
    assert "late-interaction-kernels" not in names
    assert "flash" not in names


def test_rounds_are_few_for_what_is_slow_and_many_for_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "SECONDS_EACH", 0.3)

    class Clock(Host):
        def sample(self, call: Any) -> float:
            return call()

    timings = case._in_turn(Clock(), {"": lambda: 0.001, "slow": lambda: 0.01})
    assert timings["slow"] == Timing((0.01,) * 30, timings["slow"].cpu)
    assert timings[""].p50 == 0.001
    assert len(case._in_turn(Clock(), {"": lambda: 10.0})[""].wall) == 7
    assert len(case._in_turn(Clock(), {"": lambda: 1e-6})[""].wall) == 50


def test_versions_name_the_peers_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.versions()["peers"] == "" or "==" in str(devices.versions()["peers"])
    assert not devices.importable("flash-maxsim") or "flash-maxsim" in str(devices.versions()["peers"])
    Library(monkeypatch)
    assert all(map(devices.importable, devices.PEERS))


def test_both_devices_can_do_the_same() -> None:
    public = {name for name in vars(devices.Device) if not name.startswith("_")} | {"name", "side"}
    for device in (Cuda, Host):
        assert public <= set(dir(device))
    assert DIMENSION == 128
