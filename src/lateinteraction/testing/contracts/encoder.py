"""What an `Encoder` promises: an item for every text, in order, whatever the others are, within its recipe."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import strategies as st

from lateinteraction.domain.embeddings import A, TokenTrace
from lateinteraction.domain.errors import TruncatedTextWarning
from lateinteraction.domain.explanation import TokenTracer
from lateinteraction.domain.ports import Encoder
from lateinteraction.domain.text import Document, DocumentId, Query, QueryId
from lateinteraction.testing import strategies
from lateinteraction.testing.contracts.checks import Conversions, Embeddings, holds_for, is_close

_TEXTS = (
    "",
    "late interaction",
    "A token embedding for every token, and one score for every pair of texts.",
    "late",
    "  spaces  ",
    "naïve café, 東京 and Привет",
)
_UNICODE = (
    "NUL \x00 inside",
    "👩‍👩‍👧‍👦 family",
    "שלום עולם",
    "مرحبا بالعالم",
    "e\u0301 combining\u200b",
    "line\u2028separator\r\n",
    "\ufeff",
    "\U0001f600",
    "x" * 5000,
    "…",
)
_LONG = "interaction " * 9000  # 100 kB on one line
_texts = st.lists(strategies.texts(), min_size=1, max_size=4)


class EncoderContract(Conversions[A]):
    """Every `Encoder`. The checks call `make_encoder` often: keep what is slow to load."""

    tolerance: float = 1e-5
    """Between the embeddings of one text in two calls, absolute: they have length 1 where the recipe normalises."""

    def make_encoder(self) -> Encoder[A]:
        """The encoder, ready to use."""
        raise NotImplementedError

    def encode_queries(self, texts: Sequence[str], encoder: Encoder[A] | None = None) -> Embeddings:
        """Queries of these texts; texts that are too long are another check's business."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncatedTextWarning)
            return self.read((encoder or self.make_encoder()).encode_queries([Query(text) for text in texts]))

    def encode_documents(self, texts: Sequence[str], encoder: Encoder[A] | None = None) -> Embeddings:
        """Documents of these texts; texts that are too long are another check's business."""
        documents = [Document(DocumentId(f"d{row}"), text) for row, text in enumerate(texts)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncatedTextWarning)
            return self.read((encoder or self.make_encoder()).encode_documents(documents))

    def encode_both(self, texts: Sequence[str]) -> tuple[Embeddings, Embeddings]:
        """The texts as queries and as documents of one encoder."""
        encoder = self.make_encoder()
        return self.encode_queries(texts, encoder), self.encode_documents(texts, encoder)

    def test_there_is_an_item_for_every_text(self) -> None:
        for embeddings in self.encode_both(_TEXTS):
            assert len(embeddings) == len(_TEXTS)

    def test_no_texts_give_no_items(self) -> None:
        for none, some in zip(self.encode_both([]), self.encode_both(["late"]), strict=True):
            assert len(none) == 0
            assert none.tokens.shape == (0, some.dimension)

    def test_items_come_in_the_order_of_their_texts(self) -> None:
        backwards = _TEXTS[::-1]
        for there, back in zip(self.encode_both(_TEXTS), self.encode_both(backwards), strict=True):
            for first, last in zip(there, list(back)[::-1], strict=True):
                assert is_close(first, last, self.tolerance)
            assert not is_close(there[1], there[3], self.tolerance), "two texts have one encoding"

    @holds_for(_texts, st.integers(0, 3), slow=True)
    def test_an_item_does_not_depend_on_the_others(self, texts: list[str], which: int) -> None:
        item = which % len(texts)
        for together, alone in zip(self.encode_both(texts), self.encode_both(texts[item : item + 1]), strict=True):
            assert len(together) == len(texts)
            assert is_close(together[item], alone[0], self.tolerance)

    def test_a_short_text_does_not_depend_on_a_long_one(self) -> None:
        for together, alone in zip(self.encode_both(["late", _LONG]), self.encode_both(["late"]), strict=True):
            assert is_close(together[0], alone[0], self.tolerance)

    def test_one_text_has_one_encoding(self) -> None:
        for embeddings in self.encode_both(["late interaction", "late", "late interaction"]):
            assert is_close(embeddings[0], embeddings[2], self.tolerance)

    def test_only_the_text_is_encoded(self) -> None:
        encoder = self.make_encoder()
        documents = [Document(DocumentId("1"), "late"), Document(DocumentId("2"), "late", {"year": 2024})]
        queries = [Query("late"), Query("late", QueryId("q"))]
        for embeddings in (encoder.encode_documents(documents), encoder.encode_queries(queries)):
            first, second = self.read(embeddings)
            assert is_close(first, second, self.tolerance)

    def test_values_are_finite(self) -> None:
        for embeddings in (*self.encode_both(_TEXTS), *self.encode_both(_UNICODE)):
            assert np.all(np.isfinite(embeddings.tokens))

    def test_embeddings_have_length_one_where_the_recipe_normalises(self) -> None:
        if not self.make_encoder().recipe.normalise:
            return
        for embeddings in self.encode_both([*_TEXTS, *_UNICODE]):
            norms = np.linalg.norm(embeddings.tokens.astype(np.float64), axis=1)
            assert is_close(norms, np.ones(len(norms)), max(1e-4, self.tolerance))

    def test_the_dimension_is_that_of_the_recipe(self) -> None:
        dimension = self.make_encoder().recipe.dimension
        for embeddings in self.encode_both(["late"]):
            assert dimension in (None, embeddings.dimension)

    def test_any_unicode_can_be_encoded(self) -> None:
        for embeddings in self.encode_both(_UNICODE):
            assert len(embeddings) == len(_UNICODE)

    def test_lengths_stay_within_the_recipe(self) -> None:
        recipe = self.make_encoder().recipe
        queries, documents = self.encode_both([*_TEXTS, _LONG])
        assert queries.lengths.max() <= recipe.query_length
        assert documents.lengths.max() <= recipe.document_length
        assert queries.lengths[-1] >= queries.lengths[1]
        assert documents.lengths[-1] >= documents.lengths[1]

    def test_expansion_fills_every_query(self) -> None:
        recipe = self.make_encoder().recipe
        if recipe.expansion == "fixed" and recipe.keep_special_tokens:
            texts = [*_TEXTS, _LONG]
            expected = [recipe.query_length if text.strip() else 0 for text in texts]
            assert np.array_equal(self.encode_queries(texts).lengths, expected)

    def test_a_text_without_tokens_is_an_empty_item(self) -> None:
        for encode in (self.encode_queries, self.encode_documents):
            assert encode(["", "late", " \n"]).lengths[[0, 2]].sum() == 0, "markers alone are kept"

    def test_a_text_that_is_cut_is_said_to_be(self) -> None:
        encoder = self.make_encoder()
        with pytest.warns(TruncatedTextWarning):
            encoder.encode_queries([Query("late"), Query(_LONG)])
        with pytest.warns(TruncatedTextWarning):
            encoder.encode_documents([Document(DocumentId("long"), _LONG)])

    def test_a_text_that_fits_gives_no_warning(self) -> None:
        encoder = self.make_encoder()
        with warnings.catch_warnings():
            warnings.simplefilter("error", TruncatedTextWarning)
            encoder.encode_queries([Query("late")])
            encoder.encode_documents([Document(DocumentId("short"), "late interaction")])

    def test_queries_and_documents_differ_where_their_recipes_do(self) -> None:
        recipe = self.make_encoder().recipe
        query, document = self.encode_both(["late interaction"])
        if (recipe.query_prefix, recipe.query_prompt) != (recipe.document_prefix, recipe.document_prompt):
            assert not is_close(query[0], document[0], self.tolerance)

    def test_the_skiplist_spares_queries(self) -> None:
        recipe = self.make_encoder().recipe
        text = " ".join(recipe.skiplist[:4])
        with_skipped, without = (self.encode_documents([given]).lengths[0] for given in (f"late {text}", "late"))
        assert with_skipped == without, "a skipped word has an embedding in a document"
        if recipe.skiplist and recipe.expansion == "none":
            with_skipped, without = (self.encode_queries([given]).lengths[0] for given in (f"late {text}", "late"))
            assert with_skipped > without, "a skipped word has no embedding in a query"


class TracingEncoderContract(EncoderContract[A]):
    """An `Encoder` that is a `TokenTracer` too."""

    def tracer(self) -> TokenTracer:
        """The encoder again, as a tracer."""
        raise NotImplementedError

    def trace_both(self, texts: Sequence[str]) -> tuple[TokenTrace, TokenTrace]:
        """The traces of these texts as queries and as documents."""
        documents = [Document(DocumentId(f"d{row}"), text) for row, text in enumerate(texts)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncatedTextWarning)
            return self.tracer().trace_queries([Query(text) for text in texts]), self.tracer().trace_documents(
                documents
            )

    @holds_for(_texts, slow=True)
    def test_a_trace_is_aligned_with_the_embeddings(self, texts: list[str]) -> None:
        for embeddings, trace in zip(self.encode_both(texts), self.trace_both(texts), strict=True):
            assert np.array_equal(embeddings.offsets, trace.offsets)

    def test_long_texts_are_traced_as_they_are_cut(self) -> None:
        for embeddings, trace in zip(self.encode_both(["late", _LONG]), self.trace_both(["late", _LONG]), strict=True):
            assert np.array_equal(embeddings.offsets, trace.offsets)

    def test_no_texts_have_no_trace(self) -> None:
        assert [len(trace) for trace in self.trace_both([])] == [0, 0]

    @holds_for(_texts, slow=True)
    def test_spans_lie_within_their_texts(self, texts: list[str]) -> None:
        for trace in self.trace_both(texts):
            for item, text in enumerate(texts):
                own = slice(trace.offsets[item], trace.offsets[item + 1])
                assert np.all(trace.ends[own] <= len(text))

    def test_spans_are_the_characters_of_their_tokens(self) -> None:
        text = "late \N{EM DASH} interaction"
        words = {(0, 4), (5, 6), (7, 18)}
        for trace in self.trace_both([text]):
            spans = [(int(start), int(end)) for start, end in zip(trace.starts, trace.ends, strict=True) if start < end]
            assert spans, "no token of the text has characters"
            inside = all(any(first <= start and end <= last for first, last in words) for start, end in spans)
            assert inside, f"spans {spans} cross the words of {text!r}"
            assert spans[0][0] == 0
            assert spans[-1][1] == len(text)

    def test_equal_tokens_have_equal_ids(self) -> None:
        for trace in self.trace_both(["late", "late interaction"]):
            short, long = (set(map(int, trace.span(item, item + 1).token_ids)) for item in (0, 1))
            assert short <= long
            assert long - short, "different tokens have one id"

    def test_a_trace_does_not_depend_on_the_others(self) -> None:
        for together, alone in zip(self.trace_both(["late", _LONG]), self.trace_both(["late"]), strict=True):
            first = together.span(0, 1)
            assert np.array_equal(first.token_ids, alone.token_ids)
            assert np.array_equal(first.starts, alone.starts)
            assert np.array_equal(first.ends, alone.ends)
