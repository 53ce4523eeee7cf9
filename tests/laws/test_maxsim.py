"""The laws of MaxSim, on every implementation there is and in every precision it takes.

Values that are multiples of 1/8 make every sum exact, so there the laws hold to the last bit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.ranking import Ranking, merge
from lateinteraction.kernels import FormName
from lateinteraction.testing import strategies

Embeddings = TokenEmbeddings[NDArray[np.floating]]
Scores = NDArray[np.floating]

TOLERANCE = 1e-6
"""Of float32 scores: relative above 1, absolute below."""


@frozen
class Implementation:
    """One way to compute MaxSim, from NumPy to NumPy."""

    all_pairs: Callable[[Embeddings, Embeddings], Scores]
    grouped: Callable[[Embeddings, Embeddings, Offsets], Scores]


def kernel(form: FormName, dtype: torch.dtype) -> Implementation:
    def tokens(embeddings: Embeddings) -> kernels.Tokens:
        values = torch.from_numpy(np.array(embeddings.tokens)).to(dtype)
        offsets = torch.from_numpy(np.array(embeddings.offsets))
        return kernels.packed(values, offsets, int(embeddings.lengths.max(initial=0)))

    def all_pairs(queries: Embeddings, documents: Embeddings) -> Scores:
        with kernels.use(form):
            return kernels.maxsim_all_pairs(tokens(queries), tokens(documents)).numpy()

    def grouped(queries: Embeddings, documents: Embeddings, groups: Offsets) -> Scores:
        rows = np.repeat(np.arange(len(queries)), np.diff(groups)), np.arange(len(documents))
        with kernels.use(form):
            return kernels.maxsim_pairs(
                tokens(queries), tokens(documents), torch.from_numpy(np.stack(rows, axis=1))
            ).numpy()

    return Implementation(all_pairs, grouped)


IMPLEMENTATIONS: dict[str, tuple[Implementation, strategies.Precision]] = {
    "reference": (Implementation(reference.maxsim_all_pairs, reference.maxsim_grouped), "float32"),
    **{
        f"{form} {precision}": (kernel(form, getattr(torch, precision)), precision)
        for form in ("eager", "cpu")
        for precision in ("float32", "float16", "bfloat16")
    },
    "gpu float32": (kernel("gpu", torch.float32), "float32"),  # interpreted, which is slow
}

no_triton = importlib.util.find_spec("triton") is None
every_implementation = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(name.startswith("gpu") and no_triton, reason="no wheel here"))
        for name in IMPLEMENTATIONS
    ],
)


def pairs(precision: strategies.Precision, **bounds: Any) -> st.SearchStrategy[tuple[Embeddings, Embeddings]]:
    return strategies.query_document_embeddings(precision=precision, **bounds)


def exact_pairs(precision: strategies.Precision, **bounds: Any) -> st.SearchStrategy[tuple[Embeddings, Embeddings]]:
    return st.sampled_from(("dyadic", "repeated", "opposed")).flatmap(
        lambda values: pairs(precision, values=values, **bounds)
    )


def close(found: Scores, expected: Scores) -> bool:
    return found.shape == expected.shape and np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def chosen(embeddings: Embeddings, items: list[int]) -> Embeddings:
    parts = [embeddings.tokens[:0], *(embeddings[item] for item in items)]
    return TokenEmbeddings(np.concatenate(parts), offsets_of(embeddings.lengths[items]))


def with_token(embeddings: Embeddings, item: int, token: NDArray[np.floating]) -> Embeddings:
    lengths = embeddings.lengths
    lengths[item] += 1
    return TokenEmbeddings(
        np.insert(embeddings.tokens, embeddings.offsets[item + 1], token, axis=0), offsets_of(lengths)
    )


@every_implementation
@given(st.data())
def test_scores_are_those_of_the_reference(name: str, data: Any) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(pairs(precision))
    wide = (TokenEmbeddings(each.tokens.astype(np.float64), each.offsets) for each in (queries, documents))
    found = implementation.all_pairs(queries, documents)
    assert found.dtype == np.float32
    assert close(found, reference.maxsim_all_pairs(*wide))


@every_implementation
@given(st.data())
def test_exact_values_have_exact_scores(name: str, data: Any) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(exact_pairs(precision))
    expected = [
        [sum(max((float(q @ d) for d in document), default=-np.inf) for q in query) for document in documents]
        for query in (tokens.astype(np.float64) for tokens in queries)
    ]
    found = implementation.all_pairs(queries, documents)
    assert np.array_equal(found, np.reshape(expected, (len(queries), len(documents))))


@every_implementation
@given(st.data())
def test_a_score_does_not_depend_on_its_neighbours(name: str, data: Any) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(pairs(precision, queries=(1, 3), documents=(1, 5)))
    together = implementation.all_pairs(queries, documents)
    i, j = data.draw(st.integers(0, len(queries) - 1)), data.draw(st.integers(0, len(documents) - 1))
    assert close(
        implementation.all_pairs(queries.span(i, i + 1), documents.span(j, j + 1)), together[i : i + 1, j : j + 1]
    )
    assert close(implementation.all_pairs(queries.span(i, i + 1), documents), together[i : i + 1])
    assert close(implementation.all_pairs(queries, documents.span(j, j + 1)), together[:, j : j + 1])


@every_implementation
@given(st.data())
def test_masked_tokens_are_absent(name: str, data: Any) -> None:
    """An arbitrary mask: what is left scores as if nothing else had been there, and never as zero."""
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(pairs(precision))
    left, right = data.draw(strategies.keep_masks(queries)), data.draw(strategies.keep_masks(documents))
    kept = [reference.keep(queries, left), reference.keep(documents, right)]
    best = np.full((len(queries), len(documents)), -np.inf)
    for i, j in np.ndindex(best.shape):
        own_left = left[queries.offsets[i] : queries.offsets[i + 1]]
        own_right = right[documents.offsets[j] : documents.offsets[j + 1]]
        products = queries[i].astype(np.float64) @ documents[j].astype(np.float64).T
        masked = np.where(own_right[None, :], products, -np.inf)
        best[i, j] = masked.max(axis=1, initial=-np.inf)[own_left].sum()
    assert close(implementation.all_pairs(*kept), best)


@every_implementation
@given(st.data(), st.randoms(use_true_random=False))
def test_permuted_items_have_permuted_scores(name: str, data: Any, random: Any) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(exact_pairs(precision))
    rows, columns = list(range(len(queries))), list(range(len(documents)))
    random.shuffle(rows)
    random.shuffle(columns)
    permuted = implementation.all_pairs(chosen(queries, rows), chosen(documents, columns))
    assert np.array_equal(permuted, implementation.all_pairs(queries, documents)[rows][:, columns])


@every_implementation
@given(st.data(), st.integers(0))
def test_a_token_given_twice_changes_nothing(name: str, data: Any, which: int) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(exact_pairs(precision))
    assume(len(documents.tokens) > 0)
    token = which % len(documents.tokens)
    item = int(np.searchsorted(documents.offsets, token, side="right")) - 1
    doubled = with_token(documents, item, documents.tokens[token])
    assert np.array_equal(implementation.all_pairs(queries, doubled), implementation.all_pairs(queries, documents))


@every_implementation
@given(st.data(), st.integers(0))
def test_another_token_never_lowers_a_score(name: str, data: Any, which: int) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(exact_pairs(precision, documents=(1, 5)))
    (token,) = data.draw(strategies.tokens(1, documents.dimension, values="dyadic", precision=precision))
    item = which % len(documents)
    before = implementation.all_pairs(queries, documents)
    after = implementation.all_pairs(queries, with_token(documents, item, token))
    assert np.all(after >= before)
    assert np.array_equal(np.delete(after, item, axis=1), np.delete(before, item, axis=1))


@every_implementation
@given(st.data(), st.integers(0, 6), st.integers(1, 7))
def test_a_split_corpus_is_the_whole_corpus(name: str, data: Any, cut: int, k: int) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(exact_pairs(precision))
    cut = min(cut, len(documents))
    ids = [f"d{row}" for row in range(len(documents))][::-1]
    whole = implementation.all_pairs(queries, documents)
    left = implementation.all_pairs(queries, documents.span(0, cut))
    right = implementation.all_pairs(queries, documents.span(cut, len(documents)))
    assert np.array_equal(np.concatenate([left, right], axis=1), whole)
    for one, other, both in zip(left, right, whole, strict=True):
        parts = [Ranking.from_scores(ids[:cut], one, k), Ranking.from_scores(ids[cut:], other, k)]
        assert merge(parts, k) == Ranking.from_scores(ids, both, k)


@every_implementation
@given(st.data())
def test_k_hits_are_a_prefix_of_k_plus_one(name: str, data: Any) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents = data.draw(pairs(precision))
    ids = [f"d{row}" for row in range(len(documents))]
    for scores in implementation.all_pairs(queries, documents):
        rankings = [Ranking.from_scores(ids, scores, k) for k in range(1, len(ids) + 2)]
        assert all(more.truncate(len(fewer) or 1) == fewer for fewer, more in pairwise(rankings))


@every_implementation
@given(st.data())
def test_grouped_scores_are_pairs_of_all_pairs(name: str, data: Any) -> None:
    implementation, precision = IMPLEMENTATIONS[name]
    queries, documents, groups = data.draw(strategies.grouped_embeddings(precision=precision))
    owners = np.repeat(np.arange(len(queries)), np.diff(groups))
    expected = implementation.all_pairs(queries, documents)[owners, np.arange(len(documents))]
    found = implementation.grouped(queries, documents, groups)
    assert found.dtype == np.float32
    assert close(found, expected)


@every_implementation
@pytest.mark.parametrize("documents", [[], [0], [0, 0, 0], [0, 1, 0], [1, 1, 1], [3, 0]])
@pytest.mark.parametrize("queries", [[], [0], [0, 2, 0], [1]])
def test_empty_queries_score_zero_and_empty_documents_minus_infinity(
    name: str, queries: list[int], documents: list[int]
) -> None:
    implementation, _ = IMPLEMENTATIONS[name]
    left, right = (
        TokenEmbeddings(np.full((sum(lengths), 3), value, np.float32), offsets_of(lengths))
        for lengths, value in ((queries, 1.0), (documents, -0.5))
    )
    expected = [[-1.5 * q if d else (-np.inf if q else 0) for d in documents] for q in queries]
    found = implementation.all_pairs(left, right)
    assert np.array_equal(found, np.reshape(expected, (len(queries), len(documents))))
