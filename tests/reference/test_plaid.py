"""Centroids, the residual codec, and the scores computed on what it stores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidOption
from lateinteraction.domain.reference import CompressedEmbeddings, ResidualCodec
from lateinteraction.testing import strategies as lis

Floats = NDArray[np.floating]
Embeddings = TokenEmbeddings[Floats]
seeds = st.integers(0, 2**32 - 1)
bit_widths = st.sampled_from([1, 2, 4])
widths = st.integers(1, 17)
cases = given(seeds, bit_widths, widths)
"""A seed, bits per dimension, dimensions: odd widths leave part of the last byte empty."""


def directions(generator: np.random.Generator, count: int, width: int) -> Floats:
    drawn = generator.standard_normal((count, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def world(seed: int, bits: int, width: int) -> tuple[ResidualCodec, Embeddings, Embeddings]:
    """A trained codec, queries, and documents that it has not seen; one of each is empty. All float64."""
    generator = np.random.default_rng(seed)
    codec = reference.train_codec(directions(generator, 40, width), directions(generator, 5, width), bits)
    queries = TokenEmbeddings(directions(generator, 4, width), offsets_of([3, 0, 1]))
    documents = TokenEmbeddings(directions(generator, 11, width), offsets_of([1, 5, 0, 5]))
    return codec, queries, documents


# k-means


def test_assignment_worked_out_by_hand() -> None:
    centroids = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    tokens = np.array([[0.9, 0.1], [0.1, 0.9], [-0.2, -0.9], [-1.0, 0.5]])
    np.testing.assert_array_equal(reference.kmeans_assign(tokens, centroids), [0, 1, 2, 2])


@given(lis.tokens(9, 3, values="repeated"), lis.tokens(6, 3, values="repeated"))
def test_a_token_goes_to_the_first_of_its_best_centroids(tokens: Floats, centroids: Floats) -> None:
    for token, code in zip(tokens, reference.kmeans_assign(tokens, centroids), strict=True):
        found = [float(token @ centroid) for centroid in centroids]
        assert code == found.index(max(found))


def test_a_centroid_moves_to_the_direction_of_its_mean() -> None:
    tokens = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 1.0]])
    updated = reference.kmeans_update(tokens, np.array([0, 0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(updated, [[0.6, 0.8], [0.0, 1.0]])


def test_a_centroid_without_tokens_or_whose_tokens_cancel_out_stays() -> None:
    centroids = np.array([[0.6, 0.8], [0.0, 1.0]])
    updated = reference.kmeans_update(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0, 0]), centroids)
    np.testing.assert_array_equal(updated, centroids)


@given(seeds, st.integers(2, 6), st.integers(1, 6))
def test_a_step_of_k_means_never_takes_tokens_further_from_their_centroids(seed: int, width: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    tokens, centroids = directions(generator, 30, width), directions(generator, count, width)
    closeness = []
    for _ in range(5):
        codes = reference.kmeans_assign(tokens, centroids)
        closeness.append(np.sum(tokens * centroids[codes]))
        centroids = reference.kmeans_update(tokens, codes, centroids)
    assert np.all(np.diff(closeness) >= -1e-9)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1.0)


# Packing


def test_low_dimensions_lie_in_low_bits() -> None:
    bits = np.array([[1, 0, 0, 0, 0, 0, 1, 1, 1]], np.uint8)
    np.testing.assert_array_equal(reference.pack(bits, 1), [[0b1100_0001, 0b0000_0001]])
    pairs = np.array([[1, 0, 3, 2, 3]], np.uint8)
    np.testing.assert_array_equal(reference.pack(pairs, 2), [[0b10_11_00_01, 0b00_00_00_11]])
    nibbles = np.array([[0x1, 0xF, 0xA]], np.uint8)
    np.testing.assert_array_equal(reference.pack(nibbles, 4), [[0xF1, 0x0A]])


@given(bit_widths, widths, st.integers(0, 5), st.data())
def test_unpacking_gives_back_what_was_packed(bits: int, width: int, count: int, data: st.DataObject) -> None:
    buckets = data.draw(arrays.arrays(np.uint8, (count, width), elements=st.integers(0, 2**bits - 1)))
    packed = reference.pack(buckets, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (count, (width * bits + 7) // 8)
    np.testing.assert_array_equal(reference.unpack(packed, bits, width), buckets)


@given(bit_widths, widths, st.data())
def test_packing_is_the_little_endian_bit_order_of_numpy(bits: int, width: int, data: st.DataObject) -> None:
    buckets = data.draw(arrays.arrays(np.uint8, (2, width), elements=st.integers(0, 2**bits - 1)))
    single_bits = np.unpackbits(buckets[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(2, -1)
    np.testing.assert_array_equal(reference.pack(buckets, bits), np.packbits(single_bits, axis=1, bitorder="little"))


# The codec


def test_a_codec_worked_out_by_hand() -> None:
    """Residuals 0 … 8 against a centroid of zeros: quartiles 2, 4, 6 and the eighths between them."""
    tokens = np.arange(9.0).reshape(9, 1)
    codec = reference.train_codec(tokens, np.zeros((1, 1)), 2)
    assert codec.bits == 2
    np.testing.assert_allclose(codec.cutoffs, [2, 4, 6])
    np.testing.assert_allclose(codec.weights, [1, 3, 5, 7])
    compressed = reference.compress(codec, TokenEmbeddings(tokens, [0, 9]))
    buckets = reference.unpack(compressed.residuals, 2, 1)[:, 0]
    np.testing.assert_array_equal(buckets, [0, 0, 0, 1, 1, 2, 2, 3, 3])  # a value on a cutoff belongs below it


@cases
def test_training_shares_residuals_out_evenly(seed: int, bits: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    tokens, centroids = directions(generator, 64, width), directions(generator, 3, width)
    codec = reference.train_codec(tokens, centroids, bits)
    residuals = (tokens - centroids[reference.kmeans_assign(tokens, centroids)]).ravel()
    if len(np.unique(residuals)) == len(residuals):  # in one dimension they repeat
        counts = np.bincount(np.searchsorted(codec.cutoffs, residuals), minlength=2**bits)
        assert counts.max() - counts.min() <= 1
    assert np.all(codec.cutoffs >= codec.weights[:-1])
    assert np.all(codec.cutoffs <= codec.weights[1:])


@cases
def test_the_round_trip_keeps_within_its_bound(seed: int, bits: int, width: int) -> None:
    codec, _, documents = world(seed, bits, width)
    compressed = reference.compress(codec, documents)
    residuals = documents.tokens - codec.centroids[compressed.codes]
    decoded = codec.weights[reference.unpack(compressed.residuals, bits, width)]
    bound = reference.round_trip_bound(codec, residuals.min(), residuals.max())
    assert np.abs(decoded - residuals).max() <= bound * (1 + 1e-12)


def test_the_bound_is_reached_and_counts_only_buckets_in_range() -> None:
    codec = ResidualCodec(np.zeros((1, 1)), np.array([0.0]), np.array([-1.0, 1.0]))
    assert reference.round_trip_bound(codec, -1.5, 4.0) == 3.0
    assert reference.round_trip_bound(codec, 0.5, 1.25) == 0.5
    decoded = codec.weights[
        reference.unpack(reference.compress(codec, TokenEmbeddings(np.array([[4.0]]), [0, 1])).residuals, 1, 1)
    ]
    np.testing.assert_array_equal(decoded, [[1.0]])


@given(seeds, st.integers(4, 17))
def test_more_bits_come_closer(seed: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    tokens, centroids = directions(generator, 400, width), directions(generator, 8, width)
    errors = []
    for bits in (1, 2, 4):
        codec = reference.train_codec(tokens, centroids, bits)
        decoded = reference.decompress(codec, reference.compress(codec, TokenEmbeddings(tokens, [0, len(tokens)])))
        errors.append(np.mean((decoded.tokens - tokens) ** 2))
    assert errors[0] > errors[1] > errors[2]


@cases
def test_decompressed_tokens_are_unit_vectors_of_the_same_items(seed: int, bits: int, width: int) -> None:
    codec, _, documents = world(seed, bits, width)
    compressed = reference.compress(codec, documents)
    decompressed = reference.decompress(codec, compressed)
    np.testing.assert_array_equal(decompressed.offsets, documents.offsets)
    np.testing.assert_allclose(np.linalg.norm(decompressed.tokens, axis=1), 1.0)
    approximate = codec.centroids[compressed.codes] + codec.weights[reference.unpack(compressed.residuals, bits, width)]
    norms = reference.inverse_norms(codec, compressed)
    np.testing.assert_allclose(norms * np.linalg.norm(approximate, axis=1), 1.0)
    np.testing.assert_allclose(decompressed.tokens, approximate * norms[:, None])


def test_a_token_that_decodes_to_nothing_is_0_and_not_nan() -> None:
    codec = ResidualCodec(np.array([[1.0]]), np.array([0.0]), np.array([-1.0, 1.0]))
    compressed = CompressedEmbeddings(np.array([0]), np.array([[0]], np.uint8), [0, 1])
    np.testing.assert_array_equal(reference.decompress(codec, compressed).tokens, [[0.0]])
    np.testing.assert_array_equal(reference.inverse_norms(codec, compressed), [0.0])


# Scores


@cases
def test_residual_maxsim_is_maxsim_on_decompressed_tokens(seed: int, bits: int, width: int) -> None:
    codec, queries, documents = world(seed, bits, width)
    compressed = reference.compress(codec, documents)
    scores = reference.residual_maxsim(queries, codec, compressed)
    np.testing.assert_allclose(
        scores, reference.maxsim_all_pairs(queries, reference.decompress(codec, compressed)), atol=1e-12
    )
    np.testing.assert_array_equal(
        np.isneginf(scores), [[False, False, True, False], [False] * 4, [False, False, True, False]]
    )


@cases
def test_centroid_interaction_looks_up_the_table_of_centroid_scores(seed: int, bits: int, width: int) -> None:
    codec, queries, documents = world(seed, bits, width)
    compressed = reference.compress(codec, documents)
    table = reference.centroid_scores(queries, codec.centroids)
    assert table.shape == (5, 4)
    scores = reference.centroid_interaction(table, queries.offsets, compressed.codes, compressed.offsets)
    for i in range(len(queries)):
        for j in range(len(documents)):
            codes = compressed.codes[compressed.offsets[j] : compressed.offsets[j + 1]]
            own = table[codes, queries.offsets[i] : queries.offsets[i + 1]]
            assert scores[i, j] == pytest.approx(own.max(axis=0, initial=-np.inf).sum(), rel=1e-12)


@given(lis.query_document_embeddings(values="unit", documents=(1, 5)))
def test_with_every_token_a_centroid_the_interaction_is_exact(pair: tuple[Embeddings, Embeddings]) -> None:
    queries, documents = pair
    table = reference.centroid_scores(queries, documents.tokens.astype(np.float64))
    np.testing.assert_allclose(
        reference.centroid_interaction(table, queries.offsets, np.arange(len(table)), documents.offsets),
        reference.maxsim_all_pairs(queries, documents),
        rtol=1e-6,
    )


@given(st.integers(1, 6), st.data())
def test_a_table_in_eight_bits_is_off_by_half_a_step_at_most(tokens: int, data: st.DataObject) -> None:
    table = data.draw(lis.tokens(5, tokens)).astype(np.float32)
    quantised = reference.quantise_table(table)
    assert (quantised.values.dtype, quantised.steps.dtype, quantised.lows.dtype) == (np.uint8, np.float32, np.float32)
    assert np.all(np.abs(quantised.restored() - table) <= 0.501 * quantised.steps + 1e-6)


def test_a_table_in_eight_bits_worked_out_by_hand() -> None:
    table = np.array([[0.0, -127.0, 0.5], [255.0, 128.0, 0.5], [0.5, 0.5, 0.5], [1.5, 100.25, 0.5]], np.float32)
    quantised = reference.quantise_table(table)
    np.testing.assert_array_equal(quantised.values, [[0, 0, 0], [255, 255, 0], [0, 128, 0], [2, 227, 0]])
    np.testing.assert_array_equal(quantised.lows, np.array([0.0, -127.0, 0.5], np.float32))
    assert quantised.steps[2] == 0.0
    with pytest.raises(InvalidEmbeddings):
        reference.quantise_table(table[:0])


@given(st.integers(1, 7), st.data())
def test_probes_are_the_best_centroids_first_and_ties_go_to_the_lowest(nprobe: int, data: st.DataObject) -> None:
    table = data.draw(lis.tokens(5, 3, values="dyadic"))
    probed = reference.probe(table, nprobe)
    assert probed.shape == (3, min(nprobe, 5))
    for row, chosen in zip(table.T, probed, strict=True):
        assert list(chosen) == sorted(range(5), key=lambda k: (-row[k], k))[:nprobe]


def test_results_are_float32_unless_float64_came_in() -> None:
    for dtype, expected in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        tokens = TokenEmbeddings(np.eye(4, dtype=dtype), offsets_of([2, 2]))
        codec = reference.train_codec(tokens.tokens, tokens.tokens[:2], 2)
        compressed = reference.compress(codec, tokens)
        results = [
            reference.kmeans_update(tokens.tokens, compressed.codes, codec.centroids),
            codec.weights,
            reference.decompress(codec, compressed).tokens,
            reference.inverse_norms(codec, compressed),
            reference.centroid_scores(tokens, codec.centroids),
            reference.centroid_interaction(
                reference.centroid_scores(tokens, codec.centroids), tokens.offsets, compressed.codes, compressed.offsets
            ),
            reference.residual_maxsim(tokens, codec, compressed),
        ]
        assert {result.dtype for result in results} == {np.dtype(expected)}


# What does not fit

zeros, cuts, weights = np.zeros((1, 2)), np.array([0.0]), np.array([-1.0, 1.0])
some = TokenEmbeddings(np.eye(2), [0, 2])
codec = ResidualCodec(zeros, cuts, weights)
bytes_of_3 = CompressedEmbeddings(np.array([0]), np.zeros((1, 3), np.uint8), [0, 1])
misfits = {
    "no centroids": lambda: ResidualCodec(np.empty((0, 2)), cuts, weights),
    "flat centroids": lambda: ResidualCodec(np.zeros(2), cuts, weights),
    "3 buckets": lambda: ResidualCodec(zeros, np.zeros(2), np.zeros(3)),
    "as many cutoffs as weights": lambda: ResidualCodec(zeros, np.zeros(2), weights),
    "falling cutoffs": lambda: ResidualCodec(zeros, np.array([1.0, 0.0, 2.0]), np.zeros(4)),
    "nothing to train on": lambda: reference.train_codec(np.empty((0, 2)), zeros, 2),
    "fewer codes than residuals": lambda: CompressedEmbeddings(np.array([0]), np.zeros((2, 1), np.uint8), [0, 2]),
    "flat residuals": lambda: CompressedEmbeddings(np.array([0]), np.zeros(1, np.uint8), [0, 1]),
    "offsets that end early": lambda: CompressedEmbeddings(np.array([0]), np.zeros((1, 1), np.uint8), [0, 0]),
    "another width of residuals": lambda: reference.decompress(codec, bytes_of_3),
    "another width of queries": lambda: reference.centroid_scores(some, np.ones((1, 3))),
    "one dimension, that would fit any": lambda: reference.kmeans_assign(np.ones((1, 1)), zeros),
    "a width that centroids have not": lambda: reference.kmeans_assign(np.ones((1, 3)), zeros),
    "a width that the codec has not": lambda: reference.residual_maxsim(
        TokenEmbeddings(np.ones((1, 3)), [0, 1]), codec, reference.compress(codec, some)
    ),
}


@pytest.mark.parametrize("what", misfits)
def test_what_does_not_fit_is_refused(what: str) -> None:
    with pytest.raises(InvalidEmbeddings):
        misfits[what]()


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_bits_are_1_or_2_or_4(bits: int) -> None:
    for call in (
        lambda: reference.train_codec(np.eye(2), np.eye(2), bits),
        lambda: reference.pack(np.zeros((1, 2), np.uint8), bits),
        lambda: reference.unpack(np.zeros((1, 1), np.uint8), bits, 2),
    ):
        with pytest.raises(InvalidOption):
            call()


def test_at_least_one_centroid_is_probed() -> None:
    with pytest.raises(InvalidOption):
        reference.probe(np.zeros((1, 2)), 0)
