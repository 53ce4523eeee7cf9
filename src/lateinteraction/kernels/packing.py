"""Tokens from what callers have: packed rows with offsets, padded batches with masks, lists of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.operands import Tokens, spans_of


def packed(values: Tensor, offsets: Tensor, longest: int, scales: Tensor | None = None) -> Tokens:
    """Items that lie one after the other: item i has the rows offsets[i] … offsets[i+1]−1. Nothing is copied.

    Args:
        values: (R, D).
        offsets: int64 (N+1,), where the form reads spans (see `Tokens`).
        longest: at least the tokens of the longest item.
        scales: as in `Tokens`.
    """
    return Tokens(values, spans_of(offsets), longest, scales)


def padded(values: Tensor, mask: Tensor | None = None) -> Tokens:
    """A padded batch (N, L, D), of which the mask, boolean (N, L), says what is there; without one, all of it.

    Kept tokens may stand anywhere. Where the mask is on the host and keeps the first tokens of every item, or all,
    nothing is copied: the padding is merely in no span. Otherwise the kept tokens of each item are brought to its
    front, in order, by one gather of the batch; its result has the same size, so no device is asked how many there
    are. Gradients flow back to where the tokens came from.
    """
    items, length, dimension = values.shape
    starts = torch.arange(0, items * length, length, device=values.device) if length else values.new_zeros(items).long()
    if mask is None:
        return Tokens(values.reshape(-1, dimension), torch.stack([starts, starts + length], dim=1), length)
    counts = mask.sum(dim=1)
    spans = torch.stack([starts, starts + counts], dim=1)
    if not _keeps_the_first(mask, counts):
        order = torch.sort(~mask, dim=1, stable=True).indices
        values = values.gather(1, order[:, :, None].expand_as(values))
    return Tokens(values.reshape(-1, dimension), spans, length)


def _keeps_the_first(mask: Tensor, counts: Tensor) -> bool:
    """Whether the mask is known, without waiting for a device, to keep the first `counts` tokens of every item."""
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch.equal(mask, torch.arange(mask.shape[1]) < counts[:, None])
