"""Hits: the nearest document tokens of query tokens, as arrays, and what XTR makes of them.

Letters: S query tokens, n hits of each, H in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.neural.transfer import to_host
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.text import DocumentId

Numbers = NDArray[np.int64]
Floats = NDArray[np.float32]


@frozen(eq=False)
class Hits:
    """For each query token some document tokens.

    Args:
        ids: of the documents that the hits belong to.
        owners: the document (S, n) of each hit, as its place among the ids; −1 for none.
        similarities: float32 (S, n).
    """

    ids: Sequence[DocumentId]
    owners: Numbers
    similarities: Floats

    def of(self, first: int, last: int) -> Hits:
        """The hits of these query tokens."""
        return Hits(self.ids, self.owners[first:last], self.similarities[first:last])

    def documents(self) -> list[DocumentId]:
        """The documents that are hit, each once."""
        return [self.ids[owner] for owner in map(int, np.unique(self.owners)) if owner >= 0]


def merged(parts: Sequence[Hits], tokens: int, k: int) -> Hits:
    """The k most similar hits of each of S query tokens; parts are of different documents. Ties: the earlier part."""
    ids = [identifier for part in parts for identifier in part.ids]
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    owners = [np.empty((tokens, 0), np.int64)]
    owners += [
        np.where(part.owners >= 0, part.owners + start, -1) for part, start in zip(parts, starts[:-1], strict=True)
    ]
    similarities = [np.empty((tokens, 0), np.float32), *(part.similarities for part in parts)]
    whose, values = np.concatenate(owners, axis=1), np.concatenate(similarities, axis=1)
    order = np.argsort(np.where(whose >= 0, -values, np.inf), axis=1, kind="stable")[:, :k]
    return Hits(ids, np.take_along_axis(whose, order, 1), np.take_along_axis(values, order, 1))


def nearest_of(ids: Sequence[DocumentId], documents: TokenEmbeddings[Tensor], queries: Tensor, k: int) -> Hits:
    """The k nearest tokens (S, n) of documents, every one compared."""
    owners = np.repeat(np.arange(len(ids)), documents.lengths)
    similarities = queries.detach().type(torch.float32) @ documents.tokens.type(torch.float32).T
    best = torch.topk(similarities, min(k, len(owners)), dim=1)
    return Hits(ids, owners[to_host(best.indices)], to_host(best.values))


def xtr_scores(hits: Hits) -> tuple[list[DocumentId], Floats, float]:
    """Scores of the documents that any token of one query retrieved (Lee et al., NeurIPS 2023, §3.2).

        score(d) = Σ_s  max of s's hits in d     where s has a hit in d
                        m_s                      where it has none
        m_s = the lowest similarity that s retrieved; 0 where it retrieved nothing

    Returns:
        The documents, their scores (n,), and Σ_s m_s, which is what any other document scores.
    """
    tokens, _ = present = np.nonzero(hits.owners >= 0)
    found, places = np.unique(hits.owners[present], return_inverse=True)
    similarities = hits.similarities[present].astype(np.float64)
    lowest = np.full(len(hits.owners), np.inf)
    np.minimum.at(lowest, tokens, similarities)
    lowest[np.isinf(lowest)] = 0.0
    best = np.full((len(lowest), len(found)), -np.inf)
    np.maximum.at(best, (tokens, places), similarities)
    best = np.where(np.isinf(best), lowest[:, None], best)
    return [hits.ids[each] for each in map(int, found)], best.sum(axis=0).astype(np.float32), float(lowest.sum())
