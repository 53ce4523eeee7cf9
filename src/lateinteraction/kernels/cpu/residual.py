"""The residual codec on the host: encode, decode, and MaxSim on what it stores. See `programs.{residual,codec}`."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.cpu.blocks import PANEL, TOKENS
from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import (
    FLOATS,
    Given,
    codes_within,
    given,
    readable,
    room,
    share,
    spans_given,
    spans_within,
)
from lateinteraction.kernels.cpu.operands import SPARE, kind_of, lengths_of
from lateinteraction.kernels.cpu.tables import Edge, panels_of_rows
from lateinteraction.kernels.cpu.threads import run, shares
from lateinteraction.kernels.operands import Codec, Compressed, Tokens

_MAXSIM = Program("residual", "maxsim", 4)
_ENCODE = Program("codec", "encode", 4)
_DECODE = Program("codec", "decode", 4)


def residual_maxsim(queries: Tokens, scores: Tensor, codec: Codec, documents: Compressed) -> Tensor:
    """Scores (Q, N). See `Form.residual_maxsim`."""
    kind_of(queries.values)  # refuses what the form cannot compute
    panels = panels_of_rows(queries.values.detach(), queries.scales)
    table = readable("scores", scores, torch.float32)
    query_spans = spans_within(queries.spans, queries.values.shape[0])
    spans = spans_within(documents.spans, len(documents.codes))
    codes = codes_within(documents.codes, len(table), spans)
    residuals = readable("residuals", documents.residuals, torch.uint8)
    norms = readable("inverse norms", documents.inverse_norms, torch.float32, torch.float16)
    edge, weights = Edge.of(table, PANEL), _weights_of(codec)
    result = room(len(queries.spans), len(documents.spans))
    numbers = given(
        *_codec_given(codec, weights),
        *(each.data_ptr() for each in (codes, residuals, norms)),
        kind_of(norms),
        *spans_given(spans),
        len(panels),
        panels.shape[1],
        panels.data_ptr(),
        table.shape[1],
        *edge.given(table),
        *spans_given(query_spans),
        result.data_ptr(),
    )
    row = residuals.shape[1] * 8 // codec.bits

    def score(first: int, last: int) -> None:
        decoded, tile = room(TOKENS, row), room(TOKENS, PANEL)
        own_codes, own_norms = room(TOKENS, dtype=torch.int32), room(TOKENS)
        ends, owners = room(2, TOKENS, dtype=torch.int64)
        maxima = room(TOKENS * len(panels) * PANEL + SPARE)
        places = (each.data_ptr() for each in (own_codes, own_norms, ends, owners, maxima, tile))
        scratch = given(decoded.data_ptr(), 4 * row, *places)
        _MAXSIM(numbers.ctypes.data, first, last, scratch.ctypes.data)

    lengths = lengths_of(documents.spans)
    run(score, shares(lengths, float(lengths.sum()) * panels.numel()))
    return result


def residual_encode(values: Tensor, codes: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Residuals (T, B) and inverse norms (T,). See `Form.residual_encode`."""
    values, codes = readable("tokens", values, *FLOATS), codes_within(codes, len(codec.centroids))
    cutoffs = readable("cutoffs", codec.cutoffs, torch.float32)
    centroids, weights = _centroids(codec), _weights_of(codec)
    sizes = _codec_given(codec, weights)
    residuals = room(len(values), sizes[1], dtype=torch.uint8)
    inverse_norms = room(len(values))
    dimension = values.shape[1]
    numbers = given(
        *sizes,
        *(centroids.data_ptr(), dimension, codes.data_ptr(), residuals.data_ptr()),
        *(values.data_ptr(), kind_of(values), dimension * values.element_size()),
        *(cutoffs.data_ptr(), len(cutoffs), inverse_norms.data_ptr()),
    )
    _share_tokens(_ENCODE, numbers, len(values), sizes)
    return residuals, inverse_norms


def residual_decode(codec: Codec, codes: Tensor, residuals: Tensor) -> Tensor:
    """Unit vectors (T, D). See `Form.residual_decode`."""
    codes, residuals = codes_within(codes, len(codec.centroids)), readable("residuals", residuals, torch.uint8)
    centroids, weights = _centroids(codec), _weights_of(codec)
    sizes, dimension = _codec_given(codec, weights), centroids.shape[1]
    tokens = room(len(codes), dimension)
    places = codes.data_ptr(), residuals.data_ptr(), tokens.data_ptr()
    numbers = given(*sizes, centroids.data_ptr(), dimension, *places)
    _share_tokens(_DECODE, numbers, len(codes), sizes)
    return tokens


def _share_tokens(program: Program, numbers: Given, tokens: int, sizes: tuple[int, int, int, int]) -> None:
    """Run a program over all tokens, each thread with a row of float32 and one of bytes."""
    bits, token_bytes = sizes[:2]
    padded = token_bytes * 8 // bits + SPARE

    def convert(first: int, last: int) -> None:
        scratch = room(5 * padded, dtype=torch.uint8)
        program(numbers.ctypes.data, first, last, scratch.data_ptr())

    share(convert, tokens, 1024, _CONVERT * tokens * padded)


_CONVERT = 50.0
"""Multiply-adds, of 0.01 ns, that take as long as to encode one dimension, or decode one."""


def _centroids(codec: Codec) -> Tensor:
    return readable("centroids", codec.centroids, torch.float32)


_BUCKETS = {
    bits: torch.arange(256, device="cpu")[:, None] >> torch.arange(0, 8, bits, device="cpu") & (2**bits - 1)
    for bits in (1, 2, 4)
}
"""The buckets (256, 8 / bits) of the dimensions in each byte."""


def _weights_of(codec: Codec) -> tuple[Tensor, Tensor]:
    """The weights of all dimensions in a byte (256, 8 / bits), and those of a bucket again and again (16,)."""
    weights = readable("weights", codec.weights, torch.float32)
    return weights[_BUCKETS[codec.bits]], weights.repeat(16 // len(weights))


def _codec_given(codec: Codec, weights: tuple[Tensor, Tensor]) -> tuple[int, int, int, int]:
    """As programs take it: bits, bytes of a token, both tables of weights."""
    token_bytes = -(-codec.centroids.shape[1] * codec.bits // 8)
    return codec.bits, token_bytes, weights[0].data_ptr(), weights[1].data_ptr()
