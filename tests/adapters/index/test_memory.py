"""What a process gives back: the pages of mapped files, memory that was freed, a sample that is used up."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lateinteraction.adapters.index import codebook, encoding
from lateinteraction.adapters.index.codebook import Codebook, train
from lateinteraction.adapters.index.files import FileRecord, FileWriter, StoredFile
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.memory import give_back_freed, let_go
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.text import Document, DocumentId

MEGABYTES = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident(kind: str) -> int:
    """Bytes of this process: `RssFile`, `RssAnon`."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(kind)


def stored(folder: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[FolderStorage, FileRecord]:
    storage = FolderStorage(folder, create=True)
    writer = FileWriter(storage, "s-0000000000000001-00", "segment")
    writer.add("values", values)
    record = writer.close()
    writer.publish()
    return storage, record


def units(count: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1).half()


@linux
def test_pages_that_are_let_go_take_no_memory_and_read_the_same(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 64 * MEGABYTES, np.uint8)
    file = StoredFile.open(*stored(tmp_path, values))
    before = resident("RssFile")
    view = file.whole("values")
    assert np.array_equal(view, values)
    assert resident("RssFile") - before > 48 * MEGABYTES
    file.let_go()
    assert resident("RssFile") - before < 16 * MEGABYTES
    assert np.array_equal(view, values), "what others hold is read again"


def test_what_lies_in_memory_is_left_alone() -> None:
    own = np.arange(100_000, dtype=np.int64).view(np.uint8)
    let_go(own)
    give_back_freed()
    assert np.array_equal(own.view(np.int64), np.arange(100_000))


@pytest.mark.parametrize("dimensions", [1, 16, 40, 128])
def test_a_sample_in_place_makes_the_same_codebook_and_is_only_put_in_another_order(dimensions: int) -> None:
    generator = torch.Generator().manual_seed(1)
    sample = torch.nn.functional.normalize(torch.randn(900, dimensions, generator=generator), dim=1).half()
    used = sample.clone()
    apart, in_place = train(sample, 20, 4), train(used, 20, 4, in_place=True)
    same(apart, in_place)
    assert not torch.equal(used, sample)
    assert sorted(map(tuple, used.tolist())) == sorted(map(tuple, sample.tolist()))
    same(apart.denser(sample, 40), apart.denser(sample.clone(), 40, in_place=True))


def same(one: Codebook, other: Codebook) -> None:
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(other.arrays()[name], array)


@pytest.mark.parametrize("few", [1, 10_000], ids=["whole documents", "some tokens of all"])
def test_a_sample_is_what_was_asked_for_wherever_blocks_end(
    few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of documents are found again, once and in order: of what is stored and of what comes."""
    lengths = np.random.default_rng(2).integers(0, 9, 700)
    tokens = units(int(lengths.sum()))
    embeddings = TokenEmbeddings(tokens.float(), offsets_of(lengths))
    documents = [Document(DocumentId(str(number)), "") for number in range(700)]
    seen: list[torch.Tensor] = []

    def spy(sample: torch.Tensor, *rest: object, **more: object) -> Codebook:
        seen.append(sample.clone())
        return train(sample, 16, 4)

    monkeypatch.setattr(encoding, "TOKENS_AT_A_TIME", 100)
    monkeypatch.setattr(encoding, "FEW_DOCUMENTS", few)
    monkeypatch.setattr(codebook, "train", spy)
    monkeypatch.setattr("lateinteraction.adapters.index.folding.COMPRESS_AT", 2_000)
    with StoredIndex.create(FolderStorage(tmp_path / "i", create=True), IndexSettings(IndexOptions())) as index:
        index.add(documents[:300], embeddings.span(0, 300))
        index.add(documents[300:], embeddings.span(300, 700))
    (sample,) = seen
    owner = np.repeat(np.arange(700), lengths)
    rows = torch.nn.functional.normalize(tokens.float(), dim=1).half().tolist()
    known = {tuple(row): place for place, row in enumerate(rows)}
    assert len(known) == len(tokens)
    places = [known[tuple(row)] for row in sample.tolist()]
    assert places == sorted(set(places))
    wanted = codebook.sample_size(codebook.centroid_count(len(tokens)))
    assert 0.7 * wanted < len(places) < min(1.3 * wanted, len(tokens))
    drawn = sorted(set(owner[places]))
    assert drawn[0] < 300 <= drawn[-1]
    assert (len(places) == int(lengths[drawn].sum())) == (few == 1)
