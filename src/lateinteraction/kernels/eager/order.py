"""The best of a row of values, ties to the lowest index, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST = -(2**63)


def best_of(values: Tensor, k: int) -> Tensor:
    """Indices int64 (n, min(k, m)) of the largest of m values in each of n rows, best first; NaN counts as the least.

    `torch.topk` takes any of equal values, and a stable sort of everything costs several times as much. So value and
    index are packed into one number that is its own: the bits of a float32, made to rise with it, above the index
    counted down. Values of float64 have no room beside an index and are sorted.
    """
    k = min(k, values.shape[1])
    if values.dtype == torch.float64:
        return torch.sort(torch.where(values.isnan(), -torch.inf, values), dim=1, descending=True, stable=True)[1][
            :, :k
        ]
    bits = (values + 0.0).view(torch.int32).type(torch.int64)  # + 0.0: −0 is 0
    rising = torch.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    downward = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    keys = torch.where(values.isnan(), LOWEST + downward, rising * 2**31 + downward)
    chosen = torch.topk(keys, k, dim=1).values
    return values.shape[1] - 1 - torch.where(chosen < LOWEST + 2**31, chosen - LOWEST, chosen % 2**31)
