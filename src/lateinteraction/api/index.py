"""Index: documents to search, in memory or in a folder, for texts as people type them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from lateinteraction import wiring
from lateinteraction.api.model import Model
from lateinteraction.api.typed import (
    Documents,
    Result,
    Stream,
    Where,
    documents_of,
    drawn,
    filter_of,
    ids_of,
    items_of,
    query_of,
    results_of,
)
from lateinteraction.application.numbering import Numbers
from lateinteraction.application.progress import StreamProgress
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.explanation import Explanation
from lateinteraction.domain.ports import AddCounts, AddReport, DocumentStore, OnDuplicate, StageProgress
from lateinteraction.domain.ranking import Fusion
from lateinteraction.domain.text import DocumentId, Metadata, Query
from lateinteraction.wiring import indexes

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.flat import FlatIndex
    from lateinteraction.adapters.index.device import Device
    from lateinteraction.adapters.index.index import StoredIndex
    from lateinteraction.adapters.index.options import SearchOptions
    from lateinteraction.adapters.index.recall import RecallReport
    from lateinteraction.adapters.index.settings import IndexOptions
    from lateinteraction.application.retrieval import Retriever

By = Literal["embeddings", "words", "both"]


class Index:
    """Documents to search: in memory and exactly, or in a folder, where they stay. Safe to use from several threads.

        li.Index(model)                        in memory
        li.Index(model, "my-index")            in a folder, which is made where there is none

    Args:
        model: encodes documents and queries; a folder remembers which one filled it, and refuses others.
        folder: None: in memory.
        options: of a new folder: how embeddings are stored and searched, and the language of the texts.
        device: where a folder is searched by embeddings: "cuda", "cuda:1", or a `Device`; None is the host.

    Raises:
        IndexMismatch: a folder that another model filled, or that was made with other options.
        CorruptIndex: a folder that is damaged.
    """

    def __init__(
        self,
        model: Model,
        folder: str | Path | None = None,
        options: IndexOptions | None = None,
        *,
        device: str | Device | None = None,
    ) -> None:
        if folder is None and (options is not None or device is not None):
            what = "options" if device is None else "a device"
            raise InvalidOption(f"{what} for an index in memory", "a folder", "Name one: Index(model, 'my-index').")
        self.model = model
        self._in_folder = None if folder is None else indexes.stored_index(folder, model.encoder, options)
        with ExitStack() as refused:
            refused.callback(self.close)
            self._there = None if device is None else indexes.on_device(self.stored, device)
            refused.pop_all()
        self._store: FlatIndex | StoredIndex = wiring.memory_index() if self._in_folder is None else self._in_folder
        self.retriever: Retriever[Tensor] = wiring.retriever(model.encoder, self._store)
        self._numbers = Numbers(self._store.held)

    @property
    def stored(self) -> StoredIndex:
        """The index of the folder: what can be done with one besides, such as `compact`, `verify`, `stats`.

        Raises:
            InvalidOption: it is in memory.
        """
        if self._in_folder is None:
            raise InvalidOption("an index in memory", "one in a folder", "Make it as Index(model, 'my-index').")
        return self._in_folder

    def close(self) -> None:
        """Let other processes write to the folder. A `with` block does it at its end."""
        if self._in_folder is not None:
            self._in_folder.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._store

    def add(self, documents: Documents, *, on_duplicate: OnDuplicate = "error") -> AddReport:
        """Add texts, a mapping from id to text, or `Document`s: all of them, or on an error none.

        Texts without ids are numbered: "0", "1", …, leaving out what is an id already. This object gives no number
        twice; one that opens the folder later may give that of a document that was removed.

        Raises:
            DuplicateDocument: an id twice, or one already there and on_duplicate is "error".
        """
        named = documents_of(documents, self._numbers)
        return self.retriever.add(named, on_duplicate=on_duplicate)

    def add_stream(
        self,
        documents: Stream,
        *,
        on_duplicate: OnDuplicate = "error",
        documents_per_commit: int = 2048,
        total: int | None = None,
        progress: StageProgress | None = None,
    ) -> AddCounts:
        """Add what need not fit in memory: `documents_per_commit` at a time are encoded and, in a folder, committed.

        What was interrupted goes on after its last commit when the same stream is added with on_duplicate="skip".

        Args:
            documents: texts, `Document`s, or a mapping from id to text; texts without ids get "0", "1", … by their own
                count, so that they have the same ones when they come again.
            on_duplicate: what becomes of an id that is there already.
            documents_per_commit: the piece that is lost at most by a kill.
            total: how many there are, for the progress; known by itself of what has a length.
            progress: such as a `BuildLine`; told of encoding, training (of a folder's codebook) and writing.
        """
        if total is None and isinstance(documents, Sized):
            total = len(documents)
        retriever = self.retriever
        if progress is not None and self._in_folder is not None:
            progress = stream = StreamProgress(progress)
            watched = indexes.WatchedIndex(self._in_folder, stream.of_call)
            retriever = wiring.retriever(self.model.encoder, watched)
        return retriever.add_stream(
            drawn(documents),
            on_duplicate=on_duplicate,
            documents_per_add=documents_per_commit,
            total=total,
            progress=progress,
        )

    def remove(self, which: Sequence[str] | Where) -> int:
        """Remove documents by ids or by filter; how many."""
        if isinstance(which, (str, Sequence)):
            return self.retriever.remove(ids_of(which, "ids"))
        return self.retriever.remove(filter_of(which))

    def update(self, metadata: Mapping[str, Metadata]) -> int:
        """Give documents of a folder new metadata in place of all they had; nothing is encoded. How many documents."""
        return self.stored.update({DocumentId(identifier): new for identifier, new in metadata.items()})

    @overload
    def search(
        self,
        query: str | Query,
        k: int = 10,
        *,
        where: Where | None = None,
        candidates: Sequence[str] | None = None,
        by: By | Fusion = "embeddings",
        options: SearchOptions | None = None,
    ) -> list[Result]: ...
    @overload
    def search(
        self,
        query: Sequence[str] | Sequence[Query],
        k: int = 10,
        *,
        where: Where | None = None,
        candidates: Sequence[str] | None = None,
        by: By | Fusion = "embeddings",
        options: SearchOptions | None = None,
    ) -> list[list[Result]]: ...
    def search(
        self,
        query: str | Query | Sequence[str] | Sequence[Query],
        k: int = 10,
        *,
        where: Where | None = None,
        candidates: Sequence[str] | None = None,
        by: By | Fusion = "embeddings",
        options: SearchOptions | None = None,
    ) -> list[Result] | list[list[Result]]:
        """The k best documents for a query; for a list of queries, a list for each.

        Args:
            query: one, or several at once.
            k: how many.
            where: only documents whose metadata match, as a `Filter` or in its JSON form.
            candidates: only these ids; none of them gives no results.
            by: "embeddings", and in a folder "words" (BM25) or "both", whose scores are sums of reciprocal ranks; a
                `Fusion` says otherwise.
            options: how much a search of a folder by embeddings may cost.

        Raises:
            InvalidOption: options for words alone, or what an index in memory has not.
        """
        queries = [
            query_of(one) for one in ([query] if isinstance(query, (str, Query)) else items_of(query, "queries"))
        ]
        eligible = None if where is None else filter_of(where)
        among = None if candidates is None else ids_of(candidates, "candidates")
        search, state = self._state(by, options)
        rankings = search(queries, k, where=eligible, candidates=among)
        found = [results_of(ranking, state.get(ranking.documents)) for ranking in rankings]
        return found[0] if isinstance(query, (str, Query)) else found

    def _state(self, by: By | Fusion, options: SearchOptions | None) -> tuple[indexes.Search, DocumentStore]:
        """How the documents of this moment are searched, and they themselves, whoever writes meanwhile."""
        if by == "words" and options is not None:
            raise InvalidOption("options for a search by words", "'embeddings' or 'both'", "Leave the options out.")
        encoder = self.model.encoder
        if by == "embeddings" and options is None and self._there is None:
            snapshot = self._store.snapshot()
            return wiring.searcher(encoder, snapshot).search, snapshot
        if self._there is None or by == "words":
            stored = self.stored.snapshot()
            return indexes.search_of(encoder, stored, by, options), stored
        there = self._there.snapshot()
        return indexes.search_of(encoder, there.snapshot, by, options, there), there.snapshot

    def recall_report(
        self, queries: Sequence[str] | Sequence[Query], k: int = 10, options: SearchOptions | None = None
    ) -> RecallReport:
        """How much of the exact search of a folder a search finds, and how much quicker it is, on a sample of queries.

        Args:
            queries: like those that will be asked; some hundred tell the recall to a percent.
            k: hits of each.
            options: of the search that is measured.
        """
        given = [query_of(one) for one in items_of(queries, "queries")]
        return indexes.recall_report(self.model.encoder, self.stored.snapshot(), given, k, options)

    def explain(self, query: str | Query, identifier: str) -> Explanation:
        """Why a document scores as it does: by its text, and in `stored` by what the codec made of it."""
        ids = [DocumentId(identifier)]
        if self._in_folder is None:
            return self.model.explain(query, self._store.get(ids)[0], stored=self._store.fetch(ids))
        snapshot = self._in_folder.snapshot()
        return self.model.explain(query, snapshot.get(ids)[0], stored=snapshot.coded(ids))
