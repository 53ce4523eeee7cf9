"""Narrowed: vectors whose bytes say which few of them can be among the best, so that no others are scored.

Bytes are multiplied more than four times as fast as float16, and how far they can lead astray is known: with q̂ and d̂
the rounded tokens, |q · d − q̂ · d̂| ≤ ‖q − q̂‖ ‖d‖ + ‖q̂‖ ‖d − d̂‖. So rankings are exactly those of the vectors. Of
1,400 documents of Cranfield 24 can be among the best ten and 201 among the best hundred (medians); 75,000 tokens take a
query of 32 a third of the time.

Letters: S query tokens, N documents, n of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.columns import blocks_of
from lateinteraction.adapters.index.hits import Rows, Scores
from lateinteraction.adapters.index.payloads import Int8, Vectors, encode_int8, offsets_array
from lateinteraction.adapters.index.queries import PreparedQuery
from lateinteraction.adapters.neural.transfer import to_host

PATIENCE = 4
"""Searches after which it pays to round all vectors: that takes as long as some ten searches of them."""
WORTH_IT, REST = 3, 32
"""Where more than one document in so many is left, bytes took longer than they saved: as many searches do without them.
Of vectors in all directions alike everything is left, which takes 1.45 times as long as no look at bytes."""
FEW = 64
"""Documents that are scored at once, with no look at their bytes."""
TOKENS_AT_A_TIME = 2**15
_SUMMATION = 2e-5
"""Relative error that sums of float32 may add: some hundred roundings."""


class _Bytes(NamedTuple):
    """The vectors in eight bits, and what each document's tokens are at most."""

    payload: Int8
    errors: NDArray[np.float64]
    """(N,): the longest difference between a token and its bytes."""
    lengths: NDArray[np.float64]
    """(N,): the longest token."""


@final
class Narrowed:
    """The best of some vectors. Threads may call at once.

    Args:
        vectors: all of them.
    """

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        self._searches = self._resting = 0
        self._bytes: _Bytes | None = None

    def best(self, query: PreparedQuery, k: int, rows: Rows | None = None) -> tuple[Rows, Scores]:
        """Documents, rising, and their scores, with the k best of these documents and all that tie with the k-th."""
        chosen = np.arange(len(self.vectors)) if rows is None else rows
        self._searches += 1
        if self._resting:
            self._resting -= 1
        elif self._searches > PATIENCE and len(chosen) > max(FEW, 2 * k) and len(query):
            before = len(chosen)
            chosen = rows = self._possible(query, k, rows, chosen)
            self._resting = REST if WORTH_IT * len(chosen) > before else 0
        return chosen, self.vectors.score(query, rows)

    def _possible(self, query: PreparedQuery, k: int, rows: Rows | None, chosen: Rows) -> Rows:
        """Those of the chosen documents that can be among the k best."""
        narrow = self._narrow()
        scores = narrow.payload.approximate(query, rows).astype(np.float64)
        given, rounded = to_host(query.tokens.values).astype(np.float64), query.in_eight_bits
        assert rounded.scales is not None
        bytewise = to_host(rounded.values) * to_host(rounded.scales)[:, None].astype(np.float64)
        astray = np.linalg.norm(given - bytewise, axis=1).sum() + _SUMMATION * np.linalg.norm(given, axis=1).sum()
        bounds = astray * narrow.lengths[chosen] + np.linalg.norm(bytewise, axis=1).sum() * narrow.errors[chosen]
        least = np.partition(scores - bounds, -k)[-k]
        return chosen[scores + bounds >= least]

    def _narrow(self) -> _Bytes:
        if self._bytes is None:  # two threads may both make them, to the same end
            lengths, everything = self.vectors.lengths, np.arange(len(self.vectors))
            parts: list[dict[str, NDArray[Any]]] = []
            astray, longest = np.zeros((2, len(self.vectors)))
            for block in blocks_of(lengths, TOKENS_AT_A_TIME):
                wide = self.vectors.decode(everything[block])
                parts.append(encode_int8(wide.tokens))
                rounded = Int8(InMemory({**parts[-1], **offsets_array(lengths[block])})).decode().tokens
                full = np.flatnonzero(wide.lengths)
                if len(full):
                    starts, rows = wide.offsets[:-1][full], everything[block][full]
                    astray[rows] = np.maximum.reduceat(to_host((wide.tokens - rounded).norm(dim=1)), starts)
                    longest[rows] = np.maximum.reduceat(to_host(wide.tokens.norm(dim=1)), starts)
            encoded = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            self._bytes = _Bytes(Int8(InMemory({**encoded, **offsets_array(lengths)})), astray, longest)
        return self._bytes
