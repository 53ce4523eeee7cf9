"""docs/index-format.md is true: a reader of a few lines, made from that page alone, reads an index."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.text import Document, DocumentId


def newest_manifest(folder: Path) -> dict[str, Any]:
    log = (folder / "commits").read_bytes()
    records = [log[place : place + 64] for place in range(0, len(log), 64)]
    *_, (magic, kind, generation, digest) = (struct.unpack_from("<4sIQ16s", each) for each in records)
    assert (magic, kind in (1, 3)) == (b"COMM", True)
    assert all(zlib.crc32(each[:60]) == int.from_bytes(each[60:], "little") for each in records)
    data = (folder / f"g-{generation:016d}").read_bytes()
    assert blake2b(data, digest_size=16).digest() == digest
    body, checksum, _ = data.split(b"\n")
    assert zlib.crc32(body) == int(checksum, 16)
    return json.loads(body)


def arrays_of(path: Path, record: dict[str, Any]) -> dict[str, NDArray[Any]]:
    data = path.read_bytes()
    assert len(data) == record["length"]
    table, footer, version, checksum, closing = struct.unpack("<QQII8s", data[-32:])
    end = len(data) - 32 - footer - table
    assert (data[:8], closing, version) == (b"LATEIDX1", b"XDIETAL1", 1)
    assert zlib.crc32(data[end:-12]) == checksum
    assert blake2b(data[end:-32], digest_size=16).hexdigest() == record["digest"]
    sums = np.frombuffer(data[end : end + table], "<u4")
    assert sums.tolist() == [zlib.crc32(data[place : min(place + 65536, end)]) for place in range(0, end, 65536)]
    found = {}
    for each in json.loads(data[end + table : -32])["arrays"]:
        count = int(np.prod(each["shape"]))
        assert each["offset"] % 64 == 0
        found[each["name"]] = np.frombuffer(data, each["dtype"], count, each["offset"]).reshape(each["shape"])
    return found


def texts_of(arrays: dict[str, NDArray[Any]], name: str) -> list[str]:
    content, offsets = arrays[f"{name}.bytes"].tobytes(), arrays[f"{name}.offsets"]
    return [content[first:last].decode() for first, last in itertools.pairwise(offsets)]


def test_an_index_is_read_by_its_page_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 40)
    documents = [Document(DocumentId(f"d{n}"), f"text {n} €", {"n": n % 3} if n % 2 else {}) for n in range(30)]
    tokens = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    settings = IndexSettings(IndexOptions("residual2", "none", "int8"))
    with StoredIndex.create(FolderStorage(tmp_path / "index", create=True), settings) as index:
        index.add(documents, TokenEmbeddings(tokens, offsets_of([2] * 30)))
        index.remove([DocumentId("d3")])
        index.update({DocumentId("d4"): {"n": 7}})
        stored = index.snapshot().segments[0].payload.decode(np.array([5])).tokens.numpy()

    manifest = newest_manifest(tmp_path / "index")
    assert (manifest["settings"]["codec"], manifest["settings"]["keep"]) == ("residual2", "int8")
    (segment,) = manifest["segments"]
    files = {"segment": segment["files"][0], "kept": segment["files"][1], **segment["deltas"]}
    files["codebook"] = manifest["shared"]["codebook"]
    read = {name: arrays_of(tmp_path / "index" / record["name"], record) for name, record in files.items()}

    own = read["segment"]
    assert texts_of(own, "ids") == [each.id for each in documents]
    assert texts_of(own, "texts") == [each.text for each in documents]
    hashes = [int.from_bytes(blake2b(each.id.encode(), digest_size=8).digest(), "little") for each in documents]
    assert own["ids.hashes"].tolist() == sorted(hashes)
    assert [hashes[row] for row in own["ids.rows"]] == sorted(hashes)
    keys = json.loads(own["metadata.keys"].tobytes())
    values = [json.loads(each) for each in texts_of(own, f"metadata.{keys.index('n')}")]
    indices = own[f"metadata.{keys.index('n')}.indices"]
    known = [None if index < 0 else values[index] for index in indices]
    assert known == [each.metadata.get("n") for each in documents]
    assert texts_of(own, "lexical.terms") == sorted({*(str(n) for n in range(30)), "text"}, key=str.encode)

    gone = np.unpackbits(read["removed"]["tombstones.bits"], bitorder="little")[:30]
    assert np.flatnonzero(gone).tolist() == [3]
    assert read["updated"]["updates.rows"].tolist() == [4]

    book, rows = read["codebook"], slice(*own["tokens.offsets"][5:7])
    packed = np.unpackbits(own["residual.buckets"][rows], axis=1, bitorder="little").reshape(2, -1, 2)
    buckets = (packed * [1, 2]).sum(axis=2)[:, :8]
    decoded = book["codebook.centroids"][own["residual.codes"][rows]] + book["codebook.weights"][buckets]
    decoded = decoded * own["residual.scales"][rows, None].astype(np.float32)
    np.testing.assert_allclose(decoded, stored, atol=1e-6)

    kept = read["kept"]
    assert kept["tokens.offsets"].tolist() == own["tokens.offsets"].tolist()
    vectors = kept["int8.values"] * kept["int8.scales"][:, None]
    np.testing.assert_allclose(vectors, tokens, atol=float(kept["int8.scales"].max()) / 2 + 1e-6)
