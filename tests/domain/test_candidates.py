"""TokenHits: counts that fit, and the documents of a query in the order of their first hit."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings

HITS = TokenHits(["b", "a", "b", "c"], [0.9, 0.5, 0.8, -0.1], [0, 2, 2, 3, 4], [0, 3, 3, 4])  # type: ignore[arg-type]


def test_documents_come_once_in_the_order_of_their_first_hit() -> None:
    assert len(HITS) == 3
    assert [HITS.documents_of(query) for query in range(3)] == [["b", "a"], [], ["c"]]


@given(st.lists(st.lists(st.lists(st.sampled_from("abcd"), max_size=4), max_size=3), max_size=4))
def test_every_hit_belongs_to_its_query(nested: list[list[list[str]]]) -> None:
    tokens = [token for query in nested for token in query]
    documents = [document for token in tokens for document in token]
    offsets, query_offsets = offsets_of(list(map(len, tokens))), offsets_of(list(map(len, nested)))
    hits = TokenHits(tuple(documents), np.zeros(len(documents), np.float32), offsets, query_offsets)
    assert len(hits) == len(nested)
    for place, query in enumerate(nested):
        flat = [document for token in query for document in token]
        assert hits.documents_of(place) == sorted(set(flat), key=flat.index)


def test_hits_cannot_be_changed() -> None:
    similarities = np.array([0.5])
    hits = TokenHits(["a"], similarities, [0, 1], [0, 1])  # type: ignore[arg-type]
    similarities[0] = 1.0
    assert hits.similarities[0] == np.float32(0.5)
    assert hits.similarities.dtype == np.float32
    for array in (hits.similarities, hits.offsets, hits.query_offsets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        hits.documents = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("similarities", "offsets", "query_offsets", "said"),
    [
        ([0.5], [0, 2], [0, 1], r"2 documents and similarities of shape \(1,\)"),
        ([[0.5, 0.5]], [0, 2], [0, 1], r"shape \(1, 2\)"),
        ([0.5, math.nan], [0, 2], [0, 1], "not finite"),
        ([0.5, -math.inf], [0, 2], [0, 1], "not finite"),
        ([0.5, 0.5], [0, 1], [0, 1], "the number of hits"),
        ([0.5, 0.5], [0, 2], [0, 2], "the number of query tokens"),
        ([0.5, 0.5], [0, 2, 1, 2], [0, 3], "fall after entry 1"),
        ([0.5, 0.5], [0, 1, 2], [0, 2, 1, 2], "fall after entry 1"),
        ([0.5, 0.5], [], [0], "at least one entry"),
        ([0.5, 0.5], [0, 2], [], "at least one entry"),
    ],
)
def test_hits_that_do_not_fit_are_refused(similarities: Any, offsets: Any, query_offsets: Any, said: str) -> None:
    with pytest.raises(InvalidEmbeddings, match=said):
        TokenHits(("a", "b"), similarities, offsets, query_offsets)
