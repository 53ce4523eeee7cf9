"""StoredIndex: an `Index` in a folder. Every call that writes is one commit; readers keep the state they opened.

Small additions become small segments, which are searched at once and folded into larger ones as they come. What large
segments are stored with is the codec's choice.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from lateinteraction.adapters.index.changes import Changes
from lateinteraction.adapters.index.columns import blocks_of
from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.inspection import RepairReport, VerifyReport
from lateinteraction.adapters.index.reading import OpenGeneration
from lateinteraction.adapters.index.settings import IndexSettings
from lateinteraction.adapters.index.snapshot import IndexSnapshot, Place
from lateinteraction.adapters.index.storage import Storage
from lateinteraction.adapters.index.writing import Writer
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import CorruptIndex, IndexLocked, StorageFailed
from lateinteraction.domain.filters import Filter, check_filter
from lateinteraction.domain.ports import AddReport, OnDuplicate
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId, Metadata, check_distinct, check_ids, check_new

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.domain.ports import DocumentStore, EmbeddingStore, Index

_log = logging.getLogger(__name__)

KEPT_GENERATIONS = 2
"""How many of the last generations stay on the disk besides those that readers hold."""

DOCUMENTS_AT_A_TIME = 4096
"""Whose texts are read at once where all of them are."""


@final
class StoredIndex:
    """An `Index`, `EmbeddingStore` and `DocumentStore` in a folder. Safe to use from several threads.

    The first call that writes takes the writer's lock, and `close` gives it back. What other processes commit is seen
    after `refresh`, or when a call writes.

    Args:
        storage: a folder with an index; see `create`.

    Raises:
        UnreadableFile: there is none.
        CorruptIndex: it is damaged.
        IndexMismatch: a newer version of this library wrote it.
    """

    def __init__(self, storage: Storage) -> None:
        self._generations = Generations(storage)
        self._snapshot = IndexSnapshot(self._generations.read())
        self._writer: Writer | None = None
        self._behind = False  # something is committed that could not be opened yet
        self._one_at_a_time = threading.Lock()
        self._process = os.getpid()

    @classmethod
    def create(cls, storage: Storage, settings: IndexSettings | None = None) -> StoredIndex:
        """Make an index without documents and open it.

        Raises:
            InvalidOption: there is one already.
        """
        settings = settings or IndexSettings()
        settings.analyser.terms("words")  # what stems them may not be installed: to be known before anything is made
        Generations(storage).create(settings.to_json())
        return cls(storage)

    def __enter__(self) -> StoredIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.snapshot())

    def __contains__(self, identifier: object) -> bool:
        return identifier in self.snapshot()

    @property
    def settings(self) -> IndexSettings:
        """What it was made with."""
        return self.snapshot().settings

    def close(self) -> None:
        """Give back the lock and the lease. Once or more often; snapshots that others hold stay readable."""
        with self._alone():
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._snapshot.opened.close()

    def snapshot(self) -> IndexSnapshot:
        """The index as it is now: what is written later does not reach it. Costs nothing.

        Raises:
            StorageFailed: what this object committed last cannot be read.
        """
        return self.refresh() if self._behind else self._snapshot

    def refresh(self) -> IndexSnapshot:
        """See what other processes have committed. Costs a look at the log where that is nothing."""
        with self._alone():
            return self._refreshed()

    def held(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]:
        """Those of these ids that it has."""
        places = self.snapshot().places(ids)
        return frozenset(identifier for identifier, place in zip(ids, places, strict=True) if place is not None)

    def ids(self) -> tuple[DocumentId, ...]:
        """The ids of all documents."""
        return self.snapshot().ids()

    def get(self, ids: Sequence[DocumentId]) -> list[Document]:
        """These documents, in this order."""
        return self.snapshot().get(ids)

    def fetch(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[Tensor]:
        """Embeddings of these documents as they are stored, in this order."""
        return self.snapshot().fetch(ids)

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best documents for each query. See `Index.search`."""
        return self.snapshot().search(queries, k, where=where, candidates=candidates)

    def add(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], *, on_duplicate: OnDuplicate = "error"
    ) -> AddReport:
        """Take documents with their embeddings: all of them, or on an error none. See `Index.add`.

        Raises:
            IndexLocked: another process writes.
            StorageFailed: the system refused a write.
        """
        from lateinteraction.adapters.neural.admission import check_addition, check_width

        check_addition(documents, embeddings, on_duplicate)
        with self._writing() as changes:
            before = changes.snapshot
            check_width(before.settings.dimension, embeddings)
            places = before.places([document.id for document in documents])
            known = [document.id for document, place in zip(documents, places, strict=True) if place is not None]
            if on_duplicate == "error":
                check_new(known, frozenset(known))
            taken = [place is None or on_duplicate == "replace" for place in places]
            if any(taken):
                changes.add(documents, embeddings, np.array(taken))
            if known and on_duplicate == "replace":
                changes.remove(place for place in places if place is not None)
            changes.commit()
        lengths = embeddings.lengths
        return AddReport(
            added=[document.id for document, place in zip(documents, places, strict=True) if place is None],
            skipped=known if on_duplicate == "skip" else (),
            replaced=known if on_duplicate == "replace" else (),
            empty=[documents[row].id for row in map(int, np.flatnonzero(np.array(taken, np.bool_) & (lengths == 0)))],
        )

    def remove(self, which: Sequence[DocumentId] | Filter) -> int:
        """Forget documents, by id or by filter; how many. See `Index.remove`."""
        check_ids(which, "which")
        with self._writing() as changes:
            before = changes.snapshot
            if isinstance(which, Sequence):
                check_distinct(which)
                places = before.all_places(which)
            else:
                check_filter(which)
                places = [
                    Place(number, int(row))
                    for number, mask in enumerate(before.eligible(which, None))
                    for row in np.flatnonzero(mask)
                ]
            changes.remove(places)
            changes.commit()
        return len(places)

    def update(self, metadata: Mapping[DocumentId, Metadata]) -> int:
        """Give documents new metadata in place of all they had; nothing is encoded. How many documents.

        Raises:
            UnknownDocument: an id that is not there; nothing has changed.
            InvalidText: metadata that no document can have.
        """
        with self._writing() as changes:
            places = changes.snapshot.all_places(list(metadata))
            checked = [Document(identifier, "", new).metadata for identifier, new in metadata.items()]
            changes.update(dict(zip(places, checked, strict=True)))
            changes.commit()
        return len(places)

    def compact(self) -> None:
        """Rewrite what is worth it: segments become as few as can be, and the room of removed documents is free."""
        with self._writing() as changes:
            changes.compact()
            changes.commit()
        del changes  # which holds the generation before, and its lease
        with self._alone():
            self._collect(1)

    def copy_to(self, folder: Path) -> None:
        """Make a new folder that holds the present generation: links to its files where the system can, else copies.

        Raises:
            InvalidOption: the folder holds something.
        """
        self._generations.snapshot(self.snapshot().opened, folder)

    def verify(self) -> VerifyReport:
        """Read every byte, and say what is damaged."""
        return self._generations.verify(logical_digest)

    def repair(self, *, accept_loss: bool = False) -> RepairReport:
        """Say what making a damaged index whole again would lose; do it where that is accepted."""
        return self._generations.repair(accept_loss=accept_loss)

    def _alone(self) -> threading.Lock:
        """The lock of whoever changes this object. A forked child has its own, and no writer: its parent has those."""
        if self._process != os.getpid():
            self._one_at_a_time, self._writer, self._process = threading.Lock(), None, os.getpid()
        return self._one_at_a_time

    @contextmanager
    def _writing(self) -> Iterator[Changes]:
        with self._alone():
            if self._writer is None:
                self._writer = self._generations.writer()
            before = self._refreshed()
            changes = Changes(self._writer, before)
            try:
                yield changes
            finally:
                self._writer.abandon()
            try:
                self._refreshed()
            except (StorageFailed, CorruptIndex) as error:  # what was committed stays committed
                self._behind = True
                _log.warning("what was committed is not open yet: %s", error)
            self._collect(KEPT_GENERATIONS)

    def _collect(self, keep: int) -> None:
        """Remove what nobody needs. A refusal is no failure of the call: the next one tries again."""
        try:
            if self._writer is not None:
                self._writer.collect(keep)
        except (StorageFailed, IndexLocked) as error:
            _log.warning("files that nobody needs are still there: %s", error)

    def _refreshed(self) -> IndexSnapshot:
        before = self._snapshot
        opened = self._generations.refresh(before.opened)
        if opened is not before.opened:
            self._snapshot = IndexSnapshot(opened, before)
        self._behind = False
        return self._snapshot


def logical_digest(opened: OpenGeneration) -> str:
    """What the index holds, whatever files it is in: BLAKE2b-128 of each document, summed.

    Of a document: its id, text, metadata, and how many tokens it has. Files vouch for the embeddings themselves.
    """
    total = 0
    for segment in IndexSnapshot(opened).segments:
        lengths = np.diff(segment.offsets)
        for rows in blocks_of(np.ones(len(segment), np.int64), DOCUMENTS_AT_A_TIME):
            own = segment.rows[rows]
            for document, length in zip(segment.documents(own), map(int, lengths[own]), strict=True):
                content = [document.id, document.text, sorted(document.metadata.items()), length]
                encoded = json.dumps(content, ensure_ascii=False).encode()
                total += int.from_bytes(blake2b(encoded, digest_size=16).digest(), "little")
    return f"{total % 2**128:032x}"


if TYPE_CHECKING:
    _index: type[Index[Tensor]] = StoredIndex
    _embeddings: type[EmbeddingStore[Tensor]] = StoredIndex
    _documents: type[DocumentStore] = StoredIndex
