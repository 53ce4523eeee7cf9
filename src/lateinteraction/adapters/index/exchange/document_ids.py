"""The ids that PyLate keeps beside its indexes: which document has which number.

They are pickles: one of all ids, or, in older folders, one of each id in a SQLite database. They are read only where a
person trusts the folder, and even then as plain values alone (see `pickles`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from lateinteraction.adapters.index.exchange.foreign import reading, unreadable
from lateinteraction.adapters.index.exchange.pickles import read_plain
from lateinteraction.domain.errors import InvalidIdentifier, InvalidText, UnreadableFile
from lateinteraction.domain.text import Document, DocumentId

PICKLE = "plaid_ids_to_documents_ids.pkl"
DATABASE = "plaid_ids_to_documents_ids.sqlite"
_EXPECTED = "the id of each number"
_IS_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'unnamed' AND sql NOT LIKE 'CREATE VIRTUAL%'"
"""Not a view, of which few bytes may be endless rows."""


def id_file(folder: Path) -> Path | None:
    """The file with the ids; None where a folder has none."""
    return next((folder / name for name in (PICKLE, DATABASE) if (folder / name).is_file()), None)


def read_ids(path: Path, *, trust_pickle: bool) -> Mapping[int, DocumentId]:
    """The ids by number.

    Args:
        path: what `id_file` found.
        trust_pickle: whether pickles may be read.

    Raises:
        UnreadableFile: they may not, or the file is damaged or holds anything but ids.
    """
    if not trust_pickle:
        raise UnreadableFile(
            f"{path}, ids in a pickle",
            "leave to read it",
            "Where you trust the folder pass trust_pickle=True (--trust-pickle); else import the folder of the codes"
            " alone: its documents are then called by their numbers.",
        )
    with reading(path, _EXPECTED):
        pairs = list(_stored_pairs(path) if path.suffix == ".sqlite" else _pickled_pairs(path))
    return {_number(path, number): _identifier(path, each) for number, each in pairs}


def _pickled_pairs(path: Path) -> Iterator[tuple[object, object]]:
    content = read_plain(path, path.read_bytes())
    if not isinstance(content, dict):
        raise unreadable(path, f"which holds a {type(content).__name__}", _EXPECTED)
    yield from cast("dict[object, object]", content).items()


def _stored_pairs(path: Path) -> Iterator[tuple[object, object]]:
    address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            if database.execute(_IS_TABLE).fetchone() is None:
                raise unreadable(path, "without the table of ids", _EXPECTED)
            rows: list[tuple[Any, Any]] = database.execute("SELECT key, value FROM unnamed").fetchall()
    except sqlite3.Error as error:
        raise unreadable(path, f"which is no such database ({error})", _EXPECTED) from error
    for key, value in rows:
        yield key, read_plain(path, bytes(value)) if isinstance(value, bytes) else value


def _number(path: Path, value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise unreadable(path, "with a number that is none", _EXPECTED)


def _identifier(path: Path, value: object) -> DocumentId:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    try:
        return Document(cast("DocumentId", text), "").id
    except (InvalidIdentifier, InvalidText) as error:
        raise unreadable(path, f"in which {error.given}", _EXPECTED) from error
