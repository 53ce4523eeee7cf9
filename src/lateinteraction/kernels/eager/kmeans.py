"""k-means on unit vectors: which centroid is nearest, and where the centroids move."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.eager.chunks import precision_of, rows_per_chunk
from lateinteraction.kernels.eager.maxsim import inverse_norms


def kmeans_assign(values: Tensor, centroids: Tensor) -> Tensor:
    """Codes int32 (T,). See `Form.kmeans_assign`."""
    columns = centroids.mT.type(precision_of(values, centroids))
    nearest = [
        (rows.type(columns.dtype) @ columns).argmax(dim=1) for rows in values.split(rows_per_chunk(len(centroids)))
    ]
    return torch.cat(nearest).type(torch.int32) if len(values) else values.new_empty(0, dtype=torch.int32)


def kmeans_update(values: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """Centroids (K, D). See `Form.kmeans_update`."""
    order = torch.sort(codes, stable=True).indices
    counts = torch.bincount(codes, minlength=len(centroids))
    own = values.index_select(0, order).type(precision_of(values, centroids))
    sums = torch.segment_reduce(own, "sum", lengths=counts, axis=0, initial=0)
    inverse = inverse_norms(sums)[:, None]
    return torch.where(inverse == 0, centroids, sums * inverse)
