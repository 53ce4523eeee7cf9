from __future__ import annotations

import math

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.application.explanation import Explainer
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidExplanation
from lateinteraction.domain.text import Document, DocumentId, Query
from lateinteraction.testing import HashEncoder, ReferenceScorer

texts = st.text(alphabet=" abcdé\n", max_size=20)


class ReferenceMatcher:
    """Winners by the oracle."""

    def winners(
        self, query: TokenEmbeddings[np.ndarray], document: TokenEmbeddings[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        winners = reference.maxsim_winners(query, document)[:, 0]
        if not len(document.tokens):
            return np.full(len(winners), -np.inf, np.float32), winners
        return np.einsum("sd,sd->s", query.tokens, document.tokens[winners]), winners


def explainer() -> Explainer[np.ndarray]:
    encoder = HashEncoder()
    return Explainer(encoder, encoder, ReferenceScorer(), ReferenceMatcher(), np.asarray)


def document(text: str) -> Document:
    return Document(DocumentId("d"), text)


def test_each_word_points_at_the_word_it_found() -> None:
    explanation = explainer().explain(Query("old house"), document("a house, very old"))
    found = {
        explanation.query.text[slice(*match.query_span)]: explanation.document.text[slice(*match.document_span)]
        for match in explanation.matches
    }
    assert found == {"old": "old", "house": "house"}
    assert explanation.score == pytest.approx(2.0)


@given(texts, texts)
def test_contributions_sum_to_the_score(query: str, text: str) -> None:
    explanation = explainer().explain(Query(query), document(text))
    encoder = HashEncoder()
    (score,) = reference.maxsim_all_pairs(
        encoder.encode_queries([Query(query)]), encoder.encode_documents([document(text)])
    )[0]
    total = sum(match.contribution for match in explanation.matches)
    assert total == explanation.score or total == pytest.approx(explanation.score, rel=1e-5, abs=1e-5)
    assert explanation.score == score or explanation.score == pytest.approx(float(score), rel=1e-6)


def test_an_empty_document_is_explained_by_nothing_found() -> None:
    explanation = explainer().explain(Query("old"), document(""))
    assert explanation.score == -math.inf
    assert [(match.document_token, match.document_span) for match in explanation.matches] == [(-1, (0, 0))]


def test_an_empty_query_has_nothing_to_explain() -> None:
    explanation = explainer().explain(Query(""), document("old"))
    assert explanation.score == 0.0
    assert explanation.matches == ()


@given(texts, texts)
def test_what_is_stored_is_explained_beside_what_is_exact(query: str, text: str) -> None:
    exact = HashEncoder().encode_documents([document(text)])
    halved = TokenEmbeddings(exact.tokens / 2, exact.offsets)
    explanation = explainer().explain(Query(query), document(text), halved)
    assert explanation.stored is not None
    assert explanation.stored.score == pytest.approx(explanation.score / 2, rel=1e-5)
    assert [match.contribution for match in explanation.stored.matches] == pytest.approx(
        [match.contribution / 2 for match in explanation.matches]
    )
    assert evolve(explanation, stored=None) == explainer().explain(Query(query), document(text))


def test_tokens_of_another_text_are_no_explanation() -> None:
    other = HashEncoder().encode_documents([document("two words")])
    with pytest.raises(InvalidExplanation, match="2 stored tokens for a text of 1"):
        explainer().explain(Query("old"), document("one"), other)
