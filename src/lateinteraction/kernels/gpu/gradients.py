"""Gradients of MaxSim through its winners, of all pairs and of listed ones.

Every row is summed by one program, in float32, in rising order of the other side; nothing is added atomically. Query
rows gather what they chose (`gathering`). For document rows what chose them is first brought together (`grouping`) and
then added up (`scattering`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lateinteraction.kernels.gpu.configurations import ceil_div, device_of, launch, tensors_of
from lateinteraction.kernels.gpu.gathering import QUERIES
from lateinteraction.kernels.gpu.grouping import (
    Groups,
    Listing,
    entries_by_tile,
    listed_by,
    owners_of,
    winners_by_document,
    winners_by_listing,
)
from lateinteraction.kernels.gpu.normalisation import check_floats, padded, width
from lateinteraction.kernels.gpu.scattering import DOCUMENTS
from lateinteraction.kernels.operands import Tokens

FEW_ENTRIES = 256
FEW_SIMILARITIES = 2**24
"""Up to so many query tokens per document, or pairs of tokens in all, they are not grouped by tile first: each tile
walks through all of them and lets those be that it did not win.

Computed for an H100, not measured: a batch of 32 query tokens takes a tile some 700 cycles, grouping 2,048 of them
takes it some 2,500 and costs two launches. So 8 batches a tile are about even; as long as all tiles run at a time (some
10 µs for 2²⁴ pairs of tokens), launches decide.
"""


class _Pairs(NamedTuple):
    """Which scores there are: all, or listed pairs by query and by document."""

    pairs: Tensor
    """int64 (P, 2), contiguous."""
    by_query: Listing
    by_document: Listing


def maxsim_all_pairs_gradients(
    queries: Tokens, documents: Tokens, winners: Tensor, upstream: Tensor, *, unit: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (S, D) and (R, D) of the values, from upstream (Q, N); the contract is `Form`'s.

    Raises:
        TypeError: a dtype, width or device that the kernels do not take.
    """
    return _gradients(_Call(queries, documents, winners, upstream, unit), None)


def maxsim_pairs_gradients(
    queries: Tokens, documents: Tokens, pairs: Tensor, winners: Tensor, upstream: Tensor, *, unit: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (S, D) and (R, D) of the values, from upstream (P,); the contract is `Form`'s.

    Raises:
        TypeError: a dtype, width or device that the kernels do not take.
    """
    device_of({"query values": queries.values, "pairs": pairs})
    by_query = listed_by(pairs[:, 0], len(queries.spans))
    by_document = listed_by(pairs[:, 1], len(documents.spans))
    listed = _Pairs(pairs.contiguous(), by_query, by_document)
    return _gradients(_Call(queries, documents, winners, upstream, unit), listed)


class _Call(NamedTuple):
    """What both kernels are told."""

    queries: Tokens
    documents: Tokens
    winners: Tensor
    upstream: Tensor
    unit: bool

    def arguments(self, gradients: Tensor, pairs: Tensor | None, listing: Listing | None) -> dict[str, Any]:
        """What both kernels have."""
        queries, documents = self.queries, self.documents
        D = queries.values.shape[1]
        return {
            "query_values": queries.values,
            "query_scales": queries.scales,
            "query_spans": queries.spans,
            "query_stride": queries.spans.stride(0),
            "query_end": queries.spans.stride(1),
            "document_values": documents.values,
            "document_scales": documents.scales,
            "document_spans": documents.spans,
            "document_stride": documents.spans.stride(0),
            "document_end": documents.spans.stride(1),
            "winners": self.winners,
            "upstream": self.upstream,
            "gradients": gradients,
            "pairs": pairs,
            "order": None if listing is None else listing.order,
            "bounds": None if listing is None else listing.bounds,
            "N": len(documents.spans),
            "longest": self.winners.shape[0 if listing is None else 1],
            "D": D,
            "UNIT": self.unit,
            "BLOCK_D": padded(D),
        }


def _gradients(call: _Call, pairs: _Pairs | None) -> tuple[Tensor, Tensor]:
    queries, documents = call.queries, call.documents
    device_of({**tensors_of(queries, documents), "winners": call.winners, "upstream": call.upstream})
    check_floats(queries.values)
    check_floats(documents.values)
    call = call._replace(winners=call.winners.contiguous(), upstream=call.upstream.type(torch.float32).contiguous())
    return _of_queries(call, pairs), _of_documents(call, pairs)


def _of_queries(call: _Call, pairs: _Pairs | None) -> Tensor:
    queries, device = call.queries, call.queries.values.device
    gradients = torch.zeros_like(queries.values)
    regime = str(width(queries.values.shape[1]))
    tiles = ceil_div(queries.longest, QUERIES.tile(device, regime, "BLOCK_S"))
    listed = (None, None) if pairs is None else (pairs.pairs, pairs.by_query)
    arguments = {**call.arguments(gradients, *listed), "tiles": tiles}
    launch(QUERIES, device, regime, len(queries.spans) * tiles, arguments)
    return gradients


def _of_documents(call: _Call, pairs: _Pairs | None) -> Tensor:
    documents, device = call.documents, call.documents.values.device
    gradients = torch.zeros_like(documents.values)
    regime = _regime(call.queries.values, documents.values)
    tile = DOCUMENTS.tile(device, regime, "BLOCK_T")
    owners = owners_of(call.queries) if pairs is None else None
    groups = _groups(call, pairs, owners, tile)
    listed = (None, None) if pairs is None else (pairs.pairs, pairs.by_document)
    tiles = ceil_div(documents.longest, tile)
    arguments = {
        **call.arguments(gradients, *listed),
        "owners": owners,
        "entries": None if groups is None else groups.entries,
        "ranges": None if groups is None else groups.ranges,
        "tiles": tiles,
        "SINGLE": regime.startswith("single"),
        "SHORT": call.winners.numel() < 2**31,
    }
    launch(DOCUMENTS, device, regime, len(documents.spans) * tiles, arguments)
    return gradients


def _groups(call: _Call, pairs: _Pairs | None, owners: Tensor | None, tile: int) -> Groups | None:
    """The entries by tile, where grouping them is worth it."""
    queries, documents = call.queries, call.documents
    entries = call.winners.numel()
    few = entries <= FEW_ENTRIES * len(documents.spans) or entries * documents.longest <= FEW_SIMILARITIES
    if few or documents.longest <= tile:
        return None
    if pairs is None:
        assert owners is not None
        return entries_by_tile(winners_by_document(call.winners, owners), None, documents, tile)
    lengths = (queries.spans[:, 1] - queries.spans[:, 0])[pairs.pairs[:, 0]]
    winners = winners_by_listing(call.winners, pairs.by_document, lengths)
    return entries_by_tile(winners, pairs.by_document.bounds, documents, tile)


def _regime(query_values: Tensor, document_values: Tensor) -> str:
    """Half where float32 can hold no more than two 16-bit numbers tell: where neither side is float32."""
    halves = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
    single = torch.float32 in (query_values.dtype, document_values.dtype)
    return f"{'single' if single else halves[query_values.dtype]} {width(query_values.shape[1])}"
