"""Every check of the encoder suites fails on an encoder with the fault that it is there to find."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from lateinteraction.domain.embeddings import TokenEmbeddings, TokenTrace
from lateinteraction.domain.errors import TruncatedTextWarning
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query
from lateinteraction.testing import HashEncoder
from lateinteraction.testing.contracts import TracingEncoderContract, checks_of

Texts = Sequence[Query] | Sequence[Document]


class Sound:
    """A `HashEncoder` behind a wall, in which the faults below are holes: in what is embedded, or in what is traced."""

    recipe = EncodingRecipe(
        query_length=32, document_length=40, query_prefix="[Q]", document_prefix="[D]", skiplist=[".", ","]
    )

    def __init__(self) -> None:
        self.inner = HashEncoder(self.recipe)

    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[Any]:
        return self.embedded(self.inner.encode_queries(queries), queries)

    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[Any]:
        return self.embedded(self.inner.encode_documents(documents), documents)

    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace:
        return self.traced(self.inner.trace_queries(queries), queries)

    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace:
        return self.traced(self.inner.trace_documents(documents), documents)

    def embedded(self, embeddings: TokenEmbeddings[Any], texts: Texts) -> TokenEmbeddings[Any]:
        return embeddings

    def traced(self, trace: TokenTrace, texts: Texts) -> TokenTrace:
        return trace


class LosesEmptyTexts(Sound):
    def encode_queries(self, queries):
        return super().encode_queries([query for query in queries if query.text])


class EncodesNothingAsSomething(Sound):
    """What markers do that are put around a text whether or not there is one."""

    def encode_documents(self, documents):
        return super().encode_documents([evolve(each, text=each.text.strip() or "nothing") for each in documents])


class HasNoWidthForNothing(Sound):
    def embedded(self, embeddings, texts):
        return embeddings if texts else TokenEmbeddings(np.zeros((0, 0), np.float32), embeddings.offsets)


class LeavesItemsSortedByLength(Sound):
    def encode_documents(self, documents):
        return super().encode_documents(sorted(documents, key=lambda document: -len(document.text)))


class PadsIntoItsNeighbours(Sound):
    """What padding that is attended to does: an encoding shifts with the longest text of the batch."""

    def embedded(self, embeddings, texts):
        shift = 0.01 * max(embeddings.lengths, default=0)
        return TokenEmbeddings(_normalised(embeddings.tokens + np.float32(shift)), embeddings.offsets)


class DependsOnItsPlace(Sound):
    def embedded(self, embeddings, texts):
        places = np.repeat(np.arange(len(embeddings)), embeddings.lengths).astype(np.float32)
        return TokenEmbeddings(_normalised(embeddings.tokens + places[:, None] / 100), embeddings.offsets)


class ReadsIds(Sound):
    def embedded(self, embeddings, texts):
        known = [float(text.id is not None and text.id in "2q") for text in texts]
        return TokenEmbeddings(
            _normalised(embeddings.tokens + np.repeat(known, embeddings.lengths)[:, None].astype(np.float32)),
            embeddings.offsets,
        )


class OverflowsOnLongWords(Sound):
    def embedded(self, embeddings, texts):
        tokens = embeddings.tokens.copy()
        for item, text in enumerate(texts):
            if len(text.text) == 5000:
                tokens[embeddings.offsets[item] : embeddings.offsets[item + 1]] = np.nan
        return TokenEmbeddings(tokens, embeddings.offsets)


class FailsOnEmoji(Sound):
    def embedded(self, embeddings, texts):
        assert not any("\U0001f600" in text.text for text in texts)
        return embeddings


class DoesNotNormalise(Sound):
    def __init__(self) -> None:
        self.inner = HashEncoder(evolve(self.recipe, normalise=False))


class KeepsAllDimensions(Sound):
    recipe = EncodingRecipe(dimension=16)

    def __init__(self) -> None:
        self.inner = HashEncoder()


class DoesNotCut(Sound):
    def __init__(self) -> None:
        self.inner = HashEncoder(evolve(self.recipe, document_length=41))


class CutsInSilence(Sound):
    def encode_documents(self, documents):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncatedTextWarning)
            return super().encode_documents(documents)


class WarnsOfEverything(Sound):
    def embedded(self, embeddings, texts):
        warnings.warn("cut, perhaps", TruncatedTextWarning, stacklevel=1)
        return embeddings


class DoesNotExpand(Sound):
    recipe = EncodingRecipe(query_length=8, document_length=40, expansion="fixed")

    def __init__(self) -> None:
        self.inner = HashEncoder(evolve(self.recipe, expansion="none"))


class MarksNoRole(Sound):
    def __init__(self) -> None:
        self.inner = HashEncoder(evolve(self.recipe, document_prefix="[Q]"))


class SkipsInQueries(Sound):
    def encode_queries(self, queries):
        return super().encode_queries([Query(re.sub(r"[.,]", "", query.text)) for query in queries])


class SkipsNothing(Sound):
    def __init__(self) -> None:
        self.inner = HashEncoder(evolve(self.recipe, skiplist=()))


class TracesEveryToken(Sound):
    """Traces what the tokenizer gave, skipped words too."""

    def trace_documents(self, documents):
        return HashEncoder(evolve(self.recipe, skiplist=())).trace_documents(documents)


class TracesWhatWasCut(Sound):
    def trace_documents(self, documents):
        return HashEncoder(evolve(self.recipe, document_length=10_000)).trace_documents(documents)


class TracesNothingAsOne(Sound):
    def traced(self, trace, texts):
        return trace if texts else TokenTrace(trace.token_ids, trace.starts, trace.ends, [0, 0])


class CountsBytes(Sound):
    def traced(self, trace, texts):
        starts, ends = trace.starts.copy(), trace.ends.copy()
        for item, text in enumerate(texts):
            for token in range(trace.offsets[item], trace.offsets[item + 1]):
                starts[token], ends[token] = (len(text.text[:place].encode()) for place in (starts[token], ends[token]))
        return evolve(trace, starts=starts, ends=ends)


class SpansTheWholeText(Sound):
    def traced(self, trace, texts):
        lengths = np.repeat([len(text.text) for text in texts], np.diff(trace.offsets)).astype(np.int64)
        return evolve(trace, starts=np.zeros_like(lengths), ends=lengths)


class NumbersTokensByPlace(Sound):
    def traced(self, trace, texts):
        return evolve(trace, token_ids=np.arange(len(trace.token_ids)))


class GivesAllTokensOneId(Sound):
    def traced(self, trace, texts):
        return evolve(trace, token_ids=np.zeros_like(trace.token_ids))


class CountsThroughTheBatch(Sound):
    """Spans that go on from item to item, as if the texts were one."""

    def traced(self, trace, texts):
        longer = sum(len(text.text) for text in texts[1:])
        return evolve(trace, starts=trace.starts, ends=trace.ends + longer)


def _normalised(tokens: np.ndarray) -> np.ndarray:
    return tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-9)


FAULTS: dict[type[Sound], list[str]] = {
    LosesEmptyTexts: [
        "a_text_without_tokens_is_an_empty_item",
        "a_trace_is_aligned_with_the_embeddings",
        "an_item_does_not_depend_on_the_others",
        "there_is_an_item_for_every_text",
    ],
    EncodesNothingAsSomething: ["a_text_without_tokens_is_an_empty_item"],
    HasNoWidthForNothing: ["no_texts_give_no_items"],
    LeavesItemsSortedByLength: [
        "a_text_without_tokens_is_an_empty_item",
        "a_short_text_does_not_depend_on_a_long_one",
        "a_trace_is_aligned_with_the_embeddings",
        "an_item_does_not_depend_on_the_others",
        "items_come_in_the_order_of_their_texts",
        "lengths_stay_within_the_recipe",
        "long_texts_are_traced_as_they_are_cut",
        "one_text_has_one_encoding",
    ],
    PadsIntoItsNeighbours: ["a_short_text_does_not_depend_on_a_long_one", "an_item_does_not_depend_on_the_others"],
    DependsOnItsPlace: [
        "an_item_does_not_depend_on_the_others",
        "items_come_in_the_order_of_their_texts",
        "one_text_has_one_encoding",
        "only_the_text_is_encoded",
    ],
    ReadsIds: ["only_the_text_is_encoded"],
    OverflowsOnLongWords: ["embeddings_have_length_one_where_the_recipe_normalises", "values_are_finite"],
    FailsOnEmoji: [
        "any_unicode_can_be_encoded",
        "embeddings_have_length_one_where_the_recipe_normalises",
        "values_are_finite",
    ],
    DoesNotNormalise: ["embeddings_have_length_one_where_the_recipe_normalises"],
    KeepsAllDimensions: ["the_dimension_is_that_of_the_recipe"],
    DoesNotCut: ["lengths_stay_within_the_recipe"],
    CutsInSilence: ["a_text_that_is_cut_is_said_to_be"],
    WarnsOfEverything: ["a_text_that_fits_gives_no_warning", "only_the_text_is_encoded"],
    DoesNotExpand: ["expansion_fills_every_query"],
    MarksNoRole: ["queries_and_documents_differ_where_their_recipes_do"],
    SkipsInQueries: ["a_trace_is_aligned_with_the_embeddings", "the_skiplist_spares_queries"],
    SkipsNothing: ["the_skiplist_spares_queries"],
    TracesEveryToken: ["a_trace_is_aligned_with_the_embeddings"],
    TracesWhatWasCut: ["long_texts_are_traced_as_they_are_cut"],
    TracesNothingAsOne: ["no_texts_have_no_trace"],
    CountsBytes: ["spans_are_the_characters_of_their_tokens", "spans_lie_within_their_texts"],
    SpansTheWholeText: ["spans_are_the_characters_of_their_tokens"],
    NumbersTokensByPlace: ["equal_tokens_have_equal_ids"],
    GivesAllTokensOneId: ["equal_tokens_have_equal_ids"],
    CountsThroughTheBatch: ["a_trace_does_not_depend_on_the_others", "spans_lie_within_their_texts"],
}


def suite_of(encoder: type[Sound]) -> TracingEncoderContract[Any]:
    class Suite(TracingEncoderContract[Any]):
        def make_encoder(self) -> Any:
            return encoder()

        def tracer(self) -> Any:
            return encoder()

    return Suite()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_by_these_checks_and_no_others(fault: type[Sound], failing: Any) -> None:
    expected = {f"test_{name}" for name in FAULTS[fault]}
    assert failing(suite_of(fault), expected) == expected


def test_every_check_finds_a_fault() -> None:
    checks = {name for name, _ in checks_of(suite_of(Sound))}
    assert {f"test_{name}" for names in FAULTS.values() for name in names} == checks


def test_an_encoder_without_a_fault_fails_no_check(failing: Any) -> None:
    assert failing(suite_of(Sound), ()) == set()
