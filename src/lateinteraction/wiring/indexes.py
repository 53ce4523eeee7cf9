"""The composition root of indexes in folders: opened, made, searched, looked after."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

from attrs import frozen

from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import IndexMismatch, InvalidOption, shown
from lateinteraction.domain.filters import Filter
from lateinteraction.domain.ports import AddReport, Encoder, OnDuplicate, StageProgress
from lateinteraction.domain.ranking import Fusion, Ranking
from lateinteraction.domain.text import Document, DocumentId, Query

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.index.device import Device, IndexOnDevice, SnapshotOnDevice
    from lateinteraction.adapters.index.index import StoredIndex
    from lateinteraction.adapters.index.inspection import RepairReport, VerifyReport
    from lateinteraction.adapters.index.options import SearchOptions
    from lateinteraction.adapters.index.recall import RecallReport
    from lateinteraction.adapters.index.settings import IndexOptions
    from lateinteraction.adapters.index.snapshot import IndexSnapshot
    from lateinteraction.domain.ports import Index


class Search(Protocol):
    """Queries to rankings."""

    def __call__(
        self,
        queries: Sequence[Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]: ...


def stored_index(
    folder: str | Path, encoder: Encoder[Tensor] | None = None, options: IndexOptions | None = None
) -> StoredIndex:
    """The index in a folder; with an encoder a new one, where the folder is empty or not there.

    Args:
        folder: of the index.
        encoder: what its embeddings come from; None where it is only looked after.
        options: of a new index; where there is one already they must be its own.

    Raises:
        UnreadableFile: no index, and no encoder to make one for.
        IndexMismatch: an index of another encoder, or made with other options.
    """
    from lateinteraction.adapters.index.generations import Generations
    from lateinteraction.adapters.index.index import StoredIndex
    from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
    from lateinteraction.adapters.index.storage import FolderStorage

    storage = FolderStorage(folder, create=encoder is not None)
    if encoder is not None and not Generations(storage).exists():
        from lateinteraction.adapters.index.fingerprint import fingerprint_of

        return StoredIndex.create(storage, IndexSettings(options or IndexOptions(), fingerprint_of(encoder)))
    index = StoredIndex(storage)
    with ExitStack() as refused:
        refused.callback(index.close)
        if options is not None and options != index.settings.options:
            raise IndexMismatch(f"{options}", f"{index.settings.options}, as it was made with", "Leave them out.")
        if encoder is not None and index.settings.encoder is not None:
            from lateinteraction.adapters.index.fingerprint import check_fingerprint

            check_fingerprint(index.settings.encoder, encoder)
        refused.pop_all()
    return index


@final
@frozen
class WatchedIndex:
    """An `Index`: a stored one whose additions tell what they are at."""

    stored: StoredIndex
    progress: StageProgress

    def __len__(self) -> int:
        return len(self.stored)

    def held(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]:
        """See `Index.held`."""
        return self.stored.held(ids)

    def add(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], *, on_duplicate: OnDuplicate = "error"
    ) -> AddReport:
        """See `StoredIndex.add`."""
        return self.stored.add(documents, embeddings, on_duplicate=on_duplicate, progress=self.progress)

    def remove(self, which: Sequence[DocumentId] | Filter) -> int:
        """See `Index.remove`."""
        return self.stored.remove(which)

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """See `Index.search`."""
        return self.stored.search(queries, k, where=where, candidates=candidates)


def on_device(index: StoredIndex, device: str | Device) -> IndexOnDevice:
    """An index that is searched on a device."""
    from lateinteraction.adapters.index import device as there

    return there.IndexOnDevice(index, there.Device(device) if isinstance(device, str) else device)


def recall_report(
    encoder: Encoder[Tensor], snapshot: IndexSnapshot, queries: Sequence[Query], k: int, options: SearchOptions | None
) -> RecallReport:
    """What a search of these queries finds of what the exact one finds."""
    from lateinteraction.adapters.index import recall

    return recall.recall_report(snapshot, encoder.encode_queries(queries), k, options)


def verify_index(folder: str | Path) -> VerifyReport:
    """Read every byte of an index, which may be damaged."""
    from lateinteraction.adapters.index.generations import Generations
    from lateinteraction.adapters.index.index import logical_digest
    from lateinteraction.adapters.index.storage import FolderStorage

    return Generations(FolderStorage(folder)).verify(logical_digest)


def repair_index(folder: str | Path, *, accept_loss: bool) -> RepairReport:
    """Say what making a damaged index whole again would lose; do it where that is accepted."""
    from lateinteraction.adapters.index.generations import Generations
    from lateinteraction.adapters.index.storage import FolderStorage

    return Generations(FolderStorage(folder)).repair(accept_loss=accept_loss)


def search_of(
    encoder: Encoder[Tensor],
    snapshot: IndexSnapshot,
    by: str | Fusion,
    options: SearchOptions | None = None,
    there: SnapshotOnDevice | None = None,
) -> Search:
    """How a state of a stored index is searched: by embeddings, by words, or by both.

    Args:
        encoder: of the queries.
        snapshot: of the index.
        by: "embeddings", "words", "both", or both in the way of a `Fusion`.
        options: how much a search by embeddings may cost.
        there: the same state on a device, where embeddings are searched then.
    """
    from lateinteraction.adapters.index.snapshot import TunedSnapshot
    from lateinteraction.application.retrieval import HybridSearcher, LexicalSearcher, Searcher

    dense = Searcher(encoder, TunedSnapshot(snapshot if there is None else there, options))
    if by == "embeddings":
        return dense.search
    if by == "words":
        return LexicalSearcher(snapshot).search
    if by == "both" or isinstance(by, Fusion):
        return HybridSearcher(dense, LexicalSearcher(snapshot), Fusion() if isinstance(by, str) else by).search
    raise InvalidOption(f"by = {shown(by)}", "'embeddings', 'words', 'both' or a `Fusion`", "Choose one of these.")


if TYPE_CHECKING:
    _index: type[Index[Tensor]] = WatchedIndex
