"""Sizes that drivers and programs must agree on. Apart from both, so that drivers need no numba to know them."""

from __future__ import annotations

from lateinteraction.kernels.cpu.processor import processor

COLUMNS = 32
"""Columns of a table that a pass over a document's codes takes: the tokens of one query, as most models have it."""

PANEL = processor().panel
"""Columns whose products are summed at a time."""

TOKENS = 2 * processor().rows
"""Document tokens whose residuals are decoded at a time: with a panel of queries they stay in the first-level cache.

2 bits, 128 dimensions, 32 query tokens, ns per token: 43.3 with 12 tokens, 42.6 with 24, 45.2 with 36, 48.7 with 96."""

CENTROIDS = 64
"""Centroids of a block in the search for the best ones, and of one whose extremes are found at a time."""

ASSIGNED = 8
"""Panels of tokens that are compared with a block of centroids, one panel after the other."""

CENTROID_BYTES = 256 * 2**10
"""Bytes of centroids in such a block: it stays in the second-level cache while the panels go by."""
