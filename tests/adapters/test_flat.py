"""What is special to FlatIndex: its segments. What every index must do is in tests/contracts."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.adapters.neural.scorer import MaxSimScorer
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidFilter, InvalidOption
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
    assert len(index.snapshot().segments) <= 10
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


class Watching:
    """MaxSim that remembers what it was asked to score."""

    def __init__(self) -> None:
        self.scored: list[TokenEmbeddings[torch.Tensor]] = []

    def matrix(self, queries: TokenEmbeddings[torch.Tensor], documents: TokenEmbeddings[torch.Tensor]) -> torch.Tensor:
        self.scored.append(documents)
        return MaxSimScorer().matrix(queries, documents)

    def grouped(self, *_: object) -> torch.Tensor:
        raise AssertionError("an index scores all pairs")


def test_a_broad_filter_copies_no_tokens_and_a_scattered_one_costs_one_call() -> None:
    watching = Watching()
    index = FlatIndex(watching)
    add(index, *range(1, 80, 2))
    memory = index.snapshot().segments[0].embeddings.tokens.untyped_storage().data_ptr()
    (ranking,) = index.search(embeddings([3]), 3, where=Comparison("number", ">=", 41))
    assert ranking.documents == ("79", "77", "75")
    assert [part.tokens.untyped_storage().data_ptr() for part in watching.scored] == [memory]
    watching.scored.clear()
    (ranking,) = index.search(embeddings([3]), 3, where=Comparison("number", "in", [5, 7, 21]))
    assert ranking.documents == ("21", "7", "5")
    assert [len(part) for part in watching.scored] == [3]


def test_a_snapshot_stays_as_it_was() -> None:
    index = FlatIndex()
    add(index, 1, 2, 3)
    before = index.snapshot()
    index.remove([DocumentId("2")])
    add(index, 7)
    assert before.ids() == ("1", "2", "3")
    assert "2" in before
    assert len(before) == 3
    assert set(before.search(embeddings([1]), 9)[0].documents) == {"1", "2", "3"}
    assert [one.text for one in before.get([DocumentId("2")])] == ["text 2"]
    assert before.fetch([DocumentId("3")]).lengths.tolist() == [3]


def test_what_the_caller_does_with_a_tensor_later_is_no_write() -> None:
    index, given = FlatIndex(), embeddings([3])
    index.add([document(3)], given)
    given.tokens.fill_(float("nan"))
    assert index.search(embeddings([1]), 1)[0].scores.tolist() == [4.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_embeddings_are_floating_point_numbers(dtype: torch.dtype) -> None:
    index = FlatIndex()
    with pytest.raises(InvalidEmbeddings, match="floating-point"):
        index.add([document(3)], TokenEmbeddings(torch.ones(3, 2).to(dtype), offsets_of([3])))
    with pytest.raises(InvalidEmbeddings, match="floating-point"):
        index.add([document(3)], TokenEmbeddings(np.ones((3, 2)), offsets_of([3])))  # pyright: ignore[reportArgumentType]
    assert len(index) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precisions_can_be_mixed(dtype: torch.dtype) -> None:
    index = FlatIndex()
    add(index, 3)
    wide = embeddings([7])
    index.add([document(7)], TokenEmbeddings(wide.tokens.to(dtype), wide.offsets))
    assert index.search(embeddings([1]), 2)[0].documents == ("7", "3")


@pytest.mark.parametrize("where", ["number == 3", 5, {"field": "number"}])
def test_what_is_no_filter_is_refused_before_there_is_anything_to_filter(where: object) -> None:
    index = FlatIndex()
    with pytest.raises(InvalidFilter):
        index.search(embeddings([1]), 1, where=where)  # pyright: ignore[reportArgumentType]
    with pytest.raises((InvalidFilter, InvalidOption)):
        index.remove(where)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidOption, match="candidates"):
        index.search(embeddings([1]), 1, candidates="17")


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
