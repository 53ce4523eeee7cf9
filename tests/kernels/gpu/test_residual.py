"""MaxSim on compressed tokens, and the codec, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.kernels.gpu import codec as coding
from lateinteraction.kernels.gpu import residual, tables
from lateinteraction.kernels.operands import Codec, Compressed, Tokens

pytestmark = pytest.mark.usefixtures("poisoned_memory")
Builder = Callable[..., Any]
few = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=max(8, settings.default.max_examples // 10),
)
seeds = st.integers(0, 2**32 - 1)
bit_widths = pytest.mark.parametrize("bits", [1, 2, 4])
WIDTHS = (1, 3, 16, 31, 64, 130)
"""Bytes that a dimension does not fill, bytes that make no words, words of two bytes, and more than one tile holds."""


def codec_of(
    generator: np.random.Generator, width: int, bits: int, dtype: torch.dtype = torch.float32
) -> tuple[reference.ResidualCodec, Codec]:
    """With weights that the dtype of the queries holds, as they are rounded to it."""
    centroids = generator.standard_normal((9, width)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    trained = reference.train_codec(generator.standard_normal((20, width)).astype(np.float32), centroids, bits)
    weights = torch.from_numpy(trained.weights).to(dtype).float()
    tensors = Codec(torch.from_numpy(centroids), torch.from_numpy(trained.cutoffs), weights)
    return reference.ResidualCodec(centroids, trained.cutoffs, weights.numpy()), tensors


@bit_widths
@few
@given(seed=seeds, width=st.sampled_from(WIDTHS), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_scores_are_those_of_the_decoded_tokens(
    ragged: Builder, bits: int, seed: int, width: int, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(seed)
    lengths = [int(n) for n in generator.choice([0, 1, 7, 9, 17], generator.integers(1, 4))]
    values = generator.integers(-8, 9, (sum(lengths), width)).astype(np.float32) / 8
    queries = ragged(generator, lengths, values, dtype=dtype)
    trained, tensors = codec_of(generator, width, bits, dtype)
    lengths = [int(n) for n in generator.choice([0, 1, 8, 9, 20], generator.integers(0, 4))]
    documents = ragged(generator, lengths, generator.standard_normal((sum(lengths), width)))
    stored = reference.compress(trained, documents.packed)
    rows, own = len(documents.tokens.values), documents.rows
    codes, packed = torch.zeros(rows, dtype=torch.int32), torch.full((rows, stored.residuals.shape[1]), 255).byte()
    norms = torch.full((rows,), torch.nan)
    codes[own], packed[own] = torch.from_numpy(stored.codes).int(), torch.from_numpy(stored.residuals)
    norms[own] = torch.from_numpy(reference.inverse_norms(trained, stored)).half().float()
    spare = -width * bits % 8
    packed[own] |= torch.tensor([0] * (packed.shape[1] - 1) + [256 - 2 ** (8 - spare)]).byte()  # nobody reads them
    scores = tables.centroid_scores(torch.nan_to_num(queries.tokens.values), tensors.centroids)
    compressed = Compressed(codes, packed, norms, documents.tokens.spans)
    found = residual.residual_maxsim(queries.tokens, scores, tensors, compressed)
    expected = reference.residual_maxsim(
        TokenEmbeddings(queries.packed.tokens.astype(np.float32), queries.packed.offsets),
        trained,
        stored,
        norms[own].numpy(),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    halved = residual.residual_maxsim(queries.tokens, scores, tensors, compressed._replace(inverse_norms=norms.half()))
    assert torch.equal(found, halved)


def simple(dtype: torch.dtype = torch.float32) -> tuple[Tokens, torch.Tensor, Codec, Compressed]:
    generator = torch.Generator().manual_seed(0)
    codec = Codec(torch.eye(4), torch.tensor([0.0]), torch.tensor([-0.5, 0.5]))
    queries = Tokens(torch.randn(3, 4, generator=generator).to(dtype), torch.tensor([[0, 1], [1, 3]]), 2)
    codes = torch.randint(4, (6,), dtype=torch.int32, generator=generator)
    packed = torch.randint(16, (6, 1), dtype=torch.uint8, generator=generator)
    spans = torch.tensor([[0, 2], [2, 6]])
    return queries, torch.randn(4, 3, generator=generator), codec, Compressed(codes, packed, torch.ones(6), spans)


def test_nan_reaches_only_the_scores_that_it_belongs_to() -> None:
    queries, scores, codec, documents = simple()
    norms = documents.inverse_norms.clone()
    norms[5] = torch.nan
    found = residual.residual_maxsim(queries, scores, codec, documents._replace(inverse_norms=norms))
    assert found.isnan().tolist() == [[False, True], [False, True]]
    values = queries.values.clone()
    values[2, 0] = torch.nan
    found = residual.residual_maxsim(queries._replace(values=values), scores, codec, documents)
    assert found.isnan().tolist() == [[False, False], [True, True]]


def test_a_score_does_not_depend_on_its_neighbours() -> None:
    queries, scores, codec, documents = simple()
    whole = residual.residual_maxsim(queries, scores, codec, documents)
    lone = documents._replace(spans=documents.spans[1:])
    assert torch.equal(residual.residual_maxsim(queries, scores, codec, lone), whole[:, 1:])
    assert torch.equal(residual.residual_maxsim(queries, scores, codec, documents), whole)


def test_queries_with_scales_are_refused() -> None:
    queries, scores, codec, documents = simple()
    bad = (
        (queries._replace(scales=torch.ones(3)), scores),
        (queries._replace(values=queries.values.to(torch.int8)), scores),
        (queries._replace(values=queries.values.double()), scores),
        (queries, scores.half()),
    )
    for tokens, table in bad:
        with pytest.raises(TypeError):
            residual.residual_maxsim(tokens, table, codec, documents)


@bit_widths
@few
@given(seed=seeds, width=st.sampled_from(WIDTHS), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_the_codec_is_the_references(bits: int, seed: int, width: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(seed)
    trained, tensors = codec_of(generator, width, bits)
    values = torch.from_numpy(generator.standard_normal((int(generator.integers(0, 7)), width))).to(dtype)
    codes = torch.from_numpy(generator.integers(0, 9, len(values)).astype(np.int32))
    packed, norms = coding.residual_encode(values, codes, tensors)
    expected = reference.residual_encode(trained, values.float().numpy(), codes.numpy())
    np.testing.assert_array_equal(packed, expected)
    stored = reference.CompressedEmbeddings(codes.numpy().astype(np.int64), expected, np.array([0, len(values)]))
    np.testing.assert_allclose(norms, reference.inverse_norms(trained, stored), rtol=1e-5)
    decoded = coding.residual_decode(tensors, codes, packed)
    np.testing.assert_allclose(decoded, reference.decompress(trained, stored).tokens, rtol=1e-5, atol=1e-6)


def test_what_decodes_to_nothing_has_no_norm() -> None:
    codec = Codec(torch.full((1, 3), 0.5), torch.tensor([0.0]), torch.tensor([-0.5, 0.5]))
    codes = torch.zeros(2, dtype=torch.int32)
    packed, norms = coding.residual_encode(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), codes, codec)
    assert packed.tolist() == [[0], [1]]
    assert norms.tolist() == [0.0, 1.0]
    assert coding.residual_decode(codec, codes, packed).tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_a_value_on_a_cutoff_belongs_below_it_and_nan_above_all() -> None:
    codec = Codec(torch.zeros(1, 3), torch.tensor([-1.0, 0.0, 0.0]), torch.tensor([-2.0, -0.5, 0.0, 1.0]))
    packed, _ = coding.residual_encode(torch.tensor([[-1.0, 0.0, torch.nan]]), torch.zeros(1, dtype=torch.int32), codec)
    assert packed.tolist() == [[0 | 1 << 2 | 3 << 4]]


def test_a_codec_of_another_precision_is_refused() -> None:
    codec = Codec(torch.zeros(1, 3).half(), torch.tensor([0.0]), torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError):
        coding.residual_decode(codec, torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.uint8))
