"""Segments: some documents with all that is known of them, as one file and what changed since it was written.

A segment is made of documents and their embeddings, or of what is left of other segments; it is never changed. Removals
and new metadata are files of their own, which stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.adapters.index import ids, metadata, postings, texts, tombstones, updates
from lateinteraction.adapters.index.analysis import Analyser
from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import Column, Rows, damaged, of_arrays, ranges, store
from lateinteraction.adapters.index.files import FileRecord, FileWriter
from lateinteraction.adapters.index.ids import HashedIds, Ids
from lateinteraction.adapters.index.lists import STARTS, Lists
from lateinteraction.adapters.index.manifests import SegmentRecord
from lateinteraction.adapters.index.metadata import MetadataColumns
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.index.postings import Postings
from lateinteraction.adapters.index.texts import Texts
from lateinteraction.adapters.index.updates import MetadataView, Updates
from lateinteraction.domain.embeddings import Offsets, offsets_of
from lateinteraction.domain.text import Document, DocumentId

if TYPE_CHECKING:
    from lateinteraction.adapters.index.codebook import Codebook
    from lateinteraction.adapters.index.payloads import Payload

Kind = Literal["vectors", "int8", "residual"]
PAYLOADS: Mapping[Kind, tuple[str, ...]] = {
    "vectors": ("vectors.values",),
    "int8": ("int8.values", "int8.scales"),
    "residual": ("residual.codes", "residual.buckets", "residual.scales"),
}
"""The arrays of each kind that have a row for each token."""

REMOVED, UPDATED = "removed", "updated"
"""The deltas of a segment."""


@final
class Segment:
    """A segment of an open generation. Threads may use it at once.

    Ids and removals are read at opening; everything else when it is first asked for.

    Args:
        record: what the manifest says of it.
        arrays: of its file.
        deltas: arrays of the files that stand beside it.
        codebook: gives the codebook of the index; called where tokens are stored with one.
    """

    def __init__(
        self,
        record: SegmentRecord,
        arrays: Arrays,
        deltas: Mapping[str, Arrays],
        codebook: Callable[[], Codebook | None],
    ) -> None:
        self.record, self.arrays = record, arrays
        self._deltas, self._codebook = deltas, codebook
        self._lists: Lists | None = None
        self.ids = Ids(arrays)
        gone = deltas.get(REMOVED)
        self.live: NDArray[np.bool_] = (
            np.ones(record.documents, np.bool_) if gone is None else tombstones.live(gone, record.documents)
        )

    def __len__(self) -> int:
        """How many documents it has."""
        return int(np.count_nonzero(self.live))

    @once
    def rows(self) -> Rows:
        """The rows of its documents."""
        return np.flatnonzero(self.live)

    @once
    def texts(self) -> Texts:
        return Texts(self.arrays)

    @once
    def updates(self) -> Updates | None:
        """New metadata since it was written."""
        changed = self._deltas.get(UPDATED)
        return None if changed is None else Updates(changed)

    @once
    def metadata(self) -> MetadataView:
        """As of now, with its updates."""
        return MetadataView(MetadataColumns(self.arrays, self.record.documents), self.updates)

    @once
    def postings(self) -> Postings:
        return Postings(self.arrays, self.record.documents)

    @once
    def payload(self) -> Payload:
        """Its token embeddings. Imports torch."""
        from lateinteraction.adapters.index.payloads import read_payload

        return read_payload(self.arrays, self._codebook())

    def lists_for(self, codebook: Codebook | None) -> Lists | None:
        """Its inverted lists; None where it has none, or where the codebook has grown since they were made."""
        if codebook is None or STARTS not in self.arrays:
            return None
        if self._lists is None:
            self._lists = Lists(self.arrays, self.record.documents)
        return self._lists if self._lists.centroids == len(codebook) else None

    @once
    def offsets(self) -> Offsets:
        """Where the tokens of each row begin, int64 (N+1,)."""
        return self.arrays.whole("tokens.offsets")

    @property
    def token_bytes(self) -> int:
        """What its token embeddings take."""
        return sum(self.arrays.lazily(name).nbytes for name in PAYLOADS[self.kind])

    @property
    def kind(self) -> Kind:
        """How its token embeddings are stored.

        Raises:
            CorruptIndex: in no way that is known.
        """
        for kind in PAYLOADS:
            if kind == self.record.kind:
                return kind
        raise damaged(f"segment {self.record.number}", f"a payload of kind {self.record.kind!r}", f"{list(PAYLOADS)}")

    def rows_of(self, asked: HashedIds) -> Rows:
        """The row of each id; −1 where it is no document of this segment."""
        rows = self.ids.find(asked)
        return np.where((rows >= 0) & self.live[rows], rows, -1)

    def documents(self, rows: Rows) -> list[Document]:
        """The documents of these rows."""
        columns = zip(self.ids.at(rows), self.texts.at(rows), self.metadata.at(rows), strict=True)
        return [Document(DocumentId(identifier), text, known) for identifier, text, known in columns]


@frozen(eq=False)
class Kept:
    """What is left of a segment."""

    segment: Segment
    rows: Rows

    @property
    def lengths(self) -> Offsets:
        """Tokens of each document."""
        return np.diff(self.segment.offsets)[self.rows]

    def tokens(self, name: str) -> NDArray[Any]:
        """The rows of an array with a row for each token, those of these documents one after another."""
        starts = self.segment.offsets[:-1][self.rows]
        arrays = self.segment.arrays
        arrays.check(name, starts, starts + self.lengths)
        return arrays.lazily(name)[ranges(starts, self.lengths)]


def built(
    documents: Sequence[Document], lengths: Offsets, tokens: Mapping[str, NDArray[Any]], analyser: Analyser
) -> dict[str, NDArray[Any]]:
    """All arrays of a new segment.

    Args:
        documents: N of them.
        lengths: tokens of each, int64 (N,).
        tokens: the arrays of a payload.
        analyser: what makes terms of texts.
    """
    return {
        **ids.build(document.id for document in documents),
        **texts.build(document.text for document in documents),
        **metadata.build(document.metadata for document in documents),
        **postings.build(analyser.terms(document.text) for document in documents),
        "tokens.offsets": offsets_of(lengths),
        **tokens,
    }


def merged(parts: Sequence[Kept]) -> Iterator[Column]:
    """What the file of a segment holds besides a payload that takes the place of others: part after part.

    Args:
        parts: at least one.
    """
    yield from ids.merged([(part.segment.ids, part.rows) for part in parts])
    yield from texts.merged([(part.segment.texts, part.rows) for part in parts])
    yield from updates.merged([(part.segment.metadata, part.rows) for part in parts])
    yield from postings.merged([(part.segment.postings, part.rows) for part in parts])
    yield from of_arrays({"tokens.offsets": offsets_of(np.concatenate([part.lengths for part in parts]))})


def write(file: FileWriter, columns: Iterable[Column], arrays: Mapping[str, NDArray[Any]]) -> FileRecord:
    """Fill a file with columns as they come and with whole arrays, and close it."""
    store(file, columns)
    for name, array in arrays.items():
        file.add(name, array)
    return file.close()
