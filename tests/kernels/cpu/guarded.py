"""A program of tests: every operation on centroids and residuals, in memory that is guarded on both sides (`guards`).

`python guarded.py front-overrun` and the like break a rule on purpose.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from guards import MEMORY, break_a_rule, guard_what_kernels_allocate, guarded

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels.cpu import interaction, kmeans, lists, residual, tables, threads
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Listed, Tokens

SHAPES = [(1, 1, 1), (3, 1, 2), (5, 2, 7), (33, 31, 17), (9, 32, 16), (40, 33, 33), (70, 100, 8), (65, 129, 128)]
"""Centroids, query tokens, dimensions."""


def unit(generator: np.random.Generator, count: int, width: int) -> np.ndarray:
    drawn = generator.standard_normal((count, width)) + 1e-3
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def check_tables(queries: np.ndarray, centroids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Everything up to centroid interaction; the table of scores."""
    for dtype in (torch.float16, torch.bfloat16):
        halves = torch.from_numpy(queries).type(dtype)
        own = guarded(halves.view(torch.int16).numpy()).view(dtype)
        found = tables.centroid_scores(own, guarded(centroids))
        np.testing.assert_allclose(found, centroids @ halves.float().numpy().T, rtol=1e-4, atol=1e-5)
    scores = tables.centroid_scores(guarded(queries), guarded(centroids)).numpy()
    np.testing.assert_allclose(scores, centroids @ queries.T, rtol=1e-4, atol=1e-5)
    found, expected = tables.quantise_table(guarded(scores)), reference.quantise_table(scores)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(tables.probe(guarded(scores), 3), reference.probe(scores, 3))
    tokens, count = len(queries), len(codes)
    spans = [guarded(np.array([[0, each], [each // 2, each], [each, each]])) for each in (tokens, count)]
    at_end = CentroidTable(*(guarded(each) for each in (expected.values, expected.steps, expected.lows)))
    for table, whole in ((CentroidTable(guarded(scores)), scores), (at_end, expected.restored())):
        result = interaction.centroid_interaction(table, spans[0], guarded(codes), spans[1])
        best = whole[codes].max(axis=0).sum()
        np.testing.assert_allclose(result[0, 0], best, rtol=1e-5, atol=1e-5)
        assert result[2].tolist() == [0.0] * 3
        assert result[:2, 2].tolist() == [-np.inf] * 2
    return scores


def check_lists(generator: np.random.Generator, count: int) -> None:
    """Lists up to the last document, and lists that name one beyond it."""
    documents = np.append(generator.integers(0, count, 8), count - 1).astype(np.uint16)
    spans, firsts = guarded(np.array([[[0, 4], [4, 4]], [[3, 9], [9, 9]]])), guarded(np.zeros(2, np.int64))
    gains = np.array([[0.5, 1.0], [0.25, 2.0]], np.float32)
    drawn = [[documents[:4].astype(np.int64), documents[:0]], [documents[3:].astype(np.int64), documents[:0]]]
    found = lists.listed_scores(Listed(guarded(documents), spans, firsts), guarded(gains), count)
    np.testing.assert_array_equal(found, reference.listed_scores(drawn, gains, count))
    with pytest.raises(IndexError, match="beyond"):
        lists.listed_scores(Listed(guarded(documents), spans, firsts), guarded(gains), count - 1)


def check_codec(queries: np.ndarray, codec: reference.ResidualCodec, tokens: np.ndarray, scores: np.ndarray) -> None:
    """Encode, decode, and scores of what is stored."""
    packed = TokenEmbeddings(tokens, offsets_of([len(tokens) - 1, 1]))
    stored = reference.compress(codec, packed)
    own = Codec(*(guarded(each) for each in (codec.centroids, codec.cutoffs, codec.weights)))
    codes = stored.codes.astype(np.int32)
    residuals, norms = residual.residual_encode(guarded(tokens), guarded(codes), own)
    np.testing.assert_array_equal(residuals, stored.residuals)
    np.testing.assert_allclose(norms, reference.inverse_norms(codec, stored), rtol=1e-6)
    decoded = residual.residual_decode(own, guarded(codes), guarded(stored.residuals))
    np.testing.assert_allclose(decoded, reference.decompress(codec, stored).tokens, rtol=1e-5, atol=1e-6)
    for rounded in (norms.numpy(), norms.half().numpy()):
        spans = guarded(np.array([[0, len(tokens) - 1], [len(tokens) - 1, len(tokens)]]))
        documents = Compressed(guarded(codes), guarded(stored.residuals), guarded(rounded), spans)
        asked = Tokens(guarded(queries), guarded(np.array([[0, len(queries)]])), len(queries))
        found = residual.residual_maxsim(asked, guarded(scores), own, documents)
        whole = TokenEmbeddings(queries, offsets_of([len(queries)]))
        expected = reference.residual_maxsim(whole, codec, stored, rounded.astype(np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def check_kmeans(tokens: np.ndarray, centroids: np.ndarray) -> None:
    """A step of k-means, of numbers whose products are exact."""
    eighths = [np.round(each * 8) / 8 for each in (tokens, centroids)]
    codes = kmeans.kmeans_assign(*map(guarded, eighths))
    np.testing.assert_array_equal(codes, reference.kmeans_assign(*eighths))
    moved = kmeans.kmeans_update(guarded(eighths[0]), guarded(codes.numpy()), guarded(eighths[1]))
    np.testing.assert_allclose(moved, reference.kmeans_update(eighths[0], codes.numpy(), eighths[1]), rtol=1e-6)


def check(generator: np.random.Generator) -> None:
    for count, asked, width in SHAPES:
        queries, centroids, tokens = (unit(generator, n, width) for n in (asked, count, 60))
        codes = generator.integers(0, count, 50).astype(np.int32)
        codes[::3] = count - 1  # whose row is the last one
        scores = check_tables(queries, centroids, codes)
        for bits in (1, 2, 4):
            held_out = unit(generator, 30, width)
            check_codec(queries, reference.train_codec(held_out, centroids, bits), tokens, scores)
        check_kmeans(tokens, centroids)
        check_lists(generator, count)
        MEMORY.check()


def main() -> None:
    for MEMORY.at_end in (True, False):
        check(np.random.default_rng(0))
    print(processor().lanes)


if __name__ == "__main__":
    guard_what_kernels_allocate()
    threads.LEAST_WORK = 1  # what threads have of their own is guarded too
    torch.set_num_threads(2)
    for rule in sys.argv[1:]:
        break_a_rule(rule)
    main()
