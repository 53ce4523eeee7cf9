"""What is special to FlatIndex: its segments. What every index must do is in tests/contracts."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.text import Document, DocumentId


def document(number: int) -> Document:
    return Document(DocumentId(str(number)), f"text {number}", {"number": number})


def embeddings(numbers: list[int]) -> TokenEmbeddings[torch.Tensor]:
    """Document n has n % 4 tokens, all of them (n, 1)."""
    lengths = [number % 4 for number in numbers]
    rows = [[float(number), 1.0] for number, length in zip(numbers, lengths, strict=True) for _ in range(length)]
    return TokenEmbeddings(torch.tensor(rows).reshape(-1, 2), offsets_of(lengths))


def add(index: FlatIndex, *numbers: int) -> None:
    index.add([document(number) for number in numbers], embeddings(list(numbers)))


def test_a_thousand_single_additions_leave_few_segments() -> None:
    index = FlatIndex()
    for number in range(1000):
        add(index, number)
    assert len(index) == 1000
    assert index.ids() == tuple(str(number) for number in range(1000))
    assert len(index._segments) <= 10
    assert index.fetch([DocumentId("7"), DocumentId("503")]).tokens[:, 0].tolist() == [7.0] * 3 + [503.0] * 3


def test_removal_leaves_the_others_as_they_were() -> None:
    index = FlatIndex()
    add(index, *range(20))
    assert index.remove(Comparison("number", "<", 15)) == 15
    assert index.ids() == ("15", "16", "17", "18", "19")
    assert index.fetch([DocumentId("18")]).tokens.tolist() == [[18.0, 1.0]] * 2
    assert [one.text for one in index.get([DocumentId("19")])] == ["text 19"]


def test_an_id_is_in_the_index_or_not() -> None:
    index = FlatIndex()
    add(index, 3)
    assert "3" in index
    assert "4" not in index


def test_a_filter_copies_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    index = FlatIndex()
    add(index, *range(1, 40, 2))
    scored: list[TokenEmbeddings[torch.Tensor]] = []
    matrix = index._scorer.matrix

    class Watching:
        def matrix(
            self, queries: TokenEmbeddings[torch.Tensor], documents: TokenEmbeddings[torch.Tensor]
        ) -> torch.Tensor:
            scored.append(documents)
            return matrix(queries, documents)

    monkeypatch.setattr(index, "_scorer", Watching())
    (ranking,) = index.search(embeddings([3]), 3, where=Comparison("number", "in", [5, 7, 21]))
    assert ranking.documents == ("21", "7", "5")
    memory = index._segments[0].embeddings.tokens.untyped_storage().data_ptr()
    assert len(scored) == 2
    assert {documents.tokens.untyped_storage().data_ptr() for documents in scored} == {memory}


def test_a_choice_about_duplicates_is_one_of_three() -> None:
    with pytest.raises(InvalidOption, match="on_duplicate"):
        FlatIndex().add([], embeddings([]), on_duplicate="overwrite")  # pyright: ignore[reportArgumentType]


def test_a_lone_id_is_not_taken_for_a_list_of_characters() -> None:
    index = FlatIndex()
    add(index, 1, 2)
    with pytest.raises(InvalidOption, match="'12'"):
        index.remove("12")
    assert len(index) == 2


def test_gradients_stay_outside() -> None:
    index = FlatIndex()
    tokens = torch.ones(2, 2, requires_grad=True) * 1
    index.add([document(2)], TokenEmbeddings(tokens, offsets_of([2])))
    assert not index.fetch([DocumentId("2")]).tokens.requires_grad


def test_nothing_fetched_keeps_the_width() -> None:
    index = FlatIndex()
    assert index.fetch([]).tokens.shape == (0, 0)
    add(index, 3)
    assert index.fetch([]).tokens.shape == (0, 2)


def test_readers_see_whole_additions_while_a_writer_writes() -> None:
    """Each addition brings a pair; a reader never sees one of the two without the other."""
    index, halves, stop = FlatIndex(), [], threading.Event()
    query = TokenEmbeddings(torch.tensor([[1.0, 0.0]]), offsets_of([1]))

    def read() -> None:
        while not stop.is_set():
            (ranking,) = index.search(query, 10_000)
            numbers = {int(identifier) for identifier in ranking.documents}
            halves.extend(number for number in numbers if number ^ 1 not in numbers)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(0, 400, 2):
        add(index, number, number + 1)
        if number % 10 == 8:
            index.remove([DocumentId(str(number)), DocumentId(str(number + 1))])
    stop.set()
    for reader in readers:
        reader.join()
    assert not halves
    assert len(index) == 320


def test_rankings_are_those_of_the_scores() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, 50)
    index = FlatIndex()
    tokens = torch.from_numpy(generator.standard_normal((int(lengths.sum()), 6)).astype(np.float32))
    index.add([document(number) for number in range(50)], TokenEmbeddings(tokens, offsets_of(lengths)))
    (ranking,) = index.search(TokenEmbeddings(tokens[:4], offsets_of([4])), 50)
    best = [float((tokens[:4] @ part.T).amax(1).sum()) for part in tokens.split([int(length) for length in lengths])]
    assert [int(identifier) for identifier in ranking.documents] == sorted(range(50), key=lambda n: -best[n])
