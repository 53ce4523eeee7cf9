from __future__ import annotations

import numpy as np
import torch

from lateinteraction.adapters.neural.pooling import MeanPooledEncoder, mean_pooled, normalised
from lateinteraction.adapters.neural.scorer import MaxSimScorer
from lateinteraction.adapters.neural.transfer import to_torch
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.recipe import EncodingRecipe
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
    pooled = mean_pooled(embeddings)
    assert pooled.lengths.tolist() == [1, 0, 1]
    expected = embeddings[2].mean(dim=0)
    assert torch.allclose(pooled[2][0], expected / expected.norm())


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
