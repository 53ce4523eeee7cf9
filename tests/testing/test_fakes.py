"""What the fakes do beyond the contracts of their ports."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import (
    DuplicateDocument,
    InvalidEmbeddings,
    InvalidOption,
    InvalidRecipe,
    TruncatedTextWarning,
    UnknownDocument,
)
from lateinteraction.domain.evaluation import Report
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, DocumentId, Query
from lateinteraction.domain.training import TrainingExample
from lateinteraction.testing import (
    HashEncoder,
    ListCandidateSource,
    ListedExamples,
    ListIndex,
    RecordingProgress,
    RecordingTrainer,
    ReferenceLoss,
    ReferenceScorer,
    strategies,
)


def documents_of(*texts: str) -> list[Document]:
    return [Document(DocumentId(f"d{row}"), text) for row, text in enumerate(texts)]


def test_equal_words_match_exactly_and_others_hardly() -> None:
    encoder = HashEncoder(width=64)
    queries = encoder.encode_queries([Query("parse a date")])
    documents = encoder.encode_documents(documents_of("Parse the date, please", "nothing in common"))
    assert np.allclose(np.max(queries.tokens @ documents[0].T, axis=1)[[0, 2]], 1, atol=1e-6)
    assert np.max(np.abs(queries.tokens @ documents[1].T)) < 0.6
    assert np.argmax(ReferenceScorer().matrix(queries, documents)) == 0


def test_a_word_has_one_direction_on_every_machine() -> None:
    (tokens,) = HashEncoder(width=4).encode_queries([Query("late")])
    assert np.allclose(tokens, [[0.638453, -0.224299, 0.200322, 0.708476]], atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 100])
def test_any_width_can_be_had(width: int) -> None:
    embeddings = HashEncoder(width=width).encode_queries([Query("late interaction")])
    assert embeddings.tokens.shape == (2, width)
    assert embeddings.tokens.dtype == np.float32
    assert np.all(embeddings.tokens != 0)
    assert not np.array_equal(embeddings.tokens[:, :32], embeddings.tokens[:, 32:64])


def test_a_width_below_the_dimension_of_the_recipe_is_refused() -> None:
    with pytest.raises(InvalidRecipe):
        HashEncoder(EncodingRecipe(dimension=33), width=32)


def test_fewer_dimensions_are_the_leading_ones() -> None:
    query = [Query("late interaction")]
    whole = HashEncoder(EncodingRecipe(normalise=False)).encode_queries(query)
    cut = HashEncoder(EncodingRecipe(normalise=False, dimension=5)).encode_queries(query)
    assert np.array_equal(cut.tokens, whole.tokens[:, :5])


def test_a_text_without_words_has_no_tokens() -> None:
    assert HashEncoder().encode_documents(documents_of("", " \n\t ", "word")).lengths.tolist() == [0, 0, 1]


def test_the_skiplist_drops_words_of_documents_alone() -> None:
    encoder = HashEncoder(EncodingRecipe(skiplist=["the", "."]))
    assert encoder.encode_documents(documents_of("The end.")).lengths.tolist() == [1]
    assert encoder.encode_queries([Query("The end.")]).lengths.tolist() == [3]


def test_a_skipped_word_still_takes_its_place_in_the_length() -> None:
    encoder = HashEncoder(EncodingRecipe(document_length=2, skiplist=["."]))
    with pytest.warns(TruncatedTextWarning, match=r"^1 of 2 documents have more than 2 tokens"):
        embeddings = encoder.encode_documents(documents_of(". . end", "one two"))
    assert embeddings.lengths.tolist() == [0, 2]


def test_expansion_fills_with_one_token_of_no_characters() -> None:
    encoder = HashEncoder(EncodingRecipe(query_length=4, expansion="fixed"))
    embeddings, trace = encoder.encode_queries([Query("late")]), encoder.trace_queries([Query("late")])
    assert embeddings.lengths.tolist() == [4]
    assert np.array_equal(embeddings.tokens[1], embeddings.tokens[3])
    assert list(zip(trace.starts, trace.ends, strict=True)) == [(0, 4), (0, 0), (0, 0), (0, 0)]


def test_prefix_and_prompt_stand_in_front_and_have_no_characters() -> None:
    encoder = HashEncoder(EncodingRecipe(document_prefix="[D]", document_prompt="title: "))
    trace = encoder.trace_documents(documents_of("late"))
    assert list(zip(trace.starts, trace.ends, strict=True)) == [(0, 0), (0, 0), (0, 0), (0, 4)]


def test_marker_prompt_and_expansion_make_no_tokens_out_of_nothing() -> None:
    encoder = HashEncoder(
        EncodingRecipe(
            query_length=8, query_prefix="[Q]", query_prompt="query: ", expansion="fixed", document_prefix="[D]"
        )
    )
    assert encoder.encode_queries([Query(""), Query("late")]).lengths.tolist() == [0, 8]
    assert encoder.encode_documents(documents_of(" ", "late")).lengths.tolist() == [0, 2]


def test_tracing_does_not_warn_of_what_encoding_warned_of() -> None:
    trace = HashEncoder(EncodingRecipe(query_length=2)).trace_queries([Query("one two three")])
    assert trace.ends.tolist() == [3, 7]


@given(strategies.texts())
def test_spans_are_the_words(text: str) -> None:
    trace = HashEncoder().trace_queries([Query(text)])
    words = [text[start:end] for start, end in zip(trace.starts, trace.ends, strict=True)]
    assert "" not in words
    assert "".join(words) == re.sub(r"\s", "", text)


def test_an_index_keeps_a_copy() -> None:
    tokens = np.ones((1, 2), dtype=np.float32)
    index = ListIndex()
    index.add(documents_of("late"), TokenEmbeddings(tokens, offsets_of([1])))
    tokens[:] = 9
    assert np.array_equal(index.fetch([DocumentId("d0")]).tokens, [[1, 1]])


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InvalidOption, match="on_duplicate"):
        ListIndex().add([], TokenEmbeddings(np.ones((0, 2)), [0]), on_duplicate="ignore")  # type: ignore[arg-type]


def test_a_string_is_no_list_of_ids() -> None:
    with pytest.raises(InvalidOption, match=r"\['abc'\]"):
        ListIndex().remove("abc")  # type: ignore[arg-type]


def test_an_id_to_remove_is_given_once() -> None:
    index = ListIndex()
    index.add(documents_of("late"), HashEncoder().encode_documents(documents_of("late")))
    with pytest.raises(DuplicateDocument):
        index.remove([DocumentId("d0")] * 2)
    assert len(index) == 1


def test_an_emptied_index_takes_another_width() -> None:
    index = ListIndex()
    index.add(documents_of("late"), HashEncoder(width=8).encode_documents(documents_of("late")))
    index.remove([DocumentId("d0")])
    index.add(documents_of("late"), HashEncoder(width=16).encode_documents(documents_of("late")))
    assert index.fetch([DocumentId("d0")]).dimension == 16


def test_errors_count_and_name_what_is_unknown() -> None:
    with pytest.raises(UnknownDocument, match=r"^2 documents that are not in the index, 'x' first; expected .*\. Add"):
        ListIndex().get([DocumentId("x"), DocumentId("y")])


def test_a_candidate_source_checks_what_it_is_made_of() -> None:
    embeddings = HashEncoder().encode_documents(documents_of("late", "interaction"))
    with pytest.raises(DuplicateDocument):
        ListCandidateSource([DocumentId("a")] * 2, embeddings)
    with pytest.raises(InvalidEmbeddings):
        ListCandidateSource([DocumentId("a")], embeddings)
    with pytest.raises(InvalidEmbeddings):
        ListCandidateSource([DocumentId("a")], TokenEmbeddings(np.full((1, 2), np.nan), [0, 1]))


def test_among_equal_tokens_the_first_is_proposed_first() -> None:
    source = ListCandidateSource(
        [DocumentId("b"), DocumentId("a")], TokenEmbeddings(np.ones((3, 1), np.float32), offsets_of([2, 1]))
    )
    hits = source.nearest(TokenEmbeddings(np.ones((1, 1), np.float32), [0, 1]), 9)
    assert hits.documents == ("b", "b", "a")
    assert hits.documents_of(0) == ["b", "a"]


def examples_of(*teachers: tuple[float, ...] | None) -> ListedExamples:
    documents = documents_of("the answer", "something else")
    examples = [TrainingExample(Query(f"question {row}"), documents, teacher) for row, teacher in enumerate(teachers)]
    return ListedExamples("questions", examples)


def test_a_trainer_records_what_it_was_given() -> None:
    trainer = RecordingTrainer(batch=2, watch_every=2)
    report = Report(["MRR@10"], ["q"], [[0.5]])
    examples = examples_of(*[None] * 5)
    done = trainer.fit(HashEncoder(), ReferenceLoss(), [examples], lambda _: report)
    assert trainer.examples == [examples.example(row) for row in range(5)]
    assert trainer.reports == [report]
    assert (done.steps, done.examples, len(done.losses)) == (3, 5, 3)


def test_a_trainer_hands_on_teachers_where_all_have_one() -> None:
    seen = []

    def loss(queries, documents, targets):
        seen.append(targets.teacher)
        return ReferenceLoss()(queries, documents, targets)

    examples = examples_of((1.0, 0.0), (0.5, 0.25), (1.0, 0.0), None)
    RecordingTrainer(batch=2).fit(HashEncoder(), loss, [examples])
    assert seen[0].tolist() == [1.0, 0.0, 0.5, 0.25]
    assert seen[1] is None


@pytest.mark.parametrize("options", [{"batch": 0}, {"watch_every": 0}])
def test_a_trainer_without_steps_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidOption):
        RecordingTrainer(**options)


@given(st.integers(1, 5))
def test_progress_is_finished_when_all_is_done(total: int) -> None:
    progress = RecordingProgress()
    assert not progress.finished
    for done in range(1, total + 1):
        assert not progress.finished
        progress(done, total)
    assert progress.finished
    assert progress.calls[-1] == (total, total)
