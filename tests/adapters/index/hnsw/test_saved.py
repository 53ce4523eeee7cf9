"""A saved graph comes back as it was; one that is damaged, old or of another kind is built anew and never believed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.adapters.index.files import FileRecord, FileWriter, StoredFile
from lateinteraction.adapters.index.hnsw.graph import GraphOptions, TokenGraph
from lateinteraction.adapters.index.hnsw.index import HnswIndex
from lateinteraction.adapters.index.hnsw.saved import load_graph, save_graph
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage, Storage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import IndexLocked
from lateinteraction.domain.text import Document
from lateinteraction.testing.storage import MemoryStorage

OPTIONS = GraphOptions(exact_below=0, links=8, effort=40)
IDS = ["a", "—東京\n", "x" * 300, "d", "e", "f", "g", "h", "i"]


def embedded(documents: int, seed: int = 0) -> TokenEmbeddings[torch.Tensor]:
    tokens = np.random.default_rng(seed).standard_normal((documents * 5, 8)).astype(np.float32)
    return TokenEmbeddings(torch.tensor(tokens), offsets_of([5] * documents))


QUERIES = embedded(3, seed=4)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all documents that are put into a graph from now on."""
    taken: list[str] = []
    real = TokenGraph.add

    def recorded(self: TokenGraph, ids: list[str], embeddings: TokenEmbeddings) -> None:
        taken.extend(ids)
        real(self, ids, embeddings)

    monkeypatch.setattr(TokenGraph, "add", recorded)
    return taken


def filled() -> tuple[FlatIndex, HnswIndex]:
    flat = FlatIndex()
    index = HnswIndex(flat, OPTIONS)
    index.add([Document(each, "") for each in IDS], embedded(len(IDS)))
    index.add([Document("empty", "")], TokenEmbeddings(torch.empty((0, 8)), offsets_of([0])))
    index.remove(["d"])
    return flat, index


def saved_in(storage: Storage, index: HnswIndex) -> str:
    names: list[str] = []
    assert index.save(lambda graph: names.append(save_graph(storage, graph)))
    return names[0]


def test_a_saved_graph_comes_back_as_it_was(added: list[str]) -> None:
    flat, index = filled()
    storage = MemoryStorage()
    saved_in(storage, index)
    added.clear()
    again = HnswIndex(flat, OPTIONS, graph=load_graph(storage, OPTIONS))
    assert added == []
    assert again.in_graph() == index.in_graph() == 40
    assert again.search(QUERIES, 3) == index.search(QUERIES, 3)
    one, other = index.nearest(QUERIES, 50), again.nearest(QUERIES, 50)
    assert one.documents == other.documents
    assert np.array_equal(one.similarities, other.similarities)
    again.add([Document("d", "")], embedded(1, seed=6))
    assert again.search(QUERIES, 9)[0].documents == flat.search(QUERIES, 9)[0].documents


def test_only_what_has_changed_since_is_put_in(added: list[str]) -> None:
    flat, index = filled()
    storage = MemoryStorage()
    saved_in(storage, index)
    flat.remove(["a"])
    flat.add([Document("e", "")], embedded(1, seed=8), on_duplicate="replace")
    flat.add([Document("new", "")], embedded(1, seed=9))
    added.clear()
    again = HnswIndex(flat, OPTIONS, graph=load_graph(storage, OPTIONS))
    assert sorted({*added} - {"empty"}) == ["e", "new"]
    assert sorted(set(again.nearest(QUERIES, 50).documents)) == sorted({*IDS, "new"} - {"a", "d"})


def test_a_document_that_was_rounded_is_still_the_same(added: list[str]) -> None:
    flat, index = filled()
    storage = MemoryStorage()
    saved_in(storage, index)
    stored = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions("int8", "none")))
    stored.add(flat.get(flat.ids()), flat.fetch(flat.ids()))
    added.clear()
    assert HnswIndex(stored, OPTIONS, graph=load_graph(storage, OPTIONS)).in_graph() == 40
    assert added == []


def test_one_graph_stays_and_saving_twice_changes_nothing() -> None:
    _, index = filled()
    storage = MemoryStorage()
    first = saved_in(storage, index)
    assert saved_in(storage, index) == first
    index.add([Document("new", "")], embedded(1, seed=3))
    second = saved_in(storage, index)
    assert second != first
    assert [name for name in storage.names() if name != "lock"] == [second]


def test_two_do_not_save_at_once() -> None:
    _, index = filled()
    storage = MemoryStorage()
    lock = storage.lock("lock", b"another")
    assert lock is not None
    with pytest.raises(IndexLocked):
        saved_in(storage, index)
    lock.release()
    saved_in(storage, index)


def test_a_graph_made_otherwise_does_not_serve(caplog: pytest.LogCaptureFixture) -> None:
    _, index = filled()
    storage = MemoryStorage()
    assert load_graph(storage, OPTIONS) is None
    assert caplog.text == ""
    saved_in(storage, index)
    assert load_graph(storage, GraphOptions(links=9)) is None
    assert "built anew" in caplog.text
    assert load_graph(storage, GraphOptions(links=8, effort=40, depth=7)) is not None


def damages(content: bytes) -> Iterator[bytes]:
    generator = np.random.default_rng(0)
    for place in map(int, generator.integers(0, len(content), 80)):
        yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
    yield from (b"", content[:-1], content + b"x", content[: len(content) // 2])


def test_a_damaged_graph_is_never_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat, index = filled()
    storage = FolderStorage(tmp_path / "graph", create=True)
    path = tmp_path / "graph" / saved_in(storage, index)
    content = path.read_bytes()
    expected = index.search(QUERIES, 3)
    for damaged in damages(content):
        caplog.clear()
        path.unlink()
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            loaded = load_graph(storage, OPTIONS)
        if loaded is None:
            assert "built anew" in caplog.text
        else:  # a byte that stands for nothing, such as the zeros between two arrays
            assert HnswIndex(flat, OPTIONS, graph=loaded).search(QUERIES, 3) == expected
    assert HnswIndex(flat, OPTIONS, graph=load_graph(storage, OPTIONS)).search(QUERIES, 3) == expected


@pytest.mark.parametrize(
    "changed", ["graph.bytes", "graph.lengths", "graph.live", "graph.sketches", "graph.description"]
)
def test_arrays_that_are_whole_and_do_not_fit_are_refused(changed: str, caplog: pytest.LogCaptureFixture) -> None:
    """Written with right checksums by somebody who was wrong."""
    _, index = filled()
    storage, broken = MemoryStorage(), MemoryStorage()
    name = saved_in(storage, index)
    _, length, digest = name.split("-")
    stored = StoredFile.open(storage, FileRecord(name, int(length), digest))
    narrow = TokenGraph(4, OPTIONS).stored()
    wrong = {
        "graph.bytes": [narrow, b"", b"no graph", stored.whole("graph.bytes").tobytes()[:-9]],
        "graph.description": [b"[]", b"{", b"{}", b"3"],
    }.get(changed, [stored.whole(changed)[1:].tobytes()])
    for content in wrong:
        caplog.clear()
        with FileWriter(broken, "graph", "graph") as file:
            for each in stored.names():
                array = stored.whole(each)
                file.add(each, np.frombuffer(content, array.dtype) if each == changed else array)
            record = file.close()
            broken.publish(file.temporary, f"graph-{record.length}-{record.digest}")
        assert load_graph(broken, OPTIONS) is None
        assert "built anew" in caplog.text
        broken.unlink(f"graph-{record.length}-{record.digest}")
