"""The laws of MaxSim, on the reference and on every form of the kernels. Dyadic values are compared to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.ranking import Ranking, merge
from lateinteraction.domain.text import DocumentId
from lateinteraction.testing.strategies import (
    grouped_embeddings,
    keep_masks,
    query_document_embeddings,
)

Embeddings = TokenEmbeddings[Any]
AllPairs = Callable[[Embeddings, Embeddings], np.ndarray]


def eager(queries: Embeddings, documents: Embeddings, dtype: torch.dtype | None = None) -> np.ndarray:
    q, d = (torch.from_numpy(np.array(side.tokens)) for side in (queries, documents))
    if dtype is not None:
        q, d = q.to(dtype), d.to(dtype)
    return kernels.maxsim_all_pairs(q, queries.offsets, d, documents.offsets).numpy()


FORMS = pytest.mark.parametrize("form", [reference.maxsim, eager], ids=["reference", "eager"])
EXACT = st.sampled_from(["dyadic", "repeated", "opposed"])
pairs = query_document_embeddings()
exact_pairs = EXACT.flatmap(lambda values: query_document_embeddings(values=values))


def close(left: np.ndarray, right: np.ndarray, scale: float = 1e-6) -> bool:
    """Equal infinities; elsewhere within `scale`, relative above 1."""
    return left.shape == right.shape and bool(np.allclose(left, right, rtol=scale, atol=scale * 8))


def ranked(scores: np.ndarray, first: int = 0, k: int | None = None) -> Ranking:
    return Ranking.from_scores([DocumentId(str(first + column)) for column in range(len(scores))], scores, k)


@FORMS
@given(pair=pairs)
def test_a_score_does_not_depend_on_its_neighbours(form: AllPairs, pair: tuple[Embeddings, Embeddings]) -> None:
    queries, documents = pair
    together = form(queries, documents)
    for i, j in np.ndindex(together.shape):
        assert close(form(queries.span(i, i + 1), documents.span(j, j + 1)), together[i : i + 1, j : j + 1])


@FORMS
@given(pair=exact_pairs, random=st.randoms(use_true_random=False))
def test_permuted_documents_have_permuted_scores(
    form: AllPairs, pair: tuple[Embeddings, Embeddings], random: Any
) -> None:
    queries, documents = pair
    order = list(range(len(documents)))
    random.shuffle(order)
    tokens = [documents[j] for j in order]
    permuted = TokenEmbeddings(np.concatenate([documents.tokens[:0], *tokens]), offsets_of(list(map(len, tokens))))
    np.testing.assert_array_equal(form(queries, permuted), form(queries, documents)[:, order])


@FORMS
@given(pair=exact_pairs, data=st.data())
def test_a_token_that_is_there_twice_changes_nothing(
    form: AllPairs, pair: tuple[Embeddings, Embeddings], data: Any
) -> None:
    queries, documents = pair
    assume(len(documents.tokens))
    token = data.draw(st.integers(0, len(documents.tokens) - 1))
    item = int(np.searchsorted(documents.offsets, token, side="right")) - 1
    doubled = TokenEmbeddings(
        np.insert(documents.tokens, token, documents.tokens[token], axis=0),
        offsets_of(documents.lengths + (np.arange(len(documents)) == item)),
    )
    np.testing.assert_array_equal(form(queries, doubled), form(queries, documents))


@FORMS
@given(pair=exact_pairs, data=st.data())
def test_an_added_token_never_lowers_a_score(form: AllPairs, pair: tuple[Embeddings, Embeddings], data: Any) -> None:
    queries, documents = pair
    assume(len(documents))
    item = data.draw(st.integers(0, len(documents) - 1))
    eighths = data.draw(st.lists(st.integers(-8, 8), min_size=documents.dimension, max_size=documents.dimension))
    longer = TokenEmbeddings(
        np.insert(documents.tokens, documents.offsets[item], np.array(eighths) / 8, axis=0),
        offsets_of(documents.lengths + (np.arange(len(documents)) == item)),
    )
    assert np.all(form(queries, longer) >= form(queries, documents))


@FORMS
@given(pair=exact_pairs, data=st.data(), k=st.integers(1, 8))
def test_a_corpus_in_parts_is_the_corpus_whole(
    form: AllPairs, pair: tuple[Embeddings, Embeddings], data: Any, k: int
) -> None:
    queries, documents = pair
    cut = data.draw(st.integers(0, len(documents)))
    parts = [(0, documents.span(0, cut)), (cut, documents.span(cut, len(documents)))]
    whole = form(queries, documents)
    for i, scores in enumerate(whole):
        best = [ranked(form(queries, part)[i], first, k) for first, part in parts]
        assert merge(best, k) == ranked(scores, k=k)


@FORMS
@given(pair=exact_pairs, k=st.integers(1, 8))
def test_k_hits_are_a_prefix_of_one_more(form: AllPairs, pair: tuple[Embeddings, Embeddings], k: int) -> None:
    for scores in form(*pair):
        assert ranked(scores, k=k + 1).truncate(k) == ranked(scores, k=k)


@FORMS
@given(pair=pairs)
def test_an_empty_document_scores_minus_infinity_and_an_empty_query_nothing(
    form: AllPairs, pair: tuple[Embeddings, Embeddings]
) -> None:
    queries, documents = pair
    scores = form(queries, documents)
    assert np.all(scores[queries.lengths == 0] == 0)
    assert np.all(scores[queries.lengths > 0][:, documents.lengths == 0] == -np.inf)
    assert np.all(np.isfinite(scores[:, documents.lengths > 0]))


@given(pair=exact_pairs)
def test_eager_is_the_reference_to_the_last_bit_where_sums_are_exact(pair: tuple[Embeddings, Embeddings]) -> None:
    np.testing.assert_array_equal(eager(*pair), reference.maxsim(*pair))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)],
)
@given(data=st.data())
def test_eager_is_the_reference_in_every_precision_under_any_mask(
    precision: Any, dtype: torch.dtype, data: Any
) -> None:
    """Masks with holes: a masked token is absent, wherever it stands. The tolerance is float32's for all of them."""
    queries, documents = data.draw(query_document_embeddings(precision=precision))
    queries, documents = (reference.keep(side, data.draw(keep_masks(side))) for side in (queries, documents))
    assert close(eager(queries, documents, dtype), reference.maxsim(queries, documents).astype(np.float32))


@given(drawn=grouped_embeddings())
def test_grouped_scores_are_those_of_all_pairs(drawn: tuple[Embeddings, Embeddings, np.ndarray]) -> None:
    queries, documents, groups = drawn
    q, d = (torch.from_numpy(np.array(side.tokens)) for side in (queries, documents))
    grouped = kernels.maxsim_grouped(q, queries.offsets, d, documents.offsets, groups).numpy()
    owners = np.repeat(np.arange(len(queries)), np.diff(groups))
    assert close(grouped, eager(queries, documents)[owners, np.arange(len(documents))])
    assert close(grouped, reference.maxsim_grouped(queries, documents, groups))


@pytest.mark.deep
@given(seed=st.integers(0, 2**32 - 1))
def test_large_odd_shapes_cross_chunks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries = TokenEmbeddings(generator.standard_normal((71, 33), np.float32), offsets_of([1, 0, 37, 33]))
    lengths = [*generator.integers(0, 400, 30), 9_001, *generator.integers(0, 400, 30)]
    documents = TokenEmbeddings(generator.standard_normal((sum(lengths), 33), np.float32), offsets_of(lengths))
    expected = reference.maxsim(queries, documents)
    np.testing.assert_allclose(eager(queries, documents), expected, rtol=1e-5, atol=1e-4)
