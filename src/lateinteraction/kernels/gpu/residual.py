"""MaxSim on compressed tokens: their residuals become weights in registers, on their way into a product of matrices.

score = Σ_s max_t (scores[code_t, s] + q_s · r_t) · inverse_norm_t. The table of what centroids score is there already,
so a token costs its row of the table, its packed bytes and one product with the weights of its buckets. None is decoded
to memory, no centroid is read, and no norm is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lateinteraction.kernels.gpu.buckets import load_weights, split_last, tiles_of, weights_of
from lateinteraction.kernels.gpu.configurations import (
    ALIGNED,
    Architecture,
    Kernel,
    MatrixInstruction,
    Row,
    Specimen,
    ceil_div,
    device_of,
    launch,
    precision_of,
    unit_of,
)
from lateinteraction.kernels.gpu.sums import sum_per_query
from lateinteraction.kernels.gpu.tiles import add_products, larger, load_rows, maximum
from lateinteraction.kernels.gpu.walk import documents_per_program, find_step, plan_walk, store_empty
from lateinteraction.kernels.operands import Codec, Compressed, Tokens

FEWEST_WORDS = 16
"""What a product of matrices takes at least along the axis that it sums over."""

FEW_TOKENS = 32
"""Query tokens up to which one tile of 32 holds them all; more go by 64, so that weights are found half as often."""

NARROW = 128
"""Dimensions up to which the query tokens of a tile stay where products take them from; more are read for each step."""


@triton.jit
def _add_residuals(sums, words, queries, table, BITS: tl.constexpr, WIDTH: tl.constexpr, PERMUTE: tl.constexpr):
    """sums (M, N) + q · r over the dimensions in words (M, W), of which `queries` holds the same dimensions."""
    weights = weights_of(words, table, BITS, WIDTH, queries[0].dtype, PERMUTE)
    for part in tl.static_range(tiles_of(BITS, WIDTH)):
        sums = add_products(weights[part], queries[part], sums)
    return sums


@triton.jit
def _query_tiles(values, rows, first, D: tl.constexpr, PARTS: tl.constexpr, BLOCK_W: tl.constexpr):
    """Query tokens' dimensions as tiles of weights have them: a tuple of tiles (N, W), part p of word w first + w.

    Dimension w · PARTS + p belongs to part p of word w. Rows are read whole, and taken apart in registers. 0 beyond D.
    """
    tile = load_rows(values, rows, first * PARTS, D, BLOCK_W * PARTS)
    return split_last(tl.reshape(tile, (rows.shape[0], BLOCK_W, PARTS)), PARTS)


@triton.jit(do_not_specialize=["item_stride", "end_stride", "units", "N", "count"])
def _residual_maxima(
    query_values,
    scores,
    weights,
    codes,
    residuals,
    inverse_norms,
    spans,
    item_stride,
    end_stride,
    maxima,
    units,
    N,
    count,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEST: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    PERMUTE: tl.constexpr,
):
    TYPE: tl.constexpr = query_values.dtype.element_ty
    PARTS: tl.constexpr = tiles_of(BITS, WIDTH)
    BLOCK_W: tl.constexpr = min(max(16, triton.next_power_of_2(WORDS)), WIDEST)
    S = tl.cast(units, tl.int64) * UNIT
    tiles = tl.cast(tl.cdiv(S, BLOCK_N), tl.int32)
    program = tl.program_id(0)
    first_document = tl.cast(program // tiles, tl.int64) * count
    s = tl.cast(program % tiles, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    query_rows = tl.minimum(s, S - 1)
    table = load_weights(weights, BITS, TYPE, PERMUTE)
    if WORDS <= BLOCK_W:
        query_tiles = _query_tiles(query_values, query_rows, 0, D, PARTS, BLOCK_W)
    walk = plan_walk(spans, item_stride, end_stride, first_document, count, N, GROUP, BLOCK_M)
    store_empty(maxima, walk, first_document, s, S)
    best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    for step in tl.range(0, walk[4], num_stages=STAGES):
        first, left, place = find_step(walk, step, BLOCK_M)
        # Beyond the document's end its last token stands again, and changes no maximum.
        rows = first + tl.minimum(tl.arange(0, BLOCK_M), left - 1)
        centroids = tl.cast(tl.load(codes + rows), tl.int64)
        norms = tl.cast(tl.load(inverse_norms + rows), tl.float32)
        sums = tl.load(scores + centroids[:, None] * S + s[None, :], mask=(s < S)[None, :], other=0.0)
        if WORDS <= BLOCK_W:
            words = load_rows(residuals, rows, 0, WORDS, BLOCK_W)
            sums = _add_residuals(sums, words, query_tiles, table, BITS, WIDTH, PERMUTE)
        else:
            for first_word in range(0, WORDS, BLOCK_W):
                words = load_rows(residuals, rows, first_word, WORDS, BLOCK_W)
                some = _query_tiles(query_values, query_rows, tl.cast(first_word, tl.int64), D, PARTS, BLOCK_W)
                sums = _add_residuals(sums, words, some, table, BITS, WIDTH, PERMUTE)
        best = larger(best, sums * norms[:, None])
        if left <= BLOCK_M:
            tl.store(maxima + (first_document + place) * S + s, maximum(best, 0), mask=s < S)
            best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)


def residual_maxsim(queries: Tokens, scores: Tensor, codec: Codec, documents: Compressed) -> Tensor:
    """As `kernels.form.Form.residual_maxsim`. Weights are rounded to the dtype of the queries.

    Raises:
        TypeError: queries with scales, or of other dtypes than float32, float16 and bfloat16; a table or weights that
            are not float32.
    """
    values, tokens = queries.values, scores.shape[1]
    operands = {"query values": values, "query spans": queries.spans, "scores": scores, "weights": codec.weights}
    device = device_of({**operands, **{f"document {name}": each for name, each in documents._asdict().items()}})
    precision = precision_of(values, values)
    if queries.scales is not None or precision == "int8":
        raise TypeError(f"queries of {values.dtype} with scales: scores of centroids are of the tokens themselves")
    if scores.dtype != torch.float32 or codec.weights.dtype != torch.float32:
        raise TypeError(f"scores of {scores.dtype} and weights of {codec.weights.dtype}; both are float32")
    bits, unit = codec.bits, unit_of(tokens)
    width = word_width(bits, documents.residuals.shape[1])
    words = documents.residuals if width == 1 else documents.residuals.view(torch.int16)
    regime = f"{bits} bits, {_queries(precision, *values.shape)}"
    row = RESIDUAL_MAXIMA.row(device, regime).tiles
    tiles = ceil_div(tokens, row["BLOCK_N"])

    def write_maxima(maxima: Tensor, spans: Tensor) -> None:
        count = documents_per_program(len(spans), tiles, row["GROUP"])
        arguments = {
            "query_values": values,
            "scores": scores,
            "weights": codec.weights,
            "codes": documents.codes,
            "residuals": words,
            "inverse_norms": documents.inverse_norms,
            "spans": spans,
            "item_stride": spans.stride(0),
            "end_stride": spans.stride(1),
            "maxima": maxima,
            "units": tokens // unit,
            "N": len(spans),
            "count": count,
            "UNIT": unit,
            "D": values.shape[1],
            "WORDS": words.shape[1],
            "BITS": bits,
            "WIDTH": width,
        }
        launch(RESIDUAL_MAXIMA, device, regime, ceil_div(len(spans), count) * tiles, arguments)

    return sum_per_query(write_maxima, queries.spans, documents.spans, tokens)


def word_width(bits: int, count: int) -> int:
    """How many of a token's `count` bytes are unpacked as one word: two where that leaves words enough for a product.

    A word of two bytes is how a 16-bit matrix comes from shared memory, in one instruction for four words. With 1 bit
    it would have 16 dimensions, more than registers hold at once.
    """
    return 2 if bits > 1 and count % 2 == 0 and count // 2 >= FEWEST_WORDS else 1


def _queries(precision: str, tokens: int, dimension: int) -> str:
    """The half of a regime's name that tells of the queries."""
    kind = "single" if precision == "single" else "halves"
    if dimension > NARROW:
        return f"wide {kind}"
    return f"many {kind}" if kind == "halves" and tokens > FEW_TOKENS else kind


_DEVICES: tuple[Architecture, ...] = ("sm_90", "sm_80", "sm_100", "gfx942")
_MATRIX: dict[Architecture, MatrixInstruction] = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma",
    "sm_100": "tcgen05",
    "gfx942": "mfma",
}


def _row(device: Architecture, bits: int, queries: str) -> Row:
    single, wide = queries.endswith("single"), queries.startswith("wide")
    nvidia = device != "gfx942"
    # What makes the compiler read codes two steps ahead and what they point to one step ahead, with two buffers.
    stages = 2 if wide or not nvidia else 5 if device == "sm_100" and not single else 3
    tiles = {
        # 32 where float32 is multiplied without matrices: with 64 the compiler does it in TF32 on sm_100.
        "BLOCK_M": 32 if single and nvidia else 64,
        "BLOCK_N": 64 if queries == "many halves" else 32,
        "WIDEST": 32 if bits == 4 and queries != "wide single" else 16,
        "GROUP": 32,
        "STAGES": stages,
        "PERMUTE": nvidia and not single,
    }
    matrix = _MATRIX[device] if not single or not nvidia else None
    # Norms of 16 bits are read one by one; where they are not, nothing is read in pieces.
    wide_loads = True if queries == "halves" else "some"
    return Row(device, f"{bits} bits, {queries}", tiles, 4, stages, matrix, wide_loads)


def _specimen(bits: int, queries: str, values: str, norms: str, unit: int = ALIGNED, dimension: int = 128) -> Specimen:
    count = dimension * bits // 8
    width = word_width(bits, count)
    return Specimen(
        f"{bits} bits, {queries}",
        {
            "query_values": values,
            "scores": "*fp32",
            "weights": "*fp32",
            "codes": "*i32",
            "residuals": "*u8" if width == 1 else "*i16",
            "inverse_norms": norms,
            "spans": "*i64",
            "maxima": "*fp32",
            **dict.fromkeys(("item_stride", "end_stride", "units", "N", "count"), "i32"),
            "UNIT": unit,
            "D": dimension,
            "WORDS": count // width,
            "BITS": bits,
            "WIDTH": width,
        },
    )


_BITS = (2, 4, 1)
_KINDS = ("halves", "many halves", "wide halves", "single", "wide single")
_REGIMES = [(bits, queries) for queries in _KINDS for bits in _BITS]

RESIDUAL_MAXIMA = Kernel(
    _residual_maxima,
    (
        *(_row(device, bits, queries) for bits, queries in _REGIMES for device in _DEVICES),
        *(
            Row(
                "interpreter",
                f"{bits} bits, {queries}",
                {"BLOCK_M": 8, "BLOCK_N": 8, "WIDEST": 16, "GROUP": 4, "STAGES": 1, "PERMUTE": False},
            )
            for bits, queries in _REGIMES
        ),
    ),
    (
        *(_specimen(bits, "halves", "*fp16", "*fp32") for bits in _BITS),
        *(_specimen(bits, "many halves", "*bf16", "*fp16") for bits in _BITS),
        *(_specimen(bits, "wide halves", "*fp16", "*fp16", 1, 1024) for bits in _BITS),
        *(_specimen(bits, "single", "*fp32", "*fp16") for bits in _BITS),
        *(_specimen(bits, "wide single", "*fp32", "*fp32", 1, 1024) for bits in _BITS),
    ),
)
"""The best score of each query token among the compressed tokens of each document."""
