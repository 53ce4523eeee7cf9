"""Tensors as programs want them: addresses, kinds, packed queries. Nothing of the size of the documents is copied."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.kernels.cpu.compilation import Program
from lateinteraction.kernels.cpu.given import Given, given, room, spans_within
from lateinteraction.kernels.cpu.kinds import BFLOAT16, FLOAT16, FLOAT32, INT8
from lateinteraction.kernels.cpu.processor import processor
from lateinteraction.kernels.operands import Tokens

_KINDS = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16, torch.int8: INT8}
_PACK = Program("panels", "pack", 10)
_PACK_BYTES = Program("panels", "pack_bytes", 10)

SPARE = 16
"""Lanes that sums may read beyond the last one (`programs.sums`)."""
PIECE = 256 * 2**10
"""Bytes of rows that programs make ready at a time (`programs.maxsim`), unless one block of rows takes more."""
BLOCK = 512 * 2**10
"""Bytes of panels that documents pass by at a time: they stay in the second-level cache from one to the next.

1,000 queries of 32 tokens with 1,000 documents of 100 (128 dimensions, float32), CPU time: 4.5 s by all panels at once
(16 MB), 3.7 s by 256 KiB … 4 MiB.
"""
FEWEST_PANELS = 16
"""Panels of a block, at least: the last one of each may be half empty."""


class Documents(NamedTuple):
    """Documents, where they lie."""

    values: Tensor
    kind: int
    spans: Tensor
    """int64 (N, 2), contiguous."""
    scales: Tensor
    """float32 (R,), or a single 1."""
    given: Given
    """values, kind, dimension, scales, scale_step, spans, documents."""


class Panels(NamedTuple):
    """Packed queries (`programs.panels`)."""

    packed: Tensor
    """float32, or what the integer products take for one, (panels, steps, PANEL)."""
    starts: Tensor
    """int32 (panels · PANEL,): what integer sums start at."""
    lane_scales: Tensor
    """float32 (panels · PANEL + SPARE,): what similarities are still to be multiplied by."""
    places: Tensor
    """int64 (Q, 3): first lane, tokens, first row of the values."""
    block: int
    """Queries in a block, of which the first begins a panel."""
    needed: NDArray[np.int64]
    """Panels of each block."""
    most: int
    """The most panels of a block."""
    given: Given
    """packed, starts, lane_scales, places, queries, most."""

    def blocks(self) -> list[Block]:
        """Each block as a program takes it."""
        queries = len(self.places)
        if len(self.needed) == 1:
            return [Block(0, queries, self.given)]
        packed, starts, lane_scales, places = self.given[:4].tolist()
        return [
            Block(first, last, given(packed, starts, lane_scales, places + 24 * first, last - first, panels))
            for first, panels in zip(range(0, queries, self.block), self.needed.tolist(), strict=True)
            for last in [min(first + self.block, queries)]
        ]


class Block(NamedTuple):
    """Queries `first` … `last` − 1, which share panels."""

    first: int
    last: int
    given: Given
    """As that of `Panels`."""


def address(numbers: Given) -> int:
    """Where numbers for a program lie; they must live until it returns."""
    return numbers.ctypes.data


def kind_of(values: Tensor) -> int:
    """The kind of a tensor's numbers.

    Raises:
        TypeError: the form cannot compute with them, or not where they are.
    """
    if values.device.type != "cpu":
        raise TypeError(f"a tensor on {values.device}: this form computes on the host")
    if values.dtype not in _KINDS:
        raise TypeError(f"a tensor of {values.dtype}: this form computes with float32, float16, bfloat16 and int8")
    return _KINDS[values.dtype]


def bytewise(queries: Tokens, documents: Tokens) -> bool:
    """Whether both sides are int8 and products are those of whole numbers.

    Raises:
        TypeError: one side is int8 and the other is not; a dtype or device that the form cannot compute.
        ValueError: tokens of different widths.
    """
    kinds = kind_of(queries.values), kind_of(documents.values)
    if (kinds[0] == INT8) != (kinds[1] == INT8):
        raise TypeError(f"queries of {queries.values.dtype} and documents of {documents.values.dtype}")
    if queries.values.shape[1] != documents.values.shape[1]:
        raise ValueError(f"tokens of {queries.values.shape[1]} and of {documents.values.shape[1]} dimensions")
    return kinds[0] == INT8


def documents_of(tokens: Tokens) -> Documents:
    """Documents as programs take them.

    Raises:
        TypeError: a dtype or device that the form cannot compute.
        IndexError: a span of rows that are not there.
    """
    values, kind = tokens.values.detach().contiguous(), kind_of(tokens.values)
    spans, scales = _spans_of(tokens), _scales_of(tokens)
    scale_step = 0 if tokens.scales is None else 4
    addresses = values.data_ptr(), kind, values.shape[1], scales.data_ptr(), scale_step, spans.data_ptr()
    return Documents(values, kind, spans, scales, given(*addresses, len(spans)))


def panels_of(tokens: Tokens, *, apart: bool) -> Panels:
    """Queries, packed; `apart` makes a block of each. Raises as `documents_of`."""
    queries, panel = documents_of(tokens), processor().panel
    lengths = lengths_of(queries.spans)
    integers, dimension = queries.kind == INT8, tokens.values.shape[1]
    steps = -(-dimension // (1 if not integers else 4 if processor().byte_dots else 2))
    block = 1 if apart else _block_of(lengths, steps)
    needed = -(-np.add.reduceat(lengths, np.arange(0, len(lengths), block)) // panel)
    panels, most = int(needed.sum()), int(needed.max(initial=0))
    packed = room(panels, steps, panel).zero_()
    starts = room(panels * panel if integers else 0, dtype=torch.int32).zero_()
    lane_scales = room(panels * panel + SPARE).fill_(1)
    places = room(len(lengths), 3, dtype=torch.int64)
    if integers:
        _pack_bytes(queries, block, (places, packed, starts, lane_scales))
    else:
        _pack(queries, block, (places, packed, room(dimension)))
    numbers = given(*(each.data_ptr() for each in (packed, starts, lane_scales, places)), len(places), most)
    return Panels(packed, starts, lane_scales, places, block, needed, most, numbers)


def _block_of(lengths: NDArray[np.int64], steps: int) -> int:
    """How many queries are a block, all having about as many tokens."""
    lanes = processor().panel * max(FEWEST_PANELS, BLOCK // (4 * max(1, steps) * processor().panel))
    blocks = max(1, -(-int(lengths.sum()) // lanes))
    return max(1, -(-len(lengths) // blocks))


def piece_bytes(steps: int) -> int:
    """Bytes of rows of so many steps that programs make ready at a time, at most."""
    return max(PIECE, processor().rows * 4 * steps)


def lengths_of(spans: Tensor) -> NDArray[np.int64]:
    """Tokens of each item, int64 (N,)."""
    both = spans.numpy()
    return both[:, 1] - both[:, 0]


def pairs_of(pairs: Tensor, queries: Tokens, documents: Tokens) -> Tensor:
    """Pairs as programs take them, int64 (P, 2).

    Raises:
        TypeError: of another dtype, or on a device.
        IndexError: a query or document that is not there.
    """
    if pairs.device.type != "cpu" or pairs.dtype != torch.int64:
        raise TypeError(f"pairs of {pairs.dtype} on {pairs.device}: this form takes int64 on the host")
    _check_numbers("queries", pairs[:, 0], len(queries.spans))
    _check_numbers("documents", pairs[:, 1], len(documents.spans))
    return pairs.contiguous()


def _check_numbers(what: str, numbers: Tensor, end: int) -> None:
    """Raise `IndexError` unless all numbers are 0 … end − 1: a program would read what is not there."""
    found = numbers.numpy()
    if found.size and (found.min() < 0 or found.max() >= end):
        raise IndexError(f"{what} {found.min()} to {found.max()}, where there are 0 to {end - 1}")


def _pack(queries: Documents, block: int, out: tuple[Tensor, ...]) -> None:
    values, kind, dimension, scales, scale_step, spans, count = queries.given.tolist()
    addresses = (each.data_ptr() for each in out)
    _PACK(values, kind, dimension, scales if scale_step else 0, spans, count, block, *addresses)


def _pack_bytes(queries: Documents, block: int, out: tuple[Tensor, ...]) -> None:
    values, _, dimension, scales, scale_step, spans, count = queries.given.tolist()
    addresses = (each.data_ptr() for each in out)
    _PACK_BYTES(values, dimension, scales if scale_step else 0, spans, count, block, *addresses)


def _spans_of(tokens: Tokens) -> Tensor:
    spans = spans_within(tokens.spans, tokens.values.shape[0])
    longest = int(lengths_of(spans).max(initial=0))
    if longest > tokens.longest:  # winners have so much room, and so many bits
        raise ValueError(f"an item of {longest} tokens, where the longest was said to have {tokens.longest}")
    return spans


def _scales_of(tokens: Tokens) -> Tensor:
    if tokens.scales is None:
        return room(1).fill_(1)
    if tokens.scales.device.type != "cpu" or tokens.scales.dtype != torch.float32:
        raise TypeError(
            f"scales of {tokens.scales.dtype} on {tokens.scales.device}: this form takes float32 on the host"
        )
    if len(tokens.scales) != len(tokens.values):
        raise ValueError(f"{len(tokens.scales)} scales of {len(tokens.values)} rows")
    return tokens.scales.detach().contiguous()
