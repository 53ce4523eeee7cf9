"""k-means on the host. See `programs.kmeans`."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.cpu.blocks import ASSIGNED, PANEL
from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import FLOATS, codes_within, given, readable, room, share
from lateinteraction.kernels.cpu.operands import kind_of
from lateinteraction.kernels.cpu.threads import run, shares

_ASSIGN = Program("kmeans", "assign", 4)
_SORT_TOKENS = Program("kmeans", "sort_tokens", 5)
_UPDATE = Program("kmeans", "update", 4)
_ONE = torch.ones(1, dtype=torch.float32, device="cpu")


def kmeans_assign(values: Tensor, centroids: Tensor) -> Tensor:
    """Codes int32 (T,). See `Form.kmeans_assign`."""
    values, centroids = readable("tokens", values, *FLOATS), readable("centroids", centroids, torch.float32)
    codes = room(len(values), dtype=torch.int32)
    dimension, count = values.shape[1], len(centroids)
    numbers = given(
        *_rows_given(values),
        *(centroids.data_ptr(), count, codes.data_ptr(), _ONE.data_ptr()),
    )

    def assign(first: int, last: int) -> None:
        scratch = room(ASSIGNED * PANEL * (dimension + 2) + dimension)
        _ASSIGN(numbers.ctypes.data, first, last, scratch.data_ptr())

    share(assign, len(values), PANEL, float(values.numel()) * count)
    return codes


def kmeans_update(values: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """Centroids (K, D). See `Form.kmeans_update`."""
    values, centroids = readable("tokens", values, *FLOATS), readable("centroids", centroids, torch.float32)
    codes = codes_within(codes, len(centroids))
    starts = room(len(centroids) + 1, dtype=torch.int64).zero_()
    order = room(len(values), dtype=torch.int64)
    _SORT_TOKENS(codes.data_ptr(), len(codes), len(centroids), starts.data_ptr(), order.data_ptr())
    updated = torch.empty_like(centroids)
    numbers = given(
        *_rows_given(values),
        *(each.data_ptr() for each in (centroids, starts, order, updated)),
    )

    def update(first: int, last: int) -> None:
        sums = room(values.shape[1], dtype=torch.float64)
        _UPDATE(numbers.ctypes.data, first, last, sums.data_ptr())

    run(update, shares(starts.diff().numpy() + 1, _GATHER * values.numel()))
    return updated


_GATHER = 20.0
"""Multiply-adds, of 0.01 ns, that take as long as to add one number of a row that lies anywhere."""


def _rows_given(values: Tensor) -> tuple[int, int, int, int]:
    """Rows as programs take them: address, kind, bytes of a row, dimension."""
    dimension = values.shape[1]
    return values.data_ptr(), kind_of(values), dimension * values.element_size(), dimension
