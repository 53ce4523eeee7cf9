"""Choices of storage that are forced: what every segment is then, whatever its size and whatever becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.options import SearchOptions
from lateinteraction.adapters.index.settings import MOST_CENTROIDS, IndexOptions, IndexSettings, Tier
from lateinteraction.adapters.index.storage import Storage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import IndexMismatch, InvalidOption
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import MemoryStorage

WIDTH, TOKENS = 16, 6
Told = list[tuple[str, int, int | None]]


def drawn(numbers: range, shift: int = 0) -> TokenEmbeddings[torch.Tensor]:
    """Six tokens of each document, drawn from its number; a shift makes them strangers to those of another."""
    parts = [torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(number)) for number in numbers]
    tokens = torch.cat([torch.empty(0, WIDTH), *parts])
    tokens[:, shift : shift + WIDTH // 2] *= 0.05
    return TokenEmbeddings(torch.nn.functional.normalize(tokens, dim=1), offsets_of([TOKENS] * len(numbers)))


def add(index: StoredIndex, numbers: range, shift: int = 0, progress: Any = None) -> None:
    documents = [Document(DocumentId(str(number)), "", {"n": number}) for number in numbers]
    index.add(documents, drawn(numbers, shift), progress=progress)


def made(options: IndexOptions, storage: Storage | None = None) -> StoredIndex:
    return StoredIndex.create(storage or MemoryStorage(), IndexSettings(options))


def forced(tier: Tier, centroids: int | None = None) -> IndexOptions:
    return IndexOptions(language="none", tier=tier, centroids=centroids)


# ── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tier": "fast"}, "one of auto, exact, compressed, listed"),
        ({"tier": None}, "one of auto"),
        ({"tier": "compressed", "codec": "float16"}, "residual codec"),
        ({"tier": "listed", "codec": "int8"}, "residual codec"),
        ({"tier": "exact", "codec": "residual4"}, "float16 or int8"),
        ({"tier": "exact", "keep": "int8"}, "beside which"),
        ({"centroids": 10, "tier": "exact"}, "alone has centroids"),
        ({"centroids": 10, "codec": "float16"}, "alone has centroids"),
        ({"centroids": 10, "codec": "int8"}, "alone has centroids"),
        ({"centroids": 0}, "1 to"),
        ({"centroids": True}, "1 to"),
        ({"centroids": 2.0}, "1 to"),
        ({"centroids": MOST_CENTROIDS + 1}, "1 to 262,144"),
    ],
)
def test_what_there_is_not_or_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        IndexOptions(**options)


def test_settings_name_what_was_forced_and_nothing_else() -> None:
    """So that an index without any is written as it was before there was a choice."""
    for options in (IndexOptions(), IndexOptions("int8"), IndexOptions("residual2", keep="int8")):
        assert not {"tier", "centroids"} & IndexSettings(options).to_json().keys()
    for options in (
        IndexOptions("float16", tier="exact"),
        IndexOptions(tier="exact"),
        IndexOptions("residual1", keep="float16", tier="listed", centroids=MOST_CENTROIDS),
        IndexOptions(centroids=1),
    ):
        given = IndexSettings(options).to_json()
        assert IndexSettings.from_json(given).options == options
        for wrong in ({"tier": "tiered"}, {"centroids": "7"}, {"tier": "listed", "codec": "int8"}):
            with pytest.raises(IndexMismatch, match="Update this library"):
                IndexSettings.from_json({**given, **wrong})


def test_settings_of_a_writer_that_knows_more_can_be_read() -> None:
    assert IndexSettings.from_json({**IndexSettings().to_json(), "colour": "green"}) == IndexSettings()


# ── What segments are ───────────────────────────────────────────────────────────────────────────────────────────────

KINDS = {"exact": ("vectors", False), "compressed": ("residual", False), "listed": ("residual", True)}


@pytest.mark.parametrize("tier", list(KINDS))
def test_every_segment_is_what_was_forced_for_as_long_as_the_index_lives(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 30)  # by their size alone, they would be all three
    monkeypatch.setattr(folding, "SCANNED_TOKENS", 120)
    storage = MemoryStorage()
    index = made(forced(tier), storage)

    def check() -> None:
        stats = index.snapshot().stats()
        kind, listed = KINDS[tier]
        assert stats.tier == tier
        assert set(stats.segments) <= {kind}
        assert stats.listed == (sum(stats.segments.values()) if listed else 0)
        assert (stats.centroids > 0) == (kind == "residual" and stats.generation > 1)

    check()
    for first, last in ((0, 1), (1, 2), (2, 40), (40, 42)):
        add(index, range(first, last))
        check()
    index.remove(Comparison("n", "<", 5))
    index.compact()
    check()
    index.close()
    index = StoredIndex(storage)
    add(index, range(50, 52))
    check()
    best = [index.search(drawn(range(n, n + 1)), 1)[0].documents for n in (7, 41, 50)]
    assert best == [("7",), ("41",), ("50",)]


def test_by_their_size_alone_segments_are_of_all_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 30)
    monkeypatch.setattr(folding, "SCANNED_TOKENS", 120)
    for count, tier in ((0, "exact"), (4, "exact"), (15, "compressed"), (30, "listed")):
        index = made(IndexOptions(language="none"))
        add(index, range(count))
        assert index.snapshot().stats().tier == tier
    index = made(IndexOptions("int8", "none"))
    add(index, range(30))
    assert index.snapshot().stats().tier == "exact"


def test_documents_without_tokens_can_begin_an_index_that_is_compressed() -> None:
    index = made(forced("compressed"))
    for name in ("a", "b"):
        index.add([Document(DocumentId(name), "")], TokenEmbeddings(torch.empty(0, WIDTH), offsets_of([0])))
    add(index, range(9))
    assert index.snapshot().stats().segments == {"residual": 1}
    assert len(index.search(drawn(range(1)), 20)[0].documents) == 11


def test_lists_change_no_score_but_only_who_is_scored() -> None:
    compressed, listed = made(forced("compressed")), made(forced("listed"))
    for index in (compressed, listed):
        add(index, range(400))
    query = drawn(range(20))
    assert listed.search(query, 5) == compressed.search(query, 5)
    one, other = (index.snapshot().search(query, 5, options=SearchOptions("exact")) for index in (compressed, listed))
    assert one == other
    quick = listed.snapshot().search(query, 5, options=SearchOptions(candidates=20, probe=1))
    scores = [dict(zip(each.documents, map(float, each.scores), strict=True)) for each in one]
    assert all(ranking.documents[0] == str(n) for n, ranking in enumerate(quick))
    assert any(ranking != best for ranking, best in zip(quick, one, strict=True)), "nothing was left out"
    for ranking, known in zip(quick, scores, strict=True):
        same = [
            (float(score), known[name])
            for name, score in zip(ranking.documents, ranking.scores, strict=True)
            if name in known
        ]
        assert all(found == pytest.approx(score, abs=1e-5) for found, score in same)


@pytest.mark.parametrize("options", [forced("exact"), IndexOptions("float16", "none"), IndexOptions("int8", "none")])
def test_an_index_without_a_codebook_trains_none(options: IndexOptions) -> None:
    index = made(options)
    add(index, range(3))
    with pytest.raises(InvalidOption, match="has no codebook"):
        index.compact(retrain=True)


# ── How many centroids ──────────────────────────────────────────────────────────────────────────────────────────────


def centroids_of(index: StoredIndex) -> int:
    return index.snapshot().stats().centroids


def test_a_forced_number_of_centroids_is_reached_and_never_passed() -> None:
    """Whatever comes: more documents, others, another codebook."""
    index, free = made(forced("compressed", 40)), made(forced("compressed"))
    counts = []
    for first in range(0, 40, 4):
        add(index, range(first, first + 4))
        counts.append(centroids_of(index))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 40
    for each in (index, free):
        add(each, range(100, 1_200))
        add(each, range(2_000, 2_600), shift=WIDTH // 2)  # strangers
    assert centroids_of(index) == 40 < centroids_of(free)
    index.compact(retrain=True)
    assert centroids_of(index) == 40


def test_at_once_a_forced_number_is_there_at_once() -> None:
    for centroids in (1, 3, 290):
        index = made(IndexOptions("residual2", "none", centroids=centroids, tier="listed"))
        add(index, range(300))
        assert centroids_of(index) == centroids
        lists = index.snapshot().segments[0].lists_for(index.snapshot().codebook)
        assert lists is not None
        assert lists.centroids == centroids


def test_fewer_tokens_than_centroids_make_fewer() -> None:
    index = made(forced("compressed", 10_000))
    add(index, range(50))
    assert 0 < centroids_of(index) <= 300 // 8
    assert index.search(drawn(range(7, 8)), 1)[0].documents == ("7",)


# ── Who is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


def watched(call: Callable[[Any], None]) -> Told:
    told: Told = []
    call(lambda *state: told.append(cast("tuple[str, int, int | None]", state)))
    return told


def stages(told: Told) -> list[str]:
    """One after another, each as often as it began."""
    names = [stage for stage, _, _ in told]
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]


def test_whoever_watches_is_told_of_training_before_writing() -> None:
    index = made(forced("compressed", 300))
    for call in (
        lambda progress: add(index, range(500), progress=progress),
        lambda progress: index.compact(retrain=True, progress=progress),
    ):
        told = watched(call)
        assert stages(told) == ["training", "writing"]
        steps = [(done, total) for stage, done, total in told if stage == "training"]
        assert steps[0] == (0, None)  # before tokens are drawn
        assert steps[1:] == [(step, len(steps) - 1) for step in range(1, len(steps))]
        assert len(steps) > 10
        assert told[-1] == ("writing", 500, 500)


def test_a_codebook_that_grows_is_told_and_one_that_stays_is_not() -> None:
    index = made(forced("compressed"))
    add(index, range(100))
    assert stages(watched(lambda progress: add(index, range(200, 400), progress=progress))) == ["training", "writing"]
    assert stages(watched(lambda progress: index.compact(progress=progress))) in ([], ["writing"])
    enough = made(forced("compressed", 6))
    add(enough, range(100))
    assert stages(watched(lambda progress: add(enough, range(200, 400), progress=progress))) == ["writing"]
    strangers = watched(lambda progress: add(index, range(1_000, 1_100), shift=8, progress=progress))
    assert stages(strangers) == ["training", "writing"]


def test_what_stops_the_training_leaves_everything_as_it_was() -> None:
    index = made(forced("compressed"))
    add(index, range(30))
    before, generation = index.verify().content, index.snapshot().generation

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "training" and done:
            raise TimeoutError("enough")

    for call in (
        lambda: add(index, range(100, 400), progress=stop),
        lambda: index.compact(retrain=True, progress=stop),
    ):
        with pytest.raises(TimeoutError):
            call()
        assert (index.verify().content, index.snapshot().generation) == (before, generation)
    add(index, range(100, 400))
    assert len(index) == 330
