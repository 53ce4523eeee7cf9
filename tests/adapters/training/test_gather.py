"""Two processes with their documents together have the gradient that one has of the whole batch.

One pair of processes runs all cases and writes what it finds; everything is in float64 unless said.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from numpy.typing import NDArray
from torch import Tensor, nn

from lateinteraction.adapters.neural.losses import Contrastive, LearnableTemperature, MaxSim, Objective, learned_of
from lateinteraction.adapters.training.batches import MicroBatch
from lateinteraction.adapters.training.gather import gathered
from lateinteraction.adapters.training.module import TrainedModule
from lateinteraction.adapters.training.strategies import Embeddings, Setting, cached, direct
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.training import Targets, false_negatives
from tests.adapters.training.stubs import StubNetwork, micro_batch

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="no processes in this build of torch")

WORLD, SECONDS = 2, 120
SIZES = ([2, 3, 1], [4, 2, 5])
"""Documents of the queries of each process: as many queries, of other numbers of documents of other lengths."""
EACH, ALL = 7, 10**6
STRATEGIES = {"direct": direct, "cached": cached}
LOSSES: dict[str, Callable[[], Objective]] = {
    "contrastive": lambda: Contrastive(temperature=0.5),
    "learned": lambda: Contrastive(temperature=LearnableTemperature(0.5), interaction=MaxSim(mean=True)),
    "both ways": lambda: Contrastive(symmetric=True, own_negatives=False),
}
LENGTHS = ([3, 0, 2], [1, 4])
"""Tokens of documents that are gathered by themselves."""


def batch_of(rank: int, budget: int) -> MicroBatch:
    return micro_batch(SIZES[rank], rank, budget=budget, longest=(4, 9)[rank])


def module_of(loss: Objective) -> TrainedModule:
    # What each process draws is its own, so there is no dropout to compare.
    return TrainedModule(StubNetwork(dropout=0.0), learned_of(loss))


def excluded_of(batch: MicroBatch, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    nobody = np.full(len(keys), -1)
    return false_negatives(batch.query_keys, keys, nobody, batch.groups)


def documents_of(rank: int, dtype: torch.dtype = torch.float64) -> TokenEmbeddings[Tensor]:
    total = sum(LENGTHS[rank])
    rows = (100 * rank + torch.arange(2 * total).reshape(total, 2)).type(dtype)
    return TokenEmbeddings(rows.requires_grad_(), offsets_of(LENGTHS[rank]))


# ── what each of the two processes does ─────────────────────────────────────────────────────────────────────────────


def gradients_of(name: str, strategy: str, budget: int) -> dict[str, NDArray[np.float64]]:
    loss = LOSSES[name]()
    plain = module_of(loss)
    wrapped = nn.parallel.DistributedDataParallel(plain, broadcast_buffers=False)
    batch = batch_of(distributed.get_rank(), budget)

    def objective(queries: Embeddings, documents: Embeddings) -> Tensor:
        together = gathered(documents, batch.document_keys[None])
        others = len(together.embeddings) - len(documents)
        excluded = excluded_of(batch, together.labels[0])
        return loss(queries, together.embeddings, Targets(batch.groups, others=others, excluded=excluded))

    setting = Setting(module=wrapped, device=torch.device("cpu"), unsynchronised=wrapped.no_sync)
    outcome = STRATEGIES[strategy](setting, batch, objective)
    found = {each: parameter.grad.numpy() for each, parameter in plain.named_parameters()}
    return found | {"loss": outcome.loss.numpy()}


def gathered_of(dtype: torch.dtype) -> dict[str, NDArray[np.float64]]:
    """What is gathered, and the gradient where each process weighs rows by its own number."""
    rank = distributed.get_rank()
    documents = documents_of(rank, dtype)
    together = gathered(documents, 10 * rank + np.arange(len(documents))[None])
    (together.embeddings.tokens * (1 + rank)).sum().backward()
    return {
        "tokens": together.embeddings.tokens.detach().double().numpy(),
        "lengths": together.embeddings.lengths,
        "labels": together.labels[0],
        "gradient": documents.tokens.grad.double().numpy(),
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    for name in LOSSES:
        for strategy in STRATEGIES:
            for budget in (EACH, ALL):
                np.savez(f"{folder}/{name}-{strategy}-{budget}-{rank}.npz", **gradients_of(name, strategy, budget))
    for dtype in (torch.float64, torch.bfloat16):
        np.savez(f"{folder}/{dtype}-{rank}.npz", **gathered_of(dtype))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have written what they found."""
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.spawn(work, (str(folder),), nprocs=WORLD, join=False)
    end = time.monotonic() + SECONDS
    try:
        while not context.join(1):  # which gives up when one of them has ended
            assert time.monotonic() < end, "two processes that do not end"
    finally:
        for process in context.processes:
            process.kill()
    return folder


def found(two: Path, name: str, rank: int) -> dict[str, NDArray[np.float64]]:
    with np.load(two / f"{name}-{rank}.npz") as arrays:
        return dict(arrays)


# ── what one process does with all of it ────────────────────────────────────────────────────────────────────────────


def joined(parts: list[Embeddings]) -> Embeddings:
    lengths = np.concatenate([part.lengths for part in parts])
    return TokenEmbeddings(torch.cat([part.tokens for part in parts]), offsets_of(lengths))


def global_gradients(name: str) -> dict[str, NDArray[np.float64]]:
    """Of the mean over all queries, which see all documents: one forward pass, one loss, one backward."""
    loss = LOSSES[name]()
    module = module_of(loss)
    unused = Setting(module=module, device=torch.device("cpu"), backward=lambda _: None)
    batches = [batch_of(rank, ALL) for rank in range(WORLD)]
    queries, documents = list[Embeddings](), list[Embeddings]()

    def collect(own: Embeddings, answers: Embeddings) -> Tensor:
        queries.append(own)
        documents.append(answers)
        return 0 * answers.tokens.sum()

    for batch in batches:
        direct(unused, batch, collect)
    total = torch.zeros((), dtype=torch.float64)
    for rank, batch in enumerate(batches):
        order = [rank, *(other for other in range(WORLD) if other != rank)]
        keys = np.concatenate([batches[each].document_keys for each in order])
        together = joined([documents[each] for each in order])
        others = len(together) - len(documents[rank])
        targets = Targets(batch.groups, others=others, excluded=excluded_of(batch, keys))
        total = total + loss(queries[rank], together, targets) / WORLD
    total.backward()
    gradients = {each: parameter.grad.numpy() for each, parameter in module.named_parameters()}
    return gradients | {"loss": total.detach().numpy()}


@pytest.mark.parametrize("budget", [EACH, ALL])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_have_the_gradient_of_the_global_batch(two: Path, name: str, strategy: str, budget: int) -> None:
    expected = global_gradients(name)
    parts = [found(two, f"{name}-{strategy}-{budget}", rank) for rank in range(WORLD)]
    assert np.mean([part.pop("loss") for part in parts]) == pytest.approx(float(expected.pop("loss")), rel=1e-12)
    for part in parts:
        assert part.keys() == expected.keys()
        for parameter, gradient in expected.items():
            assert np.linalg.norm(gradient) > 0
            assert np.linalg.norm(part[parameter]) / np.linalg.norm(gradient) == pytest.approx(1, abs=1e-10)
            # A learned temperature is a float32 number, and so is its gradient.
            near = 1e-10 if gradient.dtype == np.float64 else 1e-6
            np.testing.assert_allclose(part[parameter], gradient, rtol=near, atol=1e-12)


def test_own_documents_come_first_and_those_without_tokens_come_too(two: Path) -> None:
    for rank, order in enumerate([(0, 1), (1, 0)]):
        part = found(two, "torch.float64", rank)
        assert part["lengths"].tolist() == [length for each in order for length in LENGTHS[each]]
        assert part["labels"].tolist() == [10 * each + row for each in order for row in range(len(LENGTHS[each]))]
        rows = np.concatenate([documents_of(each).tokens.detach().numpy() for each in order])
        assert np.array_equal(part["tokens"], rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_are_the_sum_of_what_all_processes_make_of_a_row(two: Path, dtype: torch.dtype) -> None:
    for rank in range(WORLD):
        gradient = found(two, str(dtype), rank)["gradient"]
        assert np.array_equal(gradient, np.full((sum(LENGTHS[rank]), 2), 1.0 + 2.0))


def test_one_process_alone_has_what_it_gave() -> None:
    documents = documents_of(0)
    labels = np.arange(3)[None]
    alone = gathered(documents, labels)
    assert alone.embeddings is documents
    assert alone.labels is labels
