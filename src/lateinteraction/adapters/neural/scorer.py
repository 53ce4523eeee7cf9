"""MaxSim over torch tensors, as the `Scorer` port and for explanations."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.neural.transfer import queued_to_device, to_host
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, check_offsets, read_only_integers
from lateinteraction.domain.errors import InvalidEmbeddings, MissingExtra
from lateinteraction.kernels import (
    MissingForm,
    Tokens,
    form_for,
    maxsim_all_pairs,
    maxsim_all_pairs_winners,
    maxsim_pairs,
    packed,
)

if TYPE_CHECKING:
    from lateinteraction.domain.ports import Scorer


@final
@frozen
class MaxSimScorer:
    """Σ over query tokens of the best similarity with a document token (Khattab and Zaharia, SIGIR 2020, eq. 3)."""

    def matrix(self, queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor]) -> Tensor:
        """Scores (Q, N), float32 (float64 for float64 embeddings)."""
        return maxsim_all_pairs(*tokens_of(queries, documents))

    def grouped(self, queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor], groups: Offsets) -> Tensor:
        """Scores (N,) of documents groups[i] … groups[i+1]−1 with query i."""
        both = tokens_of(queries, documents)
        groups = read_only_integers(groups)
        check_offsets(groups, len(documents), "documents")
        if len(groups) != len(queries) + 1:
            raise InvalidEmbeddings(
                f"{len(groups) - 1} groups for {len(queries)} queries", "a group for each", "An empty group is allowed."
            )
        pairs = np.stack([np.repeat(np.arange(len(queries)), np.diff(groups)), np.arange(len(documents))], axis=1)
        return maxsim_pairs(*both, queued_to_device(pairs, both[0].spans.device))

    def winners(
        self, query: TokenEmbeddings[Tensor], document: TokenEmbeddings[Tensor]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """For each token of one query: its contribution to the score with one document, and that document's token."""
        _, winners = maxsim_all_pairs_winners(*tokens_of(query, document))
        indices = to_host(winners)[:, 0].astype(np.int64)
        if len(document.tokens) == 0:
            return np.full(len(indices), -np.inf, np.float32), indices
        chosen = to_host(document.tokens).astype(np.float64)[indices]
        similarities = np.einsum("sd,sd->s", to_host(query.tokens).astype(np.float64), chosen)
        return similarities.astype(np.float32), indices


def tokens_of(queries: TokenEmbeddings[Tensor], documents: TokenEmbeddings[Tensor]) -> tuple[Tokens, Tokens]:
    """Both as kernels take them: offsets where the form that will compute reads them."""
    _check_pair(queries, documents)
    device = queries.tokens.device
    try:
        form, _ = form_for(device.type, queries.tokens.dtype, documents.tokens.dtype)
    except MissingForm as error:
        raise MissingExtra(f"scoring on {device}", "a form of the kernels that computes there", str(error)) from error
    place = torch.device("cpu") if form == "eager" else device
    return _packed(queries, place), _packed(documents, place)


def _packed(embeddings: TokenEmbeddings[Tensor], place: torch.device) -> Tokens:
    longest = int(embeddings.lengths.max(initial=0))
    return packed(embeddings.tokens, queued_to_device(embeddings.offsets, place), longest)


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
