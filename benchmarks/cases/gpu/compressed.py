"""What a codec stores, and centroid tables: ours, torch as one writes it, and late-interaction-kernels.

Codes and residuals are random; the inverse norms are those of what they decode to, so that who normalises by itself
gets the same scores. late-interaction-kernels decodes and normalises every token, and needs no table.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import torch
from attrs import frozen
from torch import Tensor

from benchmarks.cases.gpu.dense import COMPILED, LIK, TORCH, Contestant, Outcome, tokens_of
from benchmarks.cases.gpu.devices import Device, importable
from benchmarks.cases.gpu.shapes import DIMENSION, Residual, Table
from lateinteraction import kernels
from lateinteraction.kernels.operands import Codec, Compressed, Tokens

PIECE = 2**20
"""Tokens that are decoded at a time where everything is decoded."""
SAMPLE = 64


@frozen
class Stored:
    """A query, its table, and documents of one length as the codec stores them."""

    shape: Residual
    query: Tokens
    scores: Tensor
    codec: Codec
    compressed: Compressed
    lookup: Tensor

    def decoded(self, first: int, last: int) -> Tensor:
        """Tokens first … last−1, decoded; not normalised."""
        rows = slice(first, last)
        values = self.lookup[self.compressed.residuals[rows].long()].view(-1, DIMENSION)
        return values.add_(self.codec.centroids[self.compressed.codes[rows].long()])


def store(shape: Residual, device: Device) -> Stored:
    """Random codes and bytes, of unit centroids and small weights."""
    generator = torch.Generator(device.name).manual_seed(0)
    place = torch.device(device.name)
    centroids, query = (
        torch.nn.functional.normalize(torch.randn(rows, DIMENSION, generator=generator, device=place), dim=1)
        for rows in (shape.centroids, shape.query_length)
    )
    weights = torch.linspace(-0.1, 0.1, 2**shape.bits, device=place)
    codec = Codec(centroids, (weights[1:] + weights[:-1]) / 2, weights)
    codes = torch.randint(shape.centroids, (shape.tokens,), generator=generator, device=place, dtype=torch.int32)
    width = DIMENSION * shape.bits // 8
    residuals = torch.randint(256, (shape.tokens, width), generator=generator, device=place, dtype=torch.uint8)
    slots = torch.arange(0, 8, shape.bits, device=place)
    lookup = weights[(torch.arange(256, device=place)[:, None] >> slots) & (2**shape.bits - 1)]
    offsets = torch.arange(0, shape.tokens + 1, shape.document_length, device=place)
    inverse = torch.empty(shape.tokens, dtype=torch.float16, device=place)
    compressed = Compressed(codes, residuals, inverse, kernels.spans_of(offsets))
    scores = kernels.centroid_scores(query, centroids)
    stored = Stored(shape, tokens_of(query[None].half()), scores, codec, compressed, lookup)
    for first, last in _pieces(shape.tokens, PIECE):
        inverse[first:last] = 1 / stored.decoded(first, last).norm(dim=1)
    return stored


def contestants(stored: Stored) -> dict[str, Contestant]:
    """Ours, torch in pieces, and the library where it is installed."""

    def ours() -> Outcome:
        return (kernels.residual_maxsim(stored.query, stored.scores, stored.codec, stored.compressed),)

    found: dict[str, Contestant] = {"": ours, TORCH: lambda: (_by_torch(stored),)}
    if importable(LIK):
        found[LIK] = _by_late_interaction_kernels(stored)
    return found


def check(stored: Stored, found: Outcome) -> None:
    """Documents at either end against float64; the stored norms are of half precision.

    Raises:
        AssertionError: the scores are wrong.
    """
    length, count = stored.shape.document_length, stored.shape.documents
    few = min(SAMPLE, count)
    for first, last in ((0, few), (count - few, count)):
        tokens = stored.decoded(first * length, last * length).double()
        tokens *= stored.compressed.inverse_norms[first * length : last * length, None].double()
        truth = (tokens @ stored.query.values.double().T).view(last - first, length, -1).amax(1).sum(1)
        apart = (found[0][0, first:last].double() - truth).abs().max() / truth.abs().max()
        assert float(apart) < 1e-3, f"scores are {float(apart):.2g} apart"


def _by_torch(stored: Stored) -> Tensor:
    length = stored.shape.document_length
    step = max(1, PIECE // length) * length
    return torch.cat([_score_piece(stored, *piece) for piece in _pieces(stored.shape.tokens, step)])[None]


def _score_piece(stored: Stored, first: int, last: int) -> Tensor:
    unit = torch.nn.functional.normalize(stored.decoded(first, last), dim=1)
    table = unit @ stored.query.values.float().T
    return table.view(-1, stored.shape.document_length, stored.shape.query_length).amax(1).sum(1)


def _by_late_interaction_kernels(stored: Stored) -> Contestant:
    score = import_module("late_interaction_kernels.plaid").maxsim_residual_varlen
    shape, compressed = stored.shape, stored.compressed
    place = compressed.codes.device
    offsets = torch.arange(0, shape.tokens + 1, shape.document_length, device=place, dtype=torch.int32)
    centroids = stored.codec.centroids.half()

    def call() -> Outcome:
        scores = score(
            stored.query.values[None],
            compressed.codes,
            compressed.residuals,
            offsets,
            centroids,
            stored.codec.weights,
            shape.bits,
            max_seqlen_d=shape.document_length,
        )
        return (scores,)

    return call


def table_contestants(shape: Table, device: Device) -> dict[str, Contestant]:
    """The centroid scores of some queries, or the centroid interaction of one with every document."""
    generator = torch.Generator(device.name).manual_seed(0)
    rows = shape.queries * shape.query_length
    centroids, queries = (
        torch.nn.functional.normalize(torch.randn(count, DIMENSION, generator=generator, device=device.name), dim=1)
        for count in (shape.centroids, rows)
    )
    if not shape.tokens:
        product = device.compiled(_product)
        return {
            "": lambda: (kernels.centroid_scores(queries, centroids),),
            TORCH: lambda: (_product(queries, centroids),),
            COMPILED: lambda: (product(queries, centroids),),
        }
    table = kernels.quantise_table(kernels.centroid_scores(queries, centroids))
    codes = torch.randint(shape.centroids, (shape.tokens,), generator=generator, device=device.name, dtype=torch.int32)
    documents, query = (
        kernels.spans_of(torch.arange(0, count + 1, length, device=device.name))
        for count, length in ((shape.tokens, shape.document_length), (rows, shape.query_length))
    )
    gathered = _gathering(shape, table, codes)
    return {
        "": lambda: (kernels.centroid_interaction(table, query, codes, documents),),
        TORCH: gathered,
    }


def check_table(found: Outcome, rival: Outcome) -> None:
    """Ours against torch's own.

    Raises:
        AssertionError: they differ.
    """
    apart = (found[0] - rival[0]).abs().max() / rival[0].abs().max()
    assert float(apart) < 1e-5, f"values are {float(apart):.2g} apart"


def _product(queries: Tensor, centroids: Tensor) -> Tensor:
    return centroids @ queries.T


def _gathering(shape: Table, table: kernels.CentroidTable, codes: Tensor) -> Contestant:
    assert table.steps is not None
    assert table.lows is not None
    steps, lows = table.steps, table.lows

    def call() -> Outcome:
        pieces = codes.view(shape.documents, -1).split(max(1, PIECE // shape.document_length))
        best = torch.cat([table.values[piece.long()].amax(dim=1) for piece in pieces])
        return ((lows + steps * best).sum(dim=1)[None],)

    return call


def _pieces(count: int, step: int) -> Iterator[tuple[int, int]]:
    return ((first, min(count, first + step)) for first in range(0, count, step))
