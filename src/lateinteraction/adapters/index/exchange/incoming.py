"""Incoming: what a folder of another tool holds, checked as a whole before any of it is taken into an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.index.columns import blocks_of
from lateinteraction.adapters.index.fingerprint import check_same
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import Storage
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import DuplicateDocument, IndexMismatch, UnreadableFile
from lateinteraction.domain.ports import AddCounts, OnDuplicate, Progress
from lateinteraction.domain.text import Document, DocumentId, check_distinct, check_new

Batch: TypeAlias = tuple[list[Document], TokenEmbeddings[Tensor]]

TOKENS_AT_A_TIME = 1 << 17
"""Decoded and added at once: 64 MiB of 128 dimensions in float32."""

LEAST_TOKENS = 32
"""As which a shorter document counts, so that at most 4,096 documents are read at once."""


@frozen(eq=False)
class Incoming:
    """Documents and their embeddings, ready to be read.

    Args:
        source: where they come from, as errors name it.
        ids: of all of them, in the order they are read in; distinct.
        dimension: width of the embeddings; None where there are none.
        batches: reads them from the beginning, some at a time.
        encoder: fingerprint of what made the embeddings, where that is known.
        options: of the index that they were in, where that was one of ours.

    Raises:
        UnreadableFile: an id that occurs twice.
    """

    source: str
    ids: Sequence[DocumentId] = field(repr=False)
    dimension: int | None
    batches: Callable[[], Iterator[Batch]] = field(repr=False)
    encoder: Mapping[str, str] | None = field(default=None, repr=False)
    options: IndexOptions | None = None

    def __attrs_post_init__(self) -> None:
        try:
            check_distinct(self.ids)
        except DuplicateDocument as error:
            raise UnreadableFile(
                f"{self.source}, in which {error.given}", "an id for each document", "Remove one of the two there."
            ) from error

    def __len__(self) -> int:
        return len(self.ids)


def index_for(
    storage: Storage,
    incoming: Incoming,
    options: IndexOptions | None = None,
    *,
    encoder: Mapping[str, str] | None = None,
) -> StoredIndex:
    """A new index, made as the documents' former one was.

    Args:
        storage: where.
        incoming: what it is for.
        options: in place of the former ones.
        encoder: fingerprint of what made the embeddings, where the source does not say.

    Raises:
        IndexMismatch: the source says that another encoder made them; nothing is made.
    """
    if encoder is not None and incoming.encoder is not None:
        check_same(incoming.encoder, encoder)
    known = encoder if incoming.encoder is None else incoming.encoder
    return StoredIndex.create(storage, IndexSettings(options or incoming.options or IndexOptions(), known))


def take_in(
    index: StoredIndex, incoming: Incoming, *, on_duplicate: OnDuplicate = "error", progress: Progress | None = None
) -> AddCounts:
    """Add all documents, a commit for each batch; what does not fit is noticed before the first.

    With "skip" an import that was interrupted goes on where it ended.

    Raises:
        IndexMismatch: embeddings of another width, or of another encoder, than those of the index.
        DuplicateDocument: an id that is there already, where that is an error.
    """
    check_fits(index.settings, incoming)
    if on_duplicate == "error":
        check_new(incoming.ids, index.held(incoming.ids))
    counts = AddCounts()
    for documents, embeddings in incoming.batches():
        counts = counts.after(index.add(documents, embeddings, on_duplicate=on_duplicate))
        if progress is not None:
            progress(counts.documents, len(incoming))
    return counts


def check_fits(settings: IndexSettings, incoming: Incoming) -> None:
    """Raise `IndexMismatch` where an index cannot take these embeddings."""
    if None not in (settings.dimension, incoming.dimension) and settings.dimension != incoming.dimension:
        raise IndexMismatch(
            f"{incoming.source} of {incoming.dimension} dimensions",
            f"{settings.dimension}, the width of this index",
            "Import it into an index of its own.",
        )
    if settings.encoder is not None and incoming.encoder is not None:
        check_same(settings.encoder, incoming.encoder)


def batches_of(lengths: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of documents to be read at once."""
    return blocks_of(np.maximum(lengths, LEAST_TOKENS), TOKENS_AT_A_TIME)
