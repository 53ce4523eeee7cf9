"""Ours answering one of the requests of `pylate_scoring_worker`: the memory of a training step, in a fresh process."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.serving import Answer, memory_growth, serve
from lateinteraction import kernels
from lateinteraction.kernels.operands import Tokens, spans_of


def memory_of_step(sizes: list[int]) -> Answer:
    """Growth of a step of B queries with N documents each, sizes = [B, N, Lq, Ld, D]; ask a fresh process."""
    training_step(*_batch([2, *sizes[1:]]), sizes[1])
    queries, documents = _batch(sizes)
    kept = queries.values.nbytes + documents.values.nbytes
    return memory_growth(lambda: training_step(queries, documents, sizes[1]), kept)


def training_step(queries: Tokens, documents: Tokens, documents_per_query: int) -> Tensor:
    """Scores (B, B N), whose cross entropy has left its gradients in the values of both."""
    queries.values.grad = documents.values.grad = None
    scores = kernels.maxsim_all_pairs(queries, documents)
    labels = torch.arange(len(queries.spans), device=scores.device) * documents_per_query
    torch.nn.functional.cross_entropy(scores, labels).backward()
    return scores


def even(values: Tensor, length: int) -> Tokens:
    """Items of one length, packed, on the device of the values (R, D)."""
    offsets = torch.arange(0, values.shape[0] + 1, length, device=values.device)
    return Tokens(values, spans_of(offsets), length)


def _batch(sizes: list[int]) -> tuple[Tokens, Tokens]:
    batch, documents, query_length, document_length, dimension = sizes
    rows = batch * query_length, batch * documents * document_length
    queries, found = (
        torch.nn.functional.normalize(torch.randn(each, dimension), dim=1).requires_grad_() for each in rows
    )
    return even(queries, query_length), even(found, document_length)


if __name__ == "__main__":
    serve({"memory_of_step": memory_of_step})
