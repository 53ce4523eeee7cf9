"""Search over segments of every kind, against scoring everything."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import search as module
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.codebook import Codebook, train
from lateinteraction.adapters.index.payloads import (
    Payload,
    PreparedQuery,
    Residuals,
    Rows,
    Scores,
    Vectors,
    encode_int8,
    encode_residual,
    encode_vectors,
    offsets_array,
    read_payload,
)
from lateinteraction.adapters.index.search import Hits, SearchOptions, SegmentView, search
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidOption, InvalidRanking

seeds = st.integers(0, 2**32 - 1)
WIDTH = 8
KINDS = ("vectors", "int8", "residual")
Triple = tuple[float, int, int]


def unit(generator: np.random.Generator, rows: int) -> torch.Tensor:
    drawn = generator.standard_normal((rows, WIDTH), np.float32)
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


@frozen
class World:
    """Segments of several kinds, with filters, candidates and kept vectors; and queries."""

    segments: list[SegmentView]
    queries: TokenEmbeddings[torch.Tensor]

    def prepared(self) -> list[PreparedQuery]:
        return [PreparedQuery(values) for values in self.queries]


def payload_of(kind: str, tokens: TokenEmbeddings[torch.Tensor], codebook: Codebook) -> Payload:
    if kind == "vectors":
        encoded = encode_vectors(tokens.tokens)
    else:
        encoded = encode_int8(tokens.tokens) if kind == "int8" else encode_residual(tokens.tokens, codebook)
    return read_payload(InMemory({**offsets_array(tokens.lengths), **encoded}), codebook)


def segment(generator: np.random.Generator, kind: str, codebook: Codebook, kept: bool = False) -> SegmentView:
    lengths = generator.integers(0, 5, int(generator.integers(1, 9)))
    tokens = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
    eligible = generator.random(len(lengths)) < 0.7 if generator.random() < 0.5 else None
    candidates = generator.integers(0, len(lengths), 5) if generator.random() < 0.3 else None
    vectors = Vectors(InMemory({**offsets_array(lengths), **encode_vectors(tokens.tokens)})) if kept else None
    return SegmentView(payload_of(kind, tokens, codebook), eligible, candidates, vectors)


def world(seed: int, *, kept: bool = False, kinds: tuple[str, ...] = KINDS) -> World:
    generator = np.random.default_rng(seed)
    codebooks = [train(unit(generator, 80), 8, 4, seed=number) for number in range(2)]
    segments = [
        segment(generator, str(generator.choice(kinds)), codebooks[int(generator.integers(2))], kept)
        for _ in range(int(generator.integers(0, 5)))
    ]
    lengths = generator.integers(0, 4, int(generator.integers(0, 4)))
    return World(segments, TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths)))


def allowed(view: SegmentView) -> list[int]:
    rows = set(range(len(view.payload)))
    if view.eligible is not None:
        rows &= {row for row in rows if view.eligible[row]}
    if view.candidates is not None:
        rows &= set(map(int, view.candidates))
    return sorted(rows)


def everything(segments: list[SegmentView], query: PreparedQuery, kept: bool) -> list[Triple]:
    """All that may be returned, scored one by one, best first."""
    found: list[Triple] = []
    for number, view in enumerate(segments):
        payload = view.vectors if kept and view.vectors is not None else view.payload
        for row in allowed(view):
            score = float(payload.score(query, np.array([row]))[0]) if len(query) else 0.0
            found.append((score, number, row))
    return sorted(found, key=lambda each: (-each[0], each[1], each[2]))


def best(found: list[Triple], k: int) -> list[Triple]:
    return [each for each in found if len(found) <= k or each[0] >= found[k - 1][0]]


def triples(hits: Hits) -> list[Triple]:
    return [(float(s), int(n), int(r)) for s, n, r in zip(hits.scores, hits.segments, hits.rows, strict=True)]


# ── What is found ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("effort", ["fast", "balanced", "exact"])
@given(seed=seeds, k=st.integers(1, 12))
def test_a_few_documents_are_ranked_as_if_all_were_scored(effort: Any, seed: int, k: int) -> None:
    here = world(seed)
    found = search(here.segments, here.queries, k, SearchOptions(effort))
    assert len(found) == len(here.queries)
    for hits, query in zip(found, here.prepared(), strict=True):
        assert triples(hits) == best(everything(here.segments, query, kept=False), k)


@pytest.mark.parametrize("effort", ["fast", "balanced", "exact"])
@given(seed=seeds, k=st.integers(1, 12))
def test_kept_vectors_have_the_last_word(effort: Any, seed: int, k: int) -> None:
    here = world(seed, kept=True)
    for kept in (True, False):
        found = search(here.segments, here.queries, k, SearchOptions(effort, rescore=kept))
        for hits, query in zip(found, here.prepared(), strict=True):
            assert triples(hits) == best(everything(here.segments, query, kept), k)


@given(seed=seeds, k=st.integers(1, 6), candidates=st.integers(1, 10))
def test_a_shortlist_holds_the_best_by_approximation_over_all_segments(seed: int, k: int, candidates: int) -> None:
    here = world(seed, kinds=("int8", "residual"))
    found = search(here.segments, here.queries, k, SearchOptions(candidates=candidates))
    for hits, query in zip(found, here.prepared(), strict=True):
        ranked = everything(here.segments, query, kept=False)
        if len(query):
            rough = sorted(
                (-float(score), number, row)
                for number, view in enumerate(here.segments)
                for row, score in zip(allowed(view), view.payload.approximate(query, view.chosen), strict=True)
            )
            names = {(number, row) for _, number, row in rough[: max(k, candidates)]}
            ranked = [each for each in ranked if each[1:] in names]
        assert triples(hits) == best(ranked, k)


@given(seed=seeds)
def test_queries_are_answered_alone_as_in_company(seed: int) -> None:
    here = world(seed)
    together = search(here.segments, here.queries, 3)
    for number, hits in enumerate(together):
        (alone,) = search(here.segments, here.queries.span(number, number + 1), 3)
        assert triples(alone) == triples(hits)


@given(seed=seeds)
def test_what_may_not_be_returned_changes_nothing(seed: int) -> None:
    """Filters and candidates give what a search over the remaining documents alone gives."""
    here = world(seed)
    narrowed = [SegmentView(view.payload, candidates=np.array(allowed(view), np.int64)) for view in here.segments]
    for hits, other in zip(search(here.segments, here.queries, 4), search(narrowed, here.queries, 4), strict=True):
        assert triples(hits) == triples(other)
        for _, number, row in triples(hits):
            assert row in allowed(here.segments[number])


@given(seed=seeds)
def test_threads_change_nothing(seed: int) -> None:
    here = world(seed)
    before = torch.get_num_threads()
    found: list[list[list[Triple]]] = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append([triples(hits) for hits in search(here.segments, here.queries, 4)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_all_that_equal_the_last_are_there() -> None:
    generator = np.random.default_rng(0)
    codebook = train(unit(generator, 80), 8, 4)
    row = unit(generator, 1)
    same = TokenEmbeddings(row.repeat(40, 1), offsets_of([1] * 40))
    for kind in KINDS:
        view = SegmentView(payload_of(kind, same, codebook))
        (hits,) = search([view, view], TokenEmbeddings(row, offsets_of([1])), 3)
        assert [(number, place) for _, number, place in triples(hits)] == [(n, r) for n in range(2) for r in range(40)]


def test_equal_approximations_are_cut_at_the_first_segments_and_rows() -> None:
    generator = np.random.default_rng(0)
    codebook = train(unit(generator, 80), 8, 4)
    row = unit(generator, 1)
    view = SegmentView(payload_of("residual", TokenEmbeddings(row.repeat(6, 1), offsets_of([1] * 6)), codebook))
    (hits,) = search([view, view], TokenEmbeddings(row, offsets_of([1])), 2, SearchOptions(candidates=8))
    expected = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 0), (1, 1)]
    assert [(number, place) for _, number, place in triples(hits)] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_empty_documents_come_last(kind: str) -> None:
    generator = np.random.default_rng(1)
    codebook = train(unit(generator, 80), 8, 4)
    documents = TokenEmbeddings(unit(generator, 3), offsets_of([0, 1, 0, 2]))
    (hits,) = search(
        [SegmentView(payload_of(kind, documents, codebook))], TokenEmbeddings(unit(generator, 2), offsets_of([2])), 4
    )
    assert sorted(hits.rows[:2]) == [1, 3]
    assert hits.rows[2:].tolist() == [0, 2]
    assert hits.scores[2:].tolist() == [-np.inf, -np.inf]


def test_nothing_is_found_where_nothing_may_be() -> None:
    here = world(3, kinds=("residual",))
    payload = payload_of(
        "residual", TokenEmbeddings(unit(np.random.default_rng(0), 2), offsets_of([1, 1])), train(torch.eye(8), 2, 4)
    )
    queries = TokenEmbeddings(unit(np.random.default_rng(1), 3), offsets_of([1, 2]))
    for view in (
        SegmentView(payload, eligible=np.zeros(2, np.bool_)),
        SegmentView(payload, candidates=np.empty(0, np.int64)),
        SegmentView(payload, eligible=np.array([True, False]), candidates=np.array([1])),
    ):
        assert len(view) == 0
        assert [len(hits) for hits in search([view], queries, 3)] == [0, 0]
    assert [len(hits) for hits in search([], queries, 3)] == [0, 0]
    assert search(here.segments, queries.span(0, 0), 3) == []


# ── What it costs ───────────────────────────────────────────────────────────────────────────────────────────────────


class Counted:
    """A payload that remembers which documents were scored, and how."""

    def __init__(self, inner: Payload) -> None:
        self._inner = inner
        self.approximates = inner.approximates
        self.approximated: list[int] = []
        self.scored: list[int] = []

    @property
    def dimension(self) -> int:
        return self._inner.dimension

    @property
    def lengths(self) -> Offsets:
        return self._inner.lengths

    def __len__(self) -> int:
        return len(self._inner)

    def approximate(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        self.approximated.extend(range(len(self)) if rows is None else map(int, rows))
        return self._inner.approximate(query, rows)

    def score(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        self.scored.extend(range(len(self)) if rows is None else map(int, rows))
        return self._inner.score(query, rows)

    def maxima(self, query: PreparedQuery, rows: Rows) -> Scores:
        return self._inner.maxima(query, rows)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self._inner.arrays()

    def decode(self, rows: Rows | None = None) -> TokenEmbeddings[torch.Tensor]:
        return self._inner.decode(rows)


def counted(kind: str, documents: int = 600) -> tuple[Counted, TokenEmbeddings[torch.Tensor]]:
    generator = np.random.default_rng(2)
    tokens = TokenEmbeddings(unit(generator, 2 * documents), offsets_of([2] * documents))
    payload = payload_of(kind, tokens, train(tokens.tokens, 16, 4))
    return Counted(payload), TokenEmbeddings(unit(generator, 4), offsets_of([4]))


@pytest.mark.parametrize("kind", ["int8", "residual"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SearchOptions("fast"), 64),
        (SearchOptions(), 256),
        (SearchOptions(candidates=20), 20),
        (SearchOptions("exact"), 600),
    ],
)
def test_efforts_score_so_many_documents_closely(kind: str, options: SearchOptions, expected: int) -> None:
    payload, query = counted(kind)
    search([SegmentView(payload)], query, 5, options)
    assert len(payload.scored) == len(set(payload.scored)) == expected
    assert len(payload.approximated) == (0 if expected == 600 else 600)


def test_vectors_are_scored_once_and_never_approximated() -> None:
    payload, query = counted("vectors")
    search([SegmentView(payload)], query, 5)
    assert (len(payload.approximated), len(payload.scored)) == (0, 600)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_filtered_out_costs_nothing(kind: str) -> None:
    payload, query = counted(kind)
    eligible = np.zeros(600, np.bool_)
    eligible[::60] = True
    search([SegmentView(payload, eligible)], query, 5)
    assert payload.approximated == []  # so few need no shortlist
    assert payload.scored == np.flatnonzero(eligible).tolist()
    many, _ = counted(kind)
    search([SegmentView(many, ~eligible)], query, 5)
    assert set(many.approximated) | set(many.scored) == set(np.flatnonzero(~eligible).tolist())


def test_more_hits_want_more_candidates() -> None:
    assert SearchOptions("fast").shortlist(10, 30_000) == 64
    assert SearchOptions("fast").shortlist(100, 30_000) == 400
    assert SearchOptions("fast").shortlist(10, 1_000_000) == 360
    assert SearchOptions().shortlist(10, 30_000) == 256
    assert SearchOptions().shortlist(1_000, 30_000) == 8_000
    assert SearchOptions().shortlist(10, 1_000_000) == 1_450
    assert SearchOptions(candidates=5).shortlist(10, 1_000_000) == 10
    assert SearchOptions("exact").shortlist(10, 1_000_000) is None


def test_the_best_of_a_shortlist_are_scored_again_by_kept_vectors_and_no_others() -> None:
    payload, query = counted("residual")
    kept, _ = counted("vectors")
    vectors: Any = kept
    search([SegmentView(payload, vectors=vectors)], query, 5)
    assert len(kept.scored) == 32
    assert set(kept.scored) <= set(payload.scored)
    search([SegmentView(payload, vectors=vectors)], query, 20)
    assert len(kept.scored) == 32 + 40


# ── What is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("k", [0, -1, True, 2.0])
def test_a_cut_off_below_one_is_refused(k: Any) -> None:
    here = world(4)
    with pytest.raises(InvalidRanking):
        search(here.segments, here.queries, k)


@pytest.mark.parametrize("options", [{"effort": "best"}, {"candidates": 0}, {"candidates": True}, {"candidates": -3}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        SearchOptions(**options)


def test_queries_of_another_width_or_without_meaning_are_refused() -> None:
    payload, query = counted("residual", 10)
    view = SegmentView(payload)
    with pytest.raises(InvalidEmbeddings):
        search([view], TokenEmbeddings(torch.zeros(1, WIDTH + 1), offsets_of([1])), 3)
    with pytest.raises(InvalidEmbeddings):
        search([view], TokenEmbeddings(query.tokens * torch.nan, query.offsets), 3)


# ── On a corpus with structure ──────────────────────────────────────────────────────────────────────────────────────


def corpus(seed: int) -> tuple[TokenEmbeddings[torch.Tensor], TokenEmbeddings[torch.Tensor]]:
    """Documents of words of a few topics, and queries of one document's words."""
    generator = np.random.default_rng(seed)
    words = generator.standard_normal((400, 32), np.float32)
    lengths = generator.integers(5, 30, 800)
    owners = np.repeat(generator.integers(0, 20, 800), lengths)
    tokens = words[owners * 20 + generator.integers(0, 20, len(owners))]
    tokens = tokens + 0.4 * generator.standard_normal(tokens.shape, np.float32)
    offsets = offsets_of(lengths)
    rows = np.concatenate([generator.integers(offsets[item], offsets[item + 1], 8) for item in range(0, 800, 40)])
    queries = tokens[rows] + 0.4 * generator.standard_normal((len(rows), 32), np.float32)
    normal = torch.nn.functional.normalize
    documents = TokenEmbeddings(normal(torch.from_numpy(tokens), dim=1), offsets)
    return documents, TokenEmbeddings(normal(torch.from_numpy(queries), dim=1), offsets_of([8] * 20))


def recall(found: list[Hits], truth: list[Hits], k: int) -> float:
    shared = [len({*map(int, a.rows[:k])} & {*map(int, b.rows[:k])}) for a, b in zip(found, truth, strict=True)]
    return sum(shared) / (k * len(truth))


def test_few_candidates_find_nearly_all_and_more_find_more() -> None:
    documents, queries = corpus(0)
    exact = SegmentView(payload_of("vectors", documents, train(torch.eye(32), 1, 1)))
    truth = search([exact], queries, 10)
    view = SegmentView(payload_of("residual", documents, train(documents.tokens, 120, 4)))
    kept = evolve(view, vectors=exact.payload)
    recalls = [recall(search([view], queries, 10, SearchOptions(candidates=n)), truth, 10) for n in (10, 40, 160)]
    assert recalls[0] > 0.5
    assert recalls == sorted(recalls)
    assert recalls[2] > 0.9
    assert recall(search([kept], queries, 10, SearchOptions(candidates=160)), truth, 10) > 0.98


def test_segments_together_find_what_one_segment_finds() -> None:
    """A shortlist is one of all segments: dividing documents among segments changes no answer."""
    documents, queries = corpus(1)
    codebook = train(documents.tokens, 120, 4)
    whole = search([SegmentView(payload_of("residual", documents, codebook))], queries, 10)
    bounds = [0, 100, 101, 450, 800]
    parts = [
        SegmentView(payload_of("residual", documents.span(first, last), codebook))
        for first, last in itertools.pairwise(bounds)
    ]
    for one, many in zip(whole, search(parts, queries, 10), strict=True):
        firsts = np.array(bounds)[many.segments]
        np.testing.assert_array_equal(one.rows, firsts + many.rows)
        np.testing.assert_array_equal(one.scores, many.scores)


@pytest.mark.parametrize("most", [0, 10_000])
def test_scoring_segments_together_changes_no_score(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries = corpus(1)
    codebooks = [train(documents.tokens, 120, 4, seed=number) for number in range(2)]
    views = [
        SegmentView(payload_of("residual", documents.span(first, first + 200), codebooks[first // 200 % 2]))
        for first in range(0, 800, 200)
    ]
    calls: list[int] = []
    inner = Residuals.score

    def counted(self: Residuals, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        calls.append(len(self) if rows is None else len(rows))
        return inner(self, query, rows)

    monkeypatch.setattr(module, "TOGETHER", most)
    monkeypatch.setattr(Residuals, "score", counted)
    for hits, values in zip(search(views, queries, 10, SearchOptions(candidates=800)), queries, strict=True):
        for number, view in enumerate(views):
            own = hits.segments == number
            assert isinstance(view.payload, Residuals)
            expected = inner(view.payload, PreparedQuery(values), hits.rows[own])
            np.testing.assert_array_equal(hits.scores[own], expected)
    assert sum(calls) == 800 * len(queries)
    assert len(calls) == (4 if most == 0 else 2) * len(queries)


def test_segments_are_scored_one_by_one_where_the_query_is_compared_with_all_centroids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    documents, queries = corpus(1)
    codebook = train(documents.tokens, 120, 4)
    views = [SegmentView(payload_of("residual", documents.span(n, n + 200), codebook)) for n in range(0, 800, 200)]
    gathered: list[int] = []
    monkeypatch.setattr(module, "gathered", lambda parts: gathered.append(len(parts)))
    assert len(search(views, queries, 10, SearchOptions(candidates=300))) == len(queries)
    assert not gathered


def test_scores_are_those_of_the_segments_payload() -> None:
    documents, queries = corpus(2)
    payload: NDArray[Any] | Payload = payload_of("residual", documents, train(documents.tokens, 120, 4))
    for hits, values in zip(search([SegmentView(payload)], queries, 10), queries, strict=True):
        np.testing.assert_array_equal(hits.scores, payload.score(PreparedQuery(values), hits.rows))
