"""Parts: what goes into a segment that is written, be it left of another one or come with the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index import updates
from lateinteraction.adapters.index.analysis import Analyser
from lateinteraction.adapters.index.arrays import Arrays, InMemory
from lateinteraction.adapters.index.columns import Rows, ranges
from lateinteraction.adapters.index.manifests import SegmentRecord
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.index.segments import Segment, built
from lateinteraction.adapters.index.updates import MetadataView, Updates
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings
from lateinteraction.domain.text import Document, Metadata

if TYPE_CHECKING:
    from torch import Tensor

WORN_BY_UPDATES = 8
"""A segment is rewritten when more than one in so many of its documents have metadata beside it: a document is then
copied at most so many times for each that was updated."""


class Part(Protocol):
    """Documents that become a segment, or some of one."""

    @property
    def segment(self) -> Segment:
        """Where they lie."""
        ...

    @property
    def rows(self) -> Rows:
        """Which of its rows they are; they rise."""
        ...

    @property
    def metadata(self) -> MetadataView:
        """Of all its rows, as it will be."""
        ...

    @property
    def lengths(self) -> Offsets:
        """Tokens of each document, int64 (N,)."""
        ...

    @property
    def documents(self) -> int:
        """N."""
        ...

    @property
    def tokens(self) -> int:
        """T."""
        ...

    @property
    def exact(self) -> bool:
        """Whether `originals` are what came, and not what a codebook left of it."""
        ...

    def originals(self, which: slice | Rows) -> Tensor:
        """The tokens (T, D) of some of the documents, counted from 0, as exact as they are known."""
        ...

    def stored(self, names: Sequence[str], block: slice) -> dict[str, NDArray[Any]] | None:
        """The rows of these arrays for their tokens, where it is stored with them."""
        ...

    def kept(self, names: Sequence[str], block: slice) -> dict[str, NDArray[Any]] | None:
        """The same of what was kept beside it."""
        ...


@final
class Left:
    """A `Part`: what is left of a segment, with what a commit changes of it."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._live = segment.live
        self._rows: Rows | None = None
        self.updates: dict[int, Metadata] = {}

    @property
    def segment(self) -> Segment:
        return self._segment

    def remove(self, rows: Sequence[int] | Rows) -> None:
        """Forget documents."""
        if not self.removing:
            self._live = self._live.copy()
        self._live[rows] = False
        self._rows = None

    @property
    def removing(self) -> bool:
        """Whether documents are forgotten."""
        return self._live is not self._segment.live

    @property
    def gone(self) -> NDArray[np.bool_]:
        """Which rows are documents no more, bool (N,)."""
        return ~self._live

    @property
    def whole(self) -> bool:
        """Whether it is as it was written."""
        segment = self._segment
        return self.documents == segment.record.documents and not self.updates and segment.updates is None

    @property
    def worn(self) -> bool:
        """Whether so much is gone, or stands beside it, that it is better written anew."""
        segment = self._segment
        written = segment.record.documents
        updated = len(self.updates) + (0 if segment.updates is None else len(segment.updates))
        return 2 * self.documents < written or WORN_BY_UPDATES * updated > written

    @property
    def documents(self) -> int:
        return len(self.rows) if self.removing else len(self._segment)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum()) if self.removing else self._segment.tokens

    @property
    def rows(self) -> Rows:
        if self._rows is None:
            self._rows = np.flatnonzero(self._live) if self.removing else self._segment.rows
        return self._rows

    @property
    def lengths(self) -> Offsets:
        return np.diff(self._segment.offsets)[self.rows]

    @property
    def metadata(self) -> MetadataView:
        segment = self._segment
        if not self.updates:
            return segment.metadata
        return segment.metadata_with(Updates(InMemory(updates.build(self.updates, segment.updates))))

    @property
    def exact(self) -> bool:
        """As vectors, or with a file of them; there is none where one was lost."""
        segment = self._segment
        return segment.kind != "residual" or segment.kept_arrays is not None or not self.tokens

    def originals(self, which: slice | Rows) -> Tensor:
        """Those that were kept, else what is stored."""
        kept = self._segment.kept
        return (self._segment.payload if kept is None else kept).decode(self.rows[which]).tokens

    def stored(self, names: Sequence[str], block: slice) -> dict[str, NDArray[Any]] | None:
        return self._copied(self._segment.arrays, names, block)

    def kept(self, names: Sequence[str], block: slice) -> dict[str, NDArray[Any]] | None:
        arrays = self._segment.kept_arrays
        return None if arrays is None else self._copied(arrays, names, block)

    def _copied(self, arrays: Arrays, names: Sequence[str], block: slice) -> dict[str, NDArray[Any]] | None:
        if not all(name in arrays for name in names):
            return None
        rows, offsets = self.rows[block], self._segment.offsets
        starts, ends = offsets[:-1][rows], offsets[1:][rows]
        for name in names:
            arrays.check(name, starts, ends)
        places = _places(starts, ends)
        return {name: arrays.lazily(name)[places] for name in names}


@final
class Incoming:
    """A `Part`: documents that come with the call, and their tokens as they come.

    Args:
        documents: some of which are taken.
        embeddings: an item for each.
        rows: which are taken; they rise.
        analyser: what makes terms of texts.
    """

    def __init__(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], rows: Rows, analyser: Analyser
    ) -> None:
        self._embeddings, self._taken = embeddings, rows
        self.lengths = embeddings.lengths[rows]
        self.documents, self.tokens = len(rows), int(self.lengths.sum())
        self.arrays: Mapping[str, NDArray[Any]] = built([documents[row] for row in map(int, rows)], analyser)

    @property
    def segment(self) -> Segment:
        """One without payload, which nobody else sees."""
        return self._segment

    @once
    def _segment(self) -> Segment:
        record = SegmentRecord(0, self.documents, self.tokens, "vectors", ())
        return Segment(record, InMemory(self.arrays), {}, lambda: None)

    @property
    def rows(self) -> Rows:
        return self.segment.rows

    @property
    def metadata(self) -> MetadataView:
        return self.segment.metadata

    @property
    def exact(self) -> bool:
        return True

    def originals(self, which: slice | Rows) -> Tensor:
        """As they came."""
        rows, offsets, tokens = self._taken[which], self._embeddings.offsets, self._embeddings.tokens
        places = _places(offsets[:-1][rows], offsets[1:][rows])
        if isinstance(places, slice):
            return tokens[places]
        from lateinteraction.adapters.neural.transfer import to_device

        return tokens[to_device(places, tokens.device)]

    def stored(self, names: Sequence[str], block: slice) -> dict[str, NDArray[Any]] | None:
        """It is stored nowhere."""
        return None

    def kept(self, names: Sequence[str], block: slice) -> dict[str, NDArray[Any]] | None:
        """Nor kept."""
        return None


def _places(starts: Rows, ends: Rows) -> slice | Rows:
    """Where ragged items lie: a slice where they are neighbours."""
    if not len(starts):
        return slice(0, 0)
    if bool((starts[1:] == ends[:-1]).all()):
        return slice(int(starts[0]), int(ends[-1]))
    return ranges(starts, ends - starts)
