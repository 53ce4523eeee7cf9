"""Values that look nearly right: each is refused by the object it is given to, and what is read-only stays so."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import (
    InvalidEmbeddings,
    InvalidExample,
    InvalidRanking,
    InvalidRecipe,
    InvalidText,
)
from lateinteraction.domain.ranking import Ranking, fuse_weighted, merge
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, DocumentId, Query, check_documents
from lateinteraction.domain.training import Targets, TrainingExample

A, B, C = DocumentId("a"), DocumentId("b"), DocumentId("c")


def test_nan_is_refused_even_where_k_would_cut_it() -> None:
    with pytest.raises(InvalidRanking, match="NaN"):
        Ranking.from_scores([A, B, C], [5.0, math.nan, 3.0], 1)


def test_a_document_given_twice_is_refused_even_where_k_would_cut_it() -> None:
    with pytest.raises(InvalidRanking, match="twice"):
        merge([Ranking([A], [3.0]), Ranking([A], [1.0])], 1)


def test_offsets_share_no_memory_that_somebody_can_write_to() -> None:
    base = np.array([0, 2])
    view = base[:]
    view.flags.writeable = False
    embeddings = TokenEmbeddings(np.zeros((2, 2)), view)
    base[1] = 99
    assert list(embeddings.offsets) == [0, 2]


def test_read_only_offsets_are_not_copied_again() -> None:
    embeddings = TokenEmbeddings(np.zeros((2, 2)), [0, 2])
    assert TokenEmbeddings(np.zeros((2, 2)), embeddings.offsets).offsets is embeddings.offsets


@pytest.mark.parametrize("groups", [3, [[0, 1]], [0.0, 1.0], [], [0, 2, 1]])
def test_groups_that_are_no_offsets_are_an_invalid_example(groups: Any) -> None:
    with pytest.raises(InvalidExample):
        Targets(groups)


def test_lengths_are_whole_numbers() -> None:
    with pytest.raises(InvalidEmbeddings, match="whole numbers"):
        offsets_of([1.9, 0.5])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_arrays_stay_read_only_through_copies(again: Any) -> None:
    assert not again(Ranking([A], [1.0])).scores.flags.writeable
    assert not again(TokenEmbeddings(np.zeros((1, 1)), [0, 1])).offsets.flags.writeable


@pytest.mark.parametrize("metadata", [None, "ab", 3])
def test_metadata_is_a_mapping(metadata: Any) -> None:
    with pytest.raises(InvalidText, match="a mapping"):
        Document(A, "text", metadata)


@pytest.mark.parametrize("score", [1e300, -1e300])
def test_a_score_beyond_float32_is_an_error_and_not_infinity(score: float) -> None:
    with pytest.raises(InvalidRanking, match="float32"):
        Ranking.from_scores([A], [score])


def test_an_empty_document_never_beats_a_scored_one() -> None:
    fused = fuse_weighted([Ranking([B, A], [-1.0, -math.inf])], 2, normalise="none")
    assert fused.documents == (B, A)
    assert list(fused.scores) == [-1.0, -math.inf]
    twice = [Ranking([A], [-math.inf]), Ranking([A], [2.0]), Ranking([A], [-math.inf])]
    assert list(fuse_weighted(twice, 1, normalise="none").scores) == [2.0]


def test_ids_of_a_ranking_are_str() -> None:
    with pytest.raises(InvalidRanking, match="no str"):
        Ranking((1, "a"), [1.0, 1.0])  # pyright: ignore[reportArgumentType]


def test_an_unknown_setting_of_any_type_is_named() -> None:
    with pytest.raises(InvalidRecipe, match="'1', 'z'"):
        EncodingRecipe().merge({1: 2, "z": 1})  # pyright: ignore[reportArgumentType]


def test_teacher_scores_are_numbers() -> None:
    with pytest.raises(InvalidExample, match="no finite number"):
        TrainingExample(Query("q"), [Document(A, "t")], ["x"])  # pyright: ignore[reportArgumentType]


def test_lengths_are_not_negative() -> None:
    with pytest.raises(InvalidEmbeddings, match="a length of -1"):
        offsets_of([-1, 3])


def test_ragged_lists_are_no_offsets() -> None:
    with pytest.raises(InvalidEmbeddings, match="lists of different lengths"):
        TokenEmbeddings(np.zeros((2, 2)), [[0], [1, 2]])


@pytest.mark.parametrize("tokens", [[[1.0, 2.0]], None, 5])
def test_tokens_are_an_array(tokens: Any) -> None:
    with pytest.raises(InvalidEmbeddings, match="two dimensions"):
        TokenEmbeddings(tokens, [0, 1])


def test_documents_are_documents() -> None:
    with pytest.raises(InvalidText, match="'text' among the documents"):
        check_documents(["text"])  # pyright: ignore[reportArgumentType]
    check_documents([Document(A, "text"), Document(B, "text")])


def test_metadata_deeper_than_repr_can_go_is_refused_in_a_few_words() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidText, match="a list"):
        Document(A, "text", {"key": nested})  # pyright: ignore[reportArgumentType]
