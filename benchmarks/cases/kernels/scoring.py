"""Exact MaxSim: 1 query of 32 tokens × 1,000 documents of 20 to 300 tokens, 128 dimensions, packed; 4 queries; int8.

Beside it, in processes of their own with one thread, maxsim-cpu 0.1.0 (`maxsim_scores_variable` on a list of arrays)
and PyLate 1.6: `rank.rerank`, whole, on a list of tensors, as its `encode` makes them (`peers.pylate_scoring_worker`
says what that does). Against `rerank` ours is timed with what it does besides scoring: sorting, and a list of ids with
scores. Of PyLate's `colbert_scores` on documents that somebody has padded before the ratio is only reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from benchmarks.cases.kernels.floors import Machine, Work
from benchmarks.cases.kernels.inputs import (
    DIMENSION,
    QUERY_LENGTH,
    Sizes,
    check_close,
    exact_scores,
    offsets_from,
    quantised,
    queries_of,
    ragged,
)
from benchmarks.harness import Bench, Figure, Seconds, Timing, clocked
from benchmarks.peers.process import Peer
from lateinteraction import kernels
from lateinteraction.kernels.operands import Tokens

OURS, RANKED, BATCHED, INT8, TWIN = "fp32, 1 query", "fp32, ranked", "fp32, 4 queries", "int8, 1 query", "fp32, eager"
MAXSIM_CPU, PYLATE, PADDED = "maxsim-cpu", "PyLate's rerank", "PyLate on padded documents"
PRODUCT = "torch.mm [8192, 128]·[128, 128]"
HALVES = {"fp16, 1 query": torch.float16, "bf16, 1 query": torch.bfloat16}
TOP = "fp32, top 10 of 1 query"
VNNI = ("avx512_vnni", "avx_vnni")

FIGURES = (
    Figure(f"fp32: against {MAXSIM_CPU}", "×", ">=", 3.0),
    Figure(f"fp32: against {PYLATE}", "×", ">=", 8.0),
    Figure(f"fp32: against {PADDED}", "×"),
    Figure("fp32: 4 queries, rate of torch.mm", "%", ">=", 70.0),
    Figure("int8: against fp32", "×", ">=", 3.0),
    Figure("int8: per document token", "ns", "<=", 40.0),
    *(Figure(f"{name}: per document token", "ns") for name in (OURS, *HALVES)),
    *(Figure(f"% of floor: {name}", "%") for name in (OURS, BATCHED, INT8, *HALVES, TOP)),
)


@frozen
class Shapes:
    """What is scored."""

    one: Tokens
    four: Tokens
    documents: Tokens

    @property
    def tokens(self) -> int:
        """Document tokens."""
        return len(self.documents.values)


def measure(bench: Bench, sizes: Sizes, machine: Machine, peers: Mapping[str, Peer], scratch: Path) -> None:
    """Check everybody, time everybody in turn, report."""
    generator = np.random.default_rng(0)
    shapes = Shapes(queries_of(generator, 1), queries_of(generator, 4), ragged(generator, sizes.documents))
    file = scratch / "documents.npz"
    documents, query = shapes.documents.values.numpy(), shapes.one.values.numpy()
    np.savez(file, query=query, tokens=documents, offsets=offsets_from(shapes.documents))
    calls = _calls(shapes)
    _check(calls, shapes, peers, file)
    contestants: dict[str, Callable[[], Seconds]] = {name: clocked(call) for name, call in calls.items()}
    contestants |= {
        MAXSIM_CPU: lambda: _answered(peers[MAXSIM_CPU], file=str(file)),
        PYLATE: lambda: _answered(peers["pylate"], file=str(file)),
        PADDED: lambda: _answered(peers["pylate"], file=str(file), padded_before=True),
        PRODUCT: _product(sizes),
    }
    for contestant in contestants.values():
        contestant()
    _report(bench, sizes, machine, shapes, bench.in_turn(contestants, sizes.repeats))


def _calls(shapes: Shapes) -> dict[str, Callable[[], Tensor]]:
    one, documents = shapes.one, shapes.documents
    small_query, small_documents = quantised(one), quantised(documents)
    halves = {name: _in(dtype, one, documents) for name, dtype in HALVES.items()}

    def twin() -> Tensor:
        with kernels.use("eager"):
            return kernels.maxsim_all_pairs(one, documents)

    return {
        OURS: lambda: kernels.maxsim_all_pairs(one, documents),
        RANKED: lambda: _ranked(kernels.maxsim_all_pairs(one, documents)),
        BATCHED: lambda: kernels.maxsim_all_pairs(shapes.four, documents),
        INT8: lambda: kernels.maxsim_all_pairs(small_query, small_documents),
        TOP: lambda: kernels.maxsim_top_k(one, documents, 10)[0],
        TWIN: twin,
        **{name: lambda pair=pair: kernels.maxsim_all_pairs(*pair) for name, pair in halves.items()},
    }


def _in(dtype: torch.dtype, *both: Tokens) -> list[Tokens]:
    return [each._replace(values=each.values.to(dtype)) for each in both]


def _ranked(scores: Tensor) -> Tensor:
    """What reranking does besides, a list of documents in falling order with their scores; the scores as they came."""
    best, places = scores[0].sort(descending=True)
    [{"id": place, "score": score} for place, score in zip(places.tolist(), best.tolist(), strict=True)]
    return scores


def _check(calls: Mapping[str, Callable[[], Tensor]], shapes: Shapes, peers: Mapping[str, Peer], file: Path) -> None:
    truth = exact_scores(shapes.one, shapes.documents)
    for name in (OURS, RANKED, TWIN):
        check_close(calls[name](), truth, name, 1e-5)
    check_close(calls[BATCHED](), exact_scores(shapes.four, shapes.documents), BATCHED, 1e-5)
    check_close(calls[INT8](), exact_scores(quantised(shapes.one), quantised(shapes.documents)), INT8, 1e-5)
    for name, dtype in HALVES.items():
        check_close(calls[name](), exact_scores(*_in(dtype, shapes.one, shapes.documents)), name, 1e-5)
    check_close(calls[TOP](), -np.sort(-truth)[:, :10], TOP, 1e-5)
    check_close(_scores_of(peers[MAXSIM_CPU], file), truth[0], MAXSIM_CPU, 1e-5)
    check_close(_scores_of(peers["pylate"], file), _with_zeros(shapes), PYLATE, 1e-5)


def _with_zeros(shapes: Shapes) -> np.ndarray:
    """Scores as PyLate's reranking defines them: whatever is shorter than the longest has a token of zeros too."""
    rows = shapes.one.values.double().numpy().T
    values = shapes.documents.values.double().numpy()
    best = [(values[start:end] @ rows).max(axis=0) for start, end in shapes.documents.spans.tolist()]
    short = (shapes.documents.spans[:, 1] - shapes.documents.spans[:, 0]).numpy() < shapes.documents.longest
    return np.array([np.maximum(each, 0).sum() if cut else each.sum() for each, cut in zip(best, short, strict=True)])


def _scores_of(peer: Peer, file: Path) -> np.ndarray:
    made = file.with_name("scores.npy")
    peer.ask("scores", file=str(file), out=str(made))
    return np.load(made, allow_pickle=False)


def _answered(peer: Peer, **request: object) -> Seconds:
    answer = peer.ask("time", **request)
    return Seconds(answer["seconds"], answer["cpu_seconds"])


def _product(sizes: Sizes) -> Callable[[], Seconds]:
    rows = sizes.reduced(8192, 64)
    tall, small, out = torch.randn(rows, DIMENSION), torch.randn(DIMENSION, 128), torch.empty(rows, 128)
    return clocked(lambda: torch.mm(tall, small, out=out), 10)


def _report(bench: Bench, sizes: Sizes, machine: Machine, shapes: Shapes, timings: Mapping[str, Timing]) -> None:
    cpu = {name: timing.cpu_p50 for name, timing in timings.items()}
    for figure, ours, peer in (
        (f"fp32: against {MAXSIM_CPU}", OURS, MAXSIM_CPU),
        (f"fp32: against {PYLATE}", RANKED, PYLATE),
        (f"fp32: against {PADDED}", OURS, PADDED),
        ("int8: against fp32", INT8, OURS),
    ):
        bench.report(figure, cpu[peer] / cpu[ours], f"{cpu[ours] * 1e3:.2f} and {cpu[peer] * 1e3:.2f} ms")
    per_token = 2.0 * QUERY_LENGTH * DIMENSION
    ours = 4 * per_token * shapes.tokens / cpu[BATCHED]
    product = 2.0 * sizes.reduced(8192, 64) * DIMENSION * 128 / cpu[PRODUCT]
    bench.report("fp32: 4 queries, rate of torch.mm", 100 * ours / product, f"{product / 1e9:.0f} GFLOP/s")
    for name in (OURS, *HALVES):
        bench.report(f"{name}: per document token", 1e9 * cpu[name] / shapes.tokens, f"{shapes.tokens:,} tokens")
    beside = f"{shapes.tokens:,} tokens, {QUERY_LENGTH} query tokens"
    if has_vnni():
        bench.report("int8: per document token", 1e9 * cpu[INT8] / shapes.tokens, beside)
    else:
        bench.skip("int8: per document token", "this processor has no VNNI")
    values = shapes.documents.values.nbytes
    works = {
        OURS: Work(per_token * shapes.tokens, values),
        BATCHED: Work(4 * per_token * shapes.tokens, values),
        INT8: Work(per_token * shapes.tokens, values / 4 + 4 * shapes.tokens, integer=True),
        TOP: Work(per_token * shapes.tokens, values),
        **dict.fromkeys(HALVES, Work(per_token * shapes.tokens, values / 2)),
    }
    for name, work in works.items():
        bench.report(f"% of floor: {name}", machine.share(work, timings[name]), f"{machine.floor(work) * 1e3:.2f} ms")


def has_vnni() -> bool:
    """Whether this processor multiplies bytes by fours."""
    information = Path("/proc/cpuinfo")
    return information.exists() and any(flag in information.read_text(encoding="utf-8") for flag in VNNI)
