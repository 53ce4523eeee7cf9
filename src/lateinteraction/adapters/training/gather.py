"""Documents of all processes, with gradients back to those that made them.

Each process scores its own queries with everybody's documents, its own first. Gradients of a document are the sum of
what all processes' losses make of it; where gradients of weights are then averaged over the W processes, that is the
gradient of the mean loss over the global batch, with no factor besides. Rows travel packed, so that lengths may differ.

Shapes: W processes; T rows of D dimensions on this one, T' on the one with most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.neural.transfer import to_device, to_host
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of

Labels = NDArray[np.int64]


@frozen(eq=False)
class Gathered:
    """Documents of all processes, this one's first, then the others' by rank.

    Args:
        embeddings: of them.
        labels: int64 (L, N), whatever was sent along for each document.
    """

    embeddings: TokenEmbeddings[Tensor]
    labels: Labels


def gathered(documents: TokenEmbeddings[Tensor], labels: Labels) -> Gathered:
    """The documents of all processes of the default group; every one of them must call it.

    Args:
        documents: of this process; any number, of any lengths.
        labels: int64 (L, N), sent along.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return Gathered(documents, labels)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    device = documents.tokens.device
    described = np.concatenate([documents.lengths[None], labels])
    counts = to_host(_all_of(torch.tensor([len(documents)], device=device)))[:, 0]
    padded = np.zeros((len(described), int(counts.max())), np.int64)
    padded[:, : len(documents)] = described
    everywhere = to_host(_all_of(to_device(padded, device)))

    ranks = [rank, *(other for other in range(world) if other != rank)]
    parts = [everywhere[each, :, : counts[each]] for each in ranks]
    tokens = [int(everywhere[each, 0].sum()) for each in range(world)]
    longest = max(tokens)
    rows = _GatherRows.apply(_padded(documents.tokens, longest))
    places = np.concatenate([each * longest + np.arange(tokens[each]) for each in ranks])
    together = np.concatenate(parts, axis=1)
    packed = rows.flatten(0, 1).index_select(0, to_device(places, device))
    return Gathered(TokenEmbeddings(packed, offsets_of(together[0])), together[1:])


class _GatherRows(torch.autograd.Function):
    """(T', D) of each process to (W, T', D) on all; gradients are summed in float32 at least."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _all_of(rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        (gradient,) = grad_outputs
        wide = gradient.contiguous() if gradient.dtype == torch.float64 else gradient.float().contiguous()
        own = wide.new_empty(wide.shape[1:])
        distributed.reduce_scatter_tensor(own, wide.flatten(0, 1))
        return own.type(gradient.dtype)


def _all_of(tensor: Tensor) -> Tensor:
    """(W, …) of a tensor that has one shape everywhere."""
    everywhere = tensor.new_empty((distributed.get_world_size() * tensor.shape[0], *tensor.shape[1:]))
    distributed.all_gather_into_tensor(everywhere, tensor.contiguous())
    return everywhere.unflatten(0, (-1, tensor.shape[0]))


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros((count - len(rows), rows.shape[1]))])
