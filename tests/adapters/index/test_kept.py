"""Vectors kept beside residuals: those that came, through whatever becomes of their segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lateinteraction.adapters.index import encoding, folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings, Keep
from lateinteraction.adapters.index.storage import FolderStorage, Storage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import CorruptIndex, IndexMismatch, InvalidOption
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import MemoryStorage
from lateinteraction.wiring.indexes import repair_index

WIDTH = 16


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 300)
    monkeypatch.setattr(encoding, "TOKENS_AT_A_TIME", 128)


def drawn(number: int) -> Tensor:
    """The tokens of a document: n % 7 of them, of any length."""
    generator = torch.Generator().manual_seed(number)
    return 3 * torch.randn(number % 7, WIDTH, generator=generator)


def add(index: StoredIndex, *numbers: int) -> None:
    documents = [Document(DocumentId(str(number)), f"text {number}", {"n": number}) for number in numbers]
    tokens = torch.cat([torch.empty(0, WIDTH), *map(drawn, numbers)])
    index.add(documents, TokenEmbeddings(tokens, offsets_of([number % 7 for number in numbers])))


def made(keep: Keep, codec: Codec = "residual2", storage: Storage | None = None) -> StoredIndex:
    return StoredIndex.create(storage or MemoryStorage(), IndexSettings(IndexOptions(codec, "none", keep)))


def kept(index: StoredIndex) -> dict[int, Tensor]:
    """Of every document the most exact vectors that the index has."""
    found = {}
    for segment in index.snapshot().segments:
        payload = segment.payload if segment.kept is None else segment.kept
        for identifier, tokens in zip(segment.ids.at(segment.rows), payload.decode(segment.rows), strict=True):
            found[int(identifier)] = tokens
    return found


def expected(number: int, keep: Keep) -> Tensor:
    """What is kept of a document, bit by bit."""
    if keep == "float16":
        return drawn(number).half().float()
    scales = drawn(number).abs().amax(dim=1, keepdim=True) / 127
    return torch.round(drawn(number) / scales) * scales


@pytest.mark.parametrize("keep", ["float16", "int8"])
def test_what_came_is_kept_through_every_rewriting(keep: Keep) -> None:
    """To the last bit in 16 bits, and never rounded a second time in 8."""
    index = made(keep)
    for first in range(0, 400, 50):
        add(index, *range(first, first + 50))
    assert "residual" in index.snapshot().stats().segments
    index.compact()
    before = kept(index)
    assert set(before) == set(range(400))
    for number, tokens in before.items():
        step = 0.0 if keep == "float16" else float(drawn(number).abs().max()) / 124 if number % 7 else 0.0
        torch.testing.assert_close(tokens, expected(number, keep), atol=step, rtol=0)
    index.remove(Comparison("n", "<", 100))
    index.update({DocumentId("200"): {"n": 1000}})
    add(index, *range(400, 460))
    index.compact()
    index.remove(Comparison("n", "<", 300))
    add(index, *range(460, 500))
    index.compact()
    after = kept(index)
    assert set(after) == {200, *range(300, 500)}
    for number in (200, *range(300, 400)):
        assert torch.equal(after[number], before[number]), number


def test_what_a_large_addition_keeps_is_what_came_and_not_what_sixteen_bits_made_of_it() -> None:
    index = made("int8")
    add(index, *range(200))
    assert index.snapshot().stats().segments == {"residual": 1}
    for number, tokens in kept(index).items():
        assert torch.equal(tokens, expected(number, "int8")), number


def test_rows_and_room_of_what_is_kept_are_told_apart() -> None:
    index, plain = made("float16"), made("nothing")
    for each in (index, plain):
        add(each, *range(200))
    (segment,), (other,) = index.snapshot().segments, plain.snapshot().segments
    assert segment.kept is not None
    assert other.kept is None
    assert (segment.kept_bytes, other.kept_bytes) == (segment.record.tokens * WIDTH * 2, 0)
    assert segment.token_bytes == other.token_bytes
    sizes = [each.snapshot().stats().bytes for each in (index, plain)]
    assert [size["kept"] for size in sizes] == [segment.kept_bytes, 0]
    assert sizes[0]["files"] - sizes[1]["files"] > segment.kept_bytes
    assert len(segment.record.files) == 2
    np.testing.assert_array_equal(segment.kept.lengths, segment.payload.lengths)


def test_small_segments_keep_nothing_beside_themselves() -> None:
    index = made("float16")
    add(index, 1, 2, 3)
    assert [len(segment.record.files) for segment in index.snapshot().segments] == [1]
    assert index.snapshot().stats().bytes["kept"] == 0


def test_an_index_whose_settings_say_nothing_keeps_nothing() -> None:
    settings = IndexSettings(IndexOptions("residual4", "none"))
    given = settings.to_json()
    assert given.pop("keep") == "nothing"
    assert IndexSettings.from_json(given) == settings
    options = IndexOptions("residual4", "none", "int8")
    assert IndexSettings.from_json(IndexSettings(options).to_json()).options == options
    with pytest.raises(IndexMismatch):
        IndexSettings.from_json({**given, "keep": "float128"})


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_only_beside_residuals_is_anything_kept(codec: Codec) -> None:
    with pytest.raises(InvalidOption, match="residual"):
        IndexOptions(codec, "none", "float16")


def test_what_is_kept_is_verified_copied_collected_and_can_be_given_up(tmp_path: Path) -> None:
    """Whatever sees the files of an index sees this one: and a damage to it costs no document."""
    folder = tmp_path / "index"
    index = made("float16", storage=FolderStorage(folder, create=True))
    add(index, *range(200))
    (segment,) = index.snapshot().segments
    own, beside = (folder / record.name for record in segment.record.files)
    index.copy_to(tmp_path / "copy")
    assert kept(StoredIndex(FolderStorage(tmp_path / "copy"))).keys() == kept(index).keys()
    place = int(segment.ids.rows_of(["40"])[0])
    first = segment.payload.decode(np.array([place]))
    index.close()

    content = bytearray(beside.read_bytes())
    content[len(content) // 2] ^= 1
    beside.unlink()
    beside.write_bytes(content)
    damaged = StoredIndex(FolderStorage(folder))
    report = damaged.verify()
    assert not report.sound
    assert beside.name in " ".join(report.damages)
    lost = damaged.repair(accept_loss=False).lost
    assert any("kept" in each or beside.name in each for each in lost)
    damaged.repair(accept_loss=True)
    damaged.refresh()
    assert damaged.verify().sound
    assert len(damaged) == 200
    assert [each.kept for each in damaged.snapshot().segments] == [None]
    assert torch.equal(damaged.fetch([DocumentId("40")]).tokens, first.tokens)
    add(damaged, *range(200, 260))
    damaged.compact()
    add(damaged, *range(260, 270))
    again = kept(damaged)
    assert torch.equal(again[40], first.tokens), "as it is stored, where nothing better is known"
    assert [each.kept is None for each in damaged.snapshot().segments] == [True, False]
    assert torch.equal(again[265], expected(265, "float16")), "with nothing that was lost in its segment"
    assert not own.exists()
    assert not beside.exists()


def test_no_damage_to_what_is_kept_is_read_as_a_vector(tmp_path: Path) -> None:
    """Each changed byte, each missing end: an error that names it, or the vectors as they were."""
    folder = tmp_path / "index"
    with made("int8", storage=FolderStorage(folder, create=True)) as index:
        add(index, *range(200))
        before = kept(index)
        name = index.snapshot().segments[0].record.files[1].name
    content = (folder / name).read_bytes()
    places = np.random.default_rng(0).integers(0, len(content), 40)
    damages = [content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :] for place in map(int, places)]
    refused = 0
    for damaged in [*damages, content[:-1], content[: len(content) // 2], b"", content + b"\0"]:
        (folder / name).unlink()
        (folder / name).write_bytes(damaged)
        try:
            opened = StoredIndex(FolderStorage(folder))
            assert not opened.verify().sound or damaged == content
            found = kept(opened)
        except CorruptIndex as error:
            refused += name in str(error)
        else:
            assert all(torch.equal(found[number], before[number]) for number in before)
    assert refused > 30
    (folder / name).unlink()
    with pytest.raises(CorruptIndex, match=name):
        StoredIndex(FolderStorage(folder))


class Remembered:
    """A storage that remembers what was there before each operation: as killed, and as after a power cut."""

    def __init__(self, inner: MemoryStorage) -> None:
        self._inner = inner
        self.states: list[MemoryStorage] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            number = len(self.states)
            self.states += [MemoryStorage(self._inner.contents()), self._inner.after_power_cut(number)]
            return found(*arguments)

        return call


def test_wherever_a_writer_dies_both_files_of_a_segment_are_there_or_neither() -> None:
    inner = MemoryStorage()
    with made("float16", storage=inner) as index:
        add(index, *range(80))
        assert index.snapshot().stats().segments == {"vectors": 1}
    storage = Remembered(inner)
    with StoredIndex(storage) as index:
        add(index, *range(80, 160))
        expected = index.search(TokenEmbeddings(drawn(20), offsets_of([6])), 5)
    counts = []
    for state in storage.states:
        with StoredIndex(state) as again:
            assert again.verify().sound
            (segment,) = again.snapshot().segments
            assert (segment.kept is None) == (len(again) == 80)
            counts.append(len(again))
            if len(again) == 80:
                add(again, *range(80, 160))
            assert again.search(TokenEmbeddings(drawn(20), offsets_of([6])), 5) == expected
    assert {*counts} == {80, 160}
    assert len(counts) > 60


def test_lists_outlive_the_growth_of_their_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centroids that came later list nothing in them."""
    monkeypatch.setattr(folding, "SCANNED_TOKENS", 0)
    monkeypatch.setattr(folding, "ALIKE", 0)  # the segments stay apart
    index = made("nothing")
    add(index, *range(200))
    first = index.snapshot()
    lists = first.segments[0].lists_for(first.codebook)
    assert lists is not None
    tokens = torch.nn.functional.normalize(torch.randn(4000, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    tokens[:, : WIDTH // 2] = 0
    documents = [Document(DocumentId(f"new {number}"), "") for number in range(1000)]
    index.add(documents, TokenEmbeddings(tokens, offsets_of([4] * 1000)))
    after = index.snapshot()
    grown = after.codebook
    assert grown is not None
    assert lists.centroids < len(grown)
    assert len(after.segments) == 2
    assert all(getattr(segment.payload, "codebook", None) is grown for segment in after.segments), (
        "one table serves all"
    )
    found = [segment.lists_for(grown) for segment in after.segments]
    assert [each.centroids for each in found if each is not None] == [lists.centroids, len(grown)]
    query = TokenEmbeddings(drawn(20), offsets_of([6]))
    assert after.search(query, 1)[0].documents == first.search(query, 1)[0].documents == ("20",)
    index.compact()
    (segment,) = index.snapshot().segments
    made_anew = segment.lists_for(grown)
    assert made_anew is not None
    assert made_anew.centroids == len(grown)


def test_a_residual_stays_what_it_is_however_few_are_left_of_its_segment() -> None:
    """Nothing is decoded and encoded again: neither when it is rewritten by itself nor with what came later."""
    index = made("nothing")
    add(index, *range(200))
    wanted = [DocumentId(str(number)) for number in (193, 197, 199)]
    before = index.fetch(wanted).tokens
    index.remove(Comparison("n", "<", 190))
    assert index.snapshot().stats().removed == 0
    assert torch.equal(index.fetch(wanted).tokens, before)
    add(index, 300, 301)
    index.compact()
    assert index.snapshot().stats().segments == {"residual": 1}
    assert torch.equal(index.fetch(wanted).tokens, before)
    index.compact()
    assert torch.equal(index.fetch(wanted).tokens, before)


def test_vectors_that_were_lost_are_not_made_up_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What residuals decode to is not kept as if it were what came."""
    folder = tmp_path / "index"
    with made("float16", storage=FolderStorage(folder, create=True)) as index:
        add(index, *range(200))
        lost = folder / index.snapshot().segments[0].record.files[1].name
    lost.unlink()
    assert repair_index(folder, accept_loss=True) is not None
    with StoredIndex(FolderStorage(folder)) as index:
        assert index.snapshot().segments[0].kept is None
        with caplog.at_level("WARNING"):
            add(index, *range(200, 500))
            index.compact()
        assert all(segment.kept is None for segment in index.snapshot().segments)
        assert index.snapshot().stats().segments == {"residual": 1}
        assert "no vectors are kept beside 500 documents: those of 200" in caplog.text


def test_a_codebook_is_not_trained_anew_on_nothing() -> None:
    index = made("nothing")
    add(index, *range(200))
    index.add([Document(DocumentId("empty"), "")], TokenEmbeddings(torch.empty(0, WIDTH), offsets_of([0])))
    index.remove([DocumentId(str(number)) for number in range(1, 200) if number % 7])
    before = index.snapshot().codebook
    index.compact(retrain=True)
    assert index.snapshot().codebook is not None
    assert index.snapshot().codebook is before
    assert "empty" in index
