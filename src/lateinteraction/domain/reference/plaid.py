"""PLAID's parts in plain NumPy: centroids, the residual codec, and scoring on what the codec stores.

The codec: Santhanam et al. (ColBERTv2), NAACL 2022, §3.3. Centroid interaction: Santhanam et al. (PLAID), CIKM 2022.
Precision as in `maxsim_all_pairs`. Shapes: S query tokens of Q queries, T document tokens of N documents, K centroids,
D dimensions, b bits per dimension, B = ⌈D b / 8⌉ bytes per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, check_offsets, read_only_integers
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidOption
from lateinteraction.domain.reference.maxsim import (
    Embeddings,
    Floats,
    precision_of,
    similarities,
    sum_of_maxima,
)

Codes = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@frozen(eq=False)
class ResidualCodec:
    """One centroid per token, and one scalar quantiser for every dimension of what it leaves over.

    Args:
        centroids: (K, D), unit vectors.
        cutoffs: (2^b − 1,), never falling; a value goes to bucket i when cutoffs[i−1] < value ≤ cutoffs[i].
        weights: (2^b,), the value that stands for each bucket.

    Raises:
        InvalidEmbeddings: arrays that do not fit together, or b other than 1, 2 or 4.
    """

    centroids: Floats
    cutoffs: Floats
    weights: Floats

    def __attrs_post_init__(self) -> None:
        if self.centroids.ndim != 2 or len(self.centroids) == 0:
            raise InvalidEmbeddings(f"centroids of shape {self.centroids.shape}", "(K, D), K ≥ 1", "Train them first.")
        if self.weights.shape not in ((2,), (4,), (16,)) or self.cutoffs.shape != (len(self.weights) - 1,):
            raise InvalidEmbeddings(
                f"{self.cutoffs.shape} cutoffs and {self.weights.shape} weights",
                "2^b − 1 and 2^b of them, b = 1, 2 or 4",
                "Train them with `train_codec`.",
            )
        if bool(np.any(np.diff(self.cutoffs) < 0)):
            raise InvalidEmbeddings("cutoffs that fall", "cutoffs in rising order", "Train them with `train_codec`.")

    @property
    def bits(self) -> int:
        """Bits per dimension."""
        return len(self.weights).bit_length() - 1


@frozen(eq=False)
class CompressedEmbeddings:
    """Token embeddings as the codec stores them.

    Args:
        codes: int64 (T,), the centroid of each token.
        residuals: uint8 (T, B), packed buckets (see `pack`).
        offsets: int64 (N+1,).

    Raises:
        InvalidEmbeddings: counts that disagree.
    """

    codes: Codes
    residuals: Bytes
    offsets: Offsets = field(converter=read_only_integers)

    def __attrs_post_init__(self) -> None:
        if self.codes.ndim != 1 or self.residuals.ndim != 2 or len(self.codes) != len(self.residuals):
            raise InvalidEmbeddings(
                f"codes of shape {self.codes.shape} and residuals of shape {self.residuals.shape}",
                "(T,) and (T, B)",
                "Compress them with `compress`.",
            )
        check_offsets(self.offsets, len(self.codes))


@frozen(eq=False)
class QuantisedTable:
    """A table (K, S) in eight bits: lows_s + steps_s · values_ks.

    Args:
        values: uint8 (K, S).
        steps: float32 (S,).
        lows: float32 (S,).
    """

    values: Bytes
    steps: NDArray[np.float32]
    lows: NDArray[np.float32]

    def restored(self) -> NDArray[np.float32]:
        """The values, each off by at most half a step."""
        return np.asarray(self.lows + self.steps * self.values.astype(np.float32), np.float32)


def kmeans_assign(tokens: Floats, centroids: Floats) -> Codes:
    """The code (T,) of each token: code_t = argmax_k x_t · c_k. Ties: lowest index.

    For unit centroids this is the nearest one.
    """
    return np.argmax(similarities(tokens, centroids), axis=1).astype(np.int64)


def kmeans_update(tokens: Floats, codes: Codes, centroids: Floats) -> Floats:
    """The k-means step after `kmeans_assign`: c_k = the mean of its tokens, divided by its norm, (K, D).

    A centroid without tokens, or whose tokens cancel out, stays where it is.
    """
    updated = centroids.astype(np.float64)
    for code in range(len(centroids)):
        total = tokens[codes == code].astype(np.float64).sum(axis=0)
        norm = np.linalg.norm(total)
        if norm != 0:  # NaN gives NaN
            updated[code] = total / norm
    return updated.astype(precision_of(tokens, centroids))


def train_codec(tokens: Floats, centroids: Floats, bits: int) -> ResidualCodec:
    """Fit the quantiser to the residuals r of tokens (T, D) that were not used to find the centroids.

        cutoffs_i = quantile(r, i / 2^b), i = 1 … 2^b − 1;   weights_i = quantile(r, (i + ½) / 2^b), i = 0 … 2^b − 1

    over all tokens and dimensions together, quantiles interpolated linearly.

    Raises:
        InvalidOption: bits other than 1, 2 or 4.
        InvalidEmbeddings: no tokens.
    """
    _check_bits(bits)
    if tokens.size == 0:
        raise InvalidEmbeddings(f"tokens of shape {tokens.shape}", "some residuals", "Hold some tokens out.")
    residuals = tokens.astype(np.float64) - centroids.astype(np.float64)[kmeans_assign(tokens, centroids)]
    cuts = np.linspace(0.0, 1.0, 2**bits + 1)[1:-1]
    middles = np.linspace(0.0, 1.0, 2 ** (bits + 1) + 1)[1::2]
    precision = precision_of(tokens, centroids)
    return ResidualCodec(
        centroids,
        np.asarray(np.quantile(residuals, cuts), precision),
        np.asarray(np.quantile(residuals, middles), precision),
    )


def compress(codec: ResidualCodec, embeddings: Embeddings) -> CompressedEmbeddings:
    """The nearest centroid of each token, and the bucket of each dimension of x_t − c_code, packed."""
    codes = kmeans_assign(embeddings.tokens, codec.centroids)
    return CompressedEmbeddings(codes, residual_encode(codec, embeddings.tokens, codes), embeddings.offsets)


def residual_encode(codec: ResidualCodec, tokens: Floats, codes: Codes) -> Bytes:
    """The bucket of each dimension of x_t − c_code, packed (T, B).

    The difference and the comparison with the cutoffs are made in float32 where nothing came in float64, so that a
    value at the very edge of a bucket falls on the same side everywhere.
    """
    precision = precision_of(tokens, codec.centroids)
    residuals = tokens.astype(precision) - codec.centroids.astype(precision)[codes]
    buckets = np.searchsorted(codec.cutoffs.astype(precision), residuals, side="left").astype(np.uint8)
    return pack(buckets, codec.bits)


def decompress(codec: ResidualCodec, compressed: CompressedEmbeddings) -> Embeddings:
    """The unit vectors (c_code + r_t) · inverse_norm_t that stand for the tokens, r_t the weights of the buckets."""
    centroids, residuals = _parts(codec, compressed)
    tokens = (centroids + residuals) * _inverse_norms(centroids + residuals)[:, None]
    return TokenEmbeddings(tokens.astype(precision_of(codec.centroids, codec.weights)), compressed.offsets)


def inverse_norms(codec: ResidualCodec, compressed: CompressedEmbeddings) -> Floats:
    """1 / ‖c_code + r_t‖ of each token (T,); 0 where the norm is 0."""
    centroids, residuals = _parts(codec, compressed)
    return _inverse_norms(centroids + residuals).astype(precision_of(codec.centroids, codec.weights))


def round_trip_bound(codec: ResidualCodec, lowest: float, highest: float) -> float:
    """The most that the codec changes one dimension of a residual that lies between `lowest` and `highest`.

        max_i max(weights_i − edges_i, edges_i+1 − weights_i),   edges = lowest, the cutoffs between, highest

    Before normalisation, that is: of c_code + r_t against x_t.
    """
    first, last = np.searchsorted(codec.cutoffs, [lowest, highest], side="left")
    edges = np.array([lowest, *codec.cutoffs[first:last], highest], dtype=np.float64)
    weights = codec.weights[first : last + 1].astype(np.float64)
    return float(max(np.abs(weights - edges[:-1]).max(), np.abs(edges[1:] - weights).max()))


def centroid_scores(queries: Embeddings, centroids: Floats) -> Floats:
    """The table c_k · q_s, (K, S): a row holds all that a document token of code k needs."""
    return similarities(centroids, queries.tokens).astype(precision_of(queries.tokens, centroids))


def quantise_table(table: Floats) -> QuantisedTable:
    """The table (K, S) in eight bits, each column between its own extremes.

        step_s = (high_s − low_s) / 255;   value_ks = round((table_ks − low_s) / step_s), ties to even

    all in float32, so that every implementation has the same bytes; 0 in a column of equal values, whose step is 0.

    Raises:
        InvalidEmbeddings: no centroids.
    """
    if len(table) == 0:
        raise InvalidEmbeddings(f"a table of shape {table.shape}", "(K, S), K ≥ 1", "Score some centroids first.")
    scores = table.astype(np.float32)
    lows = scores.min(axis=0)
    steps = (scores.max(axis=0) - lows) / np.float32(255.0)
    values = np.divide(scores - lows, steps, out=np.zeros_like(scores), where=steps > 0)
    return QuantisedTable(np.rint(values).astype(np.uint8), steps, lows)


def probe(table: Floats, nprobe: int) -> Codes:
    """The centroids (S, min(nprobe, K)) to look into for each query token: best first; ties: lowest index.

    Raises:
        InvalidOption: nprobe below 1.
    """
    if nprobe < 1:
        raise InvalidOption(f"nprobe = {nprobe!r}", "a whole number of at least 1", "Probe one centroid or more.")
    return np.argsort(-table.T, axis=1, kind="stable")[:, :nprobe].astype(np.int64)


def listed_scores(lists: Sequence[Sequence[Codes]], gains: Floats, count: int) -> Floats:
    """What inverted lists say of documents 0 … count − 1, (count,).

    score(d) = Σ_s max(0, max_{m : d in lists[s][m]} gains[s, m])

    Args:
        lists: of each of S query tokens, the documents of M lists.
        gains: (S, M).
        count: documents.
    """
    best = np.zeros((len(gains), count))
    for own, token_lists, token_gains in zip(best, lists, gains, strict=True):
        for documents, gain in zip(token_lists, token_gains, strict=True):
            own[documents] = np.maximum(own[documents], gain)
    return best.sum(axis=0).astype(precision_of(gains))


def centroid_interaction(table: Floats, query_offsets: Offsets, codes: Codes, document_offsets: Offsets) -> Floats:
    """Approximate scores (Q, N) from a table (K, S): MaxSim where each document token is its centroid.

    score(q, d) = Σ_s max_t table[code_t, s]
    """
    scores = sum_of_maxima(table.astype(np.float64)[codes].T, query_offsets, document_offsets)
    return scores.astype(precision_of(table))


def residual_maxsim(
    queries: Embeddings, codec: ResidualCodec, compressed: CompressedEmbeddings, norms: Floats | None = None
) -> Floats:
    """Scores (Q, N) of MaxSim on the decompressed tokens, without rebuilding one.

        score(q, d) = Σ_s max_t (q_s · c_code(t) + q_s · r_t) · inverse_norm_t

    q · c is the table of `centroid_scores`, which the earlier stages need anyway. The inverse norms are those of
    `inverse_norms`, unless others are given (T,), such as rounded ones.
    """
    centroids, residuals = _parts(codec, compressed)
    table = similarities(queries.tokens, codec.centroids)[:, compressed.codes]
    inverse = _inverse_norms(centroids + residuals) if norms is None else norms.astype(np.float64)
    table = (table + similarities(queries.tokens, residuals)) * inverse
    scores = sum_of_maxima(table, queries.offsets, compressed.offsets)
    return scores.astype(precision_of(queries.tokens, codec.centroids, codec.weights))


def pack(buckets: Bytes, bits: int) -> Bytes:
    """Buckets (T, D) below 2^b as bytes (T, B), little-endian within a byte.

    Dimension j lies in byte ⌊j b / 8⌋, its lowest bit at bit (j b) mod 8: low dimensions in low bits. Where the
    dimensions do not fill the last byte, its high bits are 0.

    Raises:
        InvalidOption: bits other than 1, 2 or 4.
    """
    _check_bits(bits)
    packed = np.zeros((len(buckets), -(-buckets.shape[1] * bits // 8)), np.uint8)
    for j in range(buckets.shape[1]):
        packed[:, j * bits // 8] |= buckets[:, j] << (j * bits % 8)
    return packed


def unpack(packed: Bytes, bits: int, dimension: int) -> Bytes:
    """The buckets (T, D) that `pack` packed.

    Raises:
        InvalidOption: bits other than 1, 2 or 4.
        InvalidEmbeddings: another number of bytes than the dimensions need.
    """
    _check_bits(bits)
    if packed.shape[1] != -(-dimension * bits // 8):
        raise InvalidEmbeddings(
            f"{packed.shape[1]} bytes per token",
            f"{-(-dimension * bits // 8)}, for {dimension} dimensions of {bits} bits",
            "Use the codec that compressed them.",
        )
    buckets = np.empty((len(packed), dimension), np.uint8)
    for j in range(dimension):
        buckets[:, j] = packed[:, j * bits // 8] >> (j * bits % 8) & (2**bits - 1)
    return buckets


def _parts(codec: ResidualCodec, compressed: CompressedEmbeddings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centroid (T, D) and decoded residual (T, D) of each token."""
    buckets = unpack(compressed.residuals, codec.bits, codec.centroids.shape[1])
    return codec.centroids.astype(np.float64)[compressed.codes], codec.weights.astype(np.float64)[buckets]


def _inverse_norms(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(vectors, axis=1)
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def _check_bits(bits: int) -> None:
    if bits not in (1, 2, 4):
        raise InvalidOption(f"bits = {bits!r}", "1, 2 or 4", "4 is the most exact.")
