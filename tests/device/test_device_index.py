"""A stored index on a device: what stays there, what it answers, and what it says when it cannot."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
from device_worlds import WIDTH, unit
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index import device as device_module
from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.device import (
    Device,
    DeviceOptions,
    IndexOnDevice,
    Keeping,
    SnapshotOnDevice,
    free_memory,
    out_of_memory,
    plan_of,
)
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.options import SearchOptions
from lateinteraction.adapters.index.resident import Loaded, Resident, StoredTokens, Streamed
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings
from lateinteraction.adapters.index.stages import WORKING_BYTES
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidOption, InvalidRanking, OutOfMemory
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import MemoryStorage

everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
SMALL = 4_096
"""Bytes of a block."""


def embeddings(*numbers: int) -> TokenEmbeddings[torch.Tensor]:
    """Document n has n % 5 tokens, drawn from its number."""
    lengths = [number % 5 for number in numbers]
    items = [unit(np.random.default_rng(number), length) for number, length in zip(numbers, lengths, strict=True)]
    return TokenEmbeddings(torch.cat([torch.empty(0, WIDTH), *items]), offsets_of(lengths))


def add(index: StoredIndex, *numbers: int) -> None:
    documents = [Document(DocumentId(f"{number:04}"), f"text {number}", {"number": number}) for number in numbers]
    index.add(documents, embeddings(*numbers))


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> StoredIndex:
    """A segment of residuals, a small exact one, and some that are removed."""
    monkeypatch.setattr(folding, "COMPRESS_AT", 500)
    return filled("residual2")


def filled(codec: Codec) -> StoredIndex:
    index = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions(codec, "none")))
    add(index, *range(400))
    add(index, *range(400, 460))
    index.remove([DocumentId(f"{number:04}") for number in range(0, 460, 9)])
    return index


QUERIES = embeddings(1003, 1004, 1000, 1002)


def assert_same(found: list[Ranking], expected: list[Ranking], device: str) -> None:
    for ranking, other in zip(found, expected, strict=True):
        if device == "cpu":
            assert ranking == other
        else:
            np.testing.assert_allclose(ranking.scores, other.scores, rtol=1e-4, atol=1e-4)


def there(index: StoredIndex, device: str, keep: Keeping = "auto", memory: int | None = None) -> IndexOnDevice:
    return IndexOnDevice(index, Device(device, DeviceOptions(keep, memory, SMALL)))


# ── What it answers ─────────────────────────────────────────────────────────────────────────────────────────────────


@everywhere
@pytest.mark.parametrize("keep", ["resident", "streamed"])
@pytest.mark.parametrize("codec", ["float16", "int8", "residual4", "residual1"])
def test_an_index_on_a_device_answers_as_it_does_on_the_host(
    device: str, keep: Keeping, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 500)
    index = filled(codec)
    placed, snapshot = there(index, device, keep), index.snapshot()
    where = Comparison("number", ">", 100)
    few = [DocumentId(f"{number:04}") for number in (3, 9, 14, 250, 455, 999)]
    for options in (SearchOptions("fast"), SearchOptions("exact"), SearchOptions(candidates=30)):
        for k in (1, 10, 400):
            assert_same(
                placed.search(QUERIES, k, options=options), snapshot.search(QUERIES, k, options=options), device
            )
    assert_same(placed.search(QUERIES, 5, where=where), snapshot.search(QUERIES, 5, where=where), device)
    assert_same(placed.search(QUERIES, 5, candidates=few), snapshot.search(QUERIES, 5, candidates=few), device)
    assert placed.search(QUERIES, 5, candidates=[]) == snapshot.search(QUERIES, 5, candidates=[])


@everywhere
def test_whatever_is_written_is_found(device: str, index: StoredIndex) -> None:
    placed = there(index, device)
    before = placed.snapshot()
    kept = before.search(QUERIES, 6)
    add(index, *range(1000, 1005))
    assert placed.search(QUERIES, 1)[0].documents == ("1003",)
    index.remove([DocumentId("1003")])
    assert_same(placed.search(QUERIES, 6), index.search(QUERIES, 6), device)
    index.compact()
    assert_same(placed.search(QUERIES, 6), index.search(QUERIES, 6), device)
    assert before.search(QUERIES, 6) == kept, "who holds a state sees that state"


@everywhere
def test_an_index_without_documents_gives_nothing(device: str) -> None:
    index = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions(language="none")))
    assert [len(ranking) for ranking in there(index, device).search(QUERIES, 5)] == [0] * 4


@pytest.mark.parametrize("keep", ["int8", "float16"])
def test_kept_vectors_have_the_last_word(keep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 500)
    index = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions("residual1", "none", keep)))
    add(index, *range(400))
    placed, snapshot = there(index, "cpu", "streamed"), index.snapshot()
    for options in (SearchOptions(), SearchOptions("exact"), SearchOptions(rescore=False)):
        expected = [
            SnapshotOnDevice(snapshot, placed.snapshot().placed, Device("cpu")).search(QUERIES, 5, options=options),
            snapshot.search(QUERIES, 5, options=options),
        ]
        assert expected[0] == expected[1]


def test_wrong_questions_are_refused_as_on_the_host(index: StoredIndex) -> None:
    placed = there(index, "cpu")
    with pytest.raises(InvalidRanking):
        placed.search(QUERIES, 0)
    with pytest.raises(InvalidEmbeddings, match="width"):
        placed.search(TokenEmbeddings(torch.zeros(1, WIDTH + 1), offsets_of([1])), 3)
    with pytest.raises(InvalidEmbeddings, match="NaN"):
        placed.search(TokenEmbeddings(torch.full((1, WIDTH), torch.nan), offsets_of([1])), 3)
    with pytest.raises(InvalidOption, match="Search on the host"):
        placed.search(QUERIES, 3, options=SearchOptions(interaction="xtr"))


# ── What stays there ────────────────────────────────────────────────────────────────────────────────────────────────

counts = st.integers(1, 2_000)


@given(
    needs=st.lists(counts, max_size=8),
    working=counts,
    blocks=counts,
    memory=st.none() | st.integers(0, 10_000),
    keep=st.sampled_from(["auto", "resident", "streamed"]),
)
def test_a_plan_fits_and_keeps_what_it_can(
    needs: list[int], working: int, blocks: int, memory: int | None, keep: Keeping
) -> None:
    everything = working + sum(needs)
    least = working + (blocks if keep == "streamed" or (memory is not None and everything > memory) else 0)
    if memory is not None and (everything if keep == "resident" else least) > memory:
        with pytest.raises(InvalidOption):
            plan_of(needs, working, blocks, memory, keep)
        return
    plan = plan_of(needs, working, blocks, memory, keep)
    assert all(kept in (0, need) for kept, need in zip(plan.resident, needs, strict=True))
    assert plan.memory is None or plan.bytes <= plan.memory
    if keep == "resident" or (keep == "auto" and (memory is None or everything <= memory)):
        assert plan.resident == tuple(needs)
        assert plan.working == working
    else:
        assert plan.working == working + blocks
        assert keep == "auto" or not any(plan.resident)
    if keep == "auto" and memory is not None:
        left_out = [need for kept, need in zip(plan.resident, needs, strict=True) if not kept]
        assert all(plan.bytes + need > memory for need in left_out)


@everywhere
def test_what_does_not_fit_is_brought_as_it_is_needed(device: str, index: StoredIndex) -> None:
    sizes = list(there(index, device, "resident").snapshot().placed.plan.resident)
    assert len(sizes) == 2
    assert sizes[0] > sizes[1]
    codebook = index.snapshot().codebook
    assert codebook is not None
    memory = WORKING_BYTES + codebook.centroids.nbytes + 2 * SMALL + sizes[1]
    placed = there(index, device, "auto", memory)
    state = placed.snapshot()
    assert state.placed.plan.resident == (0, sizes[1])
    assert [type(each) for each in state.placed.segments] == [Streamed, Resident]
    assert state.device.held == sizes[1]
    assert_same(placed.search(QUERIES, 7), index.search(QUERIES, 7), device)
    with pytest.raises(InvalidOption, match="auto"):
        there(index, device, "resident", memory).snapshot()
    with pytest.raises(InvalidOption, match="search on the host"):
        there(index, device, "auto", memory - sizes[1] - 1).search(QUERIES, 7)


@everywhere
def test_a_segment_is_there_once_for_all_states_and_gone_with_the_last(device: str, index: StoredIndex) -> None:
    there = Device(device, DeviceOptions("resident"))
    placed = IndexOnDevice(index, there)
    first = placed.snapshot()
    before = there.held
    assert before == first.placed.plan.bytes - first.placed.plan.working
    shared = [each for each in there.loaded(first.snapshot) if each is not None]
    index.remove([DocumentId("0001")])
    second = placed.snapshot()
    assert second.snapshot is not first.snapshot
    assert there.held == before, "a removal brings nothing there"
    assert [each is other for each, other in zip(there.loaded(second.snapshot), shared, strict=True)] == [True, True]
    index.compact()
    third = placed.snapshot()
    assert there.held == before + sum(third.placed.plan.resident), "whoever holds the state before still searches it"
    assert_same(first.search(QUERIES, 3), first.snapshot.search(QUERIES, 3), device)
    del first, second, shared
    gc.collect()
    assert there.held == sum(third.placed.plan.resident)
    del third, placed
    gc.collect()
    assert there.held == 0


def test_what_an_index_has_no_more_is_gone_before_what_is_new_comes(
    index: StoredIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that has room for one index has room for it compacted."""
    there = Device("cpu", DeviceOptions("resident"))
    placed = IndexOnDevice(index, there)
    before = placed.snapshot().placed.plan.resident
    held: list[int] = []

    def loading(stored: StoredTokens, where: torch.device) -> Loaded:
        held.append(there.held)
        return Loaded(stored, where)

    monkeypatch.setattr(device_module, "Loaded", loading)
    add(index, 2_001)
    placed.snapshot()
    assert held == [sum(before)], "what stays is not brought again"
    index.compact()
    placed.snapshot()
    assert held[1] < before[0]


@everywhere
def test_many_small_segments_are_looked_at_as_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "FANOUT", 100)
    index = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions("float16", "none")))
    for first in range(0, 90, 10):
        add(index, *range(first, first + 10))
    index.remove([DocumentId(f"{number:04}") for number in (0, 3, *range(20, 30), 44)])
    placed = there(index, device)
    state = placed.snapshot()
    assert len(state.placed.segments) == 8  # one has no documents left
    joints = {id(joint[0]) for joint in state.placed.joints if joint is not None}
    assert len(joints) == 1
    where = Comparison("number", ">", 35)
    few = [DocumentId(f"{number:04}") for number in (9, 14, 81)]
    for k in (1, 10, 80):
        assert_same(placed.search(QUERIES, k), index.search(QUERIES, k), device)
        assert_same(placed.search(QUERIES, k, where=where), index.search(QUERIES, k, where=where), device)
        assert_same(placed.search(QUERIES, k, candidates=few), index.search(QUERIES, k, candidates=few), device)
    monkeypatch.setattr(device_module, "JOINED", 19)
    again = there(index, device)
    assert not any(again.snapshot().placed.joints)
    assert_same(again.search(QUERIES, 10), index.search(QUERIES, 10), device)


@pytest.mark.gpu
def test_memory_of_a_device_is_free_when_nobody_searches_there(index: StoredIndex) -> None:
    device = Device("cuda", DeviceOptions("resident"))
    gc.collect()
    before = torch.cuda.memory_allocated()
    state = SnapshotOnDevice(index.snapshot(), device.place(index.snapshot()), device)
    state.search(QUERIES, 3)
    assert torch.cuda.memory_allocated() >= before + device.held > before
    del state
    gc.collect()
    assert device.held == 0
    assert torch.cuda.memory_allocated() <= before + 2**20, "but for the codebook"
    free = free_memory(torch.device("cuda"))
    assert free is not None
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory


def test_the_state_before_is_not_held_by_what_searches_the_newest() -> None:
    """Its files can be collected, as if nobody had searched it."""
    storage = MemoryStorage()
    index = StoredIndex.create(storage, IndexSettings(IndexOptions("int8", "none")))
    add(index, *range(50))
    placed = there(index, "cpu")
    placed.search(QUERIES, 3)
    add(index, *range(50, 60))
    gc.collect()
    assert len([name for name in storage.names() if name.startswith("lease")]) == 1
    assert placed.search(QUERIES, 3) == index.search(QUERIES, 3)


def test_threads_bring_the_same_segment_there_once(index: StoredIndex) -> None:
    placed = there(index, "cpu", "resident")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(placed.snapshot().placed)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(each is found[0] for each in found)


# ── What it says ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta", "mps"])
def test_a_device_that_is_not_there_or_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match=name.partition(":")[0]):
        Device(name)


@pytest.mark.parametrize("options", [{"keep": "there"}, {"memory": 0}, {"block": 0}, {"block": True}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        DeviceOptions(**options)


def test_a_device_without_memory_says_so_in_our_words() -> None:
    with pytest.raises(OutOfMemory, match="streamed"), out_of_memory(torch.device("cpu")):
        raise torch.OutOfMemoryError("out of it")
    assert free_memory(torch.device("cpu")) is None
