"""What people type, as the domain means it: texts, ids, filters; and what they get back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import TypeVar, cast

from attrs import frozen

from lateinteraction.application.numbering import Numbers
from lateinteraction.domain.errors import InvalidIdentifier, InvalidText, shown
from lateinteraction.domain.filters import Filter, check_filter, filter_from_json
from lateinteraction.domain.ranking import Ranking, Score
from lateinteraction.domain.text import Document, DocumentId, Metadata, Query

T = TypeVar("T")
Where = Filter | Mapping[str, object]
Stream = Iterable[str] | Iterable[Document] | Mapping[str, str]
Documents = Sequence[str] | Sequence[Document] | Mapping[str, str]


@frozen
class Result:
    """One document that was found."""

    id: DocumentId
    score: Score
    text: str
    metadata: Metadata


def query_of(query: str | Query) -> Query:
    """A query as such."""
    return query if isinstance(query, Query) else Query(query)


def filter_of(where: Where) -> Filter:
    """A filter as such, or from its JSON form."""
    if isinstance(where, Mapping):
        return filter_from_json(where)
    check_filter(where)
    return where


def ids_of(given: Sequence[str], what: str) -> list[DocumentId]:
    """Ids, each of which is a str. Raises `InvalidIdentifier`."""
    for identifier in items_of(given, what):
        if not isinstance(cast("object", identifier), str):
            raise InvalidIdentifier(f"{shown(identifier)} among the {what}", "ids, which are str", "Convert it first.")
    return [DocumentId(identifier) for identifier in given]


def items_of(given: Sequence[T], what: str) -> Sequence[T]:
    """A lone str is a sequence of its characters; nobody means that."""
    if isinstance(given, (str, bytes)) or not isinstance(cast("object", given), Sequence):
        raise InvalidText(f"{what} as a {type(given).__name__}", "a list", "Put a single one into a list.")
    return given


def documents_of(documents: Documents, numbers: Numbers) -> list[Document]:
    """Documents as such; what has no id gets the next number that no other document has."""
    if isinstance(documents, Mapping):
        return [Document(DocumentId(identifier), text) for identifier, text in documents.items()]
    given = items_of(documents, "documents")
    named = {item.id for item in given if isinstance(item, Document)}
    free = iter(numbers.take(sum(not isinstance(item, Document) for item in given), named))
    return [item if isinstance(item, Document) else Document(next(free), item) for item in given]


def fresh_numbers() -> Numbers:
    """Numbers of a call that has nothing to do with others."""
    return Numbers(lambda ids: frozenset())


def drawn(documents: Stream) -> Iterator[Document]:
    """Documents one by one; a mapping holds texts by their ids. A lone text or document is no stream: `InvalidText`."""
    if isinstance(documents, (str, bytes, Document)) or not isinstance(cast("object", documents), Iterable):
        raise InvalidText(
            f"documents as a {type(documents).__name__}", "an iterable of documents", "Put a single one into a list."
        )
    if isinstance(documents, Mapping):
        texts = cast("Mapping[str, str]", documents)
        return (Document(DocumentId(identifier), text) for identifier, text in texts.items())
    numbers = map(str, count())
    return (item if isinstance(item, Document) else Document(DocumentId(next(numbers)), item) for item in documents)


def results_of(ranking: Ranking, documents: Sequence[Document]) -> list[Result]:
    """Hits with the documents that they mean."""
    by_id = {document.id: document for document in documents}
    return [Result(hit.document, hit.score, by_id[hit.document].text, by_id[hit.document].metadata) for hit in ranking]
