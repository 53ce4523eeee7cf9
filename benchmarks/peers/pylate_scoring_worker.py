# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""PyLate 1.6's scores, without a model; runs with the interpreter of .peers/pylate.

Reranking is `rank.rerank`: it pads the documents with zeros to the longest (`pad_sequence`), multiplies
(`einsum "ash,bth->abst"`), takes maxima and sums, sorts, and makes a dictionary per document. It passes no mask, so a
zero stands for what is not there: with random unit vectors no maximum is below zero, and its scores are right.
Documents are handed over as tensors, which it takes as they are, under `inference_mode`. `colbert_scores` on documents
that were padded before is timed as well: less than reranking can ever do.

Training is `scores.ColBERTScores` with the mask of the documents, as its `Contrastive` loss calls it, cross entropy
over it, and backward; without the mask as well, which no loss of it does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pylate.rank import rerank
from pylate.scores import ColBERTScores, colbert_scores

from benchmarks.peers.serving import Answer, memory_growth, serve, timed

Pair = Any  # of tensors


@lru_cache(maxsize=1)
def load(file: str) -> Pair:
    """The query and the documents of a file with `query`, `tokens` and `offsets`, as tensors; the last is kept."""
    with np.load(file, allow_pickle=False) as arrays:
        lengths = np.diff(arrays["offsets"])
        documents = torch.from_numpy(arrays["tokens"]).split([int(length) for length in lengths])
        return torch.from_numpy(arrays["query"]), [each.clone() for each in documents]


@lru_cache(maxsize=1)
def padded(file: str) -> Pair:
    """The same, with the documents in one padded tensor."""
    query, documents = load(file)
    return query[None], torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)


def scores(file: str, out: str) -> Answer:
    """The score of every document, in their order."""
    ranked = _rerank(*load(file))
    by_document = {each["id"]: each["score"] for each in ranked}
    np.save(out, np.array([by_document[document] for document in range(len(ranked))], np.float32))
    return {}


def time(file: str, padded_before: bool = False) -> Answer:
    """Rerank, or score documents that were padded before; nothing is written."""
    if not padded_before:
        query, documents = load(file)
        return timed(lambda: _rerank(query, documents))
    query, documents = padded(file)
    with torch.inference_mode():
        return timed(lambda: colbert_scores(query, documents))


@lru_cache(maxsize=1)
def load_batch(file: str) -> Pair:
    """Queries (B, Lq, D) and documents (B, N, Ld, D) of a file, which want gradients; the last is kept."""
    with np.load(file, allow_pickle=False) as arrays:
        return tuple(torch.from_numpy(arrays[name]).requires_grad_() for name in ("queries", "documents"))


def step(file: str, out: str) -> Answer:
    """Scores (B, B N) and both gradients of one training step."""
    queries, documents = load_batch(file)
    scored = _step(queries, documents, masked=True)
    arrays = {"scores": scored, "grad_queries": queries.grad, "grad_documents": documents.grad}
    np.savez(out, **{name: tensor.detach().numpy() for name, tensor in arrays.items()})
    return {}


def time_step(file: str, masked: bool) -> Answer:
    """One training step; nothing is written."""
    queries, documents = load_batch(file)
    return timed(lambda: _step(queries, documents, masked=masked))


def memory_of_step(sizes: list[int]) -> Answer:
    """Growth of a step of B queries with N documents each, sizes = [B, N, Lq, Ld, D]; ask a fresh process."""
    _step(*_batch([2, *sizes[1:]]), masked=True)
    queries, documents = _batch(sizes)
    return memory_growth(lambda: _step(queries, documents, masked=True), queries.nbytes + documents.nbytes)


def _rerank(query: Any, documents: list[Any]) -> Any:
    identifiers = list(range(len(documents)))
    with torch.inference_mode():
        (ranked,) = rerank(documents_ids=[identifiers], queries_embeddings=[query], documents_embeddings=[documents])
    return ranked


def _step(queries: Any, documents: Any, *, masked: bool) -> Any:
    queries.grad = documents.grad = None
    mask = torch.ones(documents.shape[:3], dtype=torch.bool) if masked else None
    scored = ColBERTScores()(queries, documents, documents_mask=mask)
    labels = torch.arange(len(queries)) * documents.shape[1]
    torch.nn.functional.cross_entropy(scored, labels).backward()
    return scored


def _batch(sizes: list[int]) -> Pair:
    batch, documents, query_length, document_length, dimension = sizes
    shapes = (batch, query_length, dimension), (batch, documents, document_length, dimension)
    return tuple(torch.nn.functional.normalize(torch.randn(shape), dim=-1).requires_grad_() for shape in shapes)


if __name__ == "__main__":
    serve(
        {
            "scores": scores,
            "time": time,
            "step": step,
            "time_step": time_step,
            "memory_of_step": memory_of_step,
        }
    )
