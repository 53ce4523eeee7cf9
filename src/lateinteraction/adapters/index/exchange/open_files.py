"""Exports: an index as files that any tool reads, and back again.

- `documents.jsonl`: a line for each document, {"id": …, "text": …, "metadata": {…}}, in UTF-8.
- `tokens.npy`: embeddings (T, D), float16 where the index stores or keeps them so, else float32 as its codes give them.
- `offsets.npy`: int64 (N+1,); document i has the tokens offsets[i] … offsets[i+1]−1.
- `manifest.json`: what is in these, with the SHA-256 of each and of itself without that.

What words are found by is made anew from the texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast, final

import numpy as np
from attrs import asdict
from numpy.typing import NDArray

from lateinteraction.adapters.index.exchange.foreign import read_array, read_object, reading, unreadable, whole_number
from lateinteraction.adapters.index.exchange.incoming import Batch, Incoming, batches_of
from lateinteraction.adapters.index.payloads import VECTORS, Payload
from lateinteraction.adapters.index.segments import Segment
from lateinteraction.adapters.index.settings import IndexOptions
from lateinteraction.adapters.index.snapshot import IndexSnapshot
from lateinteraction.adapters.neural.transfer import to_device, to_host
from lateinteraction.adapters.publication import published
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, check_offsets, offsets_of
from lateinteraction.domain.errors import (
    IndexMismatch,
    InvalidEmbeddings,
    InvalidIdentifier,
    InvalidOption,
    InvalidText,
    shown,
)
from lateinteraction.domain.ports import Progress
from lateinteraction.domain.text import Document, DocumentId

FORMAT, VERSION = "lateinteraction-export", 1
MANIFEST, DOCUMENTS, TOKENS, OFFSETS = "manifest.json", "documents.jsonl", "tokens.npy", "offsets.npy"

_PIECE = 1 << 20
_ROWS_AT_A_TIME = 1 << 16


def export(snapshot: IndexSnapshot, folder: Path, *, overwrite: bool = False, progress: Progress | None = None) -> int:
    """Write all documents of a state of an index; how many. The folder is there whole or not at all.

    Args:
        snapshot: of the index.
        folder: new or empty.
        overwrite: whether an export that is there is replaced.
        progress: told of the documents that are written.

    Raises:
        InvalidOption: a folder that holds something, or cannot be written to.
    """
    segments = [segment for segment in snapshot.segments if len(segment)]
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(each.offsets)[each.rows] for each in segments)])
    halves = bool(segments) and all(map(_in_halves, segments))
    shape = (int(lengths.sum()), snapshot.settings.dimension or 0)
    with published(folder, marks=(MANIFEST, DOCUMENTS, TOKENS), overwrite=overwrite) as draft:
        with (
            _Written(draft / DOCUMENTS) as documents,
            _Written(draft / TOKENS) as tokens,
            _Written(draft / OFFSETS) as offsets,
        ):
            tokens.write_header(shape, np.dtype("<f2" if halves else "<f4"))
            done = 0
            for segment, rows in _blocks(segments):
                documents.write(_lines_of(segment.documents(rows)))
                tokens.write_rows(to_host(_vectors_of(segment).decode(rows).tokens))
                done += len(rows)
                if progress is not None:
                    progress(done, len(lengths))
            offsets.write_header((len(lengths) + 1,), np.dtype("<i8"))
            offsets.write_rows(offsets_of(lengths))
        files = {written.path.name: written.described() for written in (documents, tokens, offsets)}
        (draft / MANIFEST).write_text(_sealed(_description(snapshot, len(lengths), shape, files)), encoding="utf-8")
    return len(lengths)


def is_export(folder: Path) -> bool:
    """Whether a manifest and documents are there."""
    return (folder / MANIFEST).is_file() and (folder / DOCUMENTS).is_file()


def read_export(folder: Path) -> Incoming:
    """The documents of an export; all its bytes are read and compared with their digests before this returns.

    Raises:
        UnreadableFile: a file that is missing, damaged, or does not fit the others.
        IndexMismatch: a later version of this library wrote it.
    """
    manifest = _unsealed(folder / MANIFEST)
    for name in (DOCUMENTS, TOKENS, OFFSETS):
        _check_digest(folder, name, manifest)
    count, dimension = (whole_number(folder / MANIFEST, manifest, name) for name in ("documents", "dimension"))
    tokens = read_array(folder / TOKENS, "f", 2)
    offsets = _offsets_of(folder / OFFSETS, count, len(tokens))
    if tokens.shape[1] != dimension:
        raise unreadable(folder / TOKENS, f"of {tokens.shape[1]} dimensions", f"{dimension}, as the manifest says")
    for first in range(0, len(tokens), _ROWS_AT_A_TIME):
        if not np.isfinite(tokens[first : first + _ROWS_AT_A_TIME]).all():
            raise unreadable(folder / TOKENS, "which holds NaN or infinity", "finite values")
    ids = [document.id for document in _documents(folder / DOCUMENTS)]
    if len(ids) != count:
        raise unreadable(folder / DOCUMENTS, f"of {len(ids)} documents", f"{count}, as the manifest says")

    def batches() -> Iterator[Batch]:
        documents = _documents(folder / DOCUMENTS)
        for rows in batches_of(np.diff(offsets)):
            own = offsets[rows.start : rows.stop + 1]
            values = tokens[int(own[0]) : int(own[-1])].astype(np.float32)
            embeddings = TokenEmbeddings(to_device(values, "cpu"), own - own[0])
            yield list(islice(documents, rows.stop - rows.start)), embeddings

    options, encoder = _made_with(folder / MANIFEST, manifest)
    return Incoming(str(folder), ids, dimension if count else None, batches, encoder, options)


def _blocks(segments: list[Segment]) -> Iterator[tuple[Segment, NDArray[np.int64]]]:
    """The documents of all segments, some rows at a time."""
    for segment in segments:
        rows = segment.rows
        for part in batches_of(np.diff(segment.offsets)[rows]):
            yield segment, rows[part]


def _vectors_of(segment: Segment) -> Payload:
    """The most exact that are stored: those that were kept, where any were."""
    return segment.payload if segment.kept is None else segment.kept


def _in_halves(segment: Segment) -> bool:
    return segment.kind == "vectors" if segment.kept_arrays is None else VECTORS in segment.kept_arrays


def _lines_of(documents: list[Document]) -> bytes:
    lines = (
        json.dumps({"id": each.id, "text": each.text, "metadata": dict(each.metadata)}, ensure_ascii=False)
        for each in documents
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _description(
    snapshot: IndexSnapshot, documents: int, shape: tuple[int, int], files: Mapping[str, Any]
) -> dict[str, Any]:
    settings = snapshot.settings
    return {
        "format": FORMAT,
        "version": VERSION,
        "documents": documents,
        "tokens": shape[0],
        "dimension": shape[1],
        "encoder": None if settings.encoder is None else dict(settings.encoder),
        "options": asdict(settings.options),
        "files": files,
    }


@final
class _Written:
    """A file that is written from its beginning to its end, and its digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb")
        self._digest = hashlib.sha256()
        self._dtype = np.dtype("u1")

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)

    def write_header(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """What a .npy file begins with."""
        self._dtype = dtype
        description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(cast("Any", self), description)

    def write_rows(self, rows: NDArray[Any]) -> None:
        """The next rows of the array."""
        self.write(np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data)

    def described(self) -> dict[str, object]:
        """Its length and digest, once it is closed."""
        return {"bytes": self.path.stat().st_size, "sha256": self._digest.hexdigest()}


def _sealed(description: Mapping[str, Any]) -> str:
    return json.dumps({**description, "sha256": _digest_of(description)}, ensure_ascii=False, indent=2) + "\n"


def _digest_of(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _unsealed(path: Path) -> dict[str, Any]:
    """The manifest, as it was written."""
    manifest = read_object(path)
    if manifest.get("format") != FORMAT:
        raise unreadable(path, f"of the format {shown(manifest.get('format'))}", FORMAT)
    version = whole_number(path, manifest, "version", 1)
    if version > VERSION:
        raise IndexMismatch(f"{path} of version {version}", f"{VERSION} at most", "Update this library.")
    digest = manifest.pop("sha256", None)
    if digest != _digest_of(manifest):
        raise unreadable(path, "whose digest is another", "the manifest as it was written")
    return manifest


def _check_digest(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    known = cast("dict[str, Any]", manifest.get("files") or {}).get(name)
    path, digest = folder / name, hashlib.sha256()
    with reading(path, "a file of the export"), path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    if not isinstance(known, dict) or cast("dict[str, Any]", known).get("sha256") != digest.hexdigest():
        raise unreadable(path, "whose digest is another than the manifest names", "the file as it was written")


def _offsets_of(path: Path, documents: int, tokens: int) -> Offsets:
    offsets = read_array(path, "i", 1).astype(np.int64)
    try:
        check_offsets(offsets, tokens)
    except InvalidEmbeddings as error:
        raise unreadable(path, f"which holds {error.given}", error.expected) from error
    if len(offsets) != documents + 1:
        raise unreadable(path, f"of {len(offsets) - 1} documents", f"{documents}, as the manifest says")
    return offsets


def _documents(path: Path) -> Iterator[Document]:
    """The documents of a file of lines."""
    with reading(path, "a document on each line"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _document(path, number, json.loads(line))


def _document(path: Path, number: int, fields: Any) -> Document:
    try:
        if set(fields) != {"id", "text", "metadata"}:
            raise unreadable(path, f"with other fields on line {number}", "id, text and metadata")
        return Document(DocumentId(fields["id"]), fields["text"], fields["metadata"])
    except (InvalidText, InvalidIdentifier, TypeError) as error:
        raise unreadable(path, f"with no document on line {number} ({error})", "id, text and metadata") from error


def _made_with(path: Path, manifest: Mapping[str, Any]) -> tuple[IndexOptions, Mapping[str, str] | None]:
    encoder = manifest.get("encoder")
    if encoder is not None and not isinstance(encoder, dict):
        raise unreadable(path, f"whose encoder is {shown(encoder)}", "a fingerprint or null")
    try:
        options = IndexOptions(**manifest.get("options", {}))
    except (InvalidOption, TypeError) as error:
        raise IndexMismatch(
            f"{path} with options of another kind ({str(error)[:120]})", "known options", "Update this library."
        ) from error
    return options, cast("Mapping[str, str] | None", encoder)
