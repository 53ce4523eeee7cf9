"""Ragged MaxSim on the CPU: 1 query × 1,000 documents of 20–300 tokens, 128 dimensions, against padding.

Baselines: (a) documents as a list of tensors, padded, masked, multiplied and reduced; (b) the same from a batch
that is already padded; (c) both sides given the list, ours packing it a chunk at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Bench, Figure
from lateinteraction import kernels
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.reference import maxsim_all_pairs

FIGURES = (
    Figure("packed against pad + mask + einsum", "×", ">=", 6.0),
    Figure("packed against already padded", "×", ">=", 3.0),
    Figure("list against list", "×", ">=", 2.0),
)


def run(bench: Bench) -> None:
    """Check against the reference, then time."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 301, 1000)
    offsets, query_offsets = offsets_of(lengths), offsets_of([32])
    query = _unit(generator, 32)
    packed = _unit(generator, int(offsets[-1]))
    queries = kernels.packed(query, torch.from_numpy(query_offsets.copy()), 32)
    documents = kernels.packed(packed, torch.from_numpy(offsets.copy()), int(lengths.max()))
    listed = [tokens.clone() for tokens in packed.split([int(length) for length in lengths])]
    padded, kept = _pad(listed)

    def ours() -> Tensor:
        return kernels.maxsim_all_pairs(queries, documents)[0]

    def ours_from_list() -> Tensor:
        return kernels.maxsim_listed(queries, listed)[0]

    calls = {
        "packed": ours,
        "list, packed by chunk": ours_from_list,
        "list, padded": lambda: _padded_maxsim(query, *_pad(listed)),
        "already padded": lambda: _padded_maxsim(query, padded, kept),
    }
    truth = maxsim_all_pairs(TokenEmbeddings(query.numpy(), query_offsets), TokenEmbeddings(packed.numpy(), offsets))[0]
    with torch.inference_mode():
        for name, call in calls.items():
            np.testing.assert_allclose(call().numpy(), truth, rtol=1e-5, err_msg=name)  # type: ignore[union-attr]
        timings = bench.interleaved(calls)
    fastest, listing = timings["packed"].p50, timings["list, packed by chunk"].p50
    from_list, from_padded = timings["list, padded"].p50, timings["already padded"].p50
    bench.report("packed against pad + mask + einsum", from_list / fastest, f"{from_list * 1e3:.1f} ms")
    bench.report("packed against already padded", from_padded / fastest, f"{from_padded * 1e3:.1f} ms")
    bench.report("list against list", from_list / listing, f"{from_list * 1e3:.1f} ms")


def _unit(generator: np.random.Generator, tokens: int) -> Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(generator.standard_normal((tokens, 128), np.float32)), dim=1)


def _pad(documents: list[Tensor]) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    lengths = torch.tensor([len(document) for document in documents])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def _padded_maxsim(query: Tensor, documents: Tensor, kept: Tensor) -> Tensor:
    similarities = torch.einsum("sd,ntd->nst", query, documents)
    return similarities.masked_fill(~kept[:, None, :], -torch.inf).amax(dim=2).sum(dim=1)
