"""A program of tests: every operation on tokens, in memory that is guarded on both sides (`guards`).

Prints the shape of the kernels that this processor gets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from guards import MEMORY, guard_what_kernels_allocate, guarded

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels import cpu
from lateinteraction.kernels.cpu import operands, threads
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.operands import Tokens

DTYPES = torch.float32, torch.float16, torch.bfloat16, torch.int8


def items(generator: np.random.Generator, lengths: list[int], width: int) -> TokenEmbeddings[Any]:
    """Small whole numbers: exact in every dtype and every order, with many ties."""
    return TokenEmbeddings(generator.integers(-4, 5, (sum(lengths), width)).astype(np.float32), offsets_of(lengths))


def tokens(given: TokenEmbeddings[Any], dtype: torch.dtype, scales: np.ndarray | None = None) -> Tokens:
    values = torch.from_numpy(given.tokens).type(dtype)
    bits = values.view(torch.int16).numpy() if values.element_size() == 2 else values.numpy()
    spans = np.stack([given.offsets[:-1], given.offsets[1:]], axis=1)
    longest = int(np.diff(given.offsets).max())
    return Tokens(guarded(bits).view(dtype), guarded(spans), longest, None if scales is None else guarded(scales))


def check(generator: np.random.Generator, width: int, dtype: torch.dtype) -> None:
    queries = items(generator, [1, processor().panel + 3, 0, 5], width)
    documents = items(generator, [processor().rows + 1, 0, 3, 2 * processor().rows, 1], width)
    doubled = [np.full(len(each.tokens), 2.0, np.float32) for each in (queries, documents)]
    sides = tokens(queries, dtype), tokens(documents, dtype)
    expected, wanted = reference.maxsim_all_pairs(queries, documents), reference.maxsim_winners(queries, documents)
    scores, winners = cpu.maxsim_all_pairs_winners(*sides)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(winners, wanted)
    np.testing.assert_array_equal(cpu.maxsim_all_pairs(*sides), expected)
    scaled = tokens(queries, dtype, doubled[0]), tokens(documents, dtype, doubled[1])
    np.testing.assert_array_equal(cpu.maxsim_all_pairs(*scaled), 4 * expected)
    pairs = np.array([[3, 4], [1, 0], [1, 3], [0, 1]])
    found, own_winners = cpu.maxsim_pairs_winners(*sides, guarded(pairs))
    np.testing.assert_array_equal(found, expected[pairs[:, 0], pairs[:, 1]])
    np.testing.assert_array_equal(cpu.maxsim_pairs(*sides, guarded(pairs)), found)
    best, places = cpu.maxsim_top_k(*sides, 3)
    np.testing.assert_array_equal(places, np.argsort(-expected, axis=1, kind="stable")[:, :3])
    np.testing.assert_array_equal(best, np.take_along_axis(expected, places.numpy(), axis=1))
    for k in (1, 7, 1000):
        retrieved, _, _ = cpu.xtr_all_pairs(*sides, k)
        np.testing.assert_allclose(retrieved, reference.xtr_all_pairs(queries, documents, k), rtol=1e-6)
    if dtype != torch.int8:
        check_gradients(queries, documents, sides, winners, (pairs, own_winners))


def check_gradients(
    queries: TokenEmbeddings[Any],
    documents: TokenEmbeddings[Any],
    sides: tuple[Tokens, Tokens],
    winners: torch.Tensor,
    listed: tuple[np.ndarray, torch.Tensor],
) -> None:
    dtype = sides[0].values.dtype
    upstream = np.ones((len(queries), len(documents)), np.float32)
    expected = reference.maxsim_all_pairs_gradients(queries, documents, upstream)
    held = guarded(winners.numpy())
    found = cpu.maxsim_all_pairs_gradients(*sides, held, guarded(upstream), unit=False)
    for gradient, value in zip(found, expected, strict=True):
        np.testing.assert_array_equal(gradient.float(), torch.from_numpy(value).type(dtype).float())
    norms = [cpu.inverse_norms(each.values) for each in sides]
    for norm, each in zip(norms, (queries, documents), strict=True):
        length = np.linalg.norm(each.tokens, axis=1)
        np.testing.assert_allclose(norm, np.divide(1, length, out=np.zeros_like(length), where=length > 0), rtol=1e-6)
    units = tuple(each._replace(scales=guarded(norm.numpy())) for each, norm in zip(sides, norms, strict=True))
    pairs, own_winners = listed
    weights = guarded(np.ones(len(pairs), np.float32))
    for gradient, each in zip(
        cpu.maxsim_pairs_gradients(*units, guarded(pairs), guarded(own_winners.numpy()), weights, unit=True),
        (queries, documents),
        strict=True,
    ):
        along = (gradient.double().numpy() * each.tokens).sum(axis=1)  # nothing is left along the token itself
        np.testing.assert_allclose(along, 0, atol=0.5 if dtype == torch.bfloat16 else 0.05)


def main() -> None:
    generator = np.random.default_rng(0)
    for MEMORY.at_end in (True, False):
        for width in (1, 7, 16, 33, 130):
            for dtype in DTYPES:
                check(generator, width, dtype)
                MEMORY.check()
    own = processor()
    print(own.lanes, own.rows, int(own.fused), int(own.byte_dots))


if __name__ == "__main__":
    guard_what_kernels_allocate()
    operands.BLOCK, operands.FEWEST_PANELS = 1, 1  # queries in several blocks
    threads.LEAST_WORK = 1  # what threads have of their own is guarded too
    torch.set_num_threads(2)
    main()
