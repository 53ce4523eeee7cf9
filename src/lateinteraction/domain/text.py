"""Query and Document: what a person gives us, checked once.

Roles are types (law 7): nothing else in the library says whether a text is a query or a document.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NewType, cast

from attrs import Attribute, field, frozen

from lateinteraction.domain.errors import DuplicateDocument, InvalidIdentifier, InvalidOption, InvalidText, shown

QueryId = NewType("QueryId", str)
DocumentId = NewType("DocumentId", str)
JsonScalar = str | int | float | bool | None
Metadata = Mapping[str, JsonScalar]


def _check_utf8(text: object, role: str) -> None:
    if not isinstance(text, str):
        raise InvalidText(
            f"{role} is {shown(text)}",
            "a str",
            "Convert it to text first; numbers and bytes are not guessed at.",
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidText(
                f"{role} holds a lone surrogate at character {error.start}",
                "text that can be written as UTF-8",
                "Decode the source with the right encoding, or with errors='replace'.",
            ) from error


def _is_text(_: object, attribute: Attribute[Any], text: object) -> None:
    _check_utf8(text, attribute.name)


def _is_identifier(_: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidIdentifier(
            f"{attribute.name} is {shown(value)}", "a non-empty str", "Give every item an id such as '17' or 'doc-17'."
        )
    _check_utf8(value, attribute.name)


def _is_optional_identifier(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        _is_identifier(instance, attribute, value)


def _read_only(metadata: Any) -> Metadata:
    if not isinstance(metadata, Mapping):
        raise InvalidText(f"metadata as a {type(metadata).__name__}", "a mapping", "Leave it out where there is none.")
    return MappingProxyType(dict(cast("Metadata", metadata)))


def _is_metadata(_: object, __: Attribute[Any], metadata: Metadata) -> None:
    for key, value in metadata.items():
        _check_utf8(key, "metadata key")
        if isinstance(value, str):
            _check_utf8(value, f"metadata {key!r}")
        elif not (value is None or isinstance(value, (bool, int, float))) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise InvalidText(
                f"metadata {key!r} is {shown(value)}",
                "a str, a finite number, a bool or None",
                "Flatten lists and mappings into several keys.",
            )


@frozen
class Query:
    """A text to search with. The empty text is allowed and scores 0 when no token of it is kept."""

    text: str = field(validator=_is_text)
    id: QueryId | None = field(default=None, validator=_is_optional_identifier)


@frozen
class Document:
    """A text to be found, its id, and JSON scalars to filter by.

    The empty text is allowed: it scores −∞ when no token of it is kept, and can still be fetched by id.
    """

    id: DocumentId = field(validator=_is_identifier)
    text: str = field(validator=_is_text)
    metadata: Metadata = field(factory=dict, converter=_read_only, validator=_is_metadata, hash=False)

    def __reduce__(self) -> tuple[type[Document], tuple[DocumentId, str, dict[str, JsonScalar]]]:
        """Read-only mappings do not pickle; documents must, to reach worker processes."""
        return Document, (self.id, self.text, dict(self.metadata))


def check_documents(documents: Iterable[Document]) -> None:
    """Raise unless these are documents with distinct ids.

    Raises:
        InvalidText: something that is no `Document`.
        DuplicateDocument: an id twice.
    """
    given = list(documents)
    for item in given:
        if not isinstance(item, Document):
            raise InvalidText(f"{shown(item)} among the documents", "Document objects", "Wrap it: Document(id, text).")
    check_distinct(document.id for document in given)


def check_new(ids: Iterable[str], taken: Container[str]) -> None:
    """Raise `DuplicateDocument` when one of the ids is taken."""
    for identifier in ids:
        if identifier in taken:
            raise DuplicateDocument(
                f"document {identifier!r}, already in the index",
                "a new id",
                "Pass on_duplicate='skip' or 'replace'.",
            )


def check_distinct(ids: Iterable[str]) -> None:
    """Raise `DuplicateDocument` when an id occurs twice."""
    seen: set[str] = set()
    for identifier in ids:
        if identifier in seen:
            raise DuplicateDocument(
                f"id {identifier!r} is given twice in one call", "distinct ids", "Drop or rename one of the documents."
            )
        seen.add(identifier)


def check_ids(given: object, name: str) -> None:
    """Raise `InvalidOption` for a lone id, which would be taken for the ids of its characters."""
    if isinstance(given, str):
        raise InvalidOption(f"{name} = {given!r}", "a sequence of ids", f"Write [{given!r}].")
