"""Queries and documents: what they refuse, and that nobody changes them afterwards."""

from __future__ import annotations

import math
import pickle
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.errors import DuplicateDocument, InvalidIdentifier, InvalidText, shown
from lateinteraction.domain.text import Document, DocumentId, Query, QueryId, check_distinct
from lateinteraction.testing.strategies import documents, metadata, queries, texts

NO_TEXTS = [None, 1, 1.5, True, b"bytes", ["text"], {"text": 1}, object()]
LONE_SURROGATES = ["\ud800", "text \udfff", "日本\udc80"]


@pytest.mark.parametrize("text", NO_TEXTS)
def test_a_text_is_a_str(text: Any) -> None:
    with pytest.raises(InvalidText, match=f"text is {shown(text)}"):
        Query(text)
    with pytest.raises(InvalidText, match=f"text is {shown(text)}"):
        Document(DocumentId("1"), text)


@pytest.mark.parametrize("text", LONE_SURROGATES)
def test_a_text_can_be_written_as_utf8(text: str) -> None:
    place = next(place for place, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    for make in (
        lambda: Query(text),
        lambda: Document("1", text),
        lambda: Document(text, "x"),
        lambda: Query("x", text),
    ):
        with pytest.raises(InvalidText, match=f"lone surrogate at character {place}"):
            make()


@pytest.mark.parametrize("identifier", ["", None, 1, b"1", ("1",), True])
def test_a_document_id_is_a_str_that_is_not_empty(identifier: Any) -> None:
    with pytest.raises(InvalidIdentifier, match="id is "):
        Document(identifier, "text")


@pytest.mark.parametrize("identifier", ["", 1, b"1", ("1",), True])
def test_a_query_id_is_a_str_that_is_not_empty_or_none(identifier: Any) -> None:
    with pytest.raises(InvalidIdentifier, match="id is "):
        Query("text", identifier)
    assert Query("text").id is None
    assert Query("text", None).id is None
    assert Query("text", QueryId("q")).id == "q"


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, [1], (1,), {"a": 1}, b"x", object(), np.float32(1), np.int64(1), "\ud800"]
)
def test_metadata_holds_json_scalars(value: Any) -> None:
    with pytest.raises(InvalidText, match="metadata 'key'"):
        Document("1", "text", {"key": value})


@pytest.mark.parametrize("key", [1, None, b"key", ("a",), "\udfff"])
def test_metadata_keys_are_text(key: Any) -> None:
    with pytest.raises(InvalidText, match="metadata key"):
        Document("1", "text", {key: 1})


def test_every_json_scalar_is_metadata() -> None:
    given_ = {"": "", "é": "日", "whole": 3, "real": 0.5, "true": True, "null": None, "large": 2**70}
    assert dict(Document("1", "text", given_).metadata) == given_
    assert dict(Document("1", "text").metadata) == {}


@given(texts())
def test_every_text_is_kept_as_it_is(text: str) -> None:
    assert Query(text).text == text
    assert Document("1", text).text == text


def test_a_document_cannot_be_changed() -> None:
    given_ = {"year": 1998}
    document = Document("1", "text", given_)
    given_["year"] = 2024
    assert document.metadata["year"] == 1998
    with pytest.raises(TypeError):
        document.metadata["year"] = 2024  # type: ignore[index]
    for attribute in ("id", "text", "metadata", "new"):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(document, attribute, "x")
    for attribute in ("id", "text", "new"):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(Query("text"), attribute, "x")


@given(documents(), metadata())
def test_documents_are_equal_when_id_text_and_metadata_are(document: Document, other: Any) -> None:
    again = Document(document.id, document.text, dict(document.metadata))
    assert again == document
    assert hash(again) == hash(document)
    changed = Document(document.id, document.text, other)
    assert (changed == document) is (dict(other) == dict(document.metadata))
    assert hash(changed) == hash(document)
    assert Document(document.id + "x", document.text, document.metadata) != document
    assert Document(document.id, document.text + "x", document.metadata) != document


@given(queries())
def test_queries_are_equal_when_text_and_id_are(query: Query) -> None:
    assert Query(query.text, query.id) == query
    assert hash(Query(query.text, query.id)) == hash(query)
    assert Query(query.text + "x", query.id) != query


@given(documents(), queries())
def test_documents_and_queries_survive_pickling(document: Document, query: Query) -> None:
    assert pickle.loads(pickle.dumps(query)) == query
    again = pickle.loads(pickle.dumps(document))
    assert again == document
    assert list(map(type, again.metadata.values())) == list(map(type, document.metadata.values()))
    with pytest.raises(TypeError):
        again.metadata["key"] = 1


@given(st.lists(st.sampled_from("abcde")))
def test_distinct_ids_are_those_of_which_no_two_are_equal(ids: list[str]) -> None:
    if len(set(ids)) == len(ids):
        check_distinct(iter(ids))
    else:
        with pytest.raises(DuplicateDocument, match="given twice"):
            check_distinct(iter(ids))


def test_the_first_id_that_comes_again_is_named() -> None:
    with pytest.raises(DuplicateDocument, match="id 'b' is given twice"):
        check_distinct(["a", "b", "b", "a"])
