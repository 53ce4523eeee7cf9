"""Gradients of document rows: each adds up the query rows that like it best.

A program owns a tile of T tokens of one document and walks through the query tokens that these won, E at a time. Rows
that go to different places are added up by a product of matrices: weights (T, E) · rows (E, D), where column e of the
weights has one entry that is not zero, ∂L/∂score at the token that e chose. So no row waits for another, however many
chose the same token. Hopper and Blackwell compute it turned, rowsᵀ (D, E) · weightsᵀ (E, T): their matrix instructions
want at least 64 along the first axis and are content with 8 along the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from lateinteraction.kernels.gpu.configurations import Architecture, Kernel, MatrixInstruction, Row, Specimen
from lateinteraction.kernels.gpu.gathering import specimen
from lateinteraction.kernels.gpu.normalisation import DEVICES, WIDTHS, before_normalisation
from lateinteraction.kernels.gpu.tiles import add_products


@triton.jit
def _product(weights, rows, sums, TURNED: tl.constexpr):
    """sums + weights (T, E) · rows (E, D): (T, D), or with TURNED (D, T)."""
    return add_products(tl.trans(rows), weights, sums) if TURNED else add_products(weights, tl.trans(rows), sums)


@triton.jit
def _add_weighted(rows, weights, chosen, sums, SINGLE: tl.constexpr, TURNED: tl.constexpr):
    """sums + weights (E,), each in the places (T, E) that chose it, · rows (E, D).

    In float32 where SINGLE; else what is not exact is the sum of two bfloat16, that is right to 2⁻¹⁷. The weights are
    split so, which have the range of float32 as bfloat16 has. With float16 they could overflow: there the weighted row
    is split, and multiplied with ones.
    """
    if SINGLE:
        sums = _product(tl.where(chosen, weights[None, :], 0.0), tl.cast(rows, tl.float32), sums, TURNED)
    elif rows.dtype == tl.bfloat16:
        nothing = tl.zeros(chosen.shape, tl.bfloat16)
        high = tl.cast(weights, tl.bfloat16)
        low = tl.cast(weights - tl.cast(high, tl.float32), tl.bfloat16)
        sums = _product(tl.where(chosen, high[None, :], nothing), rows, sums, TURNED)
        sums = _product(tl.where(chosen, low[None, :], nothing), rows, sums, TURNED)
    else:
        weighted = tl.cast(rows, tl.float32) * weights[:, None]
        high = tl.cast(weighted, tl.bfloat16)
        low = tl.cast(weighted - tl.cast(high, tl.float32), tl.bfloat16)
        ones = tl.cast(tl.where(chosen, 1.0, 0.0), tl.bfloat16)
        sums = _product(ones, low, _product(ones, high, sums, TURNED), TURNED)
    return sums


@triton.jit(do_not_specialize=["query_stride", "query_end", "document_stride", "document_end", "N", "longest", "tiles"])
def _document_gradients(
    query_values,
    query_scales,
    query_spans,
    query_stride,
    query_end,
    document_values,
    document_scales,
    document_spans,
    document_stride,
    document_end,
    winners,
    upstream,
    gradients,
    owners,
    pairs,
    order,
    bounds,
    entries,
    ranges,
    N,
    longest,
    tiles,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    SINGLE: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TURNED: tl.constexpr,
):
    program = tl.program_id(0)
    document = tl.cast(program // tiles, tl.int64)
    start = tl.load(document_spans + document * document_stride)
    length = tl.load(document_spans + document * document_stride + document_end) - start
    low = tl.cast(program % tiles, tl.int64) * BLOCK_T
    if pairs is None:
        pair = tl.cast(0, tl.int64)
        origin = document * longest
        end = tl.cast(longest, tl.int64)
    else:
        pair = tl.load(bounds + document)
        origin = pair * longest
        end = tl.load(bounds + document + 1) * longest - origin
    begin = tl.cast(0, tl.int64)
    if entries is not None:
        begin = tl.cast(tl.load(ranges + tl.cast(program, tl.int64) * 2), tl.int64)
        end = tl.cast(tl.load(ranges + tl.cast(program, tl.int64) * 2 + 1), tl.int64)
    end = tl.where(low < length, end, begin)

    columns = tl.arange(0, BLOCK_D)
    t = tl.arange(0, BLOCK_T)
    sums = tl.zeros((BLOCK_D, BLOCK_T) if TURNED else (BLOCK_T, BLOCK_D), tl.float32)
    for first in range(begin, end, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        here = e < end
        if entries is not None:
            packed = tl.load(entries + origin + e, mask=here, other=0)
            token = packed % BLOCK_T
            e = tl.cast(packed // BLOCK_T, tl.int64)
        if pairs is None:
            row = e
            query = tl.load(owners + e, mask=here, other=-1)
            score = tl.cast(query, tl.int64) * N + document
            if entries is None:
                token = tl.load(winners + e * N + document, mask=here & (query >= 0), other=-1) - low
        else:
            e = tl.cast(e, tl.int32) if SHORT else e  # dividing 64 bits is a call of a function
            score = tl.load(order + pair + e // longest, mask=here, other=0)
            query = tl.load(pairs + score * 2)
            s = e % longest
            row = tl.load(query_spans + query * query_stride)
            if entries is None:
                within = s < tl.load(query_spans + query * query_stride + query_end) - row
                token = tl.load(winners + score * longest + s, mask=here & within, other=-1) - low
            row += s
        if entries is None:
            here = here & (token >= 0) & (token < BLOCK_T)
        weights = tl.load(upstream + score, mask=here, other=0.0)
        if query_scales is not None:
            weights *= tl.load(query_scales + row, mask=here, other=0.0)
        rows = tl.load(
            query_values + row[:, None] * D + columns[None, :], mask=here[:, None] & (columns < D)[None, :], other=0.0
        )
        sums = _add_weighted(rows, weights, token[None, :] == t[:, None], sums, SINGLE, TURNED)

    own = start + low + t
    owned = low + t < length
    at = own[:, None] * D + columns[None, :]
    inside = owned[:, None] & (columns < D)[None, :]
    if TURNED:
        sums = tl.trans(sums)
    if document_scales is not None:
        scales = tl.load(document_scales + own, mask=owned, other=0.0)
        if UNIT:
            values = tl.cast(tl.load(document_values + at, mask=inside, other=0.0), tl.float32)
            sums = before_normalisation(sums, values, scales)
        else:
            sums *= scales[:, None]
    tl.store(gradients + at, tl.cast(sums, gradients.dtype.element_ty), mask=inside)


def _document_row(device: Architecture, dtype: str, D: int) -> Row:
    """Batches of 32 query tokens by 32 document tokens; halves of that where a row is so wide that registers run out.

    Hopper's and Blackwell's matrix instructions take dimensions on the first axis. In float32 the product is computed
    by plain multiply-adds, whose cost is proportional to the tile, but by AMD's instruction for it.
    """
    single = dtype == "single"
    tile = 16 if single or D > 256 else 32
    tiles = {
        "BLOCK_T": tile,
        "BLOCK_E": 8 if device == "gfx942" and single and D == 1024 else tile,
        "TURNED": int(device in ("sm_90", "sm_100") and not single),
    }
    matrix = None if single and device != "gfx942" else _MATRIX[device]
    if single:
        # Bound by arithmetic: registers are better spent on more programs than on further stages. With 512 one stage
        # would leave ptxas for Blackwell four registers short.
        return Row(device, f"{dtype} {D}", tiles, _SINGLE_WARPS[D], 2 if D == 512 else 1, matrix, wide_loads="some")
    # Two stages have the rows of the next batch on their way, a third what says which rows they are. That is for
    # bfloat16: float16 passes registers to be split, and so do wide rows at the end.
    narrow = D in (64, 128)
    stages = 3 if narrow and dtype == "bfloat16" else 2
    return Row(device, f"{dtype} {D}", tiles, 4 if narrow else 8, stages, matrix, wide_loads="some")


def _document_specimen(dtype: str, D: int, *, listed: bool, grouped: bool, **others: Any) -> Specimen:
    return specimen(
        f"{dtype} {D}",
        {"bfloat16": "*bf16", "float16": "*fp16", "single": "*fp32"}[dtype],
        D,
        listed=listed,
        owners=None if listed else "*i32",
        entries="*i32" if grouped else None,
        ranges="*i32" if grouped else None,
        SINGLE=dtype == "single",
        **{"SHORT": True, **others},
    )


_DTYPES = ("bfloat16", "float16", "single")
_SINGLE_WARPS: Mapping[int, int] = {64: 4, 128: 4, 256: 4, 512: 8, 1024: 16}
_MATRIX: Mapping[Architecture, MatrixInstruction] = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma",
    "sm_100": "tcgen05",
    "gfx942": "mfma",
}

DOCUMENTS = Kernel(
    _document_gradients,
    tuple(_document_row(device, dtype, D) for D in WIDTHS for dtype in _DTYPES for device in DEVICES)
    + tuple(
        Row("interpreter", f"{dtype} {D}", {"BLOCK_T": 16, "BLOCK_E": 16, "TURNED": int(dtype == "float16")})
        for D in WIDTHS
        for dtype in _DTYPES
    ),
    (
        *(
            _document_specimen(dtype, 128, listed=listed, grouped=grouped)
            for dtype in _DTYPES
            for listed, grouped in ((False, True), (False, False), (True, True))
        ),
        # Listed and not grouped is what needs the most registers.
        *(_document_specimen(dtype, D, listed=True, grouped=False) for dtype in _DTYPES for D in WIDTHS),
        _document_specimen("bfloat16", 128, listed=True, grouped=False, SHORT=False),
        # Without the Jacobian no rows are read but those that are added up: the wide loads are theirs.
        *(_document_specimen(dtype, 128, listed=False, grouped=True, UNIT=False) for dtype in _DTYPES),
        # Blackwell must not take TF32 for these.
        _document_specimen("single", 128, listed=False, grouped=True, query_values="*bf16"),
    ),
)
"""Gradients of document rows."""
