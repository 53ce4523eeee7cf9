"""The residual codec: tokens to buckets, packed in bytes, and back to unit vectors. Tokens `first` … `last` − 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from lateinteraction.kernels.cpu.kinds import FLOAT32
from lateinteraction.kernels.cpu.programs import vector as v
from lateinteraction.kernels.cpu.programs.compiler import part
from lateinteraction.kernels.cpu.programs.memory import float32s, int32s, int64s, uint8s
from lateinteraction.kernels.cpu.programs.rows import each, for_kind, load_floats
from lateinteraction.kernels.cpu.programs.sums import floats_of, square_root, summing
from lateinteraction.kernels.cpu.programs.unpacking import unpack

_sum_of_squares = summing(lambda builder, pointers, index: _squares(builder, pointers[0], index))


def _squares(builder: v.Builder, pointer: v.Value, index: v.Value) -> v.Value:
    value = floats_of(builder, pointer, index)
    return builder.fmul(value, value)


def encode(given: int, first: int, last: int, room: int) -> None:
    """Residuals, and the inverse norms of what they decode to.

    given: codec (4), centroids, dimension, codes, residuals; values, kind, bytes of a row, cutoffs, their number,
    inverse norms. room: for a row of float32 and one of bytes, both of dimensions up to a whole byte and 16 more.
    """
    g = int64s(given)
    codec, centroids, dimension, codes, residuals = (g[0], g[1], g[2], g[3]), g[4], g[5], g[6], g[7]
    values, kind, row_bytes, cutoffs, cutoff_count, inverse_norms = g[8], g[9], g[10], g[11], g[12], g[13]
    padded = codec[1] * 8 // codec[0]
    row, buckets = room, room + 4 * (padded + 16)
    for place in range(dimension, padded):
        uint8s(buckets)[place] = 0
    for token in range(first, last):
        centroid = centroids + np.int64(int32s(codes)[token]) * dimension * 4
        residual = residuals + token * codec[1]
        _find_buckets(kind, (values + token * row_bytes, centroid, dimension, cutoffs, cutoff_count, buckets))
        _pack(codec[0], codec[1], buckets, residual)
        float32s(inverse_norms)[token] = _decode(codec, centroid, dimension, residual, row)


def decode(given: int, first: int, last: int, room: int) -> None:
    """Unit vectors. given: codec (4), centroids, dimension, codes, residuals; tokens. room: as for `encode`."""
    g = int64s(given)
    codec, centroids, dimension, codes, residuals = (g[0], g[1], g[2], g[3]), g[4], g[5], g[6], g[7]
    for token in range(first, last):
        centroid = centroids + np.int64(int32s(codes)[token]) * dimension * 4
        inverse_norm = _decode(codec, centroid, dimension, residuals + token * codec[1], room)
        unit = float32s(g[8] + token * dimension * 4)
        for index in range(dimension):
            unit[index] = float32s(room)[index] * inverse_norm


@part
def _decode(codec: tuple[int, int, int, int], centroid: int, dimension: int, residual: int, row: int) -> Any:
    """The token before normalisation, into a row, and its inverse norm."""
    unpack(codec, residual, 1, row)
    for index in range(dimension):
        float32s(row)[index] += float32s(centroid)[index]
    norm = square_root(_sum_of_squares((row,), dimension))
    return np.float32(1.0) / norm if norm != 0 else np.float32(0.0)


@part
def _pack(bits: int, count: int, buckets: int, residual: int) -> None:
    """Buckets, a byte each, as `count` bytes: low dimensions in low bits."""
    per_byte = 8 // bits
    for place in range(count):
        byte = 0
        for index in range(per_byte):
            byte |= np.int64(uint8s(buckets)[place * per_byte + index]) << (index * bits)
        uint8s(residual)[place] = byte


def _buckets(
    builder: v.Builder,
    kind: int,
    row: v.Value,
    centroid: v.Value,
    dimension: v.Value,
    cutoffs: v.Value,
    cutoff_count: v.Value,
    buckets: v.Value,
) -> None:
    """How many cutoffs lie below each dimension's residual, all of them below NaN: a byte each."""
    row, centroid, cutoffs, buckets = (
        builder.inttoptr(address, v.POINTER) for address in (row, centroid, cutoffs, buckets)
    )

    def body(index: v.Value, lanes: int) -> None:
        words = v.vector(v.WORD, lanes)
        own = load_floats(builder, FLOAT32, centroid, index, lanes)
        value = builder.fsub(load_floats(builder, kind, row, index, lanes), own)

        def step(place: v.Value, counts: list[v.Value]) -> list[v.Value]:
            cutoff = v.load(builder, v.FLOAT, cutoffs, builder.mul(place, v.constant(4)))
            above = builder.fcmp_unordered(">", value, v.splat(builder, cutoff, lanes))
            return [builder.add(counts[0], builder.zext(above, words))]

        counts = v.loop(builder, cutoff_count, [v.zero(words)], step)[0]
        v.store(builder, builder.trunc(counts, v.vector(v.BYTE, lanes)), buckets, index)

    each(builder, dimension, body)


_find_buckets = for_kind(_buckets)
