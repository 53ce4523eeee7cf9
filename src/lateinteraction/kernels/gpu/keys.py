"""A score and its place as one int64 that sorts: best first means largest first, and no two keys are equal.

The upper half has the order of the scores, the lower half falls as the place rises: among equal scores the lowest place
is the largest key. NaN comes after −∞, and 0 and −0 are equal. Device functions, but for `LEAST`.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAST = -(2**63)
"""Smaller than the key of any score and place."""

_NAN_ORDER: tl.constexpr = tl.constexpr(-0x80000000)
_LAST_PLACE: tl.constexpr = tl.constexpr(0xFFFFFFFF)
"""To flip the bits of a place with: they fall as it rises."""


@triton.jit
def as_keys(scores, places):
    """Keys int64 of float32 scores and their places, int64 and below 2³²."""
    bits = tl.cast(scores + 0.0, tl.int32, bitcast=True)  # −0 + 0 is 0
    order = tl.where(scores == scores, bits ^ ((bits >> 31) & 0x7FFFFFFF), _NAN_ORDER)
    return (tl.cast(order, tl.int64) << 32) | (places ^ _LAST_PLACE)


@triton.jit
def scores_and_places(keys):
    """The float32 scores and int64 places that keys were made of; every NaN is the same one."""
    order = tl.cast(keys >> 32, tl.int32)
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    return tl.cast(bits, tl.float32, bitcast=True), (keys & _LAST_PLACE) ^ _LAST_PLACE


@triton.jit
def store_scores(pointers, scores, places, mask):
    """Write scores where float32 is wanted, keys where int64 is."""
    if pointers.dtype.element_ty == tl.int64:
        tl.store(pointers, as_keys(scores, places), mask=mask)
    else:
        tl.store(pointers, scores, mask=mask)
