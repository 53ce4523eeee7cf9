"""An export is an index in files that anything reads; what comes back from it is what went in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.exchange import incoming as incoming_module
from lateinteraction.adapters.index.exchange.folders import read_folder
from lateinteraction.adapters.index.exchange.incoming import index_for, take_in
from lateinteraction.adapters.index.exchange.open_files import export, read_export
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import IndexMismatch, InvalidOption, LateInteractionError, UnreadableFile
from lateinteraction.domain.text import Document
from lateinteraction.testing import strategies
from lateinteraction.testing.storage import MemoryStorage

NewIndex = Callable[..., StoredIndex]
EmbeddingsOf = Callable[..., TokenEmbeddings[torch.Tensor]]
ODD = [
    Document("\u2028\x85\n", "lines\r\nand \u2028 more\x00", {"big": 2**53 + 1, "small": 5e-324, "": "empty"}),
    Document("—ключ 東京 🜁", "", {"yes": True, "one": 1, "real": 1.0, "nothing": None, "東": "京\n"}),
    Document('"{}"', "\\ \" '", {"huge": -(10**300), "float": 0.1, "minus": -0.0}),
]


def held_of(index: StoredIndex) -> dict[str, tuple[Document, list[list[float]], list[type]]]:
    """Everything in an index, by id; types of metadata tell 1, 1.0 and true apart."""
    ids = list(index.ids())
    documents, embeddings = index.get(ids), index.fetch(ids)
    return {
        document.id: (document, tokens.tolist(), [type(document.metadata[key]) for key in sorted(document.metadata)])
        for document, tokens in zip(documents, embeddings, strict=True)
    }


def back(folder: Path) -> StoredIndex:
    incoming = read_folder(folder)
    index = index_for(MemoryStorage(), incoming)
    assert take_in(index, incoming).added == len(incoming)
    return index


@given(
    st.lists(strategies.documents(), max_size=6, unique_by=lambda document: document.id),
    st.sampled_from(["float16", "int8"]),
    st.data(),
)
def test_what_comes_back_is_what_went_in(
    tmp_path_factory: Any, documents: list[Document], codec: Any, data: Any
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=len(documents), max_size=len(documents)))
    eighths = np.random.default_rng(len(documents)).integers(-8, 9, (sum(lengths), 4)) / 8
    index = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions(codec, "none"), {"query": "1:AA=="}))
    if documents:
        index.add(documents, TokenEmbeddings(torch.tensor(eighths, dtype=torch.float32), offsets_of(lengths)))
    folder = tmp_path_factory.mktemp("export") / "out"
    assert export(index.snapshot(), folder) == len(documents)
    again = back(folder)
    assert held_of(again) == held_of(index) if codec == "float16" else held_of(again).keys() == held_of(index).keys()
    assert again.settings.options == index.settings.options
    assert again.settings.encoder == {"query": "1:AA=="}


def test_odd_ids_texts_and_numbers_come_back(tmp_path: Path, new_index: NewIndex, embeddings_of: EmbeddingsOf) -> None:
    index = new_index()
    index.add(ODD, embeddings_of([2, 0, 3]))
    export(index.snapshot(), tmp_path / "out")
    again = back(tmp_path / "out")
    assert held_of(again) == held_of(index)
    assert again.get([ODD[0].id])[0].metadata["big"] == 2**53 + 1
    assert np.signbit(again.get([ODD[2].id])[0].metadata["minus"])


def test_any_tool_reads_it(tmp_path: Path, new_index: NewIndex, embeddings_of: EmbeddingsOf) -> None:
    index = new_index()
    embeddings = embeddings_of([2, 0, 3])
    index.add(ODD, embeddings)
    export(index.snapshot(), tmp_path / "out")
    tokens, offsets = np.load(tmp_path / "out" / "tokens.npy"), np.load(tmp_path / "out" / "offsets.npy")
    assert tokens.dtype == np.float16
    assert np.array_equal(tokens, embeddings.tokens.half().numpy())
    assert list(offsets) == [0, 2, 2, 5]
    lines = (tmp_path / "out" / "documents.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["id"] for line in lines if line] == [document.id for document in ODD]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["documents"] == 3


def test_what_was_removed_is_not_exported(tmp_path: Path, new_index: NewIndex, embeddings_of: EmbeddingsOf) -> None:
    index = new_index("int8")
    index.add([Document(each, each) for each in "abcde"], embeddings_of([1, 2, 3, 4, 5]))
    index.add([Document("f", "f")], embeddings_of([2]))
    index.remove(["a", "c"])
    index.update({"d": {"new": 1}})
    export(index.snapshot(), tmp_path / "out")
    assert np.load(tmp_path / "out" / "tokens.npy").dtype == np.float32
    again = back(tmp_path / "out")
    assert sorted(again.ids()) == ["b", "d", "e", "f"]
    assert again.get(["d"])[0].metadata == {"new": 1}
    assert np.array_equal(np.load(tmp_path / "out" / "tokens.npy"), index.fetch(list(index.ids())).tokens.numpy())


def test_it_is_written_and_read_in_pieces(
    tmp_path: Path, new_index: NewIndex, embeddings_of: EmbeddingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_module, "TOKENS_AT_A_TIME", 64)
    index = new_index()
    index.add([Document(str(each), "") for each in range(20)], embeddings_of([7] * 20))
    told: list[tuple[int, int | None]] = []
    export(index.snapshot(), tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 20) for done in range(2, 21, 2)]
    again = back(tmp_path / "out")
    assert held_of(again) == held_of(index)
    assert again.snapshot().generation > 10


def test_an_empty_index_comes_back(tmp_path: Path, new_index: NewIndex) -> None:
    export(new_index().snapshot(), tmp_path / "out")
    assert len(back(tmp_path / "out")) == 0


def test_only_an_export_is_written_over(tmp_path: Path, new_index: NewIndex, embeddings_of: EmbeddingsOf) -> None:
    index = new_index()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InvalidOption):
            export(index.snapshot(), tmp_path / "mine", overwrite=overwrite)
    export(index.snapshot(), tmp_path / "out")
    index.add([Document("a", "")], embeddings_of([1]))
    with pytest.raises(InvalidOption):
        export(index.snapshot(), tmp_path / "out")
    assert len(read_export(tmp_path / "out")) == 0
    export(index.snapshot(), tmp_path / "out", overwrite=True)
    assert len(read_export(tmp_path / "out")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


@pytest.mark.parametrize("name", ["documents.jsonl", "tokens.npy", "offsets.npy", "manifest.json"])
def test_any_damage_is_noticed(tmp_path: Path, new_index: NewIndex, embeddings_of: EmbeddingsOf, name: str) -> None:
    index = new_index()
    index.add(ODD, embeddings_of([2, 0, 3]))
    export(index.snapshot(), tmp_path / "out")
    path = tmp_path / "out" / name
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(content), 60):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 32]) + content[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(UnreadableFile):
                read_folder(tmp_path / "out")
    path.unlink()
    with pytest.raises(LateInteractionError):
        read_folder(tmp_path / "out")


def test_files_that_agree_with_their_digests_and_not_with_each_other_are_refused(
    tmp_path: Path, new_index: NewIndex, embeddings_of: EmbeddingsOf
) -> None:
    index = new_index()
    index.add(ODD, embeddings_of([2, 0, 3]))
    folder = tmp_path / "out"
    changes: list[Callable[[], object]] = [
        lambda: np.save(folder / "offsets.npy", np.array([0, 3, 2, 5])),
        lambda: np.save(folder / "offsets.npy", np.array([0, 2, 5])),
        lambda: np.save(folder / "tokens.npy", np.zeros((5, 3), np.float32)),
        lambda: np.save(folder / "tokens.npy", np.zeros((4, 8), np.float32)),
        lambda: np.save(folder / "tokens.npy", np.full((5, 8), np.nan, np.float32)),
        lambda: (folder / "documents.jsonl").write_text('{"id": "a", "text": "", "metadata": {}}\n' * 3),
        lambda: (folder / "documents.jsonl").write_text('{"id": "a", "text": "", "metadata": {}}\n'),
        lambda: (folder / "documents.jsonl").write_text('{"id": "a", "text": "", "metadata": {"x": [1]}}\n'),
        lambda: (folder / "documents.jsonl").write_text('{"id": "", "text": "", "metadata": {}}\n'),
        lambda: (folder / "documents.jsonl").write_text('{"id": "a", "text": 3, "metadata": {}}\n'),
        lambda: (folder / "documents.jsonl").write_text('{"id": "a"}\n'),
        lambda: (folder / "documents.jsonl").write_text("[1]\nnull\n3\n"),
    ]
    for change in changes:
        export(index.snapshot(), folder, overwrite=folder.exists())
        change()
        reseal(folder)
        with pytest.raises(UnreadableFile):
            read_folder(folder)


def test_an_export_of_a_later_version_is_refused_as_such(tmp_path: Path, new_index: NewIndex) -> None:
    export(new_index().snapshot(), tmp_path / "out")
    reseal(tmp_path / "out", version=2)
    with pytest.raises(IndexMismatch, match="Update"):
        read_folder(tmp_path / "out")
    for options in ({"codec": "quantum"}, {"quantum": True}):
        reseal(tmp_path / "out", version=1, options=options)
        with pytest.raises(IndexMismatch, match="quantum"):
            read_folder(tmp_path / "out")


def test_embeddings_of_another_encoder_are_refused(tmp_path: Path, new_index: NewIndex) -> None:
    export(new_index(encoder={"query": "1:AA=="}).snapshot(), tmp_path / "out")
    incoming = read_folder(tmp_path / "out")
    with pytest.raises(IndexMismatch, match="embeds a known query otherwise"):
        take_in(new_index(encoder={"query": "2:AA=="}), incoming)
    take_in(new_index(), incoming)


def reseal(folder: Path, **changes: object) -> None:
    """Make the digests fit files that were changed."""
    from hashlib import sha256

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    for name in manifest["files"]:
        manifest["files"][name]["sha256"] = sha256((folder / name).read_bytes()).hexdigest()
    manifest.update(changes)
    sealed = {**manifest, "sha256": sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(sealed))


def test_vectors_that_are_kept_are_exported_and_not_their_codes(
    tmp_path: Path, embeddings_of: EmbeddingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lateinteraction.adapters.index.folding.COMPRESS_AT", 500)
    for keep in ("nothing", "float16"):
        index = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions("residual2", "none", keep)))
        embeddings = embeddings_of([30] * 40, 16)
        index.add([Document(str(each), "") for each in range(40)], embeddings)
        index.compact()
        assert index.snapshot().stats().segments == {"residual": 1}
        export(index.snapshot(), tmp_path / keep)
        tokens = np.load(tmp_path / keep / "tokens.npy")
        assert np.array_equal(tokens, index.fetch(list(index.ids())).tokens.numpy())
        assert (tokens.dtype == np.float16) == (keep == "float16")
        incoming = read_folder(tmp_path / keep)
        assert incoming.options == index.settings.options
        assert len(back(tmp_path / keep)) == 40
