"""Explanations: contributions sum to the score, spans lie in their texts."""

from __future__ import annotations

import math
import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.errors import InvalidExplanation
from lateinteraction.domain.explanation import Explanation, TokenMatch
from lateinteraction.domain.ranking import Score
from lateinteraction.domain.text import Document, Query

QUERY = Query("parse a date")
DOCUMENT = Document("1", "reads dates")


def match(
    contribution: float, query_span: tuple[int, int] = (0, 5), document_span: tuple[int, int] = (6, 11)
) -> TokenMatch:
    return TokenMatch(0, 0, query_span, document_span, contribution)


def explain(score: float, *contributions: float) -> Explanation:
    return Explanation(QUERY, DOCUMENT, Score(score), [match(each) for each in contributions])  # type: ignore[arg-type]


@given(st.lists(st.floats(-100, 100), max_size=40))
def test_contributions_sum_to_the_score(contributions: list[float]) -> None:
    total = math.fsum(contributions)
    assert len(explain(total, *contributions).matches) == len(contributions)
    size = max(1.0, math.fsum(map(abs, contributions)))
    explain(total + 0.9e-5 * size, *contributions)
    for wrong in (total + 1.1e-5 * size, total - 1.1e-5 * size, math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidExplanation, match="contributions that sum to"):
            explain(wrong, *contributions)


def test_large_contributions_that_cancel_may_leave_their_rounding() -> None:
    assert explain(2.5, 1e5, -1e5, 2.0).score == 2.5
    with pytest.raises(InvalidExplanation):
        explain(5.0, 1e5, -1e5, 2.0)


def test_an_empty_document_is_explained_by_minus_infinity() -> None:
    assert explain(-math.inf, -math.inf, 0.5).score == -math.inf
    for score, contributions in [(0.5, [-math.inf]), (-math.inf, [0.5]), (0.0, [math.inf, -math.inf]), (0, [math.nan])]:
        with pytest.raises(InvalidExplanation):
            explain(score, *contributions)


def test_an_empty_query_is_explained_by_nothing() -> None:
    assert explain(0.0).matches == ()


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 13), (13, 13)])
def test_a_span_lies_within_its_text(span: tuple[int, int]) -> None:
    for given_ in (match(1.0, query_span=span), match(1.0, document_span=span)):
        with pytest.raises(InvalidExplanation, match=f"characters {span[0]} to {span[1]}"):
            Explanation(QUERY, DOCUMENT, Score(1.0), (given_,))


def test_a_span_may_be_empty_or_the_whole_text() -> None:
    Explanation(QUERY, DOCUMENT, Score(1.0), (match(1.0, (0, 0), (11, 11)),))
    Explanation(QUERY, DOCUMENT, Score(1.0), (match(1.0, (0, 12), (0, 11)),))


def test_each_span_is_held_against_its_own_text() -> None:
    with pytest.raises(InvalidExplanation, match="a span within a text of 11"):
        Explanation(QUERY, DOCUMENT, Score(1.0), (match(1.0, (0, 12), (0, 12)),))


def test_an_explanation_is_a_value() -> None:
    matches = [match(1.0)]
    explanation = Explanation(QUERY, DOCUMENT, Score(1.0), matches)  # type: ignore[arg-type]
    matches.clear()
    assert explanation.matches == (match(1.0),)
    again = pickle.loads(pickle.dumps(explanation))
    assert again == explanation
    assert hash(again) == hash(explanation)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        explanation.score = Score(2.0)  # type: ignore[misc]
