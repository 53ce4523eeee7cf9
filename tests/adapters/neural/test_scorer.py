from __future__ import annotations

import numpy as np
import pytest
import torch

from lateinteraction.adapters.neural.scorer import MaxSimScorer
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings


def some(*lengths: int, width: int = 4) -> TokenEmbeddings[torch.Tensor]:
    return TokenEmbeddings(torch.randn(sum(lengths), width), offsets_of(lengths))


def test_contributions_of_the_winners_sum_to_the_score() -> None:
    scorer, query, document = MaxSimScorer(), some(5), some(7)
    contributions, winners = scorer.winners(query, document)
    assert float(scorer.matrix(query, document)[0, 0]) == pytest.approx(contributions.sum(), rel=1e-6)
    products = (query.tokens @ document.tokens.T).numpy()
    np.testing.assert_allclose(contributions, products[np.arange(5), winners], rtol=1e-6)


@pytest.mark.parametrize("method", ["matrix", "winners"])
def test_two_widths_are_one_clear_error(method: str) -> None:
    with pytest.raises(InvalidEmbeddings, match="4 dimensions and documents of 3"):
        getattr(MaxSimScorer(), method)(some(2), some(2, width=3))


def test_groups_must_share_out_the_documents() -> None:
    with pytest.raises(InvalidEmbeddings, match="documents"):
        MaxSimScorer().grouped(some(2), some(1, 1), np.array([0, 1]))
    with pytest.raises(InvalidEmbeddings, match="2 groups for 1 queries"):
        MaxSimScorer().grouped(some(2), some(1, 1), np.array([0, 1, 2]))
    with pytest.raises(InvalidEmbeddings, match="dimensions"):
        MaxSimScorer().grouped(some(2), some(1, 1, width=2), np.array([0, 2]))
