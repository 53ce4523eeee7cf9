"""The best of vectors by way of their bytes: exactly those that scoring all of them finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index import narrowing
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.narrowing import PATIENCE, REST, Narrowed
from lateinteraction.adapters.index.payloads import (
    Int8,
    PreparedQuery,
    Vectors,
    encode_int8,
    encode_vectors,
    offsets_array,
)
from lateinteraction.adapters.index.search import SegmentView, search
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of

seeds = st.integers(0, 2**32 - 1)
WIDTH = 16


def vectors(generator: np.random.Generator, documents: int, spread: float = 0.0, shortest: int = 0) -> Vectors:
    """Documents of some tokens, of unit length or of lengths that differ by e to the power of the spread."""
    lengths = generator.integers(shortest, 5, documents)
    drawn = generator.standard_normal((int(lengths.sum()), WIDTH))
    drawn *= np.exp(spread * generator.standard_normal((len(drawn), 1))) / np.linalg.norm(drawn, axis=1, keepdims=True)
    tokens = torch.from_numpy(drawn.astype(np.float32))
    return Vectors(InMemory({**offsets_array(lengths), **encode_vectors(tokens)}))


def query_of(generator: np.random.Generator, tokens: int) -> PreparedQuery:
    return PreparedQuery(torch.from_numpy(generator.standard_normal((tokens, WIDTH)).astype(np.float32)))


def warmed(payload: Vectors) -> Narrowed:
    narrowed = Narrowed(payload)
    for _ in range(PATIENCE):
        narrowed.best(query_of(np.random.default_rng(0), 1), 1)
    return narrowed


@given(seed=seeds, k=st.integers(1, 40), tokens=st.integers(0, 4), spread=st.sampled_from([0.0, 1.0, 2.0]))
def test_the_best_are_those_that_scoring_all_finds(seed: int, k: int, tokens: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    payload, query = vectors(generator, 150, spread), query_of(generator, tokens)
    narrowed = warmed(payload)
    chosen = np.flatnonzero(generator.random(150) < 0.8)
    for rows in (None, chosen):
        own = np.arange(150) if rows is None else rows
        scores = payload.score(query, rows)
        best = scores >= np.sort(scores)[-k]
        found, given_scores = narrowed.best(query, k, rows)
        assert bool((np.diff(found) > 0).all())
        assert set(map(int, own[best])) <= set(map(int, found))
        np.testing.assert_array_equal(given_scores, payload.score(query)[found])


def test_all_that_tie_with_the_last_are_found() -> None:
    one = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(0).standard_normal((1, WIDTH))), dim=1)
    payload = Vectors(InMemory({**offsets_array(np.ones(200, np.int64)), **encode_vectors(one.float().repeat(200, 1))}))
    found, _ = warmed(payload).best(PreparedQuery(one.float()), 3)
    assert list(map(int, found)) == list(range(200))


def test_few_documents_are_scored_once_their_bytes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    payload = vectors(generator, 4_000, shortest=1)
    scored: list[int] = []
    inner = Vectors.score

    def counted(self: Vectors, query: Any, rows: Any = None) -> Any:
        scored.append(len(self) if rows is None else len(rows))
        return inner(self, query, rows)

    monkeypatch.setattr(Vectors, "score", counted)
    narrowed = Narrowed(payload)
    for _ in range(PATIENCE + 2):
        narrowed.best(query_of(generator, 2), 5)
    assert scored[:PATIENCE] == [4_000] * PATIENCE
    assert 5 <= max(scored[PATIENCE:]) < 400


def test_a_search_answers_with_it_as_without() -> None:
    generator = np.random.default_rng(3)
    payload = vectors(generator, 500)
    narrowed = warmed(payload)
    queries = TokenEmbeddings(query_of(generator, 12).tokens.values, offsets_of([4, 0, 8]))
    eligible = generator.random(500) < 0.5
    for mask in (None, eligible):
        plain = search([SegmentView(payload, mask)], queries, 7)
        for one, other in zip(plain, search([SegmentView(payload, mask, narrowed=narrowed)], queries, 7), strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_array_equal(one.scores, other.scores)


def test_bytes_that_leave_most_documents_are_not_looked_at_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    narrowed = Narrowed(vectors(generator, 300, shortest=4))
    looks: list[int] = []
    done = 0
    monkeypatch.setattr(narrowing, "WORTH_IT", 10**6)  # as if the bytes of any vectors said too little
    monkeypatch.setattr(Int8, "approximate", lambda self, query, rows: looks.append(done) or np.zeros(300))
    for done in range(PATIENCE + 1 + REST + 1):  # noqa: B007 - the lambda above reads it
        narrowed.best(query_of(generator, 2), 3)
    assert looks == [PATIENCE, PATIENCE + REST + 1]


def test_bytes_are_made_of_some_documents_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = vectors(np.random.default_rng(2), 300, shortest=4)
    whole, decoded = Int8(InMemory({**offsets_array(payload.lengths), **encode_int8(payload.decode().tokens)})), []
    inner = Vectors.decode

    def counted(self: Vectors, rows: Any = None) -> Any:
        decoded.append(len(self) if rows is None else len(rows))
        return inner(self, rows)

    monkeypatch.setattr(narrowing, "TOKENS_AT_A_TIME", 100)
    monkeypatch.setattr(Vectors, "decode", counted)
    made = warmed(payload)._narrow().payload
    assert max(decoded) <= 25
    assert torch.equal(made.decode().tokens, whole.decode().tokens)
