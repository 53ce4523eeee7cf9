"""Recall reports, and what the codec stores beside what was kept."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.recall import WARMING, recall_report
from lateinteraction.adapters.index.search import SearchOptions
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings, Keep
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidRanking
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import MemoryStorage

WIDTH = 16


def packed(lengths: list[int], seed: int) -> TokenEmbeddings[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.nn.functional.normalize(torch.randn(sum(lengths), WIDTH, generator=generator), dim=1)
    return TokenEmbeddings(tokens, offsets_of(lengths))


DOCUMENTS = packed([5] * 400, 0)


@pytest.fixture(autouse=True)
def compressing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 100)


def made(codec: Codec = "residual1", keep: Keep = "nothing", documents: int = 400) -> StoredIndex:
    index = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions(codec, keep=keep)))
    index.add([Document(DocumentId(f"{n:03}"), "") for n in range(documents)], DOCUMENTS.span(0, documents))
    return index


# ── Recall ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exact_search_finds_all_of_itself() -> None:
    report = recall_report(made().snapshot(), packed([4] * 6, 1), 5, SearchOptions("exact"))
    assert (report.queries, report.k, report.recall, report.agreeing) == (6, 5, 1.0, 1.0)


def test_more_candidates_find_more() -> None:
    snapshot, queries = made().snapshot(), packed([4] * 30, 1)
    few, more, most = (recall_report(snapshot, queries, 5, SearchOptions(candidates=n)) for n in (5, 40, 400))
    assert few.recall < more.recall <= most.recall == 1.0
    assert few.agreeing <= more.agreeing <= most.agreeing == 1.0


def test_recall_is_the_share_of_what_the_exact_search_finds() -> None:
    snapshot, queries = made().snapshot(), packed([4] * 10, 1)
    options = SearchOptions(candidates=12)
    found = snapshot.search(queries, 5, options=options)
    truth = snapshot.search(queries, 5, options=SearchOptions("exact"))
    pairs = list(zip(found, truth, strict=True))
    report = recall_report(snapshot, queries, 5, options)
    assert report.recall == pytest.approx(sum(len({*a.documents} & {*b.documents}) for a, b in pairs) / 50)
    assert report.agreeing == pytest.approx(sum(a.documents[0] == b.documents[0] for a, b in pairs) / 10)


def test_the_exact_search_is_by_kept_vectors() -> None:
    snapshot, queries = made(keep="float16").snapshot(), packed([4] * 10, 1)
    without = recall_report(snapshot, queries, 5, SearchOptions(candidates=400, rescore=False))
    assert without.recall < 0.95
    assert recall_report(snapshot, queries, 5, SearchOptions(candidates=400)).recall > without.recall


def test_where_there_is_nothing_to_find_all_of_it_is_found() -> None:
    empty = StoredIndex.create(MemoryStorage(), IndexSettings()).snapshot()
    assert recall_report(empty, packed([4, 4], 1), 5).recall == 1.0


def test_latencies_are_those_of_the_clock_in_milliseconds() -> None:
    ticks = itertools.count()
    counted = recall_report(made().snapshot(), packed([4] * 8, 1), 5, clock=lambda: 0.001 * next(ticks))
    assert counted.searched.median == pytest.approx(1.0)
    assert counted.exact.slow == pytest.approx(1.0)
    assert next(ticks) == 4 * 8  # and none of the first WARMING is timed
    assert WARMING > 0


def test_a_report_reads_as_a_sentence() -> None:
    ticks = itertools.count()
    report = recall_report(
        made().snapshot(), packed([4] * 8, 1), 5, SearchOptions("exact"), clock=lambda: 0.001 * next(ticks)
    )
    assert str(report).splitlines() == [
        "recall@5 1.0000 of the exact search, first hit 1.0000, 8 queries",
        "1.00 ms (95 %: 1.00 ms) a query; exact: 1.00 ms (95 %: 1.00 ms)",
    ]


def test_no_queries_and_no_hits_are_refused() -> None:
    snapshot = made().snapshot()
    with pytest.raises(InvalidEmbeddings):
        recall_report(snapshot, packed([], 1), 5)
    with pytest.raises(InvalidRanking):
        recall_report(snapshot, packed([4], 1), 0)


# ── As the codec stores it ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("keep", ["nothing", "int8", "float16"])
def test_what_the_codec_stores_is_what_candidates_are_ranked_by(keep: Keep) -> None:
    snapshot, query, document = made(keep=keep).snapshot(), packed([4], 1), DocumentId("030")
    for stored, rescore in ((snapshot.coded([document]), False), (snapshot.fetch([document]), True)):
        options = SearchOptions(candidates=400, rescore=rescore)
        (found,) = snapshot.search(query, 1, candidates=[document], options=options)
        score = reference.maxsim_all_pairs(
            *(TokenEmbeddings(each.tokens.numpy(), each.offsets) for each in (query, stored))
        )
        assert found.scores[0] == pytest.approx(score[0, 0], abs=2e-2 if keep == "int8" and rescore else 1e-4)
    same = bool(torch.equal(snapshot.coded([document]).tokens, snapshot.fetch([document]).tokens))
    assert same == (keep == "nothing")


def test_statistics_say_what_is_kept_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = made("residual2", "int8").snapshot().stats()
    assert (stats.codec, stats.keep, stats.listed) == ("residual2", "int8", 0)
    assert stats.bytes["kept"] == 2_000 * (WIDTH + 4)
    assert stats.bytes["embeddings"] == 2_000 * (WIDTH // 4 + 6)
    monkeypatch.setattr(folding, "SCANNED_TOKENS", 100)
    assert made().snapshot().stats().listed == 1
