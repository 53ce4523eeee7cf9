"""Kinds of numbers, as programs are told them. Apart from both sides, so that drivers need no numba to name one."""

from __future__ import annotations

FLOAT32 = 0
FLOAT16 = 1
BFLOAT16 = 2
INT8 = 3

SIZES = (4, 2, 2, 1)
"""Bytes of a number of each kind."""
