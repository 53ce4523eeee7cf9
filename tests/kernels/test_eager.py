"""What is special to the eager form: chunks, double precision. The laws that all forms share are in test_forms.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels.eager import chunks, order
from lateinteraction.kernels.operands import Tokens

lengths = st.lists(st.integers(0, 9), max_size=8)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def eager_form() -> Iterator[None]:
    with kernels.use("eager"):
        yield


def ragged(generator: np.random.Generator, lengths: list[int], width: int) -> TokenEmbeddings[np.ndarray]:
    return TokenEmbeddings(generator.standard_normal((sum(lengths), width)), offsets_of(lengths))


def tokens(embeddings: TokenEmbeddings[np.ndarray]) -> Tokens:
    values, offsets = torch.from_numpy(np.array(embeddings.tokens)), torch.from_numpy(np.array(embeddings.offsets))
    return kernels.packed(values, offsets, int(embeddings.lengths.max(initial=0)))


@pytest.mark.parametrize("rows", [1, 2, 5])
@given(lengths, lengths, seeds)
def test_any_chunk_size_gives_the_reference(
    rows: int, query_lengths: list[int], document_lengths: list[int], seed: int
) -> None:
    """Scores, winners and gradients; the smallest chunks cut documents into pieces. Few values: ties are everywhere."""
    generator = np.random.default_rng(seed)
    queries, documents = (
        TokenEmbeddings(generator.integers(-2, 3, (sum(n), 2)) / 8, offsets_of(n))
        for n in (query_lengths, document_lengths)
    )
    upstream = generator.integers(-4, 5, (len(queries), len(documents))) / 8
    q, d = tokens(queries), tokens(documents)
    q.values.requires_grad_()
    d.values.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "SIMILARITIES_PER_CHUNK", 1)
        patch.setattr(chunks, "FEWEST_ROWS_PER_CHUNK", rows)
        scores = kernels.maxsim_all_pairs(q, d)
        scores.backward(torch.from_numpy(upstream))
        _, winners = kernels.maxsim_all_pairs_winners(q, d)
    np.testing.assert_array_equal(scores.detach(), reference.maxsim_all_pairs(queries, documents))
    np.testing.assert_array_equal(winners, reference.maxsim_winners(queries, documents))
    expected = reference.maxsim_all_pairs_gradients(queries, documents, upstream)
    np.testing.assert_array_equal(q.values.grad, expected[0])
    np.testing.assert_array_equal(d.values.grad, expected[1])


def test_a_document_longer_than_a_chunk_is_scored_whole() -> None:
    generator = np.random.default_rng(0)
    queries = ragged(generator, [3], 8)
    documents = ragged(generator, [2, chunks.SIMILARITIES_PER_CHUNK // 2 + 7, 0, 5], 8)
    best = [(queries.tokens @ each.T).max(axis=1, initial=-np.inf).sum() for each in documents]
    scores, winners = kernels.maxsim_all_pairs_winners(tokens(queries), tokens(documents))
    np.testing.assert_allclose(scores[0], best, rtol=1e-12)
    assert winners.dtype == torch.int32
    np.testing.assert_array_equal(winners[:, 1], np.argmax(queries.tokens @ documents[1].T, axis=1))


def test_rows_that_lie_side_by_side_are_not_copied() -> None:
    values = torch.arange(12.0).view(6, 2)
    adjacent = chunks.Chunk(0, 2, np.array([[1, 3], [3, 5]]))
    assert adjacent.rows_of(values).data_ptr() == values[1:].data_ptr()
    apart = chunks.Chunk(0, 2, np.array([[4, 6], [0, 1]]))
    assert apart.rows_of(values).tolist() == [[8.0, 9.0], [10.0, 11.0], [0.0, 1.0]]


def test_spans_on_a_device_are_refused() -> None:
    with pytest.raises(TypeError, match="on the host"):
        chunks.on_host(torch.empty((0, 2), dtype=torch.int64, device="meta"))


@given(st.lists(st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf]), min_size=5, max_size=5), max_size=4))
def test_the_best_are_the_first_of_a_stable_sort(rows: list[list[float]]) -> None:
    values = torch.tensor(rows).reshape(-1, 5)
    expected = torch.sort(values, dim=1, descending=True, stable=True).indices
    for k in (0, 1, 3, 5, 9):
        assert torch.equal(order.best_of(values, k), expected[:, :k])
        assert torch.equal(order.best_of(values.double(), k), expected[:, :k])


def test_nan_is_the_least_of_all() -> None:
    values = torch.tensor([[torch.nan, -torch.inf, torch.nan, 1.0]])
    assert order.best_of(values, 4).tolist() == [[3, 1, 0, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_float32_whatever_comes_in(dtype: torch.dtype) -> None:
    """In bfloat16 the sum of 300 ones would stop at 256."""
    ones = torch.ones(300, 1, dtype=dtype)
    scores = kernels.maxsim_all_pairs(
        Tokens(ones, torch.tensor([[0, 300]]), 300), Tokens(ones, torch.tensor([[0, 1]]), 1)
    )
    assert scores.dtype == torch.float32
    assert float(scores[0, 0]) == 300.0


@pytest.mark.parametrize("wide", [0, 1])
def test_precisions_can_be_mixed(wide: int) -> None:
    sides = [torch.ones(2, 3), torch.ones(2, 3)]
    sides[wide] = sides[wide].double()
    scores = kernels.maxsim_all_pairs(*(Tokens(each, torch.tensor([[0, 2]]), 2) for each in sides))
    assert scores.dtype == torch.float64
    assert scores.tolist() == [[6.0]]


def test_wide_tokens_of_eight_bits_do_not_round() -> None:
    """2,000 products of 127² need 25 bits; float32 has 24."""
    values = torch.full((1, 2_000), 127, dtype=torch.int8)
    values[0, 0] = 126
    token = Tokens(values, torch.tensor([[0, 1]]), 1, torch.ones(1))
    assert float(kernels.maxsim_all_pairs(token, token)) == np.float32(126**2 + 1_999 * 127**2)


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every similarity block stays within the budget, however many documents there are."""
    monkeypatch.setattr(chunks, "SIMILARITIES_PER_CHUNK", 64)
    monkeypatch.setattr(chunks, "FEWEST_ROWS_PER_CHUNK", 4)
    offsets = offsets_of(np.random.default_rng(0).integers(0, 9, 500))
    blocks = list(chunks.chunks(np.stack([offsets[:-1], offsets[1:]], axis=1), chunks.rows_per_chunk(2)))
    assert [block.first for block in blocks] == [0, *(block.last for block in blocks[:-1])]
    assert blocks[-1].last == 500
    assert max(sum(block.lengths) for block in blocks) <= 32


def test_gradcheck_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    q, d = (torch.randn(n, 3, dtype=torch.float64, generator=generator, requires_grad=True) for n in (5, 9))
    query_spans, document_spans = torch.tensor([[0, 2], [2, 2], [2, 5]]), torch.tensor([[5, 9], [0, 4]])
    pairs = torch.tensor([[0, 0], [2, 1], [0, 1], [2, 1]])

    def sides(left: torch.Tensor, right: torch.Tensor) -> tuple[Tokens, Tokens]:
        return Tokens(left, query_spans, 3), Tokens(right, document_spans, 4)

    for unit in (False, True):
        for call in (
            lambda a, b, unit=unit: kernels.maxsim_all_pairs(*sides(a, b), unit=unit),
            lambda a, b, unit=unit: kernels.maxsim_pairs(*sides(a, b), pairs, unit=unit),
        ):
            assert torch.autograd.gradcheck(call, (q, d))
    assert torch.autograd.gradcheck(lambda a, b: kernels.xtr_all_pairs(*sides(a, b), 3), (q, d))


def test_no_queries_or_no_documents_give_empty_scores() -> None:
    nothing, some = (
        Tokens(torch.empty(0, 4), torch.empty(0, 2).long(), 0),
        Tokens(torch.ones(3, 4), torch.tensor([[0, 3]]), 3),
    )
    assert kernels.maxsim_all_pairs(nothing, some).shape == (0, 1)
    assert kernels.maxsim_all_pairs(some, nothing).shape == (1, 0)
    assert kernels.maxsim_pairs(nothing, nothing, torch.empty(0, 2).long()).shape == (0,)
    assert kernels.maxsim_top_k(some, nothing, 3)[1].shape == (1, 0)
    assert kernels.xtr_all_pairs(nothing, some, 2).shape == (0, 1)
