"""Manifests: what one generation is made of, as a small file that says the same for ever.

A manifest is opaque to content: it names segments, their files and settings, and leaves their meaning to the index.
As a file it is one line of canonical JSON and one line with the CRC-32 of the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import chain
from types import MappingProxyType
from typing import Any, NoReturn, cast
from zlib import crc32

from attrs import field, frozen

from lateinteraction.adapters.index.files import FileRecord
from lateinteraction.domain.errors import CorruptIndex, IndexMismatch, shown

FORMAT = 1
PARTS = 100
"""Files that may share a number."""
_LONGEST = 1 << 26
"""Bytes: a manifest of a thousand segments has some 300 KiB."""
_MANIFEST = re.compile(r"g-([0-9]{16})")
_FILE = re.compile(r"s-([0-9]{16})-([0-9]{2})")
_DIGEST = re.compile(r"[0-9a-f]{32}")


def _read_only(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(given))


def _json(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return _read_only(json.loads(json.dumps(dict(given), allow_nan=False)))


@frozen
class SegmentRecord:
    """What a manifest says of a segment.

    Attributes:
        number: what it is known by, for ever.
        documents: how many were written, with those that are removed since.
        tokens: likewise.
        kind: how its embeddings are stored.
        files: its own, which never change.
        deltas: what is different since it was written, by name; each stands for all earlier ones of its name.
    """

    number: int
    documents: int
    tokens: int
    kind: str
    files: tuple[FileRecord, ...] = field(converter=tuple)
    deltas: Mapping[str, FileRecord] = field(factory=dict, converter=_read_only)

    def records(self) -> Iterator[FileRecord]:
        """All its files."""
        return chain(self.files, self.deltas.values())


@frozen
class Manifest:
    """What one generation is made of.

    Attributes:
        generation: 1 and up.
        counter: the first number that no data file has, or ever had.
        settings: JSON of the index: dimension, codec, fingerprint. `ValueError` or `TypeError` where it is none.
        segments: in the order of their documents.
        shared: files that all segments use, by name.
        note: for people; what `repair` had to give up.
    """

    generation: int
    counter: int
    settings: Mapping[str, Any] = field(converter=_json)
    segments: tuple[SegmentRecord, ...] = field(default=(), converter=tuple)
    shared: Mapping[str, FileRecord] = field(factory=dict, converter=_read_only)
    note: str = ""

    def records(self) -> Iterator[FileRecord]:
        """All files, those of segments first."""
        return chain(chain.from_iterable(segment.records() for segment in self.segments), self.shared.values())


def manifest_name(generation: int) -> str:
    """The file of a generation's manifest."""
    return f"g-{generation:016d}"


def file_name(number: int, part: int) -> str:
    """A data file."""
    return f"s-{number:016d}-{part:02d}"


def generation_of(name: str) -> int | None:
    """The generation whose manifest this is; None where it is none."""
    found = _MANIFEST.fullmatch(name)
    return None if found is None else int(found[1])


def number_of(name: str) -> int | None:
    """The number of a data file; None where it is none."""
    found = _FILE.fullmatch(name)
    return None if found is None else int(found[1])


def digest_of(data: bytes) -> bytes:
    """16 bytes by which the log knows a manifest: BLAKE2b of the whole file."""
    return blake2b(data, digest_size=16).digest()


def encode(manifest: Manifest) -> bytes:
    """The bytes of its file: equal manifests have equal bytes."""
    content = {
        "format": FORMAT,
        "generation": manifest.generation,
        "counter": manifest.counter,
        "settings": dict(manifest.settings),
        "segments": list(map(_segment_json, manifest.segments)),
        "shared": {name: _record_json(record) for name, record in manifest.shared.items()},
        "note": manifest.note,
    }
    body = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b"%b\n%08x\n" % (body, crc32(body))


def decode(data: bytes, generation: int) -> Manifest:
    """The manifest of this generation.

    Raises:
        CorruptIndex: these are not the bytes that `encode` gives for one.
        IndexMismatch: a newer version of this library wrote it.
    """
    body, checksum = data[:-10], data[-10:]
    if len(data) > _LONGEST or checksum != b"\n%08x\n" % crc32(body):
        _corrupt(generation, f"{len(data)} bytes whose checksum at offset {max(len(data) - 10, 0)} is wrong")
    content = _parsed(body, generation)
    if content.get("format") != FORMAT:
        _refuse_format(content.get("format"), generation)
    try:
        manifest = _structured(content)
        canonical = encode(manifest) == data
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _corrupt(generation, f"no manifest ({type(error).__name__})", error)
    if not canonical or manifest.generation != generation:
        _corrupt(generation, f"a manifest of generation {manifest.generation}, or one that this library did not write")
    return manifest


def _parsed(body: bytes, generation: int) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        _corrupt(generation, f"no JSON ({type(error).__name__})", error)
    if not isinstance(content, dict):
        _corrupt(generation, "no JSON object")
    return cast(dict[str, Any], content)


def _refuse_format(found: object, generation: int) -> NoReturn:
    if type(found) is not int or found < FORMAT:
        _corrupt(generation, f"a manifest of format {shown(found)}")
    raise IndexMismatch(
        f"{manifest_name(generation)} of format {found}",
        f"format {FORMAT} or older",
        "Update this library, or read the index with the version that wrote it.",
    )


def _segment_json(segment: SegmentRecord) -> dict[str, Any]:
    return {
        "number": segment.number,
        "documents": segment.documents,
        "tokens": segment.tokens,
        "kind": segment.kind,
        "files": list(map(_record_json, segment.files)),
        "deltas": {name: _record_json(record) for name, record in segment.deltas.items()},
    }


def _record_json(record: FileRecord) -> dict[str, Any]:
    return {"name": record.name, "length": record.length, "digest": record.digest}


def _structured(content: dict[str, Any]) -> Manifest:
    return Manifest(
        generation=_count(content["generation"]),
        counter=_count(content["counter"]),
        settings=content["settings"],
        segments=tuple(map(_segment, content["segments"])),
        shared=_by_name(content["shared"]),
        note=_text(content["note"]),
    )


def _segment(content: dict[str, Any]) -> SegmentRecord:
    return SegmentRecord(
        number=_count(content["number"]),
        documents=_count(content["documents"]),
        tokens=_count(content["tokens"]),
        kind=_text(content["kind"]),
        files=tuple(map(_record, content["files"])),
        deltas=_by_name(content["deltas"]),
    )


def _by_name(content: dict[str, Any]) -> dict[str, FileRecord]:
    return {_text(name): _record(record) for name, record in content.items()}


def _record(content: dict[str, Any]) -> FileRecord:
    name, digest = _text(content["name"]), _text(content["digest"])
    if number_of(name) is None or _DIGEST.fullmatch(digest) is None:
        raise ValueError(name)
    return FileRecord(name, _count(content["length"]), digest)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(value)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _corrupt(generation: int, found: str, cause: Exception | None = None) -> NoReturn:
    raise CorruptIndex(
        f"{manifest_name(generation)} holds {found}",
        "the manifest that was written",
        "Restore the folder from a copy, or see what `repair` can save.",
    ) from cause
