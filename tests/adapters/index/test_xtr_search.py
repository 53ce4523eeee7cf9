"""XTR over segments of every kind, against the reference with every token looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.codebook import Codebook, train
from lateinteraction.adapters.index.lists import Lists, build_lists
from lateinteraction.adapters.index.payloads import (
    Payload,
    Residuals,
    Vectors,
    encode_int8,
    encode_residual,
    encode_vectors,
    offsets_array,
    read_payload,
)
from lateinteraction.adapters.index.search import Hits, SearchOptions, SegmentView, search
from lateinteraction.domain import reference
from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.text import DocumentId

seeds = st.integers(0, 2**32 - 1)
WIDTH = 8
KINDS = ("vectors", "int8", "residual")


def unit(generator: np.random.Generator, rows: int, width: int = WIDTH) -> torch.Tensor:
    drawn = generator.standard_normal((rows, width), np.float32)
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def payload_of(kind: str, tokens: TokenEmbeddings[torch.Tensor], codebook: Codebook) -> Payload:
    if kind == "vectors":
        encoded = encode_vectors(tokens.tokens)
    else:
        encoded = encode_int8(tokens.tokens) if kind == "int8" else encode_residual(tokens.tokens, codebook)
    return read_payload(InMemory({**offsets_array(tokens.lengths), **encoded}), codebook)


def segment(generator: np.random.Generator, codebook: Codebook) -> SegmentView:
    lengths = generator.integers(0, 5, int(generator.integers(1, 9)))
    tokens = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
    eligible = generator.random(len(lengths)) < 0.7 if generator.random() < 0.5 else None
    return SegmentView(payload_of(str(generator.choice(KINDS)), tokens, codebook), eligible)


def name(number: int, row: int) -> DocumentId:
    return DocumentId(f"{number:03}-{row:05}")


def retrieved(views: list[SegmentView], query: np.ndarray[Any, Any], count: int) -> TokenHits:
    """What each query token finds where all tokens are looked at."""
    owners: list[DocumentId] = []
    rows = [np.empty((0, query.shape[1]))]
    for number, view in enumerate(views):
        decoded = view.payload.decode(view.rows())
        rows.append(decoded.tokens.double().numpy())
        for row, length in zip(view.rows(), decoded.lengths, strict=True):
            owners.extend([name(number, int(row))] * int(length))
    tokens = np.concatenate(rows)
    documents: list[DocumentId] = []
    similarities: list[float] = []
    for vector in query.astype(np.float64):
        own = tokens @ vector
        best = np.argsort(-own, kind="stable")[:count]
        documents.extend(owners[each] for each in best)
        similarities.extend(own[best])
    offsets = offsets_of([min(count, len(tokens))] * len(query))
    return TokenHits(documents, similarities, offsets, offsets_of([len(query)]))


def assert_is(hits: Hits, truth: Any, k: int) -> None:
    names = [name(int(number), int(row)) for number, row in zip(hits.segments, hits.rows, strict=True)]
    assert names[:k] == list(truth.documents)
    np.testing.assert_allclose(hits.scores[:k], truth.scores, atol=2e-6)


# ── What is found ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("effort", ["fast", "balanced", "exact"])
@given(seed=seeds, k=st.integers(1, 12), count=st.integers(1, 12))
def test_a_few_documents_are_ranked_as_the_reference_ranks_them(effort: Any, seed: int, k: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    codebook = train(unit(generator, 80), 8, 4)
    views = [segment(generator, codebook) for _ in range(int(generator.integers(0, 4)))]
    lengths = generator.integers(0, 4, 2)
    queries = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
    found = search(views, queries, k, SearchOptions(effort, interaction="xtr", retrieved=count))
    for hits, values in zip(found, queries, strict=True):
        (truth,) = reference.xtr_rankings(retrieved(views, values.numpy(), count), k)
        assert_is(hits, truth, k)


@given(seed=seeds, k=st.integers(1, 12))
def test_with_every_token_retrieved_it_is_maxsim(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    codebook = train(unit(generator, 80), 8, 4)
    views = [segment(generator, codebook) for _ in range(3)]
    query = TokenEmbeddings(unit(generator, 3), offsets_of([3]))
    (xtr,) = search(views, query, k, SearchOptions(interaction="xtr", retrieved=10_000))
    (maxsim,) = search(views, query, k)
    scored = maxsim.scores > -np.inf
    np.testing.assert_allclose(xtr.scores, maxsim.scores[scored], atol=1e-5)


def test_kept_vectors_have_the_last_word() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 5, 20)
    tokens = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
    exact, coarse = (payload_of(kind, tokens, train(tokens.tokens, 4, 1)) for kind in ("vectors", "residual"))
    query = TokenEmbeddings(unit(generator, 3), offsets_of([3]))
    options = SearchOptions(interaction="xtr", retrieved=7)
    (kept,) = search([SegmentView(coarse, vectors=exact)], query, 5, options)
    assert_is(kept, reference.xtr_rankings(retrieved([SegmentView(exact)], query.tokens.numpy(), 7), 5)[0], 5)
    (stored,) = search([SegmentView(coarse, vectors=exact)], query, 5, evolve(options, rescore=False))
    assert_is(stored, reference.xtr_rankings(retrieved([SegmentView(coarse)], query.tokens.numpy(), 7), 5)[0], 5)


# ── Where not all is looked at ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def world() -> tuple[Payload, Residuals, Lists, TokenEmbeddings[torch.Tensor]]:
    """Documents of words of some topics, exactly and compressed, and queries of one document's words."""
    generator = np.random.default_rng(1)
    words = generator.standard_normal((400, 32), np.float32)
    lengths = generator.integers(5, 30, 1_200)
    owners = np.repeat(generator.integers(0, 20, 1_200), lengths)
    made = words[owners * 20 + generator.integers(0, 20, len(owners))]
    made = torch.from_numpy(made + 0.4 * generator.standard_normal(made.shape, np.float32))
    tokens = TokenEmbeddings(torch.nn.functional.normalize(made, dim=1), offsets_of(lengths))
    codebook = train(tokens.tokens, 300, 4)
    residuals = payload_of("residual", tokens, codebook)
    assert isinstance(residuals, Residuals)
    lists = Lists(InMemory(build_lists(residuals.codes(), lengths, len(codebook))), len(lengths))
    rows = np.concatenate(
        [generator.integers(tokens.offsets[item], tokens.offsets[item + 1], 8) for item in range(0, 1_200, 40)]
    )
    return payload_of("vectors", tokens, codebook), residuals, lists, TokenEmbeddings(made[rows], offsets_of([8] * 30))


def recall(found: list[Hits], truth: list[Hits], k: int) -> float:
    shared = [len({*map(int, a.rows[:k])} & {*map(int, b.rows[:k])}) for a, b in zip(found, truth, strict=True)]
    return sum(shared) / (k * len(truth))


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("count", [50, 400])
def test_a_shortlist_finds_nearly_all_that_looking_at_every_token_finds(world: Any, listed: bool, count: int) -> None:
    vectors, residuals, lists, queries = world
    exact = SearchOptions("exact", interaction="xtr", retrieved=count)
    truth = search([SegmentView(vectors)], queries, 10, exact)
    assert isinstance(vectors, Vectors)
    view = SegmentView(residuals, vectors=vectors, lists=lists if listed else None)
    few, many = (SearchOptions(candidates=n, interaction="xtr", retrieved=count) for n in (20, 200))
    assert recall(search([view], queries, 10, few), truth, 10) > 0.6
    assert recall(search([view], queries, 10, many), truth, 10) > 0.9


def test_what_may_not_be_returned_is_not_retrieved_either(world: Any) -> None:
    _, residuals, lists, queries = world
    eligible = np.arange(1_200) % 3 == 0
    options = SearchOptions(candidates=100, interaction="xtr", retrieved=60)
    rows = np.flatnonzero(eligible)
    decoded = residuals.decode(rows)
    alone = payload_of("residual", decoded, residuals.codebook)
    for view in (SegmentView(residuals, eligible), SegmentView(residuals, eligible, lists=lists)):
        found = search([view], queries, 5, options)
        other = search([SegmentView(alone)], queries, 5, options)
        assert all(bool(eligible[hits.rows].all()) for hits in found)
        shared = [len({*map(int, a.rows)} & {*map(int, rows[b.rows])}) for a, b in zip(found, other, strict=True)]
        assert sum(shared) > 0.9 * 5 * len(found)


def test_segments_together_find_what_one_segment_finds(world: Any) -> None:
    _, residuals, _, queries = world
    options = SearchOptions(candidates=100, interaction="xtr", retrieved=100)
    codes = residuals.codes()
    assert np.array_equal(residuals.sizes(), np.bincount(codes, minlength=300))
    first, last = np.arange(500), np.arange(500, 1_200)
    offsets = offsets_of(residuals.lengths)
    assert np.array_equal(residuals.sizes(first), np.bincount(codes[: offsets[500]], minlength=300))
    views = [SegmentView(residuals, candidates=rows) for rows in (first, last)]
    for one, many in zip(
        search([SegmentView(residuals)], queries, 10, options), search(views, queries, 10, options), strict=True
    ):
        shared = {*map(int, one.rows[:10])} & {*map(int, many.rows[:10])}
        assert len(shared) >= 8


def test_a_query_without_tokens_retrieves_nothing() -> None:
    generator = np.random.default_rng(0)
    tokens = TokenEmbeddings(unit(generator, 6), offsets_of([2, 4]))
    view = SegmentView(payload_of("vectors", tokens, train(tokens.tokens, 2, 4)))
    queries = TokenEmbeddings(torch.empty((0, WIDTH)), offsets_of([0]))
    assert [len(hits) for hits in search([view], queries, 3, SearchOptions(interaction="xtr"))] == [0]


@pytest.mark.parametrize("options", [{"interaction": "sum"}, {"retrieved": 3}, {"interaction": "xtr", "retrieved": 0}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        SearchOptions(**options)


def test_more_tokens_mean_that_more_are_retrieved() -> None:
    xtr = SearchOptions(interaction="xtr")
    assert [xtr.retrieved_of(tokens) for tokens in (0, 1_200_000, 600_000_000)] == [1_000, 3_098, 69_282]
    assert evolve(xtr, retrieved=7).retrieved_of(10**9) == 7


def test_many_queries_share_the_sample_of_what_a_filter_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    tokens = TokenEmbeddings(unit(generator, 2_000), offsets_of([5] * 400))
    payload = payload_of("residual", tokens, train(tokens.tokens, 40, 4))
    view = SegmentView(payload, np.arange(400) % 2 == 0)
    drawn: list[int] = []
    inner = Residuals.sample_of

    def counted(self: Residuals, rows: Any) -> torch.Tensor:
        drawn.append(len(rows))
        return inner(self, rows)

    monkeypatch.setattr(Residuals, "sample_of", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # of several, each might draw one
    queries = TokenEmbeddings(unit(generator, 32), offsets_of([4] * 8))
    found = search([view], queries, 3, SearchOptions(interaction="xtr", candidates=20))
    assert [len(hits) for hits in found] == [3] * 8
    assert drawn == [200]
