"""Centroid interaction: MaxSim where each document token is its centroid, on a table of what centroids score."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import (
    RAGGED,
    Architecture,
    Kernel,
    Row,
    Specimen,
    ceil_div,
    device_of,
    launch,
    unit_of,
)
from lateinteraction.kernels.gpu.sums import sum_per_query
from lateinteraction.kernels.gpu.tiles import larger, maximum
from lateinteraction.kernels.gpu.walk import documents_per_program, find_step, plan_walk, store_empty
from lateinteraction.kernels.operands import CentroidTable

_REGIMES = {torch.uint8: "bytes", torch.float32: "floats"}


@triton.jit(do_not_specialize=["item_stride", "end_stride", "units", "N", "count"])
def _centroid_maxima(
    values,
    steps,
    lows,
    codes,
    spans,
    item_stride,
    end_stride,
    maxima,
    units,
    N,
    count,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0)
    S = tl.cast(units, tl.int64) * UNIT
    tiles = tl.cast(tl.cdiv(S, BLOCK_N), tl.int32)
    first_document = tl.cast(program // tiles, tl.int64) * count
    s = tl.cast(program % tiles, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    walk = plan_walk(spans, item_stride, end_stride, first_document, count, N, GROUP, BLOCK_M)
    store_empty(maxima, walk, first_document, s, S)
    least = 0 if steps is not None else float("-inf")
    best = tl.full((BLOCK_M, BLOCK_N), least, values.dtype.element_ty)
    for step in tl.range(0, walk[4], num_stages=STAGES):
        first, left, place = find_step(walk, step, BLOCK_M)
        # Beyond the document's end its last token stands again, and changes no maximum.
        rows = first + tl.minimum(tl.arange(0, BLOCK_M), left - 1)
        centroids = tl.cast(tl.load(codes + rows), tl.int64)
        scores = tl.load(values + centroids[:, None] * S + s[None, :], mask=(s < S)[None, :], other=0)
        best = larger(best, scores) if steps is None else tl.maximum(best, scores)
        if left <= BLOCK_M:
            if steps is None:
                top = maximum(best, 0)
            else:
                top = tl.cast(tl.max(best, 0), tl.float32)
                top = tl.load(lows + s, mask=s < S, other=0.0) + tl.load(steps + s, mask=s < S, other=0.0) * top
            tl.store(maxima + (first_document + place) * S + s, top, mask=s < S)
            best = tl.full((BLOCK_M, BLOCK_N), least, values.dtype.element_ty)


def centroid_interaction(table: CentroidTable, query_spans: Tensor, codes: Tensor, document_spans: Tensor) -> Tensor:
    """As `kernels.form.Form.centroid_interaction`."""
    values, tokens = table.values, table.values.shape[1]
    operands = {"table": values, "steps": table.steps, "lows": table.lows}
    device = device_of({**operands, "query spans": query_spans, "codes": codes, "document spans": document_spans})
    if values.dtype not in _REGIMES or (values.dtype == torch.uint8) != (table.steps is not None):
        raise TypeError(f"tables are float32, or uint8 with steps and lows, not {values.dtype}")
    unit = unit_of(tokens)
    regime = f"{RAGGED[unit]}{_REGIMES[values.dtype]}"
    row = CENTROID_MAXIMA.row(device, regime).tiles
    tiles = ceil_div(tokens, row["BLOCK_N"])

    def write_maxima(maxima: Tensor, spans: Tensor) -> None:
        count = documents_per_program(len(spans), tiles, row["GROUP"])
        arguments = {
            "values": values,
            "steps": table.steps,
            "lows": table.lows,
            "codes": codes,
            "spans": spans,
            "item_stride": spans.stride(0),
            "end_stride": spans.stride(1),
            "maxima": maxima,
            "units": tokens // unit,
            "N": len(spans),
            "count": count,
            "UNIT": unit,
        }
        launch(CENTROID_MAXIMA, device, regime, ceil_div(len(spans), count) * tiles, arguments)

    return sum_per_query(write_maxima, query_spans, document_spans, tokens)


_DEVICES: tuple[Architecture, ...] = ("sm_90", "sm_80", "sm_100", "gfx942")


def _tiles(tokens: int) -> dict[str, int]:
    return {"BLOCK_M": tokens, "BLOCK_N": 32, "GROUP": 16, "STAGES": 3}


CENTROID_MAXIMA = Kernel(
    _centroid_maxima,
    (
        # One warp to a program: what a document costs beyond its tokens is the reduction across threads at its end,
        # and one warp does it without waiting for others. A row of 32 bytes is one sector, of 32 floats one line.
        *(Row(device, "bytes", _tiles(64), 1, 3) for device in _DEVICES),
        *(Row(device, "floats", _tiles(32), 1, 3) for device in _DEVICES),
        # Rows that begin anywhere are read a value at a time, a row by all threads side by side.
        *(Row(device, "ragged bytes", _tiles(64), 1, 3, wide_loads=False) for device in _DEVICES),
        *(Row(device, "ragged floats", _tiles(32), 1, 3, wide_loads=False) for device in _DEVICES),
        *(
            Row("interpreter", f"{kind}{each}", {"BLOCK_M": 4, "BLOCK_N": 8, "GROUP": 4, "STAGES": 1})
            for kind in RAGGED.values()
            for each in _REGIMES.values()
        ),
    ),
    tuple(
        Specimen(
            f"{kind}{regime}",
            {
                "values": values,
                "steps": steps,
                "lows": steps,
                "codes": "*i32",
                "spans": "*i64",
                "maxima": "*fp32",
                **dict.fromkeys(("item_stride", "end_stride", "units", "N", "count"), "i32"),
                "UNIT": unit,
            },
        )
        for unit, kind in RAGGED.items()
        for regime, values, steps in (("bytes", "*u8", "*fp32"), ("floats", "*fp32", None))
    ),
)
"""The best score of each query token among the centroids of each document."""
