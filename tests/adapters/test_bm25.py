"""BM25: the formula by hand, words and identifiers, ties, silence, and the missing extra."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.bm25 import K1, B, Bm25Ranker, words
from lateinteraction.domain.errors import DuplicateDocument, InvalidRanking
from lateinteraction.domain.text import Document, DocumentId, Query

VOCABULARY = ["red", "green", "blue", "parse_date", "readHTTPHeader", "ünder", "x1", "日本"]
texts = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


def documents_of(*texts: str) -> list[Document]:
    return [Document(DocumentId(f"d{number:03}"), text) for number, text in enumerate(texts)]


def score_by_hand(query: str, document: str, corpus: list[str]) -> float:
    """Σ over query words of log(1 + (N − n + ½) / (n + ½)) · tf / (tf + k₁ (1 − b + b · length / mean length))."""
    split = [list(words(text)) for text in corpus]
    mean_length = sum(map(len, split)) / len(split)
    counts = Counter(words(document))
    length = counts.total()
    score = 0.0
    for word in words(query):
        containing = sum(word in each for each in split)
        if counts[word]:
            idf = math.log(1 + (len(split) - containing + 0.5) / (containing + 0.5))
            score += idf * counts[word] / (counts[word] + K1 * (1 - B + B * length / mean_length))
    return score


@given(corpus=st.lists(texts, min_size=1, max_size=8), query=texts)
def test_scores_are_the_formula_and_documents_without_a_shared_word_are_left_out(corpus: list[str], query: str) -> None:
    documents = documents_of(*corpus)
    ranking = Bm25Ranker(documents).search([Query(query)], len(corpus))[0]
    expected = {document.id: score_by_hand(query, document.text, corpus) for document in documents}
    assert set(ranking.documents) == {identifier for identifier, score in expected.items() if score > 0}
    for hit in ranking:
        assert hit.score == pytest.approx(expected[hit.document], rel=1e-5)


@given(corpus=st.lists(texts, max_size=8), query=texts, k=st.integers(1, 9))
def test_k_results_are_the_first_of_more_results(corpus: list[str], query: str, k: int) -> None:
    ranker = Bm25Ranker(documents_of(*corpus))
    fewer, more = (ranker.search([Query(query)], many)[0] for many in (k, k + 1))
    assert fewer.documents == more.documents[:k]
    assert np.array_equal(fewer.scores, more.scores[:k])


@given(corpus=st.lists(texts, min_size=1, max_size=6), queries=st.lists(texts, max_size=4))
def test_each_query_is_ranked_as_if_it_were_alone(corpus: list[str], queries: list[str]) -> None:
    ranker = Bm25Ranker(documents_of(*corpus))
    assert ranker.search([Query(query) for query in queries], 5) == [
        ranker.search([Query(query)], 5)[0] for query in queries
    ]


def test_equal_scores_are_listed_by_rising_id() -> None:
    documents = [Document(DocumentId(name), "the same words") for name in ("c", "a", "b")]
    assert Bm25Ranker(documents).search([Query("same")], 2)[0].documents == ("a", "b")


def test_a_query_of_unknown_words_finds_nothing() -> None:
    ranker = Bm25Ranker(documents_of("one", "two"))
    assert [len(ranking) for ranking in ranker.search([Query("three"), Query(""), Query("one")], 3)] == [0, 0, 1]


@pytest.mark.parametrize("corpus", [[], ["", "?!"]])
def test_a_collection_without_words_is_searched_and_finds_nothing(corpus: list[str]) -> None:
    ranker = Bm25Ranker(documents_of(*corpus))
    assert len(ranker) == len(corpus)
    assert len(ranker.search([Query("anything")], 3)[0]) == 0


def test_identifiers_are_found_by_themselves_and_by_their_parts() -> None:
    ranker = Bm25Ranker(documents_of("def parse_http_date(): ...", "class CookieJar: ...", "nothing of the kind"))
    assert ranker.search([Query("parse a date")], 3)[0].documents == ("d000",)
    assert ranker.search([Query("the jar of cookie")], 1)[0].documents == ("d001",)
    assert ranker.search([Query("CookieJar")], 1)[0].documents == ("d001",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Parse a DATE.", ["parse", "a", "date"]),
        ("parse_date", ["parse_date", "parse", "date"]),
        ("parseHTTPDate", ["parsehttpdate", "parse", "http", "date"]),
        ("utf8", ["utf8", "utf", "8"]),
        ("__init__", ["__init__"]),
        ("École_Über", ["école_über", "école", "über"]),
        ("don't", ["don", "t"]),
        ("_", ["_"]),
        ("", []),
    ],
)
def test_words_are_lower_cased_and_identifiers_split(text: str, expected: list[str]) -> None:
    assert list(words(text)) == expected


@given(st.text())
def test_any_text_has_words_that_are_lower_case(text: str) -> None:
    assert all(word and word == word.lower() for word in words(text))


def test_an_id_that_is_given_twice_is_refused() -> None:
    with pytest.raises(DuplicateDocument):
        Bm25Ranker([Document(DocumentId("1"), "a"), Document(DocumentId("1"), "b")])


def test_a_cut_off_below_one_is_refused() -> None:
    with pytest.raises(InvalidRanking):
        Bm25Ranker(documents_of("a")).search([Query("a")], 0)


def test_indexing_and_searching_write_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    Bm25Ranker(documents_of(*["some words"] * 100)).search([Query("words")], 10)
    assert capfd.readouterr() == ("", "")


def test_without_bm25s_the_error_names_the_extra_to_install() -> None:
    program = (
        "import sys; sys.modules['bm25s'] = None\n"  # what an absent package looks like to `import`
        "from lateinteraction.adapters.bm25 import Bm25Ranker\n"
        "from lateinteraction.domain.errors import MissingExtra\n"
        "try:\n    Bm25Ranker([])\nexcept MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'pip install "lateinteraction[demo]"' in done.stdout
