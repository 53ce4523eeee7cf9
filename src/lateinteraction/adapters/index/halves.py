"""Halves: tokens rounded to float16, where that leaves what they say."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lateinteraction.adapters.index.queries import check_finite
from lateinteraction.domain.errors import InvalidEmbeddings

MOST_LOST = 0.01
"""Of the length of all tokens together, what rounding may take: eight bits take .006. Of unit vectors it takes .0002.
Below 6e-5 float16 has steps of 6e-8 whatever the value. Tokens of 128 dimensions and one length, what is lost, and how
many of the exact best ten are found: 1e-3 .0002 .998, 1e-4 .002 .992, 2e-5 .010 .980, 1e-5 .019 .966, 1e-6 .19 .70,
1e-7 .999 .01."""

_STEP, _RELATIVE = 2.0**-25, 2.0**-11
"""What a value loses at most: the one, or of itself the other."""

_AT_A_TIME = 2**14


def as_halves(tokens: Tensor) -> Tensor:
    """Tokens (T, D) as float16.

    Raises:
        InvalidEmbeddings: NaN, infinity, or a value beyond 65,504, which float16 cannot hold; tokens so short that
            more than `MOST_LOST` of them would be rounded away.
    """
    tokens = tokens.detach()
    halves = tokens.type(torch.float16)
    check_finite(halves)
    typical = float(torch.linalg.vector_norm(tokens.type(torch.float32))) / math.sqrt(max(1, tokens.numel()))
    if typical * (MOST_LOST - _RELATIVE) < _STEP and (lost := _lost(tokens, halves)) > MOST_LOST:
        raise InvalidEmbeddings(
            f"token embeddings so short that float16 would lose {lost:.2g} of them",
            f"at most {MOST_LOST}",
            "Normalise them, or choose the codec int8.",
        )
    return halves


def _lost(tokens: Tensor, halves: Tensor) -> float:
    """The length of what was rounded away, of that of all."""
    lost = whole = 0.0
    for block, rounded in zip(tokens.split(_AT_A_TIME), halves.split(_AT_A_TIME), strict=True):
        wide = block.type(torch.float64)
        lost += float((wide - rounded).square().sum())
        whole += float(wide.square().sum())
    return math.sqrt(lost / whole) if whole else 0.0
