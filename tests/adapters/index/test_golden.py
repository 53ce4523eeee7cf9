"""Indexes as every released version wrote them: `tools/golden_index.py` made them, and nothing makes them again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from struct import pack_into, unpack_from
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch

from lateinteraction.adapters.index.commits import append, commit_after, read_end
from lateinteraction.adapters.index.files import StoredFile
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.manifests import FORMAT, digest_of, manifest_name
from lateinteraction.adapters.index.options import SearchOptions
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import IndexMismatch
from lateinteraction.domain.filters import filter_from_json
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId

GOLDEN = Path(__file__).parent / "golden"
MADE = sorted(path.parent for path in GOLDEN.glob("*/*/expected.json"))
WIDTH = 8
every = pytest.mark.parametrize("golden", MADE, ids=[f"format {path.parent.name}, {path.name}" for path in MADE])


def expected_of(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def copied(golden: Path, tmp_path: Path) -> Path:
    """A copy that can be written to, whatever a checkout's permissions are."""
    place = tmp_path / "index"
    shutil.copytree(golden / "index", place, copy_function=shutil.copyfile)
    return place


def queries_of(expected: dict[str, Any]) -> TokenEmbeddings[torch.Tensor]:
    tokens = [token for query in expected["queries"] for token in query]
    return TokenEmbeddings(torch.tensor(tokens), offsets_of([len(query) for query in expected["queries"]]))


def assert_close(found: Ranking, expected: dict[str, Any]) -> None:
    assert list(found.documents) == expected["ids"]
    np.testing.assert_allclose(found.scores, expected["scores"], rtol=1e-5, atol=1e-5)


def assert_answers(index: StoredIndex, expected: dict[str, Any]) -> None:
    """Everything that it was asked when it was made, it answers as it did."""
    snapshot, queries = index.snapshot(), queries_of(expected)
    documents = [Document(DocumentId(each["id"]), each["text"], each["metadata"]) for each in expected["documents"]]
    assert snapshot.ids() == tuple(each.id for each in documents)
    assert snapshot.get(snapshot.ids()) == documents
    assert dict(snapshot.stats().segments) == expected["segments"]
    assert snapshot.stats().tier == expected.get("tier", snapshot.stats().tier)
    for name, read in (("stored", snapshot.fetch), ("coded", snapshot.coded)):
        wanted = expected.get(name, [])
        for found, each in zip(read([DocumentId(each["id"]) for each in wanted]), wanted, strict=True):
            torch.testing.assert_close(found, torch.tensor(each["tokens"]).view(-1, WIDTH), rtol=1e-5, atol=1e-6)
    for search in expected["searches"]:
        where = None if search["where"] is None else filter_from_json(search["where"])
        rankings = snapshot.search(queries, 5, where=where, options=SearchOptions(search["effort"]))
        for ranking, wanted in zip(rankings, search["rankings"], strict=True):
            if search["effort"] == "exact":
                assert_close(ranking, wanted)
            else:  # which documents make the shortlist is not the format's to say
                assert set(ranking.documents[:1]) <= set(wanted["ids"])
    for each in expected["texts"]:
        assert_close(snapshot.search_text([each["text"]], 5)[0], each)


def test_every_format_and_form_is_here() -> None:
    forms = {"float16", "int8", "residual4", "residual2", "residual1", "kept-int8", "kept-float16"}
    assert {path.parent.name for path in MADE} == {str(number) for number in range(1, FORMAT + 1)}
    for number in range(1, FORMAT + 1):
        assert {path.name for path in MADE if path.parent.name == str(number)} >= forms
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 250_000 * FORMAT


@every
def test_an_index_of_any_version_answers_as_it_did(golden: Path, copied: Path) -> None:
    with StoredIndex(FolderStorage(copied)) as index:
        assert_answers(index, expected_of(golden))


@every
def test_it_is_sound_and_holds_what_it_held(golden: Path, copied: Path) -> None:
    with StoredIndex(FolderStorage(copied)) as index:
        report = index.verify()
    assert report.sound
    assert report.content == expected_of(golden)["content"]


@pytest.mark.parametrize(
    "golden", [golden for golden in MADE if golden.name.startswith("kept")], ids=lambda path: path.name
)
def test_what_was_kept_is_what_came_and_codes_are_not(golden: Path, copied: Path) -> None:
    """Drawn anew as it was then: the numbers of NumPy's generators stay what they are."""
    expected = expected_of(golden)
    with StoredIndex(FolderStorage(copied)) as index:
        assert index.settings.options.keep == golden.name.removeprefix("kept-")
        before = index.snapshot()
        for retrained in (False, True):
            for each in expected["stored"]:
                number = int(each["id"].removeprefix("d").removeprefix("straße/"))
                came = np.random.default_rng(number).standard_normal((number % 5, WIDTH)).astype(np.float32)
                wanted = torch.nn.functional.normalize(torch.from_numpy(came), dim=1)
                tolerance = 1e-3 if index.settings.options.keep == "float16" else 5e-3
                found = index.fetch([DocumentId(each["id"])]).tokens
                torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
            if not retrained:
                index.compact(retrain=True)
        assert index.snapshot().generation > before.generation
        assert index.snapshot().stats().tier == expected["tier"]
    assert expected["stored"] != expected["coded"]


@every
def test_it_opens_where_nobody_may_write_and_stays_as_it_is(golden: Path, copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    for path in copied.iterdir():
        path.chmod(0o444)
    copied.chmod(0o555)
    try:
        assert_answers(StoredIndex(FolderStorage(copied)), expected_of(golden))
        if os.geteuid():  # root may write everywhere
            assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
        assert before.items() <= {path.name: path.read_bytes() for path in copied.iterdir()}.items()
    finally:
        copied.chmod(0o755)


@every
def test_what_is_written_to_it_is_there_beside_what_was(golden: Path, copied: Path) -> None:
    expected = expected_of(golden)
    queries = queries_of(expected)
    with StoredIndex(FolderStorage(copied)) as index:
        index.add([Document(DocumentId("new"), "a new text", {"number": 1})], queries.span(0, 1))
        index.update({DocumentId("d9"): {"number": -1}})
        index.remove([DocumentId("d3")])
        assert index.search(queries, 1)[0].documents == ("new",)
    with StoredIndex(FolderStorage(copied)) as index:
        kept = [each for each in expected["documents"] if each["id"] not in ("d3", "d9")]
        for _ in range(2):
            assert len(index) == len(expected["documents"])
            assert index.get([DocumentId(each["id"]) for each in kept]) == [
                Document(DocumentId(each["id"]), each["text"], each["metadata"]) for each in kept
            ]
            assert index.get([DocumentId("d9")])[0].metadata == {"number": -1}
            assert index.search(queries, 1)[0].documents == ("new",)
            assert index.snapshot().search_text(["a new text"], 1)[0].documents == ("new",)
            index.compact()
        assert index.verify().sound


def newer(folder: Path) -> None:
    """Commit a generation as a later version of this library might: with a manifest of the next format."""
    storage = FolderStorage(folder)
    end = read_end(storage)
    generation = end.number + 1
    body = json.dumps({"format": FORMAT + 1, "generation": generation, "segments": "elsewhere"}).encode()
    data = b"%b\n%08x\n" % (body, crc32(body))
    (folder / manifest_name(generation)).write_bytes(data)
    append(storage, end, commit_after(end, generation, digest_of(data)))


@every
def test_a_newer_format_is_refused_with_what_to_do(golden: Path, copied: Path) -> None:
    with StoredIndex(FolderStorage(copied)) as index:
        newer(copied)
        with pytest.raises(IndexMismatch, match="Update this library"):
            index.refresh()
        with pytest.raises(IndexMismatch, match="Update this library"):
            index.remove([DocumentId("d3")])
        assert_answers(index, expected_of(golden))  # whoever has it open keeps what was there
    with pytest.raises(IndexMismatch, match=f"of format {FORMAT + 1}; .* Update this library"):
        StoredIndex(FolderStorage(copied))


@pytest.mark.parametrize("golden", MADE[:1], ids=["any"])
def test_a_newer_data_file_is_refused_with_what_to_do(golden: Path, copied: Path) -> None:
    with StoredIndex(FolderStorage(copied)) as index:
        record = index.snapshot().opened.manifest.segments[0].files[0]
    data = bytearray((copied / record.name).read_bytes())
    table, footer = unpack_from("<QQ", data, len(data) - 32)
    pack_into("<I", data, len(data) - 16, FORMAT + 1)
    first = len(data) - 32 - footer - table
    pack_into("<I", data, len(data) - 12, crc32(data[first : len(data) - 12]))
    (copied / record.name).write_bytes(data)
    with pytest.raises(IndexMismatch, match="newer version of this library"):
        StoredFile.open(FolderStorage(copied), record)
