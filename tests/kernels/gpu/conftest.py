"""Ragged tokens as kernels meet them: items in any order among rows of NaN, spans of any strides, outputs poisoned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels.operands import Tokens


class Ragged(NamedTuple):
    """The same tokens twice."""

    packed: TokenEmbeddings[NDArray[np.floating]]
    """For the reference: float64, scales multiplied in."""
    tokens: Tokens
    """For the kernels."""
    rows: NDArray[np.int64]
    """The row in `tokens.values` of each packed token."""


def ragged(
    generator: np.random.Generator,
    lengths: Sequence[int],
    values: NDArray[np.generic],
    *,
    dtype: torch.dtype = torch.float32,
    scales: NDArray[np.float32] | None = None,
) -> Ragged:
    """Items of these lengths from packed values (T, D) and scales (T,).

    Between the items lie rows that nobody owns: NaN, or the largest number where the dtype has no NaN.
    """
    starts, row = np.zeros(len(lengths), np.int64), 0
    for item in generator.permutation(len(lengths)):
        row += int(generator.integers(0, 3))
        starts[item] = row
        row += lengths[item]
    owned = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    rows = np.concatenate([*owned, np.zeros(0, np.int64)])
    guard = float("nan") if dtype.is_floating_point else 127
    scattered = torch.full((row + 2, values.shape[1]), guard, dtype=dtype)
    scattered[torch.from_numpy(rows)] = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    spans = np.stack([starts, starts + np.asarray(lengths, np.int64)], axis=1)
    if generator.random() < 0.5:
        spans = np.asfortranarray(spans)
    all_scales = None
    exact = scattered[torch.from_numpy(rows)].double().numpy()
    if scales is not None:
        all_scales = torch.full((len(scattered),), torch.nan)
        all_scales[torch.from_numpy(rows)] = torch.from_numpy(scales)
        exact = exact * scales[:, None]
    longest = max(lengths, default=0) + int(generator.integers(0, 3))
    tokens = Tokens(scattered, torch.from_numpy(spans), longest, all_scales)
    return Ragged(TokenEmbeddings(exact, offsets_of(list(lengths))), tokens, rows)


@pytest.fixture(scope="session", name="ragged")
def _ragged() -> Callable[..., Ragged]:
    return ragged
