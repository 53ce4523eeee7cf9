"""A graph over tokens finds nearly what exact search finds, and never what is gone, filtered out or too much."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.adapters.index.hnsw import index as index_module
from lateinteraction.adapters.index.hnsw.graph import GraphOptions, TokenGraph
from lateinteraction.adapters.index.hnsw.hits import Hits, xtr_scores
from lateinteraction.adapters.index.hnsw.index import HnswIndex
from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidOption, MissingExtra, StorageFailed
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.reference.xtr import xtr_rankings
from lateinteraction.domain.text import Document

WIDTH = 16
IN_THE_GRAPH = GraphOptions(exact_below=0, links=8, effort=60, depth=32, neighbours=16)


def embedded(lengths: Sequence[int], seed: int = 0) -> TokenEmbeddings[torch.Tensor]:
    """Tokens around some centres, of lengths that differ."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((40, WIDTH))
    tokens = centres[generator.integers(0, 40, sum(lengths))] + 0.4 * generator.standard_normal((sum(lengths), WIDTH))
    return TokenEmbeddings(torch.tensor(tokens, dtype=torch.float32) / 4, offsets_of(lengths))


def named(numbers: Sequence[int]) -> list[Document]:
    return [Document(f"d{number:03}", "", {"even": number % 2 == 0, "number": number}) for number in numbers]


def filled(
    options: GraphOptions = IN_THE_GRAPH, documents: int = 120, **keywords: object
) -> tuple[FlatIndex, HnswIndex]:
    flat = FlatIndex()
    index = HnswIndex(flat, options, **keywords)
    index.add(named(range(documents)), embedded([1 + number % 9 for number in range(documents)]))
    return flat, index


QUERIES = embedded([4, 1, 6, 3, 5, 2], seed=1)


def recall(found: list[Ranking], expected: list[Ranking]) -> float:
    shares = [
        len({*one.documents} & {*other.documents}) / len(other) for one, other in zip(found, expected, strict=True)
    ]
    return float(np.mean(shares))


def test_nearly_all_of_the_best_are_found() -> None:
    flat, index = filled()
    assert index.in_graph() == len(embedded([1 + number % 9 for number in range(120)]).tokens)
    found, expected = index.search(QUERIES, 5), flat.search(QUERIES, 5)
    assert recall(found, expected) > 0.9
    for ranking, own in zip(found, QUERIES, strict=True):
        alone = TokenEmbeddings(own, offsets_of([len(own)]))
        (exact,) = flat.search(alone, 5, candidates=list(ranking.documents))
        assert ranking == exact, "what is found has not the score that it has"


def test_the_graph_proposes_and_not_every_document_is_scored() -> None:
    _, index = filled()
    asked: list[int] = []
    state = index._view.state

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(state, name)

        def search(self, queries, k, *, where=None, candidates=None):
            asked.append(len(state) if candidates is None else len(candidates))
            return state.search(queries, k, where=where, candidates=candidates)

    index._view.state = Watched()
    index.search(embedded([1], seed=3), 3)
    assert asked
    assert max(asked) <= IN_THE_GRAPH.neighbours


def test_below_the_limit_search_is_exact_and_there_is_no_graph() -> None:
    flat, index = filled(GraphOptions(exact_below=10_000))
    assert index.in_graph() == 0
    assert index.search(QUERIES, 7) == flat.search(QUERIES, 7)


def test_documents_beside_the_graph_are_found_too() -> None:
    flat, index = filled(GraphOptions(exact_below=300, depth=64, neighbours=32))
    before = index.in_graph()
    assert before > 300
    late = embedded([3] * 20, seed=5)
    index.add(named(range(500, 520)), late)
    assert index.in_graph() == before
    for number, own in enumerate(late):
        ranking = index.search(TokenEmbeddings(own, offsets_of([len(own)])), 1)[0]
        assert ranking.documents == flat.search(TokenEmbeddings(own, offsets_of([len(own)])), 1)[0].documents
        assert f"d{500 + number}" in index.nearest(TokenEmbeddings(own, offsets_of([3])), 5).documents_of(0)


def test_documents_without_tokens_come_last_in_the_order_they_came() -> None:
    flat, index = filled(documents=0)
    for name, lengths in (("ab", [0, 0]), ("cd", [2, 2]), ("e", [0])):
        index.add([Document(each, "") for each in name], embedded(lengths))
    assert index.in_graph() == 4
    assert list(index._view.pending) == ["e"], "a document beside the graph, which those in it must not give way to"
    query = embedded([1], seed=3)
    assert index.search(query, 3) == flat.search(query, 3)


def test_what_was_removed_is_never_found_however_much_is_asked_for() -> None:
    flat, index = filled()
    gone = [f"d{number:03}" for number in range(100)]
    index.remove(gone)
    for k in (1, 5, 20, 21, 500):
        assert index.search(QUERIES, k)[0].documents == flat.search(QUERIES, k)[0].documents[:k]
    hits = index.nearest(QUERIES, 10_000)
    assert not {*hits.documents} & {*gone}
    assert set(np.diff(hits.offsets)) == {sum(1 + number % 9 for number in range(100, 120))}
    index.remove(Comparison("even", "==", True))
    assert all(int(each[1:]) % 2 for each in index.nearest(QUERIES, 10_000).documents)
    index.remove(Comparison("number", ">=", 0))
    assert len(index) == 0
    assert index.search(QUERIES, 3) == [Ranking((), ())] * len(QUERIES)
    assert index.nearest(QUERIES, 3).documents == ()


def test_a_replaced_document_is_found_by_its_new_tokens_alone() -> None:
    _, index = filled()
    far = TokenEmbeddings(torch.full((1, WIDTH), 9.0), offsets_of([1]))
    index.add(named([5]), far, on_duplicate="replace")
    assert index.search(far, 1)[0].documents == ("d005",)
    hits = index.nearest(QUERIES, 10_000)
    assert hits.documents[: hits.offsets[1]].count("d005") == 1


def test_a_graph_of_which_most_was_removed_is_built_anew() -> None:
    _, index = filled()
    index.remove([f"d{number:03}" for number in range(100)])
    assert index._graph is not None
    assert index._graph.removed == 0
    assert len(index._graph) == 20


def test_a_filter_that_few_pass_does_not_hide_them() -> None:
    flat, index = filled()
    for where in (Comparison("number", "==", 77), Comparison("number", "<", 3), Comparison("even", "==", True)):
        found, expected = index.search(QUERIES, 5, where=where), flat.search(QUERIES, 5, where=where)
        assert [len(ranking) for ranking in found] == [len(ranking) for ranking in expected]
        assert recall(found, expected) > 0.9
    everything = [f"d{number:03}" for number in range(120)]
    assert recall(index.search(QUERIES, 5, candidates=everything), flat.search(QUERIES, 5)) > 0.9
    assert index.search(QUERIES, 5, candidates=["d001", "x"]) == flat.search(QUERIES, 5, candidates=["d001"])


def test_the_same_calls_give_the_same_answers() -> None:
    first, second = filled()[1], filled()[1]
    assert first.search(QUERIES, 9) == second.search(QUERIES, 9)
    stored: list[bytes] = []
    for index in (first, second):
        assert index.save(lambda saved: stored.append(saved.graph.stored()))
    assert stored[0] == stored[1]


def test_what_others_write_is_seen_after_a_refresh() -> None:
    flat, index = filled()
    flat.add([Document("late", "")], TokenEmbeddings(torch.full((1, WIDTH), 9.0), offsets_of([1])))
    flat.add(named([3]), TokenEmbeddings(torch.full((2, WIDTH), -9.0), offsets_of([2])), on_duplicate="replace")
    flat.remove(["d004"])
    index.refresh()
    hits = index.nearest(QUERIES, 10_000)
    own = hits.documents[: hits.offsets[1]]
    assert (own.count("late"), own.count("d003"), own.count("d004"), own.count("d005")) == (1, 2, 0, 6)
    assert index.search(QUERIES, 200)[0].documents == flat.search(QUERIES, 200)[0].documents


def test_what_others_have_added_is_noticed_when_something_is_added() -> None:
    flat, index = filled()
    flat.add([Document("late", "")], TokenEmbeddings(torch.full((1, WIDTH), 9.0), offsets_of([1])))
    index.add([Document("later", "")], TokenEmbeddings(torch.full((1, WIDTH), 8.0), offsets_of([1])))
    hits = index.nearest(TokenEmbeddings(torch.full((1, WIDTH), 1.0), offsets_of([1])), 2)
    assert hits.documents == ("late", "later")


def test_without_voyager_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "voyager", None)
    with pytest.raises(MissingExtra, match=r"lateinteraction\[hnsw\]"):
        HnswIndex(FlatIndex())


@pytest.mark.parametrize("wrong", [{"links": 1}, {"depth": 0}, {"exact_below": -1}, {"threads": 2.5}, {"seed": True}])
def test_options_that_make_no_graph_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        GraphOptions(**wrong)
    with pytest.raises(InvalidOption):
        HnswIndex(FlatIndex(), interaction="colbert")


def test_another_width_is_refused() -> None:
    _, index = filled()
    narrow = TokenEmbeddings(torch.ones((2, 3)), offsets_of([2]))
    for call in (
        lambda: index.search(narrow, 3),
        lambda: index.nearest(narrow, 3),
        lambda: index.add(named([900]), narrow),
    ):
        with pytest.raises(InvalidEmbeddings):
            call()
    assert len(index) == 120


def test_a_graph_that_cannot_be_built_leaves_an_exact_index(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("no room")

    flat, index = filled()
    monkeypatch.setattr(TokenGraph, "add", fails)
    report = index.add(named([600]), embedded([3], seed=9))
    assert report.added == ("d600",)
    assert "no room" in caplog.text
    assert index.in_graph() == 0
    assert index.search(QUERIES, 9) == flat.search(QUERIES, 9)
    monkeypatch.undo()
    index.add(named([601]), embedded([3], seed=10))
    assert index.in_graph() > 0


def test_a_write_that_is_acknowledged_does_not_fail_afterwards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise StorageFailed("a disk", "another", "Buy one.")

    flat, index = filled()
    monkeypatch.setattr(FlatIndex, "snapshot", fails)
    assert index.add(named([600]), embedded([3], seed=9)).added == ("d600",)
    assert index.remove(["d001"]) == 1
    assert caplog.text.count("Buy one") == 2
    monkeypatch.undo()
    index.add(named([601]), embedded([3], seed=10))
    assert index.search(QUERIES, 500)[0].documents == flat.search(QUERIES, 500)[0].documents
    assert {"d600", "d601"} <= {*index.nearest(QUERIES, 10_000).documents}
    assert "d001" not in index.nearest(QUERIES, 10_000).documents


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_xtr_scores_are_those_of_the_reference(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    ids = [f"d{number}" for number in range(6)]
    owners = generator.integers(-1, 6, (4, k))
    values = -np.sort(-generator.integers(-8, 9, (4, k)) / 8, axis=1).astype(np.float32)
    present = owners >= 0
    hits = TokenHits(
        [ids[each] for each in owners[present]], values[present], offsets_of(present.sum(axis=1)), offsets_of([4])
    )
    found, scores, _ = xtr_scores(Hits(ids, owners, values))
    assert Ranking.from_scores(found, scores) == xtr_rankings(hits)[0]


def test_by_tokens_an_index_ranks_as_the_reference_does() -> None:
    _, index = filled(interaction="xtr")
    hits = index.nearest(QUERIES, IN_THE_GRAPH.neighbours)
    for found, expected in zip(index.search(QUERIES, 4), xtr_rankings(hits, 4), strict=True):
        assert found.documents == expected.documents
        assert np.allclose(found.scores, expected.scores, rtol=1e-5)


def test_by_tokens_documents_that_nothing_retrieved_come_last() -> None:
    _, index = filled(interaction="xtr")
    index.add([Document("empty", "")], TokenEmbeddings(torch.empty((0, WIDTH)), offsets_of([0])))
    for ranking in index.search(QUERIES, 500):
        assert len(ranking) == 121
        assert ranking.documents[-1] == "empty"
        assert ranking.scores[-1] == -np.inf
        assert len(np.unique(ranking.scores[-20:-1])) == 1
    where = Comparison("even", "==", True)
    for ranking in index.search(QUERIES, 500, where=where, candidates=[f"d{number:03}" for number in range(50)]):
        assert sorted(ranking.documents) == [f"d{number:03}" for number in range(0, 50, 2)]


def test_searches_go_on_while_documents_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "TOKENS_PER_INSERTION", 16)
    _, index = filled(documents=40)
    wrong: list[str] = []
    kept, gone = {f"d{number:03}" for number in range(40)}, set[str]()
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            kept_before, gone_before = set(kept), set(gone)
            few, all_of_them = (set(index.search(QUERIES, k)[2].documents) for k in (10, 1000))
            if (few | all_of_them) & gone_before or not kept_before <= all_of_them:
                wrong.append(f"{(few | all_of_them) & gone_before} {kept_before - all_of_them}")

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(12):
        ids = [f"d{number:03}" for number in range(100 + 20 * step, 120 + 20 * step)]
        index.add([Document(each, "") for each in ids], embedded([4] * 20, seed=step))
        kept |= {*ids[1::2]}
        index.remove(ids[::2])
        gone |= {*ids[::2]}
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_hits_that_the_graph_cannot_reach_are_fewer_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    _, index = filled()
    graph = index._graph
    assert graph is not None

    class Broken:
        num_elements = 600

        def query(self, vectors, k, num_threads, query_ef):
            if k > 3:
                raise RuntimeError("Fewer than expected results were retrieved")
            return np.zeros((len(vectors), k), np.uint64), np.zeros((len(vectors), k), np.float32)

    monkeypatch.setattr(graph, "_graph", Broken())
    assert graph.nearest(QUERIES.tokens.numpy(), 12).slots.shape == (21, 3)
