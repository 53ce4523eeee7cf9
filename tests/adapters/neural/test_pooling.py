from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lateinteraction.adapters.neural.pooling import MeanPooledEncoder, mean_pooled, normalised, pooled
from lateinteraction.adapters.neural.scorer import MaxSimScorer
from lateinteraction.adapters.neural.transfer import to_torch
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import MissingExtra
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
from lateinteraction.domain.reference import pool as reference_pool
from lateinteraction.domain.text import Document, DocumentId, Query
from lateinteraction.testing import HashEncoder


def some(*lengths: int) -> TokenEmbeddings[torch.Tensor]:
    return TokenEmbeddings(
        torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(1)), offsets_of(lengths)
    )


def test_normalised_tokens_have_length_one_and_zero_stays_zero() -> None:
    embeddings = TokenEmbeddings(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), offsets_of([1, 1]))
    assert torch.allclose(normalised(embeddings).tokens, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_a_pooled_item_is_one_normalised_mean_and_an_empty_one_stays_empty() -> None:
    embeddings = some(2, 0, 3)
    means = mean_pooled(embeddings)
    assert means.lengths.tolist() == [1, 0, 1]
    expected = embeddings[2].mean(dim=0)
    assert torch.allclose(means[2][0], expected / expected.norm())


def test_nothing_pools_to_nothing() -> None:
    assert mean_pooled(some()).tokens.shape == (0, 5)


def test_maxsim_of_pooled_items_is_the_cosine_of_their_means() -> None:
    queries, documents = some(3, 2), some(4, 1)
    scores = MaxSimScorer().matrix(mean_pooled(queries), mean_pooled(documents))
    means = [torch.stack([tokens.mean(dim=0) for tokens in side]) for side in (queries, documents)]
    expected = torch.nn.functional.cosine_similarity(means[0][:, None], means[1][None], dim=2)
    assert torch.allclose(scores, expected, atol=1e-6)


class TorchHashEncoder:
    """HashEncoder, handing out tensors."""

    def __init__(self) -> None:
        self._words = HashEncoder(EncodingRecipe(normalise=False))

    @property
    def recipe(self) -> EncodingRecipe:
        return self._words.recipe

    def encode_queries(self, queries: list[Query]) -> TokenEmbeddings[torch.Tensor]:
        return to_torch(self._words.encode_queries(queries), "cpu")

    def encode_documents(self, documents: list[Document]) -> TokenEmbeddings[torch.Tensor]:
        return to_torch(self._words.encode_documents(documents), "cpu")


def test_a_pooled_encoder_gives_one_vector_per_text() -> None:
    encoder = MeanPooledEncoder(TorchHashEncoder())
    assert encoder.recipe.normalise is False
    documents = encoder.encode_documents([Document(DocumentId("1"), "two words"), Document(DocumentId("2"), "")])
    assert documents.lengths.tolist() == [1, 0]
    queries = encoder.encode_queries([Query("two words")])
    np.testing.assert_allclose(queries.tokens, documents.tokens, rtol=1e-6)


# ── hierarchical pooling ────────────────────────────────────────────────────────────────────────────────────────────


UNIT_ROWS = st.integers(0, 12).flatmap(
    lambda rows: st.integers(0, 2**31).map(
        lambda seed: np.random.default_rng(seed).standard_normal((rows, 6)).astype(np.float32)
    )
)


@given(st.lists(UNIT_ROWS, max_size=3), st.floats(1, 5), st.integers(0, 3), st.sampled_from(["exact", "pylate"]))
def test_hierarchical_pooling_is_that_of_the_reference(
    items: list[Any], factor: float, protected: int, flavour: Any
) -> None:
    rows = np.concatenate([np.zeros((0, 6), np.float32), *items])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    packed = TokenEmbeddings(rows, offsets_of([len(item) for item in items]))
    expected = reference_pool(packed, factor, protected=protected, flavour=flavour)
    found = pooled(to_torch(packed, "cpu"), TokenPooling(factor, protected, flavour))
    assert found.offsets.tolist() == expected.offsets.tolist()
    np.testing.assert_allclose(found.tokens.numpy(), expected.tokens, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_flavour_of_pylate_is_bit_for_bit_pylates(factor: int) -> None:
    arrays = load_file(Path(__file__).parents[2] / "conformance" / "golden.safetensors")
    given = TokenEmbeddings(arrays[f"pool/f{factor}/inp"], offsets_of(arrays[f"pool/f{factor}/in_lens"].numpy()))
    found = pooled(given, TokenPooling(factor, 1, "pylate"))
    assert found.lengths.tolist() == arrays[f"pool/f{factor}/out_lens"].tolist()
    assert torch.equal(found.tokens, arrays[f"pool/f{factor}/out"])


def test_gradients_pass_through_the_means() -> None:
    tokens = torch.nn.functional.normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(3)), dim=1)
    tokens.requires_grad_()
    pooled(TokenEmbeddings(tokens, offsets_of([9])), TokenPooling(2)).tokens.sum().backward()
    assert tokens.grad is not None
    assert torch.count_nonzero(tokens.grad.abs().sum(dim=1)) == 9


def test_tokens_that_tie_give_exactly_as_many_clusters_as_asked_for() -> None:
    same = TokenEmbeddings(torch.eye(2)[[0, 0, 0, 0, 0, 0, 0, 0]], offsets_of([8]))
    assert pooled(same, TokenPooling(2, 0)).lengths.tolist() == [4]
    assert pooled(same, TokenPooling(2, 0, "pylate")).lengths.tolist() == [1]


def test_half_precision_comes_out_as_it_went_in() -> None:
    rows = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    given = TokenEmbeddings(rows.bfloat16(), offsets_of([6]))
    assert pooled(given, TokenPooling(2)).tokens.dtype == torch.bfloat16


def test_pooling_without_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.cluster", None)
    with pytest.raises(MissingExtra, match=r"lateinteraction\[pooling\]"):
        pooled(TokenEmbeddings(torch.eye(4), offsets_of([4])), TokenPooling(2))
