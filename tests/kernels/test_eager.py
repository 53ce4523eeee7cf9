"""What is special to the eager form: chunks, dtypes, gradients. The laws that all forms share are in tests/laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels import eager


def ragged(generator: np.random.Generator, lengths: list[int], width: int) -> TokenEmbeddings[np.ndarray]:
    return TokenEmbeddings(generator.standard_normal((sum(lengths), width)), offsets_of(lengths))


def all_pairs(queries: TokenEmbeddings[np.ndarray], documents: TokenEmbeddings[np.ndarray]) -> np.ndarray:
    return kernels.maxsim_all_pairs(
        torch.from_numpy(queries.tokens), queries.offsets, torch.from_numpy(documents.tokens), documents.offsets
    ).numpy()


lengths = st.lists(st.integers(0, 9), max_size=8)


@pytest.mark.parametrize("rows", [1, 2, 5])
@given(lengths, lengths, st.integers(0, 2**32 - 1))
def test_any_chunk_size_gives_the_reference(
    rows: int, query_lengths: list[int], document_lengths: list[int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = ragged(generator, query_lengths, 3), ragged(generator, document_lengths, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "SIMILARITIES_PER_CHUNK", 1)
        patch.setattr(eager, "FEWEST_ROWS_PER_CHUNK", rows)
        np.testing.assert_allclose(
            all_pairs(queries, documents), reference.maxsim(queries, documents), rtol=1e-12, atol=1e-12
        )


def test_a_document_longer_than_a_chunk_is_scored_whole() -> None:
    generator = np.random.default_rng(0)
    queries, documents = (
        ragged(generator, [3], 8),
        ragged(generator, [2, eager.SIMILARITIES_PER_CHUNK // 2 + 7, 0, 5], 8),
    )
    winners = [(queries.tokens @ tokens.T).max(axis=1, initial=-np.inf).sum() for tokens in documents]
    np.testing.assert_allclose(all_pairs(queries, documents)[0], winners, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_float32_whatever_comes_in(dtype: torch.dtype) -> None:
    """In bfloat16 the sum of 300 ones would stop at 256."""
    ones = torch.ones(300, 1, dtype=dtype)
    scores = kernels.maxsim_all_pairs(ones, np.array([0, 300]), ones[:1], np.array([0, 1]))
    assert scores.dtype == torch.float32
    assert float(scores[0, 0]) == 300.0


def test_autocast_around_a_kernel_changes_nothing() -> None:
    tokens = torch.nn.functional.normalize(torch.randn(300, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    offsets = np.array([0, 100, 300])
    plain = kernels.maxsim_all_pairs(tokens, offsets, tokens, offsets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernels.maxsim_all_pairs(tokens, offsets, tokens, offsets), plain)
        assert torch.equal(kernels.maxsim_grouped(tokens, offsets, tokens, offsets, offsets_of([1, 1])), plain.diag())
        assert kernels.maxsim_winners(tokens, tokens)[0].dtype == torch.float32


@pytest.mark.parametrize("documents", [1, 2])
def test_nan_gives_nan_whoever_the_neighbours_are(documents: int) -> None:
    tokens = torch.ones(2 * documents, 3)
    tokens[0] = torch.nan
    scores = kernels.maxsim_all_pairs(torch.ones(1, 3), offsets_of([1]), tokens, offsets_of([2] * documents))
    assert scores.isnan()[0].tolist() == [True, False][:documents]


@pytest.mark.parametrize("wide", [0, 1])
def test_precisions_can_be_mixed(wide: int) -> None:
    sides = [torch.ones(2, 3), torch.ones(2, 3)]
    sides[wide] = sides[wide].double()
    scores = kernels.maxsim_all_pairs(sides[0], offsets_of([2]), sides[1], offsets_of([2]))
    assert scores.dtype == torch.float64
    assert scores.tolist() == [[6.0]]


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every similarity block stays within the budget, however many documents there are."""
    monkeypatch.setattr(eager, "SIMILARITIES_PER_CHUNK", 64)
    monkeypatch.setattr(eager, "FEWEST_ROWS_PER_CHUNK", 4)
    offsets = offsets_of(np.random.default_rng(0).integers(0, 9, 500))
    blocks = list(eager._chunks(offsets, eager._rows_per_chunk(2)))
    assert [first for first, _ in blocks] == [0, *(last for _, last in blocks[:-1])]
    assert blocks[-1][1] == 500
    assert max(offsets[last] - offsets[first] for first, last in blocks) <= 32


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_gradients_are_those_of_the_reference(query_lengths: list[int], document_lengths: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = ragged(generator, query_lengths, 3), ragged(generator, document_lengths, 3)
    upstream = generator.standard_normal((len(queries), len(documents)))
    q, d = (torch.from_numpy(side.tokens).requires_grad_() for side in (queries, documents))
    kernels.maxsim_all_pairs(q, queries.offsets, d, documents.offsets).backward(torch.from_numpy(upstream))
    expected_q, expected_d = reference.maxsim_gradients(queries, documents, upstream)
    np.testing.assert_allclose(q.grad, expected_q, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(d.grad, expected_d, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [2, 1000])
@given(lengths, lengths, st.integers(0, 2**32 - 1))
def test_the_gradient_of_a_tie_goes_to_the_lowest_index(
    rows: int, query_lengths: list[int], document_lengths: list[int], seed: int
) -> None:
    """Few dyadic values: ties are everywhere and sums exact. The second chunk size cuts documents into pieces."""
    generator = np.random.default_rng(seed)
    queries, documents = (
        TokenEmbeddings(generator.integers(-2, 3, (sum(n), 2)) / 8, offsets_of(n))
        for n in (query_lengths, document_lengths)
    )
    upstream = generator.integers(-4, 5, (len(queries), len(documents))) / 8
    q, d = (torch.from_numpy(side.tokens).requires_grad_() for side in (queries, documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "SIMILARITIES_PER_CHUNK", 1)
        patch.setattr(eager, "FEWEST_ROWS_PER_CHUNK", rows)
        scores = kernels.maxsim_all_pairs(q, queries.offsets, d, documents.offsets)
    finite = scores.isfinite()
    weighted = (scores[finite] * torch.from_numpy(upstream)[finite]).sum() + 0.0 * (q.sum() + d.sum())
    weighted.backward()
    expected_q, expected_d = reference.maxsim_gradients(queries, documents, upstream)
    np.testing.assert_array_equal(q.grad, expected_q)
    np.testing.assert_array_equal(d.grad, expected_d)


def test_gradcheck_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    q, d = (torch.randn(n, 3, dtype=torch.float64, generator=generator, requires_grad=True) for n in (5, 9))
    query_offsets, document_offsets = np.array([0, 2, 2, 5]), np.array([0, 4, 9])
    assert torch.autograd.gradcheck(
        lambda a, b: kernels.maxsim_all_pairs(a, query_offsets, b, document_offsets), (q, d)
    )
    groups = np.array([0, 1, 1, 2])
    assert torch.autograd.gradcheck(
        lambda a, b: kernels.maxsim_grouped(a, query_offsets, b, document_offsets, groups), (q, d)
    )


@given(lengths, lengths, st.integers(0, 2**32 - 1))
def test_a_list_of_documents_scores_as_the_documents_packed(
    query_lengths: list[int], document_lengths: list[int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = ragged(generator, query_lengths, 3), ragged(generator, document_lengths, 3)
    listed = [torch.from_numpy(np.array(tokens)) for tokens in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "FEWEST_ROWS_PER_CHUNK", 3)
        patch.setattr(eager, "SIMILARITIES_PER_CHUNK", 1)
        scores = kernels.maxsim_listed(torch.from_numpy(queries.tokens), queries.offsets, listed)
        np.testing.assert_array_equal(scores, all_pairs(queries, documents))


def test_no_queries_or_no_documents_give_empty_scores() -> None:
    nothing, some = torch.empty(0, 4), torch.ones(3, 4)
    assert kernels.maxsim_all_pairs(nothing, np.array([0]), some, np.array([0, 3])).shape == (0, 1)
    assert kernels.maxsim_all_pairs(some, np.array([0, 3]), nothing, np.array([0])).shape == (1, 0)
    assert kernels.maxsim_grouped(nothing, np.array([0]), nothing, np.array([0]), np.array([0])).shape == (0,)


def test_winners_break_ties_by_the_lowest_index() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    document = torch.tensor([[0.5, 0.25], [0.5, 0.25], [-1.0, 0.25]])
    similarities, winners = kernels.maxsim_winners(query, document)
    assert winners.tolist() == [0, 0, 0]
    assert similarities.tolist() == [0.5, 0.25, 0.0]


def test_an_empty_document_has_no_winner() -> None:
    similarities, winners = kernels.maxsim_winners(torch.ones(2, 3), torch.ones(0, 3))
    assert winners.tolist() == [-1, -1]
    assert similarities.tolist() == [-torch.inf, -torch.inf]


@given(st.integers(0, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_winners_are_those_of_the_reference(query_length: int, document_length: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    query, document = (
        (generator.integers(-8, 9, (n, 3)) / 8).astype(np.float32) for n in (query_length, document_length)
    )
    _, winners = kernels.maxsim_winners(torch.from_numpy(query), torch.from_numpy(document))
    expected = reference.argmax(
        TokenEmbeddings(query, offsets_of([query_length])), TokenEmbeddings(document, offsets_of([document_length]))
    )
    assert winners.tolist() == expected[:, 0].tolist()


def test_the_form_is_named_with_a_reason() -> None:
    form, reason = kernels.form_for("cpu")
    assert form == "eager"
    assert "cpu" in reason
