"""Folders of PyLate, fast-plaid and Stanford's ColBERT: read as their own readers do, or refused before anything."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.exchange.folders import read_folder
from lateinteraction.adapters.index.exchange.incoming import Incoming, index_for, take_in
from lateinteraction.adapters.index.exchange.residuals import PlaidCodec
from lateinteraction.adapters.index.exchange.tensors import read_tensors
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import DuplicateDocument, IndexMismatch, LateInteractionError, UnreadableFile
from lateinteraction.domain.text import Document
from lateinteraction.testing.storage import MemoryStorage

PeerFolder = Callable[[str], Path]
NAMES = ("fast-plaid-1.7", "pylate-1.6", "stanford-plaid")
WITH_IDS = ("pylate-1.6", "stanford-plaid")


def read(incoming: Incoming) -> tuple[list[Document], list[np.ndarray]]:
    documents: list[Document] = []
    tokens: list[np.ndarray] = []
    for some, embeddings in incoming.batches():
        documents += some
        tokens += [each.numpy() for each in embeddings]
    return documents, tokens


def codes_of(folder: Path) -> Path:
    inner = folder / "fast_plaid_index"
    return inner if inner.is_dir() else folder


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_what_their_own_reader_makes_of_them(peer_folder: PeerFolder, name: str) -> None:
    folder = peer_folder(name)
    expected = np.load(folder.parent / "expected.npz")
    incoming = read_folder(folder, trust_pickle=True)
    documents, tokens = read(incoming)
    assert [document.id for document in documents] == list(incoming.ids) == list(expected["ids"])
    assert [len(each) for each in tokens] == list(expected["lengths"])
    found = np.concatenate(tokens)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    if name == "pylate-1.6":  # no reader of it decodes: these are the originals, of which two bits are left
        assert np.mean(np.sum(found * expected["tokens"], axis=1)) > 0.99
    else:
        assert np.abs(found - expected["tokens"]).max() < 2e-3  # they compute in float16


@pytest.mark.parametrize("name", NAMES)
def test_what_was_read_is_searched_like_any_documents(peer_folder: PeerFolder, name: str) -> None:
    folder = peer_folder(name)
    expected = np.load(folder.parent / "expected.npz")
    incoming = read_folder(folder, trust_pickle=True, texts=dict.fromkeys(["a", "0", "nobody"], "a text"))
    index = index_for(MemoryStorage(), incoming)
    reported: list[tuple[int, int | None]] = []
    assert take_in(index, incoming, progress=lambda done, total: reported.append((done, total))).added == 6
    assert reported[-1] == (6, 6)
    ends = np.cumsum(expected["lengths"])
    for identifier, end, length in zip(expected["ids"], ends, expected["lengths"], strict=True):
        own = torch.tensor(expected["tokens"][end - length : end][:8])
        ranking = index.search(TokenEmbeddings(own, np.array([0, len(own)])), 1)
        assert ranking[0].documents == (identifier,)
    if "a" in expected["ids"]:
        assert index.get(["a"])[0].text == "a text"
    assert index.get([str(expected["ids"][-1])])[0].text == ""


@pytest.mark.parametrize("name", WITH_IDS)
def test_ids_in_a_pickle_are_read_where_that_is_asked_for(peer_folder: PeerFolder, name: str) -> None:
    folder = peer_folder(name)
    with pytest.raises(UnreadableFile, match="--trust-pickle"):
        read_folder(folder)


def test_without_ids_documents_have_their_numbers(peer_folder: PeerFolder) -> None:
    incoming = read_folder(peer_folder("pylate-1.6") / "fast_plaid_index")
    assert list(incoming.ids) == ["0", "1", "2", "3", "4", "5"]


def test_ids_in_a_database_are_those_of_the_pickle(peer_folder: PeerFolder) -> None:
    folder = peer_folder("pylate-1.6")
    known = list(read_folder(folder, trust_pickle=True).ids)
    (folder / "plaid_ids_to_documents_ids.pkl").unlink()
    with closing(sqlite3.connect(folder / "plaid_ids_to_documents_ids.sqlite")) as database:
        database.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
        rows = [(str(number), pickle.dumps(identifier)) for number, identifier in enumerate(known)]
        database.executemany("INSERT INTO unnamed VALUES (?, ?)", rows)
        database.commit()
    with pytest.raises(UnreadableFile, match="trust"):
        read_folder(folder)
    assert list(read_folder(folder, trust_pickle=True).ids) == known


def test_chunks_are_found_in_files_of_their_own_and_in_the_merged_one(peer_folder: PeerFolder) -> None:
    folder = peer_folder("fast-plaid-1.7")
    before = np.concatenate(read(read_folder(folder))[1])
    manifests = {
        kind: json.loads((folder / f"merged_{kind}.manifest.json").read_text()) for kind in ("codes", "residuals")
    }
    for kind, manifest in manifests.items():
        merged = np.load(folder / f"merged_{kind}.npy").copy()
        first, second = (manifest[f"{number}.{kind}.npy"]["rows"] for number in (0, 1))
        np.save(folder / f"1.{kind}.npy", merged[first : first + second])
        merged[first : first + second] = 0  # the chunk's own file is the newer one
        np.save(folder / f"merged_{kind}.npy", merged)
    assert np.array_equal(np.concatenate(read(read_folder(folder))[1]), before)


def test_a_chunk_that_has_shrunk_does_not_move_those_behind_it(peer_folder: PeerFolder) -> None:
    folder = peer_folder("fast-plaid-1.7")
    lengths = json.loads((folder / "doclens.0.json").read_text())
    before = read(read_folder(folder))[1]
    (folder / "doclens.0.json").write_text(json.dumps(lengths[1:]))
    for kind in ("codes", "residuals"):
        rows = json.loads((folder / f"merged_{kind}.manifest.json").read_text())[f"0.{kind}.npy"]["rows"]
        np.save(folder / f"0.{kind}.npy", np.load(folder / f"merged_{kind}.npy")[lengths[0] : rows])
    description = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps({**description, "num_documents": 5}))
    after = read(read_folder(folder))[1]
    assert len(after) == 5
    assert all(np.array_equal(one, other) for one, other in zip(after, before[1:], strict=True))


@pytest.mark.parametrize(
    "ids", [{0: "a"}, {number: f"d{number}" for number in range(7)}, {**dict.fromkeys(range(6), "a")}]
)
def test_ids_that_do_not_fit_are_refused(peer_folder: PeerFolder, ids: dict[int, str]) -> None:
    folder = peer_folder("pylate-1.6")
    (folder / "plaid_ids_to_documents_ids.pkl").write_bytes(pickle.dumps(ids))
    with pytest.raises((IndexMismatch, UnreadableFile)):
        read_folder(folder, trust_pickle=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_folder_is_refused_before_anything_is_read(peer_folder: PeerFolder, name: str) -> None:
    """Every file is removed, emptied, cut, and replaced by another: an error of ours, or the documents as they were."""
    folder = peer_folder(name)
    whole = np.concatenate(read(read_folder(folder, trust_pickle=True))[1])
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        noise = np.random.default_rng(len(content)).bytes(len(content))
        for damaged in (None, b"", content[: len(content) // 2], content[:-1], b"{}", b"[]", b"null", noise):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            try:
                found = np.concatenate(read(read_folder(folder, trust_pickle=True))[1])
            except LateInteractionError:
                pass
            else:
                assert np.array_equal(found, whole), f"{path.name} was damaged, and nobody noticed"
            path.write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
def test_noise_in_any_file_is_refused_or_read(peer_folder: PeerFolder, name: str) -> None:
    folder, generator = peer_folder(name), np.random.default_rng(1)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for _ in range(6):
            damaged = bytearray(content)
            for place in generator.integers(0, min(len(content), 128), 2):  # where headers are
                damaged[place] = generator.integers(256)
            path.unlink()
            path.write_bytes(damaged)
            try:
                assert all(np.isfinite(each).all() for each in read(read_folder(folder, trust_pickle=True))[1])
            except LateInteractionError:
                continue
        path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["fast-plaid-1.7", "stanford-plaid"])
def test_a_code_without_a_centroid_is_refused(peer_folder: PeerFolder, name: str) -> None:
    folder = peer_folder(name)
    if name == "stanford-plaid":
        torch.save(torch.tensor([-1] * 230, dtype=torch.int32), folder / "0.codes.pt")
    else:
        codes = np.load(folder / "merged_codes.npy")
        codes[5] = 10_000
        np.save(folder / "merged_codes.npy", codes)
    with pytest.raises(UnreadableFile):
        read_folder(folder, trust_pickle=True)


@pytest.mark.parametrize("name", NAMES)
def test_centroids_that_are_not_finite_are_refused(peer_folder: PeerFolder, name: str) -> None:
    folder = peer_folder(name)
    if name == "stanford-plaid":
        torch.save(torch.full((256, 16), torch.nan).half(), folder / "centroids.pt")
    else:
        np.save(codes_of(folder) / "centroids.npy", np.full((256, 16), np.inf, np.float16))
    with pytest.raises(UnreadableFile, match="NaN"):
        read_folder(folder, trust_pickle=True)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UnreadableFile):
            read_folder(folder)


def test_another_width_is_refused_before_anything_is_added(
    peer_folder: PeerFolder, new_index: Callable[..., StoredIndex], embeddings_of: Callable[..., TokenEmbeddings]
) -> None:
    index = new_index()
    index.add([Document("x", "")], embeddings_of([3], 8))
    with pytest.raises(IndexMismatch, match="16 dimensions"):
        take_in(index, read_folder(peer_folder("fast-plaid-1.7")), on_duplicate="skip")
    assert len(index) == 1


def test_an_id_that_is_there_is_refused_before_anything_is_added(
    peer_folder: PeerFolder, new_index: Callable[..., StoredIndex], embeddings_of: Callable[..., TokenEmbeddings]
) -> None:
    index = new_index()
    index.add([Document("5", "")], embeddings_of([3], 16))
    incoming = read_folder(peer_folder("fast-plaid-1.7"))
    with pytest.raises(DuplicateDocument):
        take_in(index, incoming)
    assert len(index) == 1
    report = take_in(index, incoming, on_duplicate="skip")
    assert (report.added, report.skipped, len(index)) == (5, 1, 6)
    assert len(index.fetch(["5"]).tokens) == 3


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_buckets_are_unpacked_as_peers_pack_them(bits: int, eights: int, seed: int) -> None:
    """The packing of `ResidualCodec.binarize`: bits of a bucket from the lowest, then `np.packbits`."""
    generator = np.random.default_rng(seed)
    buckets = generator.integers(0, 2**bits, (5, 8 * eights))
    packed = np.packbits((buckets[..., None] >> np.arange(bits) & 1).astype(np.uint8).reshape(5, -1), axis=1)
    weights = np.linspace(1, 2, 2**bits, dtype=np.float32)
    codec = PlaidCodec(Path(), np.zeros((3, 8 * eights), np.float32), weights, bits)
    expected = weights[buckets]
    decoded = codec.decode(np.zeros(5, np.int64), packed)
    assert np.allclose(decoded, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


@given(
    st.sampled_from([torch.float16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64]),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.booleans(),
)
def test_tensors_are_read_as_torch_reads_them(tmp_path_factory, dtype, shape, turned) -> None:
    path = tmp_path_factory.mktemp("tensors") / "t.pt"
    tensor = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
    tensor = tensor.T if turned and tensor.ndim == 2 else tensor
    torch.save((tensor, tensor[1:]), path)
    one, other = read_tensors(path)
    assert np.array_equal(one, tensor.numpy())
    assert np.array_equal(other, tensor[1:].numpy())
    assert one.dtype == tensor.numpy().dtype
    torch.save(tensor, path)
    assert np.array_equal(read_tensors(path)[0], tensor.numpy())


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/lateinteraction-was-here"),))


@pytest.mark.parametrize("content", [Hostile(), {"a": Hostile()}, torch.nn.Linear(2, 2), {"a": torch.ones(2)}, "text"])
def test_a_file_of_anything_but_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UnreadableFile):
        read_tensors(tmp_path / "x.pt")
    assert not Path("/tmp/lateinteraction-was-here").exists()


def test_any_flipped_bit_of_a_tensor_is_noticed(peer_folder: PeerFolder) -> None:
    path = peer_folder("stanford-plaid") / "0.codes.pt"
    content, whole = path.read_bytes(), read_tensors(path)[0].copy()
    generator = np.random.default_rng(0)
    noticed = 0
    for place in generator.integers(0, len(content), 400):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.unlink()
        path.write_bytes(damaged)
        try:
            assert np.array_equal(read_tensors(path)[0], whole)
        except UnreadableFile:
            noticed += 1
    assert noticed > 100


def test_a_compressed_archive_is_refused(tmp_path: Path, peer_folder: PeerFolder) -> None:
    source = peer_folder("stanford-plaid") / "0.codes.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UnreadableFile):
        read_tensors(tmp_path / "x.pt")
    shutil.rmtree(source.parent)


@pytest.mark.parametrize(
    "content", [["a"], {"a": "b"}, {0: ""}, {0: "\ud800"}, {0: ["a"]}, {-1: "a"}, {0: "a", "0": "b"}, {10**30: "a"}, 7]
)
def test_ids_that_are_none_are_refused(peer_folder: PeerFolder, content: object) -> None:
    folder = peer_folder("pylate-1.6")
    (folder / "plaid_ids_to_documents_ids.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises((UnreadableFile, IndexMismatch)):
        read_folder(folder, trust_pickle=True)


def test_whole_numbers_are_ids_too_and_another_database_is_refused(peer_folder: PeerFolder) -> None:
    folder = peer_folder("pylate-1.6")
    names = folder / "plaid_ids_to_documents_ids.pkl"
    names.write_bytes(pickle.dumps({number: 100 + number for number in range(6)}))
    assert list(read_folder(folder, trust_pickle=True).ids) == [str(100 + number) for number in range(6)]
    names.unlink()
    for content in (b"SQLite format 3\x00 and no more", b"", b"text"):
        (folder / "plaid_ids_to_documents_ids.sqlite").write_bytes(content)
        with pytest.raises(UnreadableFile):
            read_folder(folder, trust_pickle=True)


def test_a_view_is_no_table_of_ids(peer_folder: PeerFolder) -> None:
    folder = peer_folder("pylate-1.6")
    (folder / "plaid_ids_to_documents_ids.pkl").unlink()
    rows = "WITH RECURSIVE c(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM c LIMIT 6) SELECT x AS key, x AS value FROM c"
    with closing(sqlite3.connect(folder / "plaid_ids_to_documents_ids.sqlite")) as database:
        database.execute(f"CREATE VIEW unnamed AS {rows}")
        database.commit()
    with pytest.raises(UnreadableFile, match="without the table"):
        read_folder(folder, trust_pickle=True)


def test_texts_that_are_of_no_document_are_told(peer_folder: PeerFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = peer_folder("fast-plaid-1.7")
    with pytest.raises(IndexMismatch, match=r"'nobody'.*'0'"):
        read_folder(folder, texts={"nobody": "x"})
    read_folder(folder, texts={"0": "a text", "nobody": "x", "none": "y"})
    assert [record.getMessage()[:17] for record in caplog.records] == ["2 of 3 texts are "]


def test_a_new_index_has_the_options_of_the_old_one_and_the_encoder_that_is_named(peer_folder: PeerFolder) -> None:
    one, other = {"document": "1:fw=="}, {"document": "2:fwA="}
    bare = evolve(read_folder(peer_folder("fast-plaid-1.7")), options=IndexOptions("int8", "german"))
    made = index_for(MemoryStorage(), bare, encoder=one)
    assert (made.settings.options, made.settings.encoder) == (IndexOptions("int8", "german"), one)
    storage = MemoryStorage()
    with pytest.raises(IndexMismatch):
        index_for(storage, evolve(bare, encoder=other), encoder=one)
    assert storage.names() == []
    assert index_for(storage, evolve(bare, encoder=one), encoder=one).settings.encoder == one
