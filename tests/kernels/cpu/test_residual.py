"""The residual codec, and MaxSim on what it stores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels.cpu import residual, tables
from lateinteraction.kernels.cpu.blocks import PANEL, TOKENS
from lateinteraction.kernels.operands import Codec, Compressed, Tokens

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Floats = NDArray[np.floating]
WithThreads = Callable[[Callable[[], Tensor]], list[Tensor]]
seeds = st.integers(0, 2**32 - 1)
bit_widths = st.sampled_from([1, 2, 4])
widths = st.sampled_from([1, 2, 3, 7, 8, 16, 17, 31, 33, 48, 64])
tokens_of_queries = st.sampled_from([[], [0], [1], [3, 0, 2], [PANEL], [PANEL + 1], [5, PANEL, 30]])
lengths_of_documents = st.lists(
    st.sampled_from([0, 1, 2, 5, TOKENS - 1, TOKENS, TOKENS + 1, 3 * TOKENS + 2]), max_size=6
)
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def directions(generator: np.random.Generator, count: int, width: int) -> NDArray[np.float32]:
    drawn = generator.standard_normal((count, width)) + 1e-3
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def tensors_of(codec: reference.ResidualCodec) -> Codec:
    return Codec(*(torch.from_numpy(each) for each in (codec.centroids, codec.cutoffs, codec.weights)))


@frozen
class World:
    """A codec and documents that it stores, packed for the reference and scattered among rows of no document."""

    codec: reference.ResidualCodec
    queries: TokenEmbeddings[NDArray[np.float32]]
    stored: reference.CompressedEmbeddings
    documents: Compressed

    @classmethod
    def of(cls, seed: int, bits: int, width: int, queries: list[int], documents: list[int]) -> World:
        generator = np.random.default_rng(seed)
        codec = reference.train_codec(
            directions(generator, 30, width), directions(generator, int(generator.integers(1, 60)), width), bits
        )
        packed = TokenEmbeddings(directions(generator, sum(documents), width), offsets_of(documents))
        stored = reference.compress(codec, packed)
        starts, row = np.zeros(len(documents), np.int64), 0
        for item in generator.permutation(len(documents)):
            row += int(generator.integers(0, 3))
            starts[item] = row
            row += documents[item]
        spans = np.stack([starts, starts + np.array(documents, np.int64)], axis=1)
        rows = np.concatenate([starts[:0], *(np.arange(start, end) for start, end in spans)])
        codes, norms = np.zeros(row + 2, np.int32), np.full(row + 2, np.nan, np.float32)
        residuals = np.full((row + 2, stored.residuals.shape[1]), 0xAA, np.uint8)
        codes[rows], residuals[rows], norms[rows] = (
            stored.codes,
            stored.residuals,
            reference.inverse_norms(codec, stored),
        )
        arrays = (torch.from_numpy(each) for each in (codes, residuals, norms, spans))
        own = TokenEmbeddings(directions(generator, sum(queries), width), offsets_of(queries))
        return cls(codec, own, stored, Compressed(*arrays))

    @property
    def tokens(self) -> Tokens:
        offsets = torch.tensor(self.queries.offsets)
        spans = torch.stack([offsets[:-1], offsets[1:]], dim=1)
        return Tokens(torch.from_numpy(self.queries.tokens.copy()), spans, int(offsets[-1]))

    def scores(self, tokens: Tokens | None = None, documents: Compressed | None = None) -> Tensor:
        codec, tokens = tensors_of(self.codec), self.tokens if tokens is None else tokens
        table = tables.centroid_scores(torch.from_numpy(self.queries.tokens), codec.centroids)
        return residual.residual_maxsim(tokens, table, codec, self.documents if documents is None else documents)


worlds = st.builds(World.of, seeds, bit_widths, widths, tokens_of_queries, lengths_of_documents)


def close(found: Tensor, expected: Floats) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


# Scores


@given(worlds)
def test_scores_are_those_of_the_reference(world: World) -> None:
    close(world.scores(), reference.residual_maxsim(world.queries, world.codec, world.stored))


@given(worlds)
def test_scores_are_maxsim_on_what_is_decoded(world: World) -> None:
    codes = torch.from_numpy(world.stored.codes.astype(np.int32))
    decoded = residual.residual_decode(tensors_of(world.codec), codes, torch.from_numpy(world.stored.residuals))
    documents = TokenEmbeddings(decoded.numpy(), world.stored.offsets)
    close(world.scores(), reference.maxsim_all_pairs(world.queries, documents))


@given(worlds)
def test_inverse_norms_may_be_float16(world: World) -> None:
    rounded = world.documents.inverse_norms.half()
    widened = world.documents._replace(inverse_norms=rounded.float())
    assert torch.equal(
        world.scores(documents=world.documents._replace(inverse_norms=rounded)), world.scores(documents=widened)
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_queries_may_have_sixteen_bits(dtype: torch.dtype) -> None:
    world = World.of(3, 2, 33, [4, 9], [30, 2, 7])
    rounded = world.tokens.values.type(dtype)
    world = evolve(world, queries=TokenEmbeddings(rounded.float().numpy(), world.queries.offsets))
    expected = reference.residual_maxsim(world.queries, world.codec, world.stored)
    close(world.scores(world.tokens._replace(values=rounded)), expected)


@given(worlds)
def test_queries_may_be_bytes_with_scales(world: World) -> None:
    values = (world.tokens.values * 127).round().type(torch.int8)
    scales = torch.rand(len(values)) / 100
    world = evolve(world, queries=TokenEmbeddings((values * scales[:, None]).numpy(), world.queries.offsets))
    assert torch.equal(world.scores(world.tokens._replace(values=values, scales=scales)), world.scores())


@given(worlds)
def test_a_document_scores_the_same_alone_and_in_any_company(world: World) -> None:
    """To the last bit: although tokens of several documents share a block."""
    together, spans = world.scores(), world.documents.spans
    for j in range(len(spans)):
        assert torch.equal(
            world.scores(documents=world.documents._replace(spans=spans[j : j + 1])), together[:, j : j + 1]
        )
    backwards = world.scores(documents=world.documents._replace(spans=spans.flip(0)))
    assert torch.equal(backwards.flip(1), together)


@given(worlds)
def test_a_query_scores_the_same_alone(world: World) -> None:
    together = world.scores()
    for i in range(len(world.queries)):
        alone = evolve(world, queries=TokenEmbeddings(world.queries[i], offsets_of([len(world.queries[i])])))
        assert torch.equal(alone.scores()[0], together[i])


@given(worlds, seeds)
def test_the_order_of_tokens_is_of_no_account(world: World, seed: int) -> None:
    """To the last bit: a maximum knows no order."""
    spans = world.documents.spans
    order = torch.arange(len(world.documents.codes))
    for start, end in map(tuple, spans):
        order[start:end] = start + torch.from_numpy(np.random.default_rng(seed).permutation(int(end - start)))
    shuffled = Compressed(*(each[order] for each in world.documents[:3]), spans)
    assert torch.equal(world.scores(documents=shuffled), world.scores())


def test_results_do_not_depend_on_the_number_of_threads(with_threads: WithThreads) -> None:
    generator = np.random.default_rng(0)
    world = World.of(1, 2, 24, [8, 40], list(map(int, generator.integers(0, 60, 40))))
    alone, *others = with_threads(world.scores)
    assert all(torch.equal(alone, other) for other in others)


def test_nan_reaches_those_who_have_it() -> None:
    world = World.of(5, 4, 16, [3, 4], [2 * TOKENS, 3, 4])
    norms, spans = world.documents.inverse_norms.clone(), world.documents.spans
    norms[spans[0, 0] + 1] = torch.nan  # long before the document's last block
    norms[spans[2, 1] - 1] = torch.nan
    found = world.scores(documents=world.documents._replace(inverse_norms=norms))
    assert found.isnan().tolist() == [[True, False, True]] * 2
    values = world.tokens.values.clone()
    values[4, 0] = torch.nan
    assert world.scores(world.tokens._replace(values=values)).isnan().tolist() == [[False] * 3, [True] * 3]


# Encode and decode


@given(seeds, bit_widths, widths, st.integers(0, 70), st.sampled_from(FLOATS))
def test_tokens_are_encoded_as_the_reference_does(
    seed: int, bits: int, width: int, count: int, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(seed)
    codec = reference.train_codec(directions(generator, 40, width), directions(generator, 9, width), bits)
    tokens = torch.from_numpy(directions(generator, count, width)).type(dtype)
    wide = tokens.float().numpy()
    codes = reference.kmeans_assign(wide, codec.centroids)
    found, norms = residual.residual_encode(tokens, torch.from_numpy(codes.astype(np.int32)), tensors_of(codec))
    expected = reference.residual_encode(codec, wide, codes)
    np.testing.assert_array_equal(found.numpy(), expected)
    stored = reference.CompressedEmbeddings(codes, expected, np.array([0, count]))
    np.testing.assert_allclose(norms.numpy(), reference.inverse_norms(codec, stored), rtol=1e-6)


@given(seeds, bit_widths, widths, st.integers(0, 70))
def test_residuals_are_decoded_as_the_reference_does(seed: int, bits: int, width: int, count: int) -> None:
    """Of any bytes, bits of no dimension included."""
    generator = np.random.default_rng(seed)
    codec = reference.train_codec(directions(generator, 40, width), directions(generator, 9, width), bits)
    codes = generator.integers(0, 9, count)
    residuals = generator.integers(0, 256, (count, -(-width * bits // 8)), dtype=np.uint8)
    found = residual.residual_decode(
        tensors_of(codec), torch.from_numpy(codes.astype(np.int32)), torch.from_numpy(residuals)
    )
    stored = reference.CompressedEmbeddings(codes, residuals, np.array([0, count]))
    np.testing.assert_allclose(found.numpy(), reference.decompress(codec, stored).tokens, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_every_byte_stands_for_its_buckets_wherever_it_lies(bits: int) -> None:
    """Powers of two as weights, nothing as centroids: each dimension names its bucket."""
    weights = 2.0 ** np.arange(2**bits, dtype=np.float32)
    width = 5 * 16 + 8 // bits  # whole vectors, and a byte that is left
    codec = Codec(torch.zeros(1, width), torch.zeros(2**bits - 1), torch.from_numpy(weights))
    residuals = torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, width * bits // 8).contiguous()
    found = residual.residual_decode(codec, torch.zeros(256, dtype=torch.int32), residuals).numpy()
    expected = weights[reference.unpack(residuals.numpy(), bits, width)]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_value_on_a_cutoff_belongs_below_it() -> None:
    codec = Codec(torch.zeros(1, 4), torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([-1.0, -0.25, 0.25, 1.0]))
    above = np.nextafter(np.float32([-0.5, 0.0, 0.5, 0.5]), np.float32(1))
    tokens = torch.from_numpy(np.stack([np.float32([-0.5, 0.0, 0.5, 9.0]), above]))
    found, _ = residual.residual_encode(tokens, torch.zeros(2, dtype=torch.int32), codec)
    assert found.tolist() == [[0b11_10_01_00], [0b11_11_10_01]]


def test_cutoffs_that_are_equal_leave_buckets_empty() -> None:
    codec = Codec(torch.zeros(1, 3), torch.zeros(3), torch.arange(4.0))
    found, _ = residual.residual_encode(torch.tensor([[-1.0, 0.0, 1.0]]), torch.zeros(1, dtype=torch.int32), codec)
    assert found.tolist() == [[0b11_00_00]]


def test_nan_is_above_every_cutoff() -> None:
    codec = Codec(torch.zeros(1, 2), torch.tensor([0.0]), torch.tensor([-1.0, 1.0]))
    found, _ = residual.residual_encode(torch.tensor([[torch.nan, -1.0]]), torch.zeros(1, dtype=torch.int32), codec)
    assert found.tolist() == [[0b01]]


def test_what_decodes_to_nothing_is_0_and_not_nan() -> None:
    codec = Codec(torch.ones(1, 9), torch.tensor([0.0]), torch.tensor([-1.0, 1.0]))
    residuals, norms = residual.residual_encode(torch.zeros(1, 9), torch.zeros(1, dtype=torch.int32), codec)
    assert (residuals.tolist(), norms.tolist()) == ([[0, 0]], [0.0])
    decoded = residual.residual_decode(codec, torch.zeros(1, dtype=torch.int32), residuals)
    assert decoded.tolist() == [[0.0] * 9]


@given(seeds, bit_widths, widths)
def test_a_token_is_encoded_and_decoded_the_same_alone(seed: int, bits: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    codec = tensors_of(reference.train_codec(directions(generator, 40, width), directions(generator, 5, width), bits))
    tokens = torch.from_numpy(directions(generator, 20, width))
    codes = torch.from_numpy(generator.integers(0, 5, 20).astype(np.int32))
    residuals, norms = residual.residual_encode(tokens, codes, codec)
    decoded = residual.residual_decode(codec, codes, residuals)
    own = slice(13, 14)
    assert torch.equal(residual.residual_encode(tokens[own], codes[own], codec)[1], norms[own])
    assert torch.equal(residual.residual_decode(codec, codes[own], residuals[own]), decoded[own])


def test_threads_encode_and_decode_the_same(with_threads: WithThreads) -> None:
    codec = Codec(torch.randn(9, 20), torch.linspace(-1, 1, 15), torch.linspace(-1.1, 1.1, 16))
    tokens, codes = torch.randn(5000, 20), torch.randint(0, 9, (5000,), dtype=torch.int32)

    def call() -> Tensor:
        residuals, norms = residual.residual_encode(tokens, codes, codec)
        return torch.cat([residual.residual_decode(codec, codes, residuals), norms[:, None]], dim=1)

    alone, *others = with_threads(call)
    assert all(torch.equal(alone, other) for other in others)


@pytest.mark.parametrize(
    "change",
    [
        lambda documents: documents._replace(codes=documents.codes.long()),
        lambda documents: documents._replace(residuals=documents.residuals.type(torch.int8)),
        lambda documents: documents._replace(inverse_norms=documents.inverse_norms.double()),
        lambda documents: documents._replace(codes=documents.codes.to("meta")),
    ],
)
def test_what_cannot_be_computed_is_refused(change: Callable[[Compressed], Compressed]) -> None:
    world = World.of(0, 2, 8, [2], [3])
    with pytest.raises(TypeError, match="this form takes"):
        world.scores(documents=change(world.documents))


def test_queries_of_float64_are_refused() -> None:
    world = World.of(0, 2, 8, [2], [3])
    with pytest.raises(TypeError, match="float64"):
        world.scores(world.tokens._replace(values=world.tokens.values.double()))
