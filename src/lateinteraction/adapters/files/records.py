"""JSON lines, and plain lists of texts, to documents: one line, one document."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import NoReturn, TypeGuard

from lateinteraction.domain.errors import DuplicateDocument, InvalidText, UnreadableFile
from lateinteraction.domain.text import Document, DocumentId, JsonScalar, check_distinct

_TEXTS = ("text", "contents")
_IDS = ("id", "_id")


def documents_of_lines(text: str, source: str) -> tuple[Document, ...]:
    """The documents of a list: JSON objects where the first line that is not blank begins with `{`, else plain texts.

    Plain texts, and objects without an id, are called by their line number. Blank lines are passed over.

    Args:
        text: the whole list.
        source: what errors call the place that it comes from.

    Raises:
        UnreadableFile: a line that is no record, or ids that occur twice.
    """
    if text.lstrip().startswith("{"):
        documents = tuple(records_of(text, source, prefix=""))
    else:
        numbered = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
        documents = tuple(
            Document(DocumentId(str(number)), line, {"line": number}) for number, line in numbered if line
        )
    try:
        check_distinct(document.id for document in documents)
    except DuplicateDocument as error:
        raise UnreadableFile(f"{source}: {error.given}", error.expected, error.remedy) from error
    return documents


def records_of(text: str, source: str, *, prefix: str) -> Iterator[Document]:
    """A document for each JSON object of a text with one object a line.

    `text` or `contents` is the text, after `title` and a line end where there is one; `id` or `_id` the id, else
    prefix + line number. Other scalar fields become metadata, lists and objects do not. `line`, counted from 1, is the
    record's own place and wins over a field of that name.

    Raises:
        UnreadableFile: a line that is no such object, named `source:line`.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{source}:{number}"
            yield _document(_object(line, place), place, f"{prefix}{number}", number)


def _object(line: str, place: str) -> dict[str, object]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        fields = json.loads(line, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _bad(place, f"no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _bad(place, f"a JSON {type(fields).__name__}")
    return fields


def _document(fields: dict[str, object], place: str, default_id: str, number: int) -> Document:
    text = next((name for name in _TEXTS if name in fields), None)
    identifier = next((name for name in _IDS if fields.get(name) is not None), None)
    if text is None:
        raise _bad(place, f"an object with the fields {sorted(fields)!r:.80}")
    used = {text, identifier, "title"}
    others = {name: value for name, value in fields.items() if name not in used and _is_scalar(value)}
    try:
        return Document(
            DocumentId(default_id if identifier is None else _identifier(fields[identifier], place)),
            _titled(fields.get("title"), fields[text], place),
            {**others, "line": number},
        )
    except InvalidText as error:
        raise _bad(place, f"an object in which {error.given}") from error


def _titled(title: object, text: object, place: str) -> str:
    if not isinstance(text, str) or not isinstance(title, str | None):
        raise _bad(place, f"a text that is a {type(text).__name__} and a title that is a {type(title).__name__}")
    return f"{title}\n{text}" if title and text else title or text


def _identifier(value: object, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise _bad(place, f"an id that is {value!r:.80}")
    return value


def _is_scalar(value: object) -> TypeGuard[JsonScalar]:
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _bad(place: str, given: str) -> UnreadableFile:
    return UnreadableFile(
        f"{place} is {given}",
        'one object a line, such as {"id": "7", "text": "…"}, with text or contents and perhaps a title',
        "Repair or remove that line.",
    )
