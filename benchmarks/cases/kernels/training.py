"""In-batch training: B = 64 and 128 queries of 32 tokens, two documents of 180 tokens for each, 128 dimensions.

Timed: the scores of all pairs, cross entropy over them, and the gradients of the tokens, given the tokens. PyLate's
side is `ColBERTScores` with the mask of the documents, as its `Contrastive` loss calls it; without a mask, which is
less work than any of its losses does, the ratio is reported. All 180 tokens are alive: with shorter documents ours
would skip the padding.

Memory is what one step adds to the peak of a fresh process beyond tokens and gradients, measured in the same way for
both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases.kernels.floors import Machine, Work
from benchmarks.cases.kernels.inputs import DIMENSION, QUERY_LENGTH, Sizes, unit_rows
from benchmarks.harness import Bench, Figure, Seconds, clocked
from benchmarks.peers import process
from benchmarks.peers.our_scoring_worker import even, training_step
from benchmarks.peers.process import Peer
from lateinteraction import kernels
from lateinteraction.kernels.operands import Tokens

BATCHES = (64, 128)
DOCUMENTS, LENGTH = 2, 180
REPEATS = 5

FIGURES = (
    *(Figure(f"training, B = {batch}: against PyLate", "×", ">=", 6.0) for batch in BATCHES),
    *(Figure(f"training, B = {batch}: against PyLate without a mask", "×") for batch in BATCHES),
    *(Figure(f"training, B = {batch}: memory growth against PyLate", "×", "<=", 1 / 20) for batch in BATCHES),
    *(Figure(f"% of floor: training, B = {batch}", "%") for batch in BATCHES),
)


def measure(bench: Bench, sizes: Sizes, machine: Machine, peer: Peer, scratch: Path) -> None:
    """Check, then time, then weigh, each batch."""
    for batch in BATCHES:
        count = sizes.reduced(batch, 2)
        _check_exactly(count)
        queries, documents = batch_of(count)
        file = scratch / f"batch-{batch}.npz"
        shaped = documents.values.detach().view(count, DOCUMENTS, LENGTH, DIMENSION)
        np.savez(
            file,
            queries=queries.values.detach().view(count, QUERY_LENGTH, DIMENSION).numpy(),
            documents=shaped.numpy(),
        )
        _check_peer(peer, file, queries, documents)
        _measure_time(bench, sizes, machine, peer, file, batch, (queries, documents))
        _measure_memory(bench, batch, [count, DOCUMENTS, QUERY_LENGTH, LENGTH, DIMENSION])


def batch_of(count: int) -> tuple[Tokens, Tokens]:
    """Queries and documents of so many examples, which want gradients."""
    generator = np.random.default_rng(2)
    queries = unit_rows(generator, count * QUERY_LENGTH).requires_grad_()
    documents = unit_rows(generator, count * DOCUMENTS * LENGTH).requires_grad_()
    return even(queries, QUERY_LENGTH), even(documents, LENGTH)


def _measure_time(
    bench: Bench, sizes: Sizes, machine: Machine, peer: Peer, file: Path, batch: int, both: tuple[Tokens, Tokens]
) -> None:
    ours, masked, bare = f"training, B = {batch}", f"PyLate, B = {batch}", f"PyLate, B = {batch}, no mask"
    contestants: dict[str, Callable[[], Seconds]] = {
        ours: clocked(lambda: training_step(*both, DOCUMENTS)),
        masked: lambda: _answered(peer, file, masked=True),
        bare: lambda: _answered(peer, file, masked=False),
    }
    for contestant in contestants.values():
        contestant()
    timings = bench.in_turn(contestants, min(REPEATS, sizes.repeats))
    taken = timings[ours].cpu_p50
    for figure, name in ((f"{ours}: against PyLate", masked), (f"{ours}: against PyLate without a mask", bare)):
        theirs = timings[name].cpu_p50
        bench.report(figure, theirs / taken, f"{taken * 1e3:.1f} and {theirs * 1e3:.1f} ms")
    rows, tokens = len(both[0].values), len(both[1].values)
    # One product for the scores; the gradients touch only winners, once for either side.
    products = rows * tokens + 2 * rows * len(both[1].spans)
    work = Work(2.0 * DIMENSION * products)
    bench.report(f"% of floor: {ours}", machine.share(work, timings[ours]), f"{machine.floor(work) * 1e3:.1f} ms")


def _answered(peer: Peer, file: Path, *, masked: bool) -> Seconds:
    answer = peer.ask("time_step", file=str(file), masked=masked)
    return Seconds(answer["seconds"], answer["cpu_seconds"])


def _check_exactly(count: int) -> None:
    """Scores and gradients to the last bit, where every sum is exact: multiples of 1/4, ties included."""
    generator = torch.Generator().manual_seed(3)
    queries, documents = (
        torch.randint(-4, 5, (rows, DIMENSION), generator=generator) / 4
        for rows in (count * QUERY_LENGTH, count * DOCUMENTS * LENGTH)
    )
    upstream = torch.randint(-4, 5, (count, count * DOCUMENTS), generator=generator) / 4
    tokens = even(queries.requires_grad_(), QUERY_LENGTH), even(documents.requires_grad_(), LENGTH)
    scores = kernels.maxsim_all_pairs(*tokens)
    scores.backward(upstream)
    expected = exact_step(queries.detach().double(), documents.detach().double(), upstream.double())
    found = scores.detach(), queries.grad, documents.grad
    for name, one, other in zip(("scores", "query gradient", "document gradient"), found, expected, strict=True):
        assert one is not None
        assert torch.equal(one.double(), other), name


def exact_step(queries: Tensor, documents: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and both gradients in float64, a document at a time; ties go to the lowest row."""
    scores = queries.new_empty(upstream.shape)
    grad_queries, grad_documents = torch.zeros_like(queries), torch.zeros_like(documents)
    for number, rows in enumerate(documents.view(-1, LENGTH, DIMENSION)):
        table = queries @ rows.T
        winners = torch.from_numpy(table.numpy().argmax(axis=1))
        best = table.gather(1, winners[:, None]).view(-1, QUERY_LENGTH)
        scores[:, number] = best.sum(dim=1)
        weights = upstream[:, number].repeat_interleave(QUERY_LENGTH)[:, None]
        grad_queries += weights * rows[winners]
        grad_documents[number * LENGTH : (number + 1) * LENGTH].index_add_(0, winners, weights * queries)
    return scores, grad_queries, grad_documents


def _check_peer(peer: Peer, file: Path, queries: Tokens, documents: Tokens) -> None:
    """That PyLate's step is the same one. A near tie may go either way in float32: gradients are compared as wholes."""
    made = file.with_name("step.npz")
    peer.ask("step", file=str(file), out=str(made))
    scores = training_step(queries, documents, DOCUMENTS)
    found = scores, queries.values.grad, documents.values.grad
    with np.load(made, allow_pickle=False) as theirs:
        for name, ours in zip(("scores", "grad_queries", "grad_documents"), found, strict=True):
            assert ours is not None
            own, other = ours.detach().numpy().ravel(), theirs[name].ravel()
            apart = np.linalg.norm(own - other) / np.linalg.norm(other)
            assert apart < (1e-5 if name == "scores" else 1e-2), f"{name}: {apart} apart"


def _measure_memory(bench: Bench, batch: int, sizes: list[int]) -> None:
    ours, theirs = (weigh(start(), sizes) for start in (start_ours, start_pylate))
    if min(ours, theirs) <= 0:
        raise RuntimeError(
            f"a step that adds {ours} and {theirs} bytes: the memory was there before, so this says nothing"
        )
    beside = f"{ours / 1e6:.1f} and {theirs / 1e6:.1f} MB"
    bench.report(f"training, B = {batch}: memory growth against PyLate", ours / theirs, beside)


def start_ours() -> Peer:
    """A new process of ours."""
    return Peer("ours", [sys.executable, "-m", "benchmarks.peers.our_scoring_worker"], threads=1)


def start_pylate() -> Peer:
    """A new process of PyLate."""
    return process.start("pylate", process.SCORING, threads=1)


def weigh(worker: Peer, sizes: list[int]) -> int:
    """Bytes that one step adds in this process, which ends with it."""
    with worker:
        return worker.ask("memory_of_step", sizes=sizes)["growth"]
