"""MaxSim over torch tensors, as the `Scorer` port and for explanations."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.neural.transfer import to_host
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, check_offsets, read_only_integers
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.kernels import maxsim_all_pairs, maxsim_grouped, maxsim_winners

if TYPE_CHECKING:
    from lateinteraction.domain.ports import Scorer


@final
@frozen
class MaxSimScorer:
    """Σ over query tokens of the best similarity with a document token (Khattab and Zaharia, SIGIR 2020, eq. 3)."""

    def matrix(self, queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor]) -> Tensor:
        """Scores (Q, N), float32 (float64 for float64 embeddings)."""
        _check_pair(queries, documents)
        return maxsim_all_pairs(queries.tokens, queries.offsets, documents.tokens, documents.offsets)

    def grouped(self, queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor], groups: Offsets) -> Tensor:
        """Scores (N,) of documents groups[i] … groups[i+1]−1 with query i."""
        _check_pair(queries, documents)
        groups = read_only_integers(groups)
        check_offsets(groups, len(documents), "documents")
        if len(groups) != len(queries) + 1:
            raise InvalidEmbeddings(
                f"{len(groups) - 1} groups for {len(queries)} queries", "a group for each", "An empty group is allowed."
            )
        return maxsim_grouped(queries.tokens, queries.offsets, documents.tokens, documents.offsets, groups)

    def winners(
        self, query: TokenEmbeddings[Tensor], document: TokenEmbeddings[Tensor]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """For each token of one query: its contribution to the score with one document, and that document's token."""
        _check_pair(query, document)
        similarities, indices = maxsim_winners(query.tokens, document.tokens)
        return to_host(similarities).astype(np.float32), to_host(indices).astype(np.int64)


def _check_pair(queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor]) -> None:
    for embeddings in (queries, documents):
        if not isinstance(embeddings.tokens, Tensor) or not embeddings.tokens.is_floating_point():
            raise InvalidEmbeddings(
                f"tokens as a {type(embeddings.tokens).__name__} of {embeddings.tokens.dtype}",
                "a torch tensor of floating-point numbers",
                "Convert with `adapters.neural.transfer.to_torch`.",
            )
    if queries.dimension != documents.dimension:
        raise InvalidEmbeddings(
            f"queries of {queries.dimension} dimensions and documents of {documents.dimension}",
            "one width",
            "Encode both with the same encoder.",
        )


if TYPE_CHECKING:
    _: type[Scorer[Tensor]] = MaxSimScorer
