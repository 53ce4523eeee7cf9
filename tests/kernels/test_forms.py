"""Every operation on every form, against the NumPy reference.

Values are multiples of 1/8, so sums are exact and forms agree to the last bit, ties included. Items lie anywhere among
rows of NaN, which belong to nobody, and outputs start as NaN.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels.dispatch import FormName, load
from lateinteraction.kernels.form import Form
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Listed, Tokens, winners_dtype

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Embeddings = TokenEmbeddings[NDArray[np.floating]]
seeds = st.integers(0, 2**32 - 1)
WIDTHS = (1, 3, 8, 17, 33)
law = settings(
    max_examples=max(12, settings.default.max_examples * 2 // 5),  # one form of the three is interpreted
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@frozen
class Side:
    """Some items twice: packed for the reference, scattered among rows of NaN for the forms."""

    packed: Embeddings
    tokens: Tokens
    rows: NDArray[np.int64]
    """The row of each packed token."""

    def scattered(self, packed: NDArray[np.floating]) -> NDArray[np.floating]:
        """Values (T, D) of packed tokens at their rows; 0 elsewhere."""
        result = np.zeros((len(self.tokens.values), packed.shape[1]), packed.dtype)
        result[self.rows] = packed
        return result


def side(
    generator: np.random.Generator, items: int, longest: int, width: int, values: NDArray[Any] | None = None
) -> Side:
    lengths = generator.integers(0, longest + 1, items)
    packed = generator.integers(-8, 9, (int(lengths.sum()), width)).astype(np.float32) / 8
    if values is not None:
        packed = values[generator.integers(0, len(values), len(packed))]
    if generator.random() < 0.3:
        packed = -np.abs(packed)
    offsets = offsets_of(lengths)
    starts, row = np.zeros(items, np.int64), 0
    for item in generator.permutation(items):
        row += int(generator.integers(0, 3))
        starts[item] = row
        row += int(lengths[item])
    rows = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)] or [starts])
    scattered = np.full((row + 2, width), np.nan, np.float32)
    scattered[rows] = packed
    spans = np.stack([starts, starts + lengths], axis=1)
    tokens = Tokens(torch.from_numpy(scattered), torch.from_numpy(spans), int(lengths.max(initial=0)))
    return Side(TokenEmbeddings(packed, offsets), tokens, rows)


def world(seed: int) -> tuple[np.random.Generator, Side, Side]:
    generator = np.random.default_rng(seed)
    width = int(generator.choice(WIDTHS))
    return (
        generator,
        side(generator, int(generator.integers(0, 4)), 5, width),
        side(generator, int(generator.integers(0, 5)), 7, width),
    )


def winners_of(queries: Side, documents: Side) -> NDArray[np.int64]:
    return reference.maxsim_winners(queries.packed, documents.packed)


def equal(found: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_array_equal(found.numpy(), expected)


def close(found: Tensor, expected: NDArray[Any], tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance, atol=tolerance)


# MaxSim


@law
@given(seeds)
def test_scores_and_winners(form: Form, seed: int) -> None:
    _, queries, documents = world(seed)
    expected = reference.maxsim_all_pairs(queries.packed, documents.packed)
    equal(form.maxsim_all_pairs(queries.tokens, documents.tokens), expected)
    scores, winners = form.maxsim_all_pairs_winners(queries.tokens, documents.tokens)
    equal(scores, expected)
    assert winners.dtype == winners_dtype(documents.tokens)
    equal(winners[torch.from_numpy(queries.rows)], winners_of(queries, documents))


@law
@given(seeds)
def test_gradients(form: Form, seed: int) -> None:
    generator, queries, documents = world(seed)
    upstream = (generator.integers(-8, 9, (len(queries.packed), len(documents.packed))) / 8).astype(np.float32)
    expected = reference.maxsim_all_pairs_gradients(queries.packed, documents.packed, upstream)
    _, winners = form.maxsim_all_pairs_winners(queries.tokens, documents.tokens)
    found = form.maxsim_all_pairs_gradients(
        queries.tokens, documents.tokens, winners, torch.from_numpy(upstream), unit=False
    )
    for own, gradient, value in zip((queries, documents), found, expected, strict=True):
        equal(gradient, own.scattered(value))


@law
@given(seeds)
def test_pairs(form: Form, seed: int) -> None:
    generator, queries, documents = world(seed)
    count = int(generator.integers(0, 7)) if len(queries.packed) and len(documents.packed) else 0
    shape = len(queries.packed), len(documents.packed)
    listed = np.stack([generator.integers(0, max(1, size), count) for size in shape], axis=1)
    upstream = (generator.integers(-8, 9, count) / 8).astype(np.float32)
    pairs = torch.from_numpy(listed)
    expected = reference.maxsim_pairs(queries.packed, documents.packed, *listed.T)
    equal(form.maxsim_pairs(queries.tokens, documents.tokens, pairs), expected)
    scores, winners = form.maxsim_pairs_winners(queries.tokens, documents.tokens, pairs)
    equal(scores, expected)
    assert winners.shape == (count, queries.tokens.longest)
    best = winners_of(queries, documents)
    for (query, document), row in zip(listed, winners, strict=True):
        start, end = queries.packed.offsets[query : query + 2]
        equal(row[: end - start], best[start:end, document])
        assert torch.all(row[end - start :] == -1)
    spread = np.zeros(shape, np.float32)
    np.add.at(spread, tuple(listed.T), upstream)
    gradients = reference.maxsim_all_pairs_gradients(queries.packed, documents.packed, spread)
    found = form.maxsim_pairs_gradients(
        queries.tokens, documents.tokens, pairs, winners, torch.from_numpy(upstream), unit=False
    )
    for own, gradient, value in zip((queries, documents), found, gradients, strict=True):
        equal(gradient, own.scattered(value))


@law
@given(seeds, st.integers(1, 6))
def test_the_best_documents(form: Form, seed: int, k: int) -> None:
    _, queries, documents = world(seed)
    expected = reference.maxsim_all_pairs(queries.packed, documents.packed)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    scores, places = form.maxsim_top_k(queries.tokens, documents.tokens, k)
    equal(places, order)
    equal(scores, np.take_along_axis(expected, order, axis=1))


@law
@given(seeds)
def test_scales(form: Form, seed: int) -> None:
    """Of int8 tokens and of others; powers of two, so that nothing rounds."""
    generator, *sides = world(seed)
    tokens, scaled = [], []
    for each in sides:
        scales = 2.0 ** generator.integers(-3, 3, len(each.tokens.values))
        eighths = torch.nan_to_num(each.tokens.values * 8, nan=99.0).to(torch.int8)
        tokens.append(each.tokens._replace(values=eighths, scales=torch.from_numpy(scales.astype(np.float32))))
        scaled.append(TokenEmbeddings(each.packed.tokens * 8 * scales[each.rows][:, None], each.packed.offsets))
    expected = reference.maxsim_all_pairs(*scaled)
    equal(form.maxsim_all_pairs(*tokens), expected.astype(np.float32))
    both = [each._replace(values=each.values.float()) for each in tokens]
    scores, winners = form.maxsim_all_pairs_winners(*both)
    equal(scores, expected.astype(np.float32))
    equal(winners[torch.from_numpy(sides[0].rows)], reference.maxsim_winners(*scaled))


@law
@given(seeds)
def test_gradients_through_the_normalisation(form: Form, seed: int) -> None:
    generator, *sides = world(seed)
    upstream = torch.from_numpy(generator.standard_normal([len(each.packed) for each in sides]))
    lone = [torch.from_numpy(each.packed.tokens).double().requires_grad_() for each in sides]
    norms = [torch.linalg.vector_norm(each, dim=1, keepdim=True) for each in lone]
    units = [torch.where(n > 0, each / n.clamp(min=1e-30), 0) for each, n in zip(lone, norms, strict=True)]
    tokens = [each.tokens._replace(scales=form.inverse_norms(each.tokens.values)) for each in sides]
    _, winners = form.maxsim_all_pairs_winners(*tokens)
    chosen = winners[torch.from_numpy(sides[0].rows)].long()
    total = torch.zeros((), dtype=torch.float64)
    for s in range(chosen.shape[0]):
        query = int(np.searchsorted(sides[0].packed.offsets, s, side="right")) - 1
        for j in range(chosen.shape[1]):
            if chosen[s, j] >= 0:
                own = int(sides[1].packed.offsets[j] + chosen[s, j])
                total = total + upstream[query, j] * (units[0][s] @ units[1][own])
    total = total + 0.0 * sum(each.sum() for each in lone)
    total.backward()
    found = form.maxsim_all_pairs_gradients(*tokens, winners, upstream.float(), unit=True)
    for each, gradient, tensor in zip(sides, found, lone, strict=True):
        zeros = (each.packed.tokens == 0).all(axis=1)
        expected = np.nan_to_num(tensor.grad.numpy())
        expected[zeros] = 0
        close(gradient, each.scattered(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@law
@given(seed=seeds)
def test_halves_are_summed_in_float32(form: Form, dtype: torch.dtype, seed: int) -> None:
    _, *sides = world(seed)
    halves = [each.tokens._replace(values=each.tokens.values.to(dtype)) for each in sides]
    scores, winners = form.maxsim_all_pairs_winners(*halves)
    assert scores.dtype == torch.float32
    equal(scores, reference.maxsim_all_pairs(*(each.packed for each in sides)))
    equal(winners[torch.from_numpy(sides[0].rows)], winners_of(*sides))
    gradients = form.maxsim_all_pairs_gradients(*halves, winners, torch.ones_like(scores), unit=False)
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]


@law
@given(seeds, st.integers(1, 9))
def test_xtr(form: Form, seed: int, k: int) -> None:
    generator, queries, documents = world(seed)
    # The reference counts rows in the order of items, a form in the order of rows: let those be one.
    rising = np.argsort(documents.tokens.spans[:, 0].numpy(), kind="stable")
    ordered = TokenEmbeddings(
        np.concatenate([documents.packed.tokens[:0], *(documents.packed[i] for i in rising)]),
        offsets_of(documents.packed.lengths[rising]),
    )
    expected = reference.xtr_all_pairs(queries.packed, ordered, k)
    tokens = documents.tokens._replace(spans=documents.tokens.spans[rising])
    scores, winners, finders = form.xtr_all_pairs(queries.tokens, tokens, k)
    close(scores, expected, 1e-6)
    own = winners[torch.from_numpy(queries.rows)].numpy()
    counts = [(own[start:end] >= 0).sum(axis=0) for start, end in pairwise(queries.packed.offsets)]
    equal(finders, np.reshape(counts, expected.shape))
    upstream = generator.standard_normal(expected.shape).astype(np.float32)
    wanted = reference.xtr_gradients(queries.packed, ordered, k, upstream)
    weights = torch.from_numpy(upstream) / finders.clamp(min=1)
    found = form.maxsim_all_pairs_gradients(queries.tokens, tokens, winners, weights, unit=False)
    close(found[0], queries.scattered(wanted[0]))
    rows = np.concatenate([np.arange(*span) for span in tokens.spans.tolist()] or [np.empty(0, np.int64)])
    close(found[1][torch.from_numpy(rows)], wanted[1])


# Centroids and residuals


@frozen
class CompressedWorld:
    codec: reference.ResidualCodec
    tensors: Codec
    queries: Side
    stored: reference.CompressedEmbeddings
    documents: Compressed


def compressed_world(seed: int, bits: int) -> CompressedWorld:
    generator, queries, documents = world(seed)
    width = queries.packed.dimension
    centroids = generator.standard_normal((int(generator.integers(1, 300)), width)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    held_out = generator.standard_normal((30, width)).astype(np.float32)
    codec = reference.train_codec(held_out, centroids, bits)
    stored = reference.compress(codec, documents.packed)
    rows = len(documents.tokens.values)
    codes, residuals = np.zeros(rows, np.int32), np.full((rows, stored.residuals.shape[1]), 255, np.uint8)
    norms = np.full(rows, np.nan, np.float32)
    codes[documents.rows], residuals[documents.rows] = stored.codes, stored.residuals
    norms[documents.rows] = reference.inverse_norms(codec, stored)
    arrays = (torch.from_numpy(each) for each in (codes, residuals, norms))
    tensors = Codec(*(torch.from_numpy(each) for each in (codec.centroids, codec.cutoffs, codec.weights)))
    return CompressedWorld(codec, tensors, queries, stored, Compressed(*arrays, documents.tokens.spans))


bit_widths = pytest.mark.parametrize("bits", [1, 2, 4])


@bit_widths
@law
@given(seed=seeds)
def test_residual_maxsim(form: Form, bits: int, seed: int) -> None:
    given_ = compressed_world(seed, bits)
    values = torch.nan_to_num(given_.queries.tokens.values)
    scores = form.centroid_scores(values, given_.tensors.centroids)
    own = scores[:, torch.from_numpy(given_.queries.rows)]
    close(own, reference.centroid_scores(given_.queries.packed, given_.codec.centroids))
    expected = reference.residual_maxsim(given_.queries.packed, given_.codec, given_.stored)
    queries = given_.queries.tokens
    close(form.residual_maxsim(queries, scores, given_.tensors, given_.documents), expected)
    rounded = given_.documents.inverse_norms.half()
    lone = rounded[torch.isfinite(rounded)].float().numpy() if len(given_.stored.codes) else None
    if lone is not None and len(lone) == len(given_.stored.codes):
        order = np.concatenate([np.arange(*span) for span in given_.documents.spans.tolist()])
        expected = reference.residual_maxsim(
            given_.queries.packed, given_.codec, given_.stored, rounded[torch.from_numpy(order)].float().numpy()
        )
        close(
            form.residual_maxsim(queries, scores, given_.tensors, given_.documents._replace(inverse_norms=rounded)),
            expected,
        )


@bit_widths
@law
@given(seed=seeds)
def test_what_is_encoded_decodes_as_the_reference_does(form: Form, bits: int, seed: int) -> None:
    given_ = compressed_world(seed, bits)
    restored = reference.decompress(given_.codec, given_.stored)
    codes, residuals = torch.from_numpy(given_.stored.codes.astype(np.int32)), torch.from_numpy(given_.stored.residuals)
    close(form.residual_decode(given_.tensors, codes, residuals), restored.tokens, 1e-6)
    packed, norms = form.residual_encode(torch.from_numpy(restored.tokens), codes, given_.tensors)
    equal(packed, reference.residual_encode(given_.codec, restored.tokens, given_.stored.codes))
    again = reference.CompressedEmbeddings(given_.stored.codes, packed.numpy(), given_.stored.offsets)
    close(norms, reference.inverse_norms(given_.codec, again))


@law
@given(seeds)
def test_tables_in_eight_bits_and_what_is_scored_on_them(form: Form, seed: int) -> None:
    given_ = compressed_world(seed, 2)
    scores = torch.from_numpy(reference.centroid_scores(given_.queries.packed, given_.codec.centroids))
    found, expected = form.quantise_table(scores), reference.quantise_table(scores.numpy())
    for name in ("values", "steps", "lows"):
        equal(getattr(found, name), getattr(expected, name))
    spans = kernels.spans_of(torch.from_numpy(np.array(given_.queries.packed.offsets)))
    codes, places = given_.documents.codes, given_.documents.spans
    on_bytes = form.centroid_interaction(found, spans, codes, places)
    order = given_.queries.packed.offsets, given_.stored.codes, given_.stored.offsets
    close(on_bytes, reference.centroid_interaction(expected.restored(), *order), 1e-6)
    exact = form.centroid_interaction(CentroidTable(scores), spans, codes, places)
    close(exact, reference.centroid_interaction(scores.numpy(), *order), 1e-6)


@law
@given(seeds, st.integers(1, 400))
def test_probes(form: Form, seed: int, nprobe: int) -> None:
    generator = np.random.default_rng(seed)
    scores = (generator.integers(-9, 9, (int(generator.integers(1, 500)), 3)) / 8).astype(np.float32)
    equal(form.probe(torch.from_numpy(scores), nprobe), reference.probe(scores, nprobe))


@law
@given(seeds, st.integers(1, 3))
def test_what_lists_say_of_documents(form: Form, seed: int, blocks: int) -> None:
    generator = np.random.default_rng(seed)
    tokens, count = int(generator.integers(0, 5)), 2**16 * (blocks - 1) + int(generator.integers(1, 40))
    many = blocks * int(generator.integers(0, 6))
    firsts = 2**16 * (np.arange(many) % blocks)
    lengths = generator.integers(0, 7, (tokens, many))
    highest = np.minimum(count - firsts, 2**16)
    drawn = [[generator.integers(0, highest[m], lengths[s, m]) for m in range(many)] for s in range(tokens)]
    listings = np.concatenate([np.empty(3, np.int64), *(each for own in drawn for each in own)])
    ends = 3 + np.cumsum(lengths).reshape(lengths.shape)
    gains = (generator.integers(0, 9, (tokens, many)) / 8).astype(np.float32)
    listed = Listed(
        torch.from_numpy(listings.astype(np.uint16)),
        torch.from_numpy(np.stack([ends - lengths, ends], axis=2)),
        torch.from_numpy(firsts),
    )
    expected = reference.listed_scores(
        [[each + first for each, first in zip(own, firsts, strict=True)] for own in drawn], gains, count
    )
    equal(form.listed_scores(listed, torch.from_numpy(gains), count), expected)


def test_a_list_of_a_document_that_is_not_there_is_refused(form: Form) -> None:
    listed = Listed(torch.tensor([0, 3], dtype=torch.uint16), torch.tensor([[[0, 2]]]), torch.tensor([0]))
    assert form.listed_scores(listed, torch.tensor([[0.5]]), 4).tolist() == [0.5, 0.0, 0.0, 0.5]
    with pytest.raises(IndexError, match="beyond the 3"):
        form.listed_scores(listed, torch.tensor([[0.5]]), 3)


@law
@given(seeds)
def test_kmeans(form: Form, seed: int) -> None:
    generator, _, documents = world(seed)
    tokens = documents.packed.tokens
    centroids = (generator.integers(-8, 9, (int(generator.integers(1, 90)), tokens.shape[1])) / 8).astype(np.float32)
    codes = form.kmeans_assign(torch.from_numpy(tokens), torch.from_numpy(centroids))
    assert codes.dtype == torch.int32
    equal(codes, reference.kmeans_assign(tokens, centroids))
    moved = form.kmeans_update(torch.from_numpy(tokens), codes, torch.from_numpy(centroids))
    close(moved, reference.kmeans_update(tokens, codes.numpy(), centroids), 1e-6)


# What holds of all results


@law
@given(seeds)
def test_inputs_are_only_read(form: Form, seed: int) -> None:
    _, queries, documents = world(seed)
    before = [each.tokens.values.clone() for each in (queries, documents)]
    form.maxsim_all_pairs(queries.tokens, documents.tokens)
    for each, kept in zip((queries, documents), before, strict=True):
        assert torch.equal(each.tokens.values.isnan(), kept.isnan())
        assert torch.equal(torch.nan_to_num(each.tokens.values), torch.nan_to_num(kept))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_rows_of_any_size_have_a_direction(form: Form, size: float) -> None:
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0], [torch.nan, 1.0]]) * size
    norms = form.inverse_norms(values)
    torch.testing.assert_close(norms[0], torch.tensor(0.2 / size), rtol=1e-6, atol=0)
    assert norms[1] == 0
    assert norms[2].isnan()


def test_a_centroid_of_a_token_of_nan_is_nan(form: Form) -> None:
    values = torch.tensor([[1.0, 0.0], [torch.nan, 1.0]])
    moved = form.kmeans_update(values, torch.tensor([0, 1], dtype=torch.int32), torch.eye(2))
    assert moved.isnan().any(dim=1).tolist() == [False, True]


def test_nan_gives_nan_and_only_where_it_is(form: Form) -> None:
    values = torch.ones(4, 3)
    values[2, 1] = torch.nan
    documents = Tokens(values, torch.tensor([[0, 2], [2, 4]]), 2)
    queries = Tokens(torch.ones(2, 3), torch.tensor([[0, 2]]), 2)
    assert form.maxsim_all_pairs(queries, documents).isnan().tolist() == [[False, True]]
    assert form.maxsim_pairs(queries, documents, torch.tensor([[0, 0], [0, 1]])).isnan().tolist() == [False, True]
    scores, places = form.maxsim_top_k(queries, documents, 2)
    assert places.tolist() == [[0, 1]]
    assert scores.isnan().tolist() == [[False, True]]


def test_nan_in_a_gradient_stays_with_the_documents_that_it_met(form: Form) -> None:
    """Of those it may reach every row."""
    queries, documents = torch.ones(4, 3), torch.eye(3).repeat(4, 1)
    queries[0, 1] = torch.nan
    sides = Tokens(queries, torch.tensor([[0, 2], [2, 4]]), 2), Tokens(documents, torch.tensor([[0, 6], [6, 12]]), 6)
    pairs = torch.tensor([[0, 0], [1, 1]])
    _, winners = form.maxsim_pairs_winners(*sides, pairs)
    of_queries, of_documents = form.maxsim_pairs_gradients(*sides, pairs, winners, torch.ones(2), unit=False)
    assert of_documents[0].isnan().any()
    assert torch.equal(of_documents[6:], torch.tensor([[2.0] * 3, *[[0.0] * 3] * 5]))
    assert torch.equal(of_queries[2:], documents[[6, 6]])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("other", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [0, 1])
def test_whole_numbers_and_floats_are_not_compared(name: FormName, other: torch.dtype, whole: int) -> None:
    form, pairs = load(name), torch.tensor([[0, 0]])
    sides = [Tokens(torch.ones(2, 3, dtype=other), torch.tensor([[0, 2]]), 2) for _ in range(2)]
    sides[whole] = sides[whole]._replace(values=torch.ones(2, 3, dtype=torch.int8), scales=torch.ones(2))
    for call in (
        lambda: form.maxsim_all_pairs(*sides),
        lambda: form.maxsim_all_pairs_winners(*sides),
        lambda: form.maxsim_pairs(*sides, pairs),
        lambda: form.maxsim_pairs_winners(*sides, pairs),
        lambda: form.maxsim_top_k(*sides, 1),
        lambda: form.xtr_all_pairs(*sides, 1),
    ):
        with pytest.raises(TypeError, match=r"int8"):
            call()


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_what_a_form_cannot_compute_it_refuses(name: FormName) -> None:
    form, whole = load(name), torch.ones(2, 3, dtype=torch.int64)
    tokens = Tokens(whole, torch.tensor([[0, 2]]), 2)
    for call in (lambda: form.maxsim_all_pairs(tokens, tokens), lambda: form.kmeans_assign(whole, whole)):
        with pytest.raises(TypeError):
            call()
