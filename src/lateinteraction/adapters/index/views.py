"""SegmentView: a segment as a search sees it, with what of it may be returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np
from attrs import Factory, field, frozen
from numpy.typing import NDArray

from lateinteraction.adapters.index.hits import Rows
from lateinteraction.adapters.index.lists import Lists
from lateinteraction.adapters.index.narrowing import Narrowed
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.index.payloads import Payload, Residuals

if TYPE_CHECKING:
    from torch import Tensor


@final
@frozen(eq=False, slots=False)
class SegmentView:
    """A segment as a search sees it.

    Args:
        payload: the tokens of its documents.
        eligible: bool (N,), which documents may be returned; None: all.
        candidates: the only documents that may be returned, in any order; None: all. With `eligible`: those in both.
        vectors: the same documents, more exactly, where more was kept than the payload: `Vectors`, or `Int8`.
        narrowed: of `Vectors` alone, what finds the best of them sooner.
        lists: of `Residuals` alone, where there are so many that reading all codes would take longer.
        chosen: which documents that leaves, each once, rising; None: all.
    """

    payload: Payload
    eligible: NDArray[np.bool_] | None = None
    candidates: Rows | None = None
    vectors: Payload | None = None
    lists: Lists | None = None
    narrowed: Narrowed | None = None
    chosen: Rows | None = field(
        init=False, repr=False, default=Factory(lambda self: _chosen(self.eligible, self.candidates), takes_self=True)
    )

    def __len__(self) -> int:
        return len(self.payload) if self.chosen is None else len(self.chosen)

    @once
    def sample(self) -> Tensor:
        """Of `Residuals` alone: some tokens of what may be returned, as they are stored; see `Residuals.sample`."""
        assert isinstance(self.payload, Residuals)
        return self.payload.sample if self.chosen is None else self.payload.sample_of(self.chosen)

    @once
    def sizes(self) -> NDArray[np.int64]:
        """Of `Residuals` alone: the tokens at each centroid of what may be returned, (K,)."""
        assert isinstance(self.payload, Residuals)
        return self.payload.sizes(self.chosen)

    def among(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of these may be returned, where not all may."""
        if self.candidates is None and self.eligible is not None:
            return self.eligible[rows]
        return np.isin(rows, self.rows(), assume_unique=True)

    def rows(self) -> Rows:
        """All that may be returned."""
        return np.arange(len(self.payload)) if self.chosen is None else self.chosen


def _chosen(eligible: NDArray[np.bool_] | None, candidates: Rows | None) -> Rows | None:
    if candidates is None:
        return None if eligible is None or bool(eligible.all()) else np.flatnonzero(eligible)
    rows = np.unique(candidates)
    return rows if eligible is None else rows[eligible[rows]]
