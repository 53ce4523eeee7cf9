"""The best documents of each query, found over chunks of documents: never more than one chunk's scores are there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import ALIGNED, Kernel, Row, Specimen, aligned, ceil_div, launch
from lateinteraction.kernels.gpu.forward import write_all_pairs
from lateinteraction.kernels.gpu.keys import LEAST, scores_and_places
from lateinteraction.kernels.operands import Tokens

KEYS_AT_ONCE = 2**22
"""Scores that are there at once: 32 MB of keys. One query meets some four million documents in a chunk, so that finding
their best costs little beside reading their tokens."""


def maxsim_top_k(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor]:
    """See `kernels.form.Form.maxsim_top_k`."""
    rows, count = queries.spans.shape[0], documents.spans.shape[0]
    k = min(k, count)
    chunk = min(count, aligned(KEYS_AT_ONCE // max(1, rows)))
    # The best so far, then those of a chunk. No two keys are equal, so whatever finds the largest finds the same ones.
    own = ceil_div(k, ALIGNED) * ALIGNED
    keys = queries.values.new_full((rows, own + chunk), LEAST, dtype=torch.int64)
    for first in range(0, count if k else 0, max(1, chunk)):
        part = documents._replace(spans=documents.spans[first : first + chunk])
        filled = own + part.spans.shape[0]
        write_all_pairs(queries, part, keys[:, own:filled], first_place=first)
        keys[:, :k] = keys[:, :filled].topk(k, dim=1).values
    return _read(keys[:, :k])


def _read(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and places (Q, k) of keys (Q, k), whose rows may be apart."""
    scores = keys.new_empty(keys.shape, dtype=torch.float32)
    places = keys.new_empty(keys.shape)
    device = keys.device
    count = keys.numel()
    arguments = {
        "keys": keys.contiguous(),
        "scores": scores,
        "places": places,
        "count": count,
    }
    launch(READ_KEYS, device, "any", ceil_div(count, READ_KEYS.tile(device, "any", "BLOCK")), arguments)
    return scores, places


@triton.jit(do_not_specialize=["count"])
def _read_keys(keys, scores, places, count, BLOCK: tl.constexpr):
    entry = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    score, place = scores_and_places(tl.load(keys + entry, mask=entry < count, other=0))
    tl.store(scores + entry, score, mask=entry < count)
    tl.store(places + entry, place, mask=entry < count)


READ_KEYS = Kernel(
    _read_keys,
    rows=(
        *(
            Row(architecture, "any", {"BLOCK": 256}, warps=2, wide_loads=False)
            for architecture in ("sm_80", "sm_90", "sm_100", "gfx942")
        ),
        Row("interpreter", "any", {"BLOCK": 16}),
    ),
    specimens=(Specimen("any", {"keys": "*i64", "scores": "*fp32", "places": "*i64", "count": "i32"}),),
)
