"""What kernels take: token embeddings by rows and spans, compressed token embeddings, the codec, centroid tables.

Raw tensors with names, nothing more. Letters: Q queries, N documents, R rows of a tensor of tokens, D dimensions,
S rows of query tokens, K centroids, b bits per dimension, B = ⌈D b / 8⌉ bytes per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LONGEST_NARROW = 32_767
"""The longest document whose tokens 16 bits can count; winners of longer ones take 32."""


class Tokens(NamedTuple):
    """Token embeddings of N items: rows of one tensor, and which rows are whose.

    Rows that no span names are absent: padding, masked tokens, removed documents. Spans may come in any order and
    name a row twice, except where gradients are asked for: those want spans that do not overlap.
    """

    values: Tensor
    """(R, D), contiguous: float64, float32, float16, bfloat16, or int8 with scales."""
    spans: Tensor
    """int64 (N, 2): item i has the rows spans[i, 0] … spans[i, 1] − 1. Any strides; `spans_of` makes them from offsets
    without a copy. On the device of the values for the Triton form, on the host for the others."""
    longest: int
    """At least the number of tokens of the longest item. Known on the host, so that no device is ever asked."""
    scales: Tensor | None = None
    """float32 (R,), never negative: a token is its row times its scale."""


class Codec(NamedTuple):
    """One centroid per token and one scalar quantiser for what it leaves over (ColBERTv2, NAACL 2022, §3.3)."""

    centroids: Tensor
    """float32 (K, D)."""
    cutoffs: Tensor
    """float32 (2^b − 1,), never falling: a value is in bucket i when cutoffs[i−1] < value ≤ cutoffs[i]."""
    weights: Tensor
    """float32 (2^b,): the value that stands for each bucket; b is 1, 2 or 4."""

    @property
    def bits(self) -> int:
        """b."""
        return self.weights.shape[0].bit_length() - 1


class Compressed(NamedTuple):
    """Token embeddings as the codec stores them: token t is (centroids[code] + weights[buckets]) · inverse norm."""

    codes: Tensor
    """int32 (R,)."""
    residuals: Tensor
    """uint8 (R, B): dimension j in byte ⌊j b / 8⌋, its lowest bit at (j b) mod 8."""
    inverse_norms: Tensor
    """float32 or float16 (R,)."""
    spans: Tensor
    """As in `Tokens`."""


class CentroidTable(NamedTuple):
    """How similar each query token is to each centroid: lows[s] + steps[s] · values[k, s]."""

    values: Tensor
    """(K, S): float32, or uint8 with steps and lows. The tokens of one query lie side by side: one row holds all that a
    document token of code k needs."""
    steps: Tensor | None = None
    """float32 (S,)."""
    lows: Tensor | None = None
    """float32 (S,)."""


class Listed(NamedTuple):
    """Of each query token, the lists of documents that it looks into: M of them, some of which may be empty."""

    documents: Tensor
    """uint16 (L,): all lists, one behind the other, of documents counted from the first of their block."""
    spans: Tensor
    """int64 (S, M, 2): where each list is."""
    firsts: Tensor
    """int64 (M,): the first document of the block that the m-th list of every token is of."""


def spans_of(offsets: Tensor) -> Tensor:
    """Spans (N, 2) of packed items from their offsets int64 (N+1,): a view, nothing is copied."""
    return offsets.unfold(0, 2, 1) if offsets.shape[0] > 1 else offsets.new_empty((0, 2))


def winners_dtype(documents: Tokens) -> torch.dtype:
    """int16 where it can count the tokens of every document, else int32."""
    return torch.int16 if documents.longest <= LONGEST_NARROW else torch.int32
