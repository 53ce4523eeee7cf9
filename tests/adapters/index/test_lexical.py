"""BM25 over segments: the published formula, and the same to the last bit however documents are spread."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index import postings
from lateinteraction.adapters.index.analysis import Analyser
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.bm25 import Bm25, Bm25Options, Found, LexicalSegment
from lateinteraction.adapters.index.columns import in_memory
from lateinteraction.adapters.index.postings import Postings
from lateinteraction.domain.errors import InvalidOption, InvalidRanking

Texts = list[str]
PLAIN = Analyser("none")
WORDS = st.sampled_from(["late", "interaction", "token", "search", "a", "b", "c", "index", "rare"])
TEXTS = st.lists(WORDS, max_size=8).map(" ".join)
OPTIONS = st.builds(Bm25Options, st.sampled_from([0.0, 0.9, 1.2, 3.0]), st.sampled_from([0.0, 0.4, 1.0]))


def segment(texts: Texts, live: list[bool] | None = None) -> LexicalSegment:
    arrays = postings.build(PLAIN.terms(text) for text in texts)
    return LexicalSegment(
        Postings(InMemory(arrays), len(texts)), np.array([True] * len(texts) if live is None else live, np.bool_)
    )


@st.composite
def generations(draw: st.DrawFn) -> list[tuple[Texts, list[bool]]]:
    segments = draw(st.lists(st.lists(TEXTS, max_size=6), max_size=4))
    return [(texts, [draw(st.integers(0, 3)) > 0 for _ in texts]) for texts in segments]


def by_the_formula(texts: Texts, query: str, options: Bm25Options) -> list[float]:
    """BM25 as one would write it down, in float64."""
    documents = [Counter(PLAIN.terms(text)) for text in texts]
    average = sum(map(Counter.total, documents)) / max(len(texts), 1)
    scores = [0.0] * len(texts)
    for term, times in Counter(PLAIN.terms(query)).items():
        having = sum(term in document for document in documents)
        idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for row, document in enumerate(documents):
            if term in document:
                held_back = options.k1 * (1 - options.b + options.b * document.total() / average)
                scores[row] += times * idf * document[term] / (document[term] + held_back)
    return scores


def hits(found: Found) -> list[tuple[int, int, float]]:
    assert found.scores.dtype == np.float32
    return list(zip(map(int, found.segments), map(int, found.rows), map(float, found.scores), strict=True))


@given(st.lists(TEXTS, max_size=8), TEXTS, OPTIONS)
def test_scores_are_those_of_the_formula(texts: Texts, query: str, options: Bm25Options) -> None:
    found = Bm25([segment(texts)], PLAIN, options).search(query, 100)
    expected = {row: score for row, score in enumerate(by_the_formula(texts, query, options)) if score}
    assert {row for _, row, _ in hits(found)} == set(expected)
    for _, row, score in hits(found):
        assert score == pytest.approx(expected[row], rel=1e-6)


@given(generations(), TEXTS, OPTIONS, st.integers(1, 12))
def test_segments_and_tombstones_do_not_show(
    generation: list[tuple[Texts, list[bool]]], query: str, options: Bm25Options, k: int
) -> None:
    places = [(n, row) for n, (_, live) in enumerate(generation) for row, stays in enumerate(live) if stays]
    remaining = [generation[n][0][row] for n, row in places]
    spread = Bm25([segment(*each) for each in generation], PLAIN, options).search(query, k)
    alone = Bm25([segment(remaining)], PLAIN, options).search(query, k)
    assert hits(spread) == [(*places[row], score) for _, row, score in hits(alone)]


@given(generations(), TEXTS)
def test_merging_segments_changes_no_score(generation: list[tuple[Texts, list[bool]]], query: str) -> None:
    segments = [segment(*each) for each in generation]
    merged = in_memory(postings.merged([(each.postings, np.flatnonzero(each.live)) for each in segments]))
    count = sum(int(np.count_nonzero(each.live)) for each in segments)
    folded = LexicalSegment(Postings(InMemory(merged), count), np.ones(count, np.bool_))
    before, after = Bm25(segments, PLAIN).search(query, 100), Bm25([folded], PLAIN).search(query, 100)
    np.testing.assert_array_equal(before.scores, after.scores)


@given(generations(), TEXTS, st.integers(1, 5))
def test_the_best_are_the_first_of_all_and_those_that_tie(
    generation: list[tuple[Texts, list[bool]]], query: str, k: int
) -> None:
    index = Bm25([segment(*each) for each in generation], PLAIN)
    everything, best = hits(index.search(query, 1000)), hits(index.search(query, k))
    assert best == [hit for hit in everything if len(everything) <= k or hit[2] >= everything[k - 1][2]]
    assert everything == sorted(everything, key=lambda hit: (-hit[2], hit[0], hit[1]))


@given(generations(), TEXTS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_a_filter_changes_who_is_found_and_no_score(
    generation: list[tuple[Texts, list[bool]]], query: str, k: int, random: Any
) -> None:
    index = Bm25([segment(*each) for each in generation], PLAIN)
    eligible = [np.array([random.random() < 0.5 for _ in texts], np.bool_) for texts, _ in generation]
    everything = [hit for hit in hits(index.search(query, 1000)) if eligible[hit[0]][hit[1]]]
    found = hits(index.search(query, k, eligible))
    assert found == [hit for hit in everything if len(everything) <= k or hit[2] >= everything[k - 1][2]]


@given(generations(), st.lists(WORDS, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_words_does_not_matter(
    generation: list[tuple[Texts, list[bool]]], words: list[str], random: Any
) -> None:
    index = Bm25([segment(*each) for each in generation], PLAIN)
    shuffled = random.sample(words, len(words))
    assert hits(index.search(" ".join(words), 10)) == hits(index.search(" ".join(shuffled), 10))


def test_what_a_removed_document_said_counts_no_more() -> None:
    index = Bm25([segment(["rare word", "word word", "other text entirely"], [False, True, True])], PLAIN)
    fresh = Bm25([segment(["word word", "other text entirely"])], PLAIN)
    assert hits(index.search("rare", 5)) == []
    assert hits(index.search("word", 5)) == [(0, row + 1, score) for _, row, score in hits(fresh.search("word", 5))]
    assert [row for _, row, _ in hits(index.search("word rare other", 5))] == [1, 2]


@pytest.mark.parametrize("query", ["", "nothing", "...", "\ud7ff"])
def test_a_query_that_shares_no_word_finds_nothing(query: str) -> None:
    assert hits(Bm25([segment(["a b", "c"])], PLAIN).search(query, 3)) == []


@pytest.mark.parametrize("texts", [[], [""], ["", "..."]])
def test_documents_without_words_are_never_found(texts: Texts) -> None:
    assert hits(Bm25([segment(texts)], PLAIN).search("a", 3)) == []
    assert hits(Bm25([], PLAIN).search("a", 3)) == []


def test_scores_that_float32_cannot_tell_apart_tie() -> None:
    """float64 would order them, and a ranking, which holds float32, could then miss the one with the lower id."""
    texts = ["a" + " b" * 40_000 + " c" * extra for extra in range(3)]
    best = Bm25([segment([*texts, "a a"])], PLAIN, Bm25Options(1.2, 1e-7)).search("a", 2)
    assert [row for _, row, _ in hits(best)] == [3, 0, 1, 2]


def test_documents_are_analysed_as_queries_are() -> None:
    english = Analyser("english")
    arrays = postings.build([english.terms("The connection of networks"), english.terms("unrelated")])
    index = Bm25([LexicalSegment(Postings(InMemory(arrays), 2), np.ones(2, np.bool_))], english)
    assert [row for _, row, _ in hits(index.search("connected NETWORK", 5))] == [0]
    assert hits(index.search("the of", 5)) == []


@pytest.mark.parametrize("k", [0, -1, True, 1.5])
def test_a_cutoff_below_one_is_refused(k: Any) -> None:
    with pytest.raises(InvalidRanking):
        Bm25([segment(["a"])], PLAIN).search("a", k)


@pytest.mark.parametrize(
    ("k1", "b"), [(-0.1, 0.4), (math.inf, 0.4), (math.nan, 0.4), (1.2, -0.1), (1.2, 1.1), (1.2, math.nan)]
)
def test_constants_out_of_range_are_refused(k1: float, b: float) -> None:
    with pytest.raises(InvalidOption):
        Bm25Options(k1, b)


def test_a_second_implementation_gives_the_same_ranking() -> None:
    bm25s = pytest.importorskip("bm25s")
    texts = [" ".join(f"w{(row * place) % 23}" for place in range(1, 4 + row % 11)) for row in range(120)]
    other = bm25s.BM25(k1=1.2, b=0.6, method="lucene")
    other.index([PLAIN.terms(text) for text in texts], show_progress=False)
    index = Bm25([segment(texts[:50]), segment(texts[50:])], PLAIN)
    for query in ("w1 w5", "w7", "w3 w3 w20 w11"):
        expected = other.get_scores(PLAIN.terms(query))
        found = index.search(query, 1000)
        scores = np.zeros(len(texts), np.float32)
        scores[found.segments * 50 + found.rows] = found.scores
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
