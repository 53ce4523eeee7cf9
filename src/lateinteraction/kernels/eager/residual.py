"""The residual codec: encode, decode, and MaxSim on what it stores, a chunk of decoded residuals at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.eager.chunks import chunks, maxima, on_host, precision_of, rows_per_chunk, sum_per_query
from lateinteraction.kernels.eager.maxsim import inverse_norms
from lateinteraction.kernels.operands import Codec, Compressed, Tokens


def residual_maxsim(queries: Tokens, scores: Tensor, codec: Codec, documents: Compressed) -> Tensor:
    """Scores (Q, N). See `Form.residual_maxsim`."""
    spans = on_host(queries.spans)
    rows = rows_per_chunk(queries.values.shape[0])
    values = queries.values.type(precision_of(queries.values, codec.centroids))
    values = values if queries.scales is None else values * queries.scales[:, None]
    columns = [values.new_empty((len(spans), 0))]
    for chunk in chunks(on_host(documents.spans), rows):
        best: Tensor | None = None
        for piece in chunk.pieces(rows):
            residuals = _weights_of(codec, piece.rows_of(documents.residuals)).type(values.dtype)
            table = scores.index_select(0, piece.rows_of(documents.codes)) + residuals @ values.mT
            table = table * piece.rows_of(documents.inverse_norms).type(table.dtype)[:, None]
            found = maxima(table, piece.lengths, -torch.inf)
            best = found if best is None else torch.maximum(best, found)
        if best is not None:
            columns.append(sum_per_query(best, spans))
    return torch.cat(columns, dim=1)


def residual_encode(values: Tensor, codes: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Residuals (T, B) and inverse norms (T,). See `Form.residual_encode`."""
    nearest = codec.centroids.index_select(0, codes)
    buckets = torch.bucketize((values - nearest).contiguous(), codec.cutoffs)
    return _pack(buckets, codec.bits), inverse_norms(nearest + codec.weights[buckets])


def residual_decode(codec: Codec, codes: Tensor, residuals: Tensor) -> Tensor:
    """Unit vectors (T, D). See `Form.residual_decode`."""
    tokens = codec.centroids.index_select(0, codes) + _weights_of(codec, residuals)
    return tokens * inverse_norms(tokens)[:, None]


def _pack(buckets: Tensor, bits: int) -> Tensor:
    """Buckets (T, D) as bytes (T, B), low dimensions in low bits."""
    each = 8 // bits
    padded = torch.nn.functional.pad(buckets, (0, -buckets.shape[1] % each))
    return (
        (padded.unflatten(1, (padded.shape[1] // each, each)) << torch.arange(0, 8, bits, device=buckets.device))
        .sum(dim=2)
        .type(torch.uint8)
    )


def _weights_of(codec: Codec, residuals: Tensor) -> Tensor:
    """The decoded residuals (T, D)."""
    places = torch.arange(0, 8, codec.bits, device=residuals.device, dtype=torch.uint8)
    buckets = (residuals[:, :, None] >> places) & (2**codec.bits - 1)
    return codec.weights[buckets.flatten(1)[:, : codec.centroids.shape[1]].type(torch.int64)]
