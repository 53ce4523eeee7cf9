"""Inverted lists: which documents have a token near a centroid, so that a search need not read every code.

A query token looks into the lists of its nearest centroids. A document gets, for each query token, the similarity of
the best of these centroids that it is listed under; where it is under none, no more than the least of them. Summed,
that ranks documents well enough for a shortlist (Scheerer et al. (WARP), SIGIR 2025, impute in the same way).

Documents are counted in blocks of 65,536, so that a listing takes two bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.domain.embeddings import Offsets, offsets_of
from lateinteraction.domain.errors import CorruptIndex

if TYPE_CHECKING:
    from lateinteraction.kernels import Listed

BLOCK = 2**16
"""Documents of a block."""

ROWS, STARTS = "lists.rows", "lists.starts"

_VERIFY = "Run `verify`: a file of the index is damaged, or is not the one that its manifest means."


def build_lists(codes: NDArray[np.int32], lengths: Offsets, centroids: int) -> dict[str, NDArray[Any]]:
    """Lists of the documents whose tokens have these codes.

    Args:
        codes: (T,), document after document.
        lengths: tokens of each document, (N,).
        centroids: K, of the codebook.
    """
    blocks = -(-len(lengths) // BLOCK)
    bounds = offsets_of(lengths)
    parts: list[NDArray[np.uint16]] = []
    counts: list[NDArray[np.int64]] = []
    for block in range(blocks):
        own = lengths[block * BLOCK : (block + 1) * BLOCK]
        first = int(bounds[block * BLOCK])
        keys = codes[first : first + int(own.sum())].astype(np.int64) << 16 | np.repeat(np.arange(len(own)), own)
        listed = np.unique(keys)
        parts.append((listed & 0xFFFF).astype(np.uint16))
        counts.append(np.bincount(listed >> 16, minlength=centroids))
    starts = offsets_of(np.concatenate([np.empty(0, np.int64), *counts]))
    return {ROWS: np.concatenate([np.empty(0, np.uint16), *parts]), STARTS: starts}


@final
class Lists:
    """The lists of one segment.

    Args:
        arrays: what `build_lists` made.
        documents: N.

    Raises:
        CorruptIndex: arrays that do not fit together.
    """

    def __init__(self, arrays: Arrays, documents: int) -> None:
        self._arrays = arrays
        self._documents = documents
        self._rows, self._starts = arrays.lazily(ROWS), arrays.whole(STARTS)
        self._blocks = -(-documents // BLOCK)
        count, rest = divmod(len(self._starts) - 1, max(1, self._blocks))
        sound = self._rows.dtype == np.uint16 and self._starts.dtype == np.int64 and rest == 0
        if not sound or int(self._starts[0]) != 0 or int(self._starts[-1]) != len(self._rows):
            raise CorruptIndex("inverted lists whose arrays do not fit together", "those of one segment", _VERIFY)
        self.centroids = count

    def gains(
        self, centroids: NDArray[np.int64], similarities: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The documents (n,) that are listed under these centroids, rising, and what each gains by it.

        Σ_s max(similarities[s, i] over i with the document under centroids[s, i]) − min_i similarities[s, i]

        Documents that are only where every token's least similar centroid lists them gain nothing and are left out.

        Args:
            centroids: (S, P), the nearest of each query token.
            similarities: float32 (S, P), their similarity to it.
        """
        from lateinteraction import kernels
        from lateinteraction.adapters.neural.transfer import to_device, to_host

        gains = np.repeat(similarities - similarities.min(axis=1, keepdims=True), self._blocks, axis=1)
        try:
            total = to_host(kernels.listed_scores(self._listed(centroids), to_device(gains, "cpu"), self._documents))
        except IndexError as error:
            raise CorruptIndex("a listing of a document too many", f"{self._documents} documents", _VERIFY) from error
        found = np.flatnonzero(total)
        return found, total[found]

    def _listed(self, centroids: NDArray[np.int64]) -> Listed:
        """The lists of these centroids, those of each in all blocks side by side, verified."""
        from lateinteraction.adapters.index.payloads import tensor_of
        from lateinteraction.kernels import Listed

        blocks = np.arange(self._blocks)
        known = np.repeat(centroids < self.centroids, self._blocks, axis=1)
        lists = np.where(known, (centroids[:, :, None] + blocks * self.centroids).reshape(known.shape), 0)
        starts = self._starts[lists]
        ends = np.where(known, self._starts[lists + 1], starts)
        self._arrays.check(ROWS, starts.ravel(), ends.ravel())
        firsts = np.tile(blocks * BLOCK, centroids.shape[1])
        spans = np.stack([starts, ends], axis=2)
        return Listed(*map(tensor_of, (self._rows, spans, firsts)))
