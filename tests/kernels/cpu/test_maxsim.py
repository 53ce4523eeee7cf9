"""MaxSim on the host at sizes that fill blocks, panels and pieces, and leave something over of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels import cpu
from lateinteraction.kernels.cpu import threads
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.operands import LONGEST_NARROW, Tokens

PANEL, ROWS = processor().panel, processor().rows
WIDTHS = (1, 2, 3, 5, 16, 31, 64, 130)
seeds = st.integers(0, 2**32 - 1)
law = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

FLOAT_DTYPES = torch.float32, torch.float16, torch.bfloat16


def lengths_of(generator: np.random.Generator, longest: int, most: int = 5) -> NDArray[np.int64]:
    """Lengths of up to `most` items: empty, around a block, anything."""
    around = [0, 1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + processor().few, PANEL, PANEL + 1, longest]
    count = int(generator.integers(0, most + 1))
    drawn = np.where(
        generator.random(count) < 0.5, generator.choice(around, count), generator.integers(0, longest + 1, count)
    )
    return drawn.astype(np.int64)


def packed(generator: np.random.Generator, longest: int, width: int) -> TokenEmbeddings[Any]:
    """Items of eighths, of which every sum is exact in any order: ties are ties."""
    lengths = lengths_of(generator, longest)
    values = generator.integers(-8, 9, (int(lengths.sum()), width)).astype(np.float32) / 8
    return TokenEmbeddings(values, offsets_of(lengths))


def scattered(generator: np.random.Generator, items: TokenEmbeddings[Any]) -> tuple[Tokens, NDArray[np.int64]]:
    """The items in any order among rows of NaN, and the row of each token."""
    lengths = np.diff(items.offsets)
    starts, row = np.zeros(len(lengths), np.int64), 0
    for item in generator.permutation(len(lengths)):
        starts[item] = row = row + int(generator.integers(0, 3))
        row += int(lengths[item])
    rows = np.concatenate([*map(np.arange, starts, starts + lengths), np.empty(0, np.int64)]).astype(np.int64)
    values = np.full((row + 1, items.tokens.shape[1]), np.nan, np.float32)
    values[rows] = items.tokens
    spans = np.stack([starts, starts + lengths], axis=1)
    return Tokens(torch.from_numpy(values), torch.from_numpy(spans), int(lengths.max(initial=0))), rows


def world(seed: int) -> tuple[np.random.Generator, TokenEmbeddings[Any], TokenEmbeddings[Any]]:
    generator = np.random.default_rng(seed)
    width = int(generator.choice(WIDTHS))
    return generator, packed(generator, 2 * PANEL + 3, width), packed(generator, 90, width)


def normal(lengths: list[int], width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tokens:
    values = torch.randn((sum(lengths), width), generator=torch.Generator().manual_seed(seed))
    offsets = torch.from_numpy(offsets_of(np.array(lengths, np.int64)))
    return Tokens(values.type(dtype), offsets.unfold(0, 2, 1), max(lengths, default=0))


def of_bytes(lengths: list[int], width: int, seed: int = 0) -> Tokens:
    generator = np.random.default_rng(seed)
    values = torch.from_numpy(generator.integers(-128, 128, (sum(lengths), width)).astype(np.int8))
    return normal(lengths, 1)._replace(values=values)


def part(tokens: Tokens, *items: int) -> Tokens:
    return tokens._replace(spans=tokens.spans[list(items)])


def equal(found: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_array_equal(found.numpy(), expected)


@law
@given(seeds)
def test_scores_and_winners_are_those_of_the_reference(seed: int) -> None:
    generator, queries, documents = world(seed)
    (query_tokens, query_rows), (document_tokens, _) = scattered(generator, queries), scattered(generator, documents)
    expected = reference.maxsim_all_pairs(queries, documents)
    scores, winners = cpu.maxsim_all_pairs_winners(query_tokens, document_tokens)
    equal(cpu.maxsim_all_pairs(query_tokens, document_tokens), expected)
    equal(scores, expected)
    assert winners.dtype == torch.int16
    equal(winners[query_rows], reference.maxsim_winners(queries, documents))


@law
@given(seeds)
def test_pairs_are_those_of_the_reference(seed: int) -> None:
    generator, queries, documents = world(seed)
    (query_tokens, _), (document_tokens, _) = scattered(generator, queries), scattered(generator, documents)
    count = 7 if len(queries) and len(documents) else 0
    pairs = generator.integers(0, max(1, min(len(queries), len(documents))), (count, 2))
    given_ = torch.from_numpy(pairs)
    expected = reference.maxsim_pairs(queries, documents, pairs[:, 0], pairs[:, 1])
    scores, winners = cpu.maxsim_pairs_winners(query_tokens, document_tokens, given_)
    equal(cpu.maxsim_pairs(query_tokens, document_tokens, given_), expected)
    equal(scores, expected)
    all_winners = reference.maxsim_winners(queries, documents)
    for (i, j), own in zip(pairs, winners, strict=True):
        wanted = all_winners[queries.offsets[i] : queries.offsets[i + 1], j]
        equal(own[: len(wanted)], wanted)


@law
@given(seeds)
def test_gradients_are_those_of_the_reference(seed: int) -> None:
    generator, queries, documents = world(seed)
    sides = scattered(generator, queries), scattered(generator, documents)
    upstream = (generator.integers(-4, 5, (len(queries), len(documents))) / 4).astype(np.float32)
    upstream[:, np.diff(documents.offsets) == 0] = np.nan  # not to be read
    expected = reference.maxsim_all_pairs_gradients(queries, documents, np.nan_to_num(upstream))
    (query_tokens, _), (document_tokens, _) = sides
    _, winners = cpu.maxsim_all_pairs_winners(query_tokens, document_tokens)
    found = cpu.maxsim_all_pairs_gradients(
        query_tokens, document_tokens, winners, torch.from_numpy(upstream), unit=False
    )
    for (tokens, rows), gradient, value in zip(sides, found, expected, strict=True):
        whole = np.zeros(tokens.values.shape, np.float32)
        whole[rows] = value
        equal(gradient, whole)


@law
@given(seeds, st.booleans())
def test_gradients_of_pairs_are_those_of_all_pairs_with_weights(seed: int, unit: bool) -> None:
    generator = np.random.default_rng(seed)
    width = int(generator.choice(WIDTHS))
    queries, documents = normal([5, 0, PANEL + 2], width, seed), normal([ROWS + 1, 3, 0, 40], width, seed + 1)
    if unit:
        queries, documents = (each._replace(scales=cpu.inverse_norms(each.values)) for each in (queries, documents))
    pairs = generator.integers(0, 3, (9, 2))  # some twice, some never
    weights = generator.integers(-8, 9, 9).astype(np.float32)
    upstream = np.zeros((3, 4), np.float32)
    np.add.at(upstream, (pairs[:, 0], pairs[:, 1]), weights)
    given_ = torch.from_numpy(pairs)
    _, winners = cpu.maxsim_pairs_winners(queries, documents, given_)
    found = cpu.maxsim_pairs_gradients(queries, documents, given_, winners, torch.from_numpy(weights), unit=unit)
    _, winners = cpu.maxsim_all_pairs_winners(queries, documents)
    expected = cpu.maxsim_all_pairs_gradients(queries, documents, winners, torch.from_numpy(upstream), unit=unit)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("other", FLOAT_DTYPES)
def test_gradients_are_those_that_autograd_finds(dtype: torch.dtype, other: torch.dtype) -> None:
    queries, documents = normal([3, PANEL + 1], 19, 1, dtype), normal([ROWS + 3, 1, 30], 19, 2, other)
    upstream = torch.randn((2, 3), generator=torch.Generator().manual_seed(3))
    scales = tuple(cpu.inverse_norms(each.values) for each in (queries, documents))
    queries, documents = queries._replace(scales=scales[0]), documents._replace(scales=scales[1])
    _, winners = cpu.maxsim_all_pairs_winners(queries, documents)
    found = cpu.maxsim_all_pairs_gradients(queries, documents, winners, upstream, unit=True)
    leaves = [each.values.double().requires_grad_() for each in (queries, documents)]
    units = [torch.nn.functional.normalize(each, dim=1) for each in leaves]
    score = torch.zeros((), dtype=torch.float64)
    for i, (first, last) in enumerate(queries.spans.tolist()):
        for j, (start, end) in enumerate(documents.spans.tolist()):
            score = score + upstream[i, j] * (units[0][first:last] @ units[1][start:end].T).amax(dim=1).sum()
    score.backward()
    for gradient, leaf, tokens in zip(found, leaves, (queries, documents), strict=True):
        assert gradient.dtype == tokens.values.dtype
        tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[gradient.dtype]
        torch.testing.assert_close(gradient.double(), leaf.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_a_score_does_not_depend_on_its_neighbours_to_the_last_bit(dtype: torch.dtype) -> None:
    lengths, own = [1, 7, PANEL, 2 * PANEL + 5, 0, 11], [ROWS - 1, 200, 1, 0, ROWS + 1, 57, 5]
    if dtype == torch.int8:
        queries, documents = of_bytes(lengths, 33), of_bytes(own, 33, 1)
    else:
        queries, documents = normal(lengths, 33, 0, dtype), normal(own, 33, 1, dtype)
    generator = torch.Generator().manual_seed(2)
    queries, documents = (
        each._replace(scales=torch.rand(len(each.values), generator=generator)) for each in (queries, documents)
    )
    together, winners = cpu.maxsim_all_pairs_winners(queries, documents)
    assert torch.equal(cpu.maxsim_all_pairs(queries, documents), together)
    backwards = cpu.maxsim_all_pairs(part(queries, *range(5, -1, -1)), part(documents, *range(6, -1, -1)))
    assert torch.equal(backwards.flip(0, 1), together)
    for i, (first, last) in enumerate(queries.spans.tolist()):
        for j in range(len(own)):
            query, document = part(queries, i), part(documents, j)
            alone, own_winners = cpu.maxsim_all_pairs_winners(query, document)
            assert torch.equal(alone[0, 0], together[i, j])
            assert torch.equal(own_winners[first:last, 0], winners[first:last, j])
            listed, pair_winners = cpu.maxsim_pairs_winners(queries, documents, torch.tensor([[i, j]]))
            assert torch.equal(listed[0], together[i, j])
            assert torch.equal(pair_winners[0, : last - first], winners[first:last, j])


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    queries, documents = normal([4, 40, 0, 9], 24), normal([30, 0, 1, 17, 8, 90, 3, 3], 24, 1)
    bytes_ = of_bytes([4, 40, 0, 9], 24), of_bytes([30, 0, 1, 17, 8, 90, 3, 3], 24, 1)
    pairs = torch.tensor([[0, 1], [1, 5], [3, 5], [1, 0], [2, 2], [0, 5]])
    upstream, weights = torch.randn(4, 8), torch.randn(6)

    def everything() -> list[Tensor]:
        scores, winners = cpu.maxsim_all_pairs_winners(queries, documents)
        listed, own = cpu.maxsim_pairs_winners(queries, documents, pairs)
        lengths = queries.spans[:, 1] - queries.spans[:, 0]
        for row, (query, _) in enumerate(pairs.tolist()):
            own[row, int(lengths[query]) :] = 0
        return [
            *(scores, winners, listed, own, cpu.maxsim_all_pairs(*bytes_)),
            *cpu.maxsim_all_pairs_gradients(queries, documents, winners, upstream, unit=False),
            *cpu.maxsim_pairs_gradients(queries, documents, pairs, own, weights, unit=False),
            *cpu.maxsim_top_k(queries, documents, 3),
            *cpu.xtr_all_pairs(queries, documents, 11),
            cpu.inverse_norms(documents.values),
        ]

    before, found = torch.get_num_threads(), []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        found.append(everything())
    torch.set_num_threads(before)
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.equal(one, same)


@law
@given(seeds)
def test_int8_products_are_exact(seed: int) -> None:
    generator = np.random.default_rng(seed)
    width = int(generator.choice([*WIDTHS, 257, 1030]))
    queries, documents = of_bytes([1] * (PANEL + 3), width, seed), of_bytes([ROWS + 1, 1, 0, 50], width, seed + 1)
    for extreme in (-128, 127):  # the sums that come nearest to what 32 bits hold
        queries.values[generator.random(len(queries.values)) < 0.2] = extreme
        documents.values[generator.random(len(documents.values)) < 0.2] = extreme
    scores, winners = cpu.maxsim_all_pairs_winners(queries, documents)
    table = queries.values.numpy().astype(np.int64) @ documents.values.numpy().astype(np.int64).T
    for j, (start, end) in enumerate(documents.spans.tolist()):
        own = table[:, start:end]
        equal(winners[:, j], own.argmax(axis=1) if end > start else np.full(len(table), -1))
        equal(
            scores[:, j],
            own.max(axis=1, initial=-(2**62)).astype(np.float32) if end > start else np.full(len(table), -np.inf),
        )


def test_a_scale_of_nothing_ties_everything() -> None:
    queries, documents = of_bytes([2], 8), of_bytes([9, 0], 8, 1)
    nothing = torch.tensor([0.0, 1.0])
    scores, winners = cpu.maxsim_all_pairs_winners(queries._replace(scales=nothing), documents)
    assert winners[0].tolist() == [0, -1]  # not the largest product: they are all 0
    assert float(scores[0, 1]) == -np.inf
    assert not scores.isnan().any()


@pytest.mark.parametrize("width", [1024, 1025, 2500])
@pytest.mark.parametrize("length", [513, 1100])
def test_wide_tokens_and_long_queries(width: int, length: int) -> None:
    generator = np.random.default_rng(width)
    queries = TokenEmbeddings(generator.integers(-1, 2, (length, width)).astype(np.float32), offsets_of([length]))
    documents = TokenEmbeddings(generator.integers(-1, 2, (70, width)).astype(np.float32), offsets_of([0, 70]))
    sides = scattered(generator, queries)[0], scattered(generator, documents)[0]
    equal(cpu.maxsim_all_pairs(*sides), reference.maxsim_all_pairs(queries, documents))


def test_documents_longer_than_a_piece_or_than_16_bits_count() -> None:
    length = LONGEST_NARROW + 2000
    documents = normal([3, length], 2)
    documents.values[documents.spans[1, 0] + length - 5] = 1000.0
    queries = Tokens(torch.ones(PANEL + 1, 2), torch.tensor([[0, PANEL + 1]]), PANEL + 1)
    scores, winners = cpu.maxsim_all_pairs_winners(queries, documents)
    assert winners.dtype == torch.int32
    assert winners[:, 1].tolist() == [length - 5] * (PANEL + 1)
    assert float(scores[0, 1]) == 2000.0 * (PANEL + 1)
    halves = cpu.maxsim_all_pairs(queries, documents._replace(values=documents.values.half()))
    assert float(halves[0, 1]) == float(scores[0, 1])


@pytest.mark.parametrize("place", [0, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + processor().few, 89])
def test_nan_anywhere_in_a_document_gives_nan(place: int) -> None:
    documents = normal([90, 90], 7)
    documents.values[place, 3] = torch.nan
    queries = normal([5, PANEL + 1], 7, 1)
    scores, winners = cpu.maxsim_all_pairs_winners(queries, documents)
    assert scores.isnan().tolist() == [[True, False], [True, False]]
    assert cpu.maxsim_all_pairs(queries, documents).isnan().tolist() == [[True, False], [True, False]]
    assert (winners[:, 0] == place).all()
    queries.values[2] = torch.nan
    assert cpu.maxsim_all_pairs(queries, documents).isnan().tolist() == [[True, True], [True, False]]


def test_infinities_are_numbers() -> None:
    documents = Tokens(torch.tensor([[-torch.inf], [-1.0], [torch.inf], [0.5]]), torch.tensor([[0, 2], [1, 4]]), 3)
    queries = Tokens(torch.ones(2, 1), torch.tensor([[0, 2]]), 2)
    scores, winners = cpu.maxsim_all_pairs_winners(queries, documents)
    assert scores.tolist() == [[-2.0, torch.inf]]
    assert winners.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_widened_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).type(torch.int16).view(dtype)[:, None]
    one = Tokens(torch.ones(1, 1), torch.tensor([[0, 1]]), 1)
    singles = torch.stack([torch.arange(2**16), torch.arange(1, 2**16 + 1)], dim=1)
    scores = cpu.maxsim_all_pairs(one, Tokens(every, singles, 1))[0]
    expected = every[:, 0].float()
    assert torch.equal(scores.isnan(), expected.isnan())
    assert torch.equal(scores.nan_to_num(7.0), expected.nan_to_num(7.0))


@law
@given(seeds, st.sampled_from([torch.float16, torch.bfloat16]))
def test_gradients_are_rounded_as_torch_does(seed: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2**32, 301, dtype=np.uint64).astype(np.uint32)  # float32 of every magnitude, and NaN
    wanted = torch.from_numpy(bits.view(np.float32).copy())
    queries = Tokens(torch.ones(1, 301, dtype=dtype), torch.tensor([[0, 1]]), 1)
    documents = Tokens(wanted[None], torch.tensor([[0, 1]]), 1)
    winners = torch.zeros(1, 1, dtype=torch.int16)
    gradient, _ = cpu.maxsim_all_pairs_gradients(queries, documents, winners, torch.ones(1, 1), unit=False)
    expected = wanted.type(dtype)
    assert torch.equal(gradient[0].isnan(), expected.isnan())
    assert torch.equal(gradient[0].nan_to_num(7.0), expected.nan_to_num(7.0))


@law
@given(seeds, st.integers(1, 40))
def test_the_best_documents_are_the_first_of_all_sorted(seed: int, k: int) -> None:
    generator, queries, documents = world(seed)
    (query_tokens, _), (document_tokens, _) = scattered(generator, queries), scattered(generator, documents)
    repeated = document_tokens._replace(spans=document_tokens.spans.repeat(7, 1))  # many ties
    if generator.random() < 0.5:
        repeated.values[generator.random(len(repeated.values)) < 0.1] = torch.nan
    scores = cpu.maxsim_all_pairs(query_tokens, repeated).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # NaN last
    best, places = cpu.maxsim_top_k(query_tokens, repeated, k)
    equal(places, order)
    equal(best, np.take_along_axis(scores, order, axis=1))


@law
@given(seeds, st.sampled_from([1, 2, 9, 40, 10_000]))
def test_xtr_is_that_of_the_reference(seed: int, k: int) -> None:
    generator, queries, documents = world(seed)
    (query_tokens, query_rows), (document_tokens, rows) = (scattered(generator, each) for each in (queries, documents))
    if not len(queries.tokens) or not len(documents.tokens):
        return
    rising = np.argsort(document_tokens.spans[:, 0].numpy(), kind="stable")  # the order in which rows break ties
    ordered = TokenEmbeddings(documents.tokens[np.argsort(rows)], offsets_of(np.diff(documents.offsets)[rising]))
    expected = reference.xtr_all_pairs(queries, ordered, k)[:, np.argsort(rising)]
    scores, winners, finders = cpu.xtr_all_pairs(query_tokens, document_tokens, k)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6, atol=1e-6)
    found = (winners[query_rows] >= 0).numpy()
    sums = [
        found[first:last].sum(axis=0) for first, last in zip(queries.offsets[:-1], queries.offsets[1:], strict=True)
    ]
    equal(finders, np.array(sums).reshape(finders.shape))
    full = reference.maxsim_winners(queries, documents)
    assert ((winners[query_rows].numpy() == full) | ~found).all()
    assert (np.add.reduce(found, axis=1) <= k).all()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_norms_of_every_size(dtype: torch.dtype) -> None:
    rows = torch.stack([torch.full((37,), 2.0**power) for power in (-14, -6, 0, 7, 12)] + [torch.zeros(37)]).type(dtype)
    expected = torch.where(rows.double().norm(dim=1) > 0, 1 / rows.double().norm(dim=1), 0).float()
    torch.testing.assert_close(cpu.inverse_norms(rows), expected, rtol=1e-7, atol=0)
    if dtype != torch.float16:
        assert torch.equal(cpu.inverse_norms(torch.full((1, 4), 1e30).type(dtype)).isinf(), torch.tensor([False]))
        assert 0 < float(cpu.inverse_norms(torch.full((1, 4), 1e30).type(dtype))) < 1e-29
    assert cpu.inverse_norms(torch.tensor([[torch.nan, 1.0]])).isnan().all()


def test_rows_that_nobody_names_and_defaults_of_torch_do_not_matter() -> None:
    queries, documents = normal([3], 5), normal([4, 6], 5, 1)
    expected = cpu.maxsim_all_pairs(queries, documents)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = cpu.maxsim_all_pairs(queries, documents)
            best, _ = cpu.maxsim_top_k(queries, documents, 1)
            cpu.xtr_all_pairs(queries, documents, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
    assert float(best) == float(expected.max())


def test_what_the_form_cannot_compute_it_refuses() -> None:
    queries, documents = normal([3], 5), normal([4], 5)
    refused = [
        (TypeError, queries._replace(values=queries.values.double()), documents),
        (TypeError, queries, documents._replace(values=documents.values.to(torch.int8))),
        (TypeError, queries, documents._replace(values=documents.values.to("meta"))),
        (TypeError, queries, documents._replace(spans=documents.spans.int())),
        (TypeError, queries, documents._replace(scales=torch.ones(4, dtype=torch.float64))),
        (ValueError, queries, documents._replace(scales=torch.ones(3))),
        (ValueError, queries, normal([4], 6)),
        (IndexError, queries, documents._replace(spans=torch.tensor([[0, 5]]))),
        (IndexError, queries, documents._replace(spans=torch.tensor([[-1, 3]]))),
        (IndexError, queries, documents._replace(spans=torch.tensor([[3, 2]]))),
    ]
    for error, left, right in refused:
        with pytest.raises(error):
            cpu.maxsim_all_pairs(left, right)
    for pairs in ([[0, 1]], [[1, 0]], [[-1, 0]]):
        with pytest.raises(IndexError):
            cpu.maxsim_pairs(queries, documents, torch.tensor(pairs))
    with pytest.raises(TypeError):
        cpu.maxsim_pairs(queries, documents, torch.zeros(1, 2, dtype=torch.int32))
    with pytest.raises(TypeError):
        cpu.maxsim_all_pairs_gradients(
            queries, documents, torch.zeros(3, 1, dtype=torch.int64), torch.ones(1, 1), unit=False
        )
    whole = of_bytes([3], 5)
    _, winners = cpu.maxsim_all_pairs_winners(whole, whole)
    with pytest.raises(TypeError):
        cpu.maxsim_all_pairs_gradients(whole, whole, winners, torch.ones(1, 1), unit=False)
