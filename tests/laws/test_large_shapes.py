"""Kernels on the host against the reference where chunks end: odd shapes, documents longer than a chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels import FormName
from lateinteraction.kernels.eager.chunks import FEWEST_ROWS_PER_CHUNK, SIMILARITIES_PER_CHUNK

FEW = FEWEST_ROWS_PER_CHUNK
ROWS = SIMILARITIES_PER_CHUNK // 37
"""Document tokens in a chunk beside 37 query tokens."""

SHAPES = {
    "a chunk and one token": ([37], [ROWS + 1]),
    "a chunk without one token": ([37], [ROWS - 1, 3]),
    "exactly a chunk": ([30, 7], [ROWS, ROWS, 1]),
    "one document over three chunks": ([5, 0, 32], [3, 2 * ROWS + 5, 0, 2]),
    "chunks that end inside documents": ([37], [ROWS // 2 + 1] * 5 + [0]),
    "a chunk of nothing but empty documents": ([37], [ROWS - 1, *[0] * 50, 2, 0]),
    "as many documents as a chunk has rows": ([1, 36], [1] * (ROWS + 3)),
    "more query tokens than a chunk has room for": ([401, 0, 200, 1], [FEW - 1, FEW, 0, FEW + 1, 2 * FEW + 3, 1]),
}


def dyadic(generator: np.random.Generator, lengths: list[int], width: int) -> TokenEmbeddings[np.ndarray]:
    tokens = generator.integers(-8, 9, (sum(lengths), width)) / 8
    return TokenEmbeddings(tokens.astype(np.float32), offsets_of(lengths))


forms = pytest.mark.parametrize("form", ["eager", "cpu"])


def tokens(embeddings: TokenEmbeddings[np.ndarray], dtype: torch.dtype = torch.float32) -> kernels.Tokens:
    values, offsets = torch.from_numpy(embeddings.tokens).to(dtype), torch.from_numpy(np.array(embeddings.offsets))
    return kernels.packed(values, offsets, int(embeddings.lengths.max(initial=0)))


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_leave_no_trace(form: FormName, shape: str, dtype: torch.dtype) -> None:
    query_lengths, document_lengths = SHAPES[shape]
    generator = np.random.default_rng(0)
    queries, documents = dyadic(generator, query_lengths, 5), dyadic(generator, document_lengths, 5)
    with kernels.use(form):
        scores, winners = kernels.maxsim_all_pairs_winners(tokens(queries, dtype), tokens(documents, dtype))
    assert np.array_equal(scores, reference.maxsim_all_pairs(queries, documents))
    assert np.array_equal(winners, reference.maxsim_winners(queries, documents))


@forms
@pytest.mark.parametrize("shape", SHAPES)
def test_groups_of_any_size_leave_no_trace(form: FormName, shape: str) -> None:
    query_lengths, document_lengths = SHAPES[shape]
    generator = np.random.default_rng(1)
    queries, documents = dyadic(generator, query_lengths, 3), dyadic(generator, document_lengths, 3)
    cuts = np.sort(generator.integers(0, len(documents) + 1, len(queries) - 1))
    groups = np.concatenate([[0], cuts, [len(documents)]])
    rows = np.repeat(np.arange(len(queries)), np.diff(groups)), np.arange(len(documents))
    with kernels.use(form):
        found = kernels.maxsim_pairs(tokens(queries), tokens(documents), torch.from_numpy(np.stack(rows, axis=1)))
    assert np.array_equal(found.numpy(), reference.maxsim_grouped(queries, documents, groups))


@forms
def test_a_long_sum_of_small_values_keeps_its_precision(form: FormName) -> None:
    """A query of 4,099 tokens: float32 sums of as many maxima stay within 1e-6 of float64."""
    generator = np.random.default_rng(2)
    unit = generator.standard_normal((4_099 + 301, 17)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    queries = TokenEmbeddings(unit[:4_099], offsets_of([4_099]))
    documents = TokenEmbeddings(unit[4_099:], offsets_of([300, 1]))
    with kernels.use(form):
        found = kernels.maxsim_all_pairs(tokens(queries), tokens(documents))
    assert np.allclose(found.numpy(), reference.maxsim_all_pairs(queries, documents), rtol=1e-6, atol=1e-5)


@forms
@pytest.mark.deep
@settings(max_examples=200)  # a tenth of a second each
@given(seed=st.integers(0, 2**32 - 1))
def test_any_large_shape_has_the_scores_of_the_reference(form: FormName, seed: int) -> None:
    generator = np.random.default_rng(seed)
    query_lengths = [1, 0, *generator.integers(0, 40, 2)]
    document_lengths = [*generator.integers(0, 400, 30), 9_001, *generator.integers(0, 400, 30)]
    queries, documents = dyadic(generator, query_lengths, 33), dyadic(generator, document_lengths, 33)
    with kernels.use(form):
        found = kernels.maxsim_all_pairs(tokens(queries), tokens(documents))
    assert np.array_equal(found.numpy(), reference.maxsim_all_pairs(queries, documents))
