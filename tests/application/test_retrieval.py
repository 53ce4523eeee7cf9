from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.application.retrieval import HybridSearcher, LexicalSearcher, Reranker, Retriever, Searcher
from lateinteraction.domain.errors import DuplicateDocument, InvalidOption, InvalidRanking
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.ports import AddCounts
from lateinteraction.domain.ranking import Fusion, Ranking
from lateinteraction.domain.text import Document, DocumentId, Query
from lateinteraction.testing import HashEncoder, ListIndex, ReferenceScorer

WORDS = ["red", "green", "blue", "old", "new", "house", "boat"]
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)


def documents(*given: str) -> list[Document]:
    return [Document(DocumentId(str(number)), text, {"words": len(text.split())}) for number, text in enumerate(given)]


def retriever() -> Retriever[np.ndarray]:
    return Retriever(HashEncoder(), ListIndex())


def reranker() -> Reranker[np.ndarray]:
    return Reranker(HashEncoder(), ReferenceScorer(), np.asarray)


def test_the_document_with_the_words_is_found() -> None:
    search = retriever()
    search.add(documents("a red house", "a green boat", "an old house"))
    rankings = search.search([Query("green boat"), Query("old house")], k=1)
    assert [ranking.documents for ranking in rankings] == [("1",), ("2",)]


def test_filters_and_candidates_reach_the_index() -> None:
    search = retriever()
    search.add(documents("red", "red house", "red old house"))
    (filtered,) = search.search([Query("red")], where=Comparison("words", ">", 1))
    assert set(filtered.documents) == {"1", "2"}
    (chosen,) = search.search([Query("red")], candidates=[DocumentId("2")])
    assert chosen.documents == ("2",)


def test_removed_documents_are_not_found() -> None:
    search = retriever()
    search.add(documents("red", "green"))
    assert search.remove([DocumentId("0")]) == 1
    assert search.search([Query("red")])[0].documents == ("1",)


def test_an_id_twice_is_refused_before_anything_is_encoded() -> None:
    class Unwilling:
        recipe = HashEncoder().recipe

        def encode_documents(self, documents: list[Document]) -> None:
            raise AssertionError("encoded")

    with pytest.raises(DuplicateDocument, match="'0' is given twice"):
        Retriever(Unwilling(), ListIndex()).add([*documents("red"), *documents("green")])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("k", [0, -1, True, 1.5])
def test_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(InvalidRanking, match="k = "):
        retriever().search([Query("red")], k)


@given(st.lists(texts, max_size=9), st.integers(1, 4), texts)
def test_a_stream_added_in_pieces_is_the_corpus_added_whole(corpus: list[str], size: int, query: str) -> None:
    whole, streamed = retriever(), retriever()
    report = whole.add(documents(*corpus))
    assert streamed.add_stream(iter(documents(*corpus)), documents_per_add=size) == AddCounts().after(report)
    assert whole.search([Query(query)], 3) == streamed.search([Query(query)], 3)


def test_a_stream_is_read_no_further_than_the_piece_that_fails() -> None:
    taken: list[str] = []

    def stream() -> Iterator[Document]:
        for document in [*documents("red", "green"), *documents("blue"), *documents("old")]:
            taken.append(document.text)
            yield document

    search = retriever()
    with pytest.raises(DuplicateDocument):
        search.add_stream(stream(), documents_per_add=2)
    assert len(search.index) == 2
    assert taken == ["red", "green", "blue", "old"]


def test_pieces_have_at_least_one_document() -> None:
    with pytest.raises(InvalidOption, match="documents_per_add = 0"):
        retriever().add_stream([], documents_per_add=0)


@given(st.lists(texts, max_size=6), texts, st.none() | st.integers(1, 7))
def test_reranking_gives_what_searching_gives(corpus: list[str], query: str, k: int | None) -> None:
    search = retriever()
    search.add(documents(*corpus))
    (found,) = search.search([Query(query)], k or max(1, len(corpus)))
    ranked = reranker().rank(Query(query), documents(*corpus), k)
    assert ranked == found


def test_each_query_ranks_its_own_documents() -> None:
    rankings = reranker().rank_each(
        [Query("red"), Query("green"), Query("old")], [documents("red", "green"), documents("red", "green"), []], k=1
    )
    assert [ranking.documents for ranking in rankings] == [("0",), ("1",), ()]


def test_every_query_needs_its_list_of_documents() -> None:
    with pytest.raises(InvalidRanking, match="1 queries and 2 lists"):
        reranker().rank_each([Query("red")], [[], []])


def test_a_document_is_ranked_once() -> None:
    with pytest.raises(DuplicateDocument):
        reranker().rank(Query("red"), [*documents("red"), *documents("green")])


def test_k_below_one_is_refused_for_reranking() -> None:
    with pytest.raises(InvalidRanking):
        reranker().rank(Query("red"), documents("red"), 0)


class CountingEncoder:
    """Notes what it encodes."""

    def __init__(self) -> None:
        self.encoder = HashEncoder()
        self.recipe, self.encode_queries = self.encoder.recipe, self.encoder.encode_queries
        self.encoded: list[str] = []

    def encode_documents(self, documents: list[Document]) -> object:
        self.encoded += [document.id for document in documents]
        return self.encoder.encode_documents(documents)


def test_what_is_there_already_is_not_encoded_again() -> None:
    encoder = CountingEncoder()
    retriever = Retriever(encoder, ListIndex())
    documents = [Document(DocumentId(name), f"the text of {name}") for name in "abcd"]
    retriever.add(documents[:2])
    report = retriever.add_stream(documents, on_duplicate="skip", documents_per_add=3)
    assert report == AddCounts(added=2, skipped=2)
    with pytest.raises(DuplicateDocument):
        retriever.add([documents[3], Document(DocumentId("e"), "another text")])
    assert encoder.encoded == ["a", "b", "c", "d"]
    assert retriever.add(documents, on_duplicate="replace").replaced == ("a", "b", "c", "d")


def test_who_watches_a_stream_sees_each_piece_encoded_then_written() -> None:
    seen: list[object] = []
    watched = retriever()
    watched.add_stream(
        documents(*"abcde"),
        documents_per_add=2,
        total=5,
        progress=lambda *state: seen.append((*state, len(watched.index))),
    )
    assert seen == [
        ("encoding", 0, 5, 0),
        ("writing", 0, 5, 0),
        ("encoding", 2, 5, 2),
        ("writing", 2, 5, 2),
        ("encoding", 4, 5, 4),
        ("writing", 4, 5, 4),
        ("writing", 5, 5, 5),
    ]


class ByWords:
    """Ranks documents by words as it was told to, whatever is asked."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.asked: list[object] = []

    def search_text(self, texts, k, *, where=None, candidates=None):
        self.asked.append((texts, k, where, candidates))
        return [self.ranking for _ in texts]


def hybrid(ranking: Ranking, fusion: Fusion | None = None) -> tuple[HybridSearcher[np.ndarray], ByWords]:
    dense = retriever()
    dense.add(documents("red house", "green boat", "old boat", ""))
    words = ByWords(ranking)
    own = Searcher(dense.encoder, dense.index)
    if fusion is None:
        return HybridSearcher(own, LexicalSearcher(words)), words
    return HybridSearcher(own, LexicalSearcher(words), fusion), words


def test_both_rankings_are_asked_alike_and_fused() -> None:
    search, words = hybrid(Ranking([DocumentId("2")], [7.0]))
    chosen = [DocumentId("0"), DocumentId("2")]
    (found,) = search.search([Query("green boat")], 2, where=Comparison("words", ">", 1), candidates=chosen)
    assert set(found.documents) == {"0", "2"}
    assert words.asked == [(["green boat"], 100, Comparison("words", ">", 1), chosen)]


def test_a_fusion_says_how_deep_and_how_much_of_each() -> None:
    search, words = hybrid(Ranking([DocumentId("2")], [7.0]), Fusion("scores", embeddings=0, depth=3))
    (found,) = search.search([Query("green boat")], 1)
    assert found.documents == ("2",)
    assert [asked[1] for asked in words.asked] == [3]
    (other,) = hybrid(Ranking([DocumentId("2")], [7.0]), Fusion(words=0))[0].search([Query("green boat")], 1)
    assert other.documents == ("1",)
    search.search([Query("green boat")], 5)
    assert words.asked[-1][1] == 5


def test_a_query_without_tokens_is_ranked_by_its_words_alone() -> None:
    (found,) = hybrid(Ranking([DocumentId("2")], [7.0]))[0].search([Query("")], 4)
    assert found.documents == ("2",)


def test_an_empty_document_gains_nothing_by_being_ranked_last() -> None:
    (found,) = hybrid(Ranking((), ()))[0].search([Query("green boat")], 4)
    assert found.documents[-1] == "3"
    assert found.scores[-1] == -np.inf
