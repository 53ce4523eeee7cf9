"""Centroid interaction on the host, on tables of float32 or of bytes. See `programs.interaction`."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.cpu.blocks import COLUMNS
from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import codes_within, given, readable, room, spans_given, spans_within
from lateinteraction.kernels.cpu.operands import SPARE, lengths_of
from lateinteraction.kernels.cpu.tables import Edge
from lateinteraction.kernels.cpu.threads import run, shares
from lateinteraction.kernels.operands import CentroidTable

_SCAN_BYTES = Program("interaction", "scan_bytes", 4)
_SCAN_FLOATS = Program("interaction", "scan_floats", 4)

_LOOK_UP = 2.0
"""Multiply-adds, of 0.01 ns, that take as long as to look up one column of a row."""


def centroid_interaction(table: CentroidTable, query_spans: Tensor, codes: Tensor, document_spans: Tensor) -> Tensor:
    """Approximate scores (Q, N). See `Form.centroid_interaction`."""
    quantised = table.steps is not None
    values = readable("a table", table.values, torch.uint8 if quantised else torch.float32)
    query_spans = spans_within(query_spans, values.shape[1])
    document_spans = spans_within(document_spans, len(codes))
    codes = codes_within(codes, len(values), document_spans)
    edge, tokens = Edge.of(values, COLUMNS), values.shape[1]
    steps, lows = (_spared(each) for each in (table.steps, table.lows))
    scores = room(len(query_spans), len(document_spans))
    numbers = given(
        *edge.given(values),
        tokens,
        *(each.data_ptr() for each in (steps, lows, codes)),
        *spans_given(query_spans),
        *spans_given(document_spans),
        scores.data_ptr(),
    )
    program = _SCAN_BYTES if quantised else _SCAN_FLOATS

    def scan(first: int, last: int) -> None:
        maxima = room(tokens + COLUMNS + SPARE, dtype=values.dtype)
        program(numbers.ctypes.data, first, last, maxima.data_ptr())

    lengths = lengths_of(document_spans)
    run(scan, shares(lengths, _LOOK_UP * float(lengths.sum()) * tokens))
    return scores


def _spared(numbers: Tensor | None) -> Tensor:
    """With room after the last one, which sums read."""
    if numbers is None:
        return room(0)
    return torch.nn.functional.pad(readable("steps and lows", numbers, torch.float32), (0, SPARE))
