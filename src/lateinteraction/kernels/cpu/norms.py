"""Inverse norms on the host."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.operands import kind_of, room
from lateinteraction.kernels.cpu.threads import FROM_MEMORY, run, shares

_INVERSE_NORMS = Program("norms", "inverse_norms", 7)
_ROUND = 16


def inverse_norms(values: Tensor) -> Tensor:
    """1 / ‖row‖, float32 (R,). See `Form.inverse_norms`."""
    kind, rows = kind_of(values), values.detach().contiguous()
    count, dimension = rows.shape
    norms = room(count)

    def task(first: int, last: int) -> None:
        row = room(-(-dimension // _ROUND) * _ROUND).zero_()
        _INVERSE_NORMS(rows.data_ptr(), kind, dimension, first, last, norms.data_ptr(), row.data_ptr())

    run(task, shares(np.ones(count, np.int64), float(count) * dimension * FROM_MEMORY))
    return norms
