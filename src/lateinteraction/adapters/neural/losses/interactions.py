"""How losses score: MaxSim, as it is or by the query's length, or XTR's in-batch form.

None of them makes a tensor of all similarities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, final

import numpy as np
from attrs import field, frozen
from torch import Tensor

from lateinteraction.adapters.neural.scorer import MaxSimScorer, tokens_of
from lateinteraction.adapters.neural.transfer import queued_to_device
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.kernels import xtr_all_pairs

Embeddings = TokenEmbeddings[Tensor]


class Interaction(Protocol):
    """Scores, differentiable, float32 at least."""

    @property
    def settings(self) -> Mapping[str, object]: ...

    def matrix(self, queries: Embeddings, documents: Embeddings) -> Tensor:
        """(Q, N) of every query with every document."""
        ...

    def grouped(self, queries: Embeddings, documents: Embeddings, groups: Offsets) -> Tensor:
        """(N,) of documents groups[i] … groups[i+1]−1 with query i."""
        ...


@final
@frozen(kw_only=True)
class MaxSim:
    """Khattab and Zaharia, SIGIR 2020, eq. 3.

    Args:
        mean: divide by the number of query tokens, so that a temperature suits queries of any length. τ of the mean is
            τ of the sum over the number of tokens.
    """

    mean: bool = False

    @property
    def settings(self) -> Mapping[str, object]:
        return {"interaction": "maxsim", "mean": self.mean}

    def matrix(self, queries: Embeddings, documents: Embeddings) -> Tensor:
        scores = MaxSimScorer().matrix(queries, documents)
        return scores / _counts(queries, scores)[:, None] if self.mean else scores

    def grouped(self, queries: Embeddings, documents: Embeddings, groups: Offsets) -> Tensor:
        scores = MaxSimScorer().grouped(queries, documents, groups)
        if not self.mean:
            return scores
        counts = np.repeat(np.maximum(queries.lengths, 1), np.diff(groups))
        return scores / queued_to_device(counts, scores.device).type(scores.dtype)


def _share(_: object, __: object, share: float) -> None:
    if not 0 < share <= 1:
        raise InvalidOption(f"share = {share!r}", "above 0 and at most 1", "A few percent are usual.")


def _count(_: object, __: object, k: int | None) -> None:
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise InvalidOption(f"k = {k!r}", "a whole number of at least 1, or None", "Leave it out to take a share.")


@final
@frozen(kw_only=True)
class Xtr:
    """Lee et al., NeurIPS 2023, §3.1: a query token sees only the document tokens of the batch that it retrieves.

    Args:
        k: how many it retrieves; None: a share of all, so that batches of another size train alike. The paper takes 256
            of what its batch holds; more than there are means all.
        share: of the document tokens.
    """

    k: int | None = field(default=None, validator=_count)
    share: float = field(default=0.05, validator=_share)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"interaction": "xtr", "k": self.k, "share": self.share}

    def matrix(self, queries: Embeddings, documents: Embeddings) -> Tensor:
        tokens = int(documents.offsets[-1])
        k = max(1, round(self.share * tokens)) if self.k is None else min(self.k, max(1, tokens))
        return xtr_all_pairs(*tokens_of(queries, documents), k)

    def grouped(self, queries: Embeddings, documents: Embeddings, groups: Offsets) -> Tensor:
        scores = self.matrix(queries, documents)
        own = np.repeat(np.arange(len(queries)), np.diff(groups)) * len(documents) + np.arange(len(documents))
        return scores.flatten()[queued_to_device(own, scores.device)]


def _counts(queries: Embeddings, scores: Tensor) -> Tensor:
    return queued_to_device(np.maximum(queries.lengths, 1), scores.device).type(scores.dtype)


MAXSIM = MaxSim()
"""What losses take where nothing is said."""
