"""Paths to documents: folders walked, files decoded, everything that was left out counted with its reason.

A file that a person names must be readable, or the call fails. A folder may hold anything: what is no text is
skipped and listed.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from attrs import field, frozen

from lateinteraction.adapters.files.records import documents_of_lines, records_of
from lateinteraction.adapters.files.splitting import (
    Piece,
    split_markdown,
    split_paragraphs,
    split_python,
    split_source,
)
from lateinteraction.domain.errors import UnreadableFile
from lateinteraction.domain.text import Document, DocumentId, JsonScalar

LARGEST_FILE = 50_000_000
"""Bytes. A larger file is refused: at some hundred documents a second it would take hours to encode."""
LARGEST_IN_FOLDER = 1_000_000
"""Bytes. A larger file of a folder is skipped: it is data more often than text, and can be given by name."""

_GENERATED = frozenset({"__pycache__", "node_modules"})
_PYTHON = frozenset({".py", ".pyi", ".pyw"})
_MARKDOWN = frozenset({".md", ".markdown", ".mdx", ".qmd"})
_RECORDS = frozenset({".jsonl", ".ndjson"})
# fmt: off
_SOURCE = frozenset({
    ".c", ".cc", ".cfg", ".clj", ".cpp", ".cs", ".css", ".cu", ".dart", ".ex", ".exs", ".go", ".graphql", ".h",
    ".hpp", ".hs", ".ini", ".java", ".jl", ".js", ".json", ".jsx", ".kt", ".lua", ".m", ".mjs", ".ml", ".mm",
    ".nix", ".php", ".pl", ".proto", ".ps1", ".r", ".rb", ".rs", ".scala", ".scss", ".sh", ".sql", ".swift", ".tf",
    ".toml", ".ts", ".tsx", ".vim", ".vue", ".yaml", ".yml", ".zig",
})
# fmt: on


@frozen
class Skipped:
    """A file or folder that was not read, and why."""

    path: str
    reason: str


@frozen
class Passages:
    """What files gave: their documents in the order of the paths, and what was left out.

    Args:
        files: how many files were read.
        skipped: what was met and not read.
    """

    documents: tuple[Document, ...] = field(converter=tuple)
    files: int
    skipped: tuple[Skipped, ...] = field(default=(), converter=tuple)

    @property
    def skipped_by_reason(self) -> Mapping[str, int]:
        """How many were skipped for each reason, the most frequent first."""
        return dict(Counter(one.reason for one in self.skipped).most_common())


def read_passages(paths: Sequence[str | Path]) -> Passages:
    """Read files and folders into documents with their place.

    Metadata: `path` as given, `line` and `last_line` counted from 1, `name` (dotted) for Python definitions, `column`
    (from 1) where a document is a part of one long line; other documents are whole lines. Ids are `path:line`, with
    `:column` where there is one; JSON-lines records keep their own. Line ends are read as "\\n", a byte order mark is
    dropped. Folders are walked in order of name, links to folders are not followed, no file is read twice.

    Raises:
        UnreadableFile: a path that is absent, larger than `LARGEST_FILE`, binary, not UTF-8, or a JSON-lines file with
            a bad line or with an id that was met before.

    Warns:
        UserWarning: once, when Python files do not parse; they are split at blank lines.
    """
    reader = _Reader()
    for path in paths:
        if not str(path) or "\0" in str(path):
            raise UnreadableFile(
                f"path {str(path)!r:.80}", "the path of a file or folder", "'.' is the current folder."
            )
        reader.read(Path(path))
    if reader.unparsed:
        warnings.warn(
            f"{len(reader.unparsed)} Python file(s) do not parse and were split at blank lines instead: "
            f"{reader.unparsed[0]}",
            UserWarning,
            stacklevel=2,
        )
    return Passages(reader.documents, reader.files, reader.skipped)


def read_list(source: Path | BinaryIO) -> tuple[Document, ...]:
    """The documents of a list, one a line, from a file or from an open binary stream such as standard input.

    Lines are read as `documents_of_lines` says.

    Raises:
        UnreadableFile: as for `read_passages`.
    """
    try:
        if isinstance(source, Path):
            return documents_of_lines(_text_of(source, LARGEST_FILE), _shown(source))
        content = source.read(LARGEST_FILE + 1)
        return documents_of_lines(_decoded(Path("standard input"), content, LARGEST_FILE), "standard input")
    except _Unfit as unfit:
        raise unfit.error from unfit.__cause__


class _Unfit(Exception):
    """A file that cannot be read: in a folder a reason to skip it, by itself an error."""

    def __init__(self, reason: str, error: UnreadableFile) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


def _unfit(path: Path, reason: str, remedy: str) -> _Unfit:
    return _Unfit(reason, UnreadableFile(f"{_shown(path)}: {reason}", "a readable file of UTF-8 text", remedy))


class _Reader:
    """Collects over all paths of one call."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.skipped: list[Skipped] = []
        self.unparsed: list[str] = []
        self.files = 0
        self._read: set[str] = set()
        self._ids: set[DocumentId] = set()

    def read(self, path: Path) -> None:
        """One path as a person gave it."""
        if os.path.isdir(path):
            for found in self._walk(path):
                try:
                    self._read_file(found, LARGEST_IN_FOLDER)
                except _Unfit as unfit:
                    self._skip(found, unfit.reason)
        else:
            try:
                self._read_file(path, LARGEST_FILE)
            except _Unfit as unfit:
                raise unfit.error from unfit.__cause__

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(_shown(path), reason))

    def _walk(self, top: Path) -> Iterator[Path]:
        """The files below a folder, in order of name. No recursion: folders can be nested deeper than calls."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                names = sorted(os.listdir(folder))
            except OSError as error:
                if folder == top:
                    raise _unopened(folder, error) from error
                self._skip(folder, _reason(error))
                continue
            entered: list[Path] = []
            for path in (folder / name for name in names):
                reason = _why_left_out(path)
                if reason is not None:
                    self._skip(path, reason)
                elif os.path.isdir(path):
                    entered.append(path)
                else:
                    yield path
            waiting.extend(reversed(entered))

    def _read_file(self, path: Path, largest: int) -> None:
        real = os.path.realpath(path)
        if real in self._read:
            self._skip(path, "read already")
            return
        documents = self._documents_of(path, _text_of(path, largest))
        own: set[DocumentId] = set()
        for document in documents:
            if document.id in own or document.id in self._ids:
                raise _unfit(path, "repeats an id", f"{document.id!r:.80} was met before; give each record its own.")
            own.add(document.id)
        self._read.add(real)
        self._ids |= own
        self.documents.extend(documents)
        self.files += bool(documents)
        if not documents:
            self._skip(path, "no text")

    def _documents_of(self, path: Path, text: str) -> list[Document]:
        shown = _shown(path)
        if path.suffix.lower() in _RECORDS:
            try:
                return [_record(document, shown) for document in records_of(text, shown, prefix=f"{shown}:")]
            except UnreadableFile as error:
                raise _Unfit("JSON lines with a bad line", error) from error
        lines = text.split("\n")
        return [_document(piece, lines, shown) for piece in self._pieces_of(path, text)]

    def _pieces_of(self, path: Path, text: str) -> list[Piece]:
        try:
            return _splitter(path.suffix.lower())(text)
        except SyntaxError as error:
            self.unparsed.append(f"{_shown(path)}:{error.lineno or 1} ({error.msg})")
            return split_paragraphs(text)


def _why_left_out(path: Path) -> str | None:
    """The reason to skip what a walk has met, None for files and folders to look at."""
    if path.name.startswith("."):
        return "hidden"
    if not os.path.isdir(path):
        return None
    if path.is_symlink():
        return "link to a folder"
    if path.name in _GENERATED:
        return f"{path.name} folder"
    return "virtual environment" if os.path.exists(path / "pyvenv.cfg") else None


def _text_of(path: Path, largest: int) -> str:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for somebody to write
            raise _unfit(path, "not a regular file", "Name a file or a folder.")
        with path.open("rb") as file:
            return _decoded(path, file.read(largest + 1), largest)
    except OSError as error:
        raise _Unfit(_reason(error), _unopened(path, error)) from error


def _decoded(path: Path, content: bytes, largest: int) -> str:
    if len(content) > largest:
        raise _unfit(path, f"larger than {largest // 1_000_000} MB", "Split it, or name the part that matters.")
    if b"\0" in content:
        raise _unfit(path, "binary", "Give its text; UTF-16 must be converted to UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unfit(path, "not UTF-8", f"Convert it; byte {error.start:,} is the first that is wrong.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unopened(path: Path, error: OSError) -> UnreadableFile:
    return UnreadableFile(
        f"{_shown(path)}: {_reason(error)}", "a readable file or folder", "Check the path and its permissions."
    )


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _shown(path: Path) -> str:
    """A path as text that can be written; bytes of a name that are not UTF-8 are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _splitter(suffix: str) -> Callable[[str], list[Piece]]:
    if suffix in _PYTHON:
        return split_python
    if suffix in _MARKDOWN:
        return split_markdown
    return split_source if suffix in _SOURCE else split_paragraphs


def _document(piece: Piece, lines: Sequence[str], path: str) -> Document:
    metadata: dict[str, JsonScalar] = {"path": path, "line": piece.first + 1, "last_line": piece.last + 1}
    identifier = f"{path}:{piece.first + 1}"
    if piece.part is not None:
        metadata["column"] = piece.part[0] + 1
        identifier += f":{piece.part[0] + 1}"
    if piece.name is not None:
        metadata["name"] = piece.name
    return Document(DocumentId(identifier), piece.text_in(lines), metadata)


def _record(document: Document, path: str) -> Document:
    place = {"path": path, "last_line": document.metadata["line"]}
    return Document(document.id, document.text, {**document.metadata, **place})
