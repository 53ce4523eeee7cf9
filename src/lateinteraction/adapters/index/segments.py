"""Segments: some documents with all that is known of them, as one file and what changed since it was written.

A segment is made of documents and their embeddings, or of what is left of other segments; it is never changed. Removals
and new metadata are files of their own, which stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index import ids, metadata, postings, texts, tombstones
from lateinteraction.adapters.index.analysis import Analyser
from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import Rows, damaged
from lateinteraction.adapters.index.files import FileRecord
from lateinteraction.adapters.index.ids import HashedIds, Ids
from lateinteraction.adapters.index.lists import STARTS, Lists
from lateinteraction.adapters.index.manifests import SegmentRecord
from lateinteraction.adapters.index.metadata import MetadataColumns
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.index.postings import Postings
from lateinteraction.adapters.index.texts import Texts
from lateinteraction.adapters.index.updates import MetadataView, Updates
from lateinteraction.domain.embeddings import Offsets
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


KEPT = "kept"
"""The file of a segment with the vectors that were kept."""
KEPT_ARRAYS = ("vectors.values", "int8.values", "int8.scales")
"""Those that the file of kept vectors may hold."""


@final
class _Written:
    """What the files of a segment say, which is so for as long as the segment is there: read once, for all its states.

    Args:
        arrays: of its file.
        kept: of the file with the vectors that were kept.
        documents: that were written.
    """

    def __init__(self, arrays: Arrays, kept: Arrays | None, documents: int) -> None:
        self.arrays, self.kept_arrays, self.documents = arrays, kept, documents
        self.ids = Ids(arrays)
        self._payload: tuple[Codebook | None, Payload] | None = None

    @once
    def texts(self) -> Texts:
        return Texts(self.arrays)

    @once
    def metadata(self) -> MetadataColumns:
        return MetadataColumns(self.arrays, self.documents)

    @once
    def postings(self) -> Postings:
        return Postings(self.arrays, self.documents)

    @once
    def offsets(self) -> Offsets:
        return self.arrays.whole("tokens.offsets")

    @once
    def lists(self) -> Lists | None:
        return Lists(self.arrays, self.documents) if STARTS in self.arrays else None

    @once
    def kept(self) -> Payload | None:
        from lateinteraction.adapters.index.payloads import read_payload

        return None if self.kept_arrays is None else read_payload(self.kept_arrays)

    def payload(self, codebook: Codebook | None) -> Payload:
        """As this codebook reads it."""
        if self._payload is None or self._payload[0] is not codebook:  # two threads may both do it, to the same end
            from lateinteraction.adapters.index.payloads import read_payload

            self._payload = codebook, read_payload(self.arrays, codebook)
        return self._payload[1]


@final
class Segment:
    """A segment of an open generation. Threads may use it at once.

    Ids and removals are read at opening; everything else when it is first asked for.

    Args:
        record: what the manifest says of it.
        arrays: of its file.
        deltas: arrays of the files that stand beside it.
        codebook: gives the codebook of the index; called where tokens are stored with one.
        kept: arrays of the file with the vectors that were kept.
        before: an earlier state of the same segment, of which what was read already is taken over.
    """

    def __init__(
        self,
        record: SegmentRecord,
        arrays: Arrays,
        deltas: Mapping[str, Arrays],
        codebook: Callable[[], Codebook | None],
        kept: Arrays | None = None,
        before: Segment | None = None,
    ) -> None:
        self.record, self.arrays = record, arrays
        self._deltas, self._codebook = deltas, codebook
        same = before is not None and before.arrays is arrays and before.record.files == record.files
        self._written = before._written if before is not None and same else _Written(arrays, kept, record.documents)
        gone = deltas.get(REMOVED)
        self.live: NDArray[np.bool_] = (
            np.ones(record.documents, np.bool_) if gone is None else tombstones.live(gone, record.documents)
        )

    def __len__(self) -> int:
        """How many documents it has."""
        return self._documents

    @once
    def _documents(self) -> int:
        return int(np.count_nonzero(self.live))

    @once
    def tokens(self) -> int:
        """How many its documents have."""
        if len(self) == self.record.documents:
            return self.record.tokens
        return int(np.diff(self.offsets)[self.live].sum())

    @once
    def rows(self) -> Rows:
        """The rows of its documents."""
        return np.flatnonzero(self.live)

    @property
    def ids(self) -> Ids:
        return self._written.ids

    @property
    def texts(self) -> Texts:
        return self._written.texts

    @once
    def updates(self) -> Updates | None:
        """New metadata since it was written."""
        changed = self._deltas.get(UPDATED)
        return None if changed is None else Updates(changed)

    @once
    def metadata(self) -> MetadataView:
        """As of now, with its updates."""
        return self.metadata_with(self.updates)

    def metadata_with(self, changed: Updates | None) -> MetadataView:
        """What it was written with, and these updates."""
        return MetadataView(self._written.metadata, changed)

    @property
    def postings(self) -> Postings:
        return self._written.postings

    @once
    def payload(self) -> Payload:
        """Its token embeddings. Imports torch."""
        return self._written.payload(self._codebook())

    @property
    def kept(self) -> Payload | None:
        """The vectors that its residuals were made of; None where none were kept. Imports torch."""
        return self._written.kept

    @property
    def kept_arrays(self) -> Arrays | None:
        """Of the file that holds them."""
        return self._written.kept_arrays

    @property
    def kept_bytes(self) -> int:
        """What these take."""
        arrays = self.kept_arrays
        return 0 if arrays is None else sum(arrays.lazily(name).nbytes for name in KEPT_ARRAYS if name in arrays)

    def lists_for(self, codebook: Codebook | None) -> Lists | None:
        """Its inverted lists; None where it has none.

        A codebook that has grown since they were made has centroids that list nothing here, which `Lists` knows.
        """
        lists = None if codebook is None else self._written.lists
        return None if lists is None or codebook is None or lists.centroids > len(codebook) else lists

    @property
    def offsets(self) -> Offsets:
        """Where the tokens of each row begin, int64 (N+1,)."""
        return self._written.offsets

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

    def is_at(self, record: SegmentRecord, codebook: Callable[[], Codebook | None]) -> bool:
        """Whether this is the state of the segment that the record names, read with this codebook."""
        return self.record == record and self._codebook is codebook

    def rows_of(self, asked: HashedIds) -> Rows:
        """The row of each id; −1 where it is no document of this segment."""
        rows = self.ids.find(asked)
        return np.where((rows >= 0) & self.live[rows], rows, -1)

    def documents(self, rows: Rows) -> list[Document]:
        """The documents of these rows."""
        columns = zip(self.ids.at(rows), self.texts.at(rows), self.metadata.at(rows), strict=True)
        return [Document(DocumentId(identifier), text, known) for identifier, text, known in columns]


def open_segment(
    record: SegmentRecord,
    file: Callable[[FileRecord], Arrays],
    codebook: Callable[[], Codebook | None],
    before: Segment | None = None,
) -> Segment:
    """A segment that a manifest names: the one of before where it is the same.

    Args:
        record: what the manifest says of it.
        file: opens a file of the generation.
        codebook: as `Segment` takes it.
        before: the segment of this number in an earlier state of the index.

    Raises:
        CorruptIndex: files that are no segment's.
    """
    if before is not None and before.is_at(record, codebook):
        return before
    if not record.files:
        raise damaged(f"segment {record.number}", "no file", "the file that holds it")
    arrays, *more = map(file, record.files)
    deltas = {name: file(delta) for name, delta in record.deltas.items()}
    return Segment(record, arrays, deltas, codebook, more[0] if more else None, before)


def built(documents: Sequence[Document], analyser: Analyser) -> dict[str, NDArray[Any]]:
    """All arrays of a new segment besides those of tokens.

    Args:
        documents: N of them.
        analyser: what makes terms of texts.
    """
    return {
        **ids.build(document.id for document in documents),
        **texts.build(document.text for document in documents),
        **metadata.build(document.metadata for document in documents),
        **postings.build(analyser.terms(document.text) for document in documents),
    }
