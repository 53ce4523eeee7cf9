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
from lateinteraction.adapters.index.snapshot import IndexSnapshot
from lateinteraction.adapters.index.storage import Storage
from lateinteraction.adapters.index.writing import Writer
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import CorruptIndex, IndexLocked, InvalidOption, LateInteractionError, StorageFailed
from lateinteraction.domain.filters import Filter, check_filter
from lateinteraction.domain.ports import AddReport, OnDuplicate, StageProgress
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId, Metadata, check_distinct, check_ids, check_new

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.domain.ports import DocumentStore, EmbeddingStore, Index

_log = logging.getLogger(__name__)

KEPT_GENERATIONS = 2
"""How many of the last generations stay on the disk besides those that readers hold."""

_NOT_OPENED = (LateInteractionError, OSError, MemoryError, RuntimeError, ValueError)
"""What may go wrong when a generation is opened that is already committed."""

DOCUMENTS_AT_A_TIME = 4096
"""Whose texts are read at once where all of them are."""


@final
class StoredIndex:
    """An `Index`, `EmbeddingStore` and `DocumentStore` in a folder. Safe to use from several threads.

    The first call that writes takes the writer's lock, and `close` gives it back. What other processes commit is seen
    after `refresh`, or when a call writes. Threads write one after another; nobody who reads waits for them.

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
        self._closed = False
        self._locks = _Locks()

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
        """Give back the lock and the lease. Once or more often.

        What was read stays readable, here and in snapshots that others hold. What another thread is writing ends with
        an error at its next step and changes nothing, unless it is being committed; this waits for it.
        """
        self._closed = True
        locks = self._own_locks()
        with locks.swapping:
            self._snapshot.opened.close()
        with locks.writing:
            self._drop_writer()

    def snapshot(self) -> IndexSnapshot:
        """The index as it is now: what is written later does not reach it. Costs nothing.

        Raises:
            StorageFailed: what this object committed last cannot be read.
        """
        return self.refresh() if self._behind else self._snapshot

    def refresh(self) -> IndexSnapshot:
        """See what other processes have committed. Costs a look at the log where that is nothing.

        Raises:
            InvalidOption: the index is closed.
        """
        self._check_open()
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
        self,
        documents: Sequence[Document],
        embeddings: TokenEmbeddings[Tensor],
        *,
        on_duplicate: OnDuplicate = "error",
        progress: StageProgress | None = None,
    ) -> AddReport:
        """Take documents with their embeddings: all of them, or on an error none. See `Index.add`.

        Args:
            documents: to take.
            embeddings: an item for each.
            on_duplicate: what becomes of an id that is there already.
            progress: told of steps of training, where a codebook is made or grows, and of documents that are written:
                these, and those that are folded together with them.

        Raises:
            IndexLocked: another process writes.
            StorageFailed: the system refused a write.
        """
        from lateinteraction.adapters.neural.admission import check_addition, check_width

        check_addition(documents, embeddings, on_duplicate)
        with self._writing(progress) as changes:
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
                changes.remove(before.all_places(which))
                count = len(which)
            else:
                check_filter(which)
                masks = before.eligible(which, None)
                changes.remove_where(masks)
                count = sum(int(np.count_nonzero(mask)) for mask in masks)
            changes.commit()
        return count

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

    def compact(self, *, retrain: bool = False, progress: StageProgress | None = None) -> None:
        """Rewrite what is worth it: segments become as few as can be, and the room of removed documents is free.

        Args:
            retrain: make a codebook for all that is there now, and encode everything with it. What it is made of are
                the vectors that were kept; without them (see `IndexOptions.keep`) it is what the old codebook left of
                them, whose error then comes on top of the new one's: worth it where documents are no longer like those
                the codebook was made for, and not otherwise.
            progress: told of steps of training, and of documents that are rewritten; such as a `BuildLine`.

        Raises:
            InvalidOption: a codec without a codebook cannot retrain one.
        """
        with self._writing(progress) as changes:
            changes.compact(retrain=retrain)
            changes.commit()
        del changes  # which holds the generation before, and its lease
        with self._own_locks().writing:
            self._collect(1)

    def copy_to(self, folder: Path) -> None:
        """Make a new folder that holds the present generation: links to its files where the system can, else copies.

        Raises:
            InvalidOption: the folder holds something, or the index is closed.
        """
        self._check_open()
        self._generations.snapshot(self.snapshot().opened, folder)

    def verify(self) -> VerifyReport:
        """Read every byte, and say what is damaged."""
        return self._generations.verify(logical_digest)

    def repair(self, *, accept_loss: bool = False) -> RepairReport:
        """Say what making a damaged index whole again would lose; do it where that is accepted."""
        return self._generations.repair(accept_loss=accept_loss)

    def _own_locks(self) -> _Locks:
        """Of this process. A forked child has its own, and no writer: its parent has those."""
        if self._locks.process != os.getpid():
            self._locks, self._writer = _Locks(), None
        return self._locks

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidOption("an index that is closed", "an open one", "Open the folder anew.")

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @contextmanager
    def _writing(self, progress: StageProgress | None = None) -> Iterator[Changes]:
        with self._own_locks().writing:
            self._check_open()
            writer = self._writer = self._writer or self._generations.writer()
            try:
                before = self._refreshed()
                writer.check_base(before.generation)
                changes = Changes(writer, before, self._check_open, progress)
                yield changes
            finally:
                writer.abandon()
                if writer.refuses:  # the next call takes the lock anew, and finds out what there is
                    self._drop_writer()
            if self._closed:
                self._drop_writer()
                return
            try:
                self._refreshed()
            except _NOT_OPENED as error:  # what was committed stays committed
                self._behind = True
                _log.warning("what was committed is not open yet: %s", error)
            self._collect(KEPT_GENERATIONS)

    def _collect(self, keep: int) -> None:
        """Remove what nobody needs. A refusal is no failure of the call: the next one tries again."""
        try:
            if self._writer is not None:
                self._writer.collect(keep)
        except (StorageFailed, IndexLocked, CorruptIndex) as error:
            _log.warning("files that nobody needs are still there: %s", error)

    def _refreshed(self) -> IndexSnapshot:
        with self._own_locks().swapping:
            before = self._snapshot
            opened = self._generations.refresh(before.opened)
            if opened is not before.opened:
                self._snapshot = IndexSnapshot(opened, before)
                if self._closed:  # since it was looked at
                    opened.close()
            self._behind = False
            return self._snapshot


@final
class _Locks:
    """Of the threads of a process: who writes, and who exchanges what is read."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.writing, self.swapping = threading.Lock(), threading.Lock()


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
