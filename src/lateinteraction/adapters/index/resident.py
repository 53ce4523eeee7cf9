"""Tokens of segments on a device: kept there, or brought there block by block for as long as a search looks at them.

What is brought is first copied to pinned memory, from where the device fetches it while it computes with the block
before: two blocks of memory take turns, and two streams. On the host the same steps copy from memory to memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.codebook import Codebook
from lateinteraction.adapters.index.columns import Rows, blocks_of, ranges
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.index.payloads import CODES, Payload, tensor_of
from lateinteraction.adapters.index.segments import PAYLOADS, Kind
from lateinteraction.adapters.index.stages import Block, CodebookThere, Int8Block, ResidualBlock, VectorBlock
from lateinteraction.adapters.neural.transfer import queued_to_device, to_device, to_host
from lateinteraction.domain.embeddings import Offsets, offsets_of
from lateinteraction.domain.errors import CorruptIndex
from lateinteraction.kernels.operands import spans_of

SPAN_BYTES = 16
"""What a document costs besides its tokens: where they begin and end, as int64."""
ALIGNED = 256
"""What divides the place of an array in a block, so that kernels read it 16 bytes at a time, and more."""


@final
class StoredTokens:
    """The tokens of a segment as they lie in its file.

    Args:
        kind: how they are stored.
        arrays: of the file.
        payload: what reads them on the host, and has found that they fit together.
        codebook: of residuals.
    """

    def __init__(self, kind: Kind, arrays: Arrays, payload: Payload, codebook: Codebook | None) -> None:
        self.kind: Kind = kind
        self.codebook, self.lengths = codebook, payload.lengths
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self.lengths)

    @once
    def columns(self) -> Sequence[NDArray[Any]]:
        """The arrays with a row for each token, all of which is verified: a device does not look at codes before it
        follows them.

        Raises:
            CorruptIndex: they are damaged, or name centroids that there are not.
        """
        found = [self._arrays.whole(name) for name in PAYLOADS[self.kind]]
        if self.codebook is not None:
            codes = found[PAYLOADS[self.kind].index(CODES)]
            if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.codebook):
                raise CorruptIndex(
                    f"codes {int(codes.min())} … {int(codes.max())}",
                    f"centroids of a codebook of {len(self.codebook)}",
                    "Run `verify`: a file of the index is damaged, or is not the one that its manifest means.",
                )
        return found

    @property
    def layout(self) -> Sequence[tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtype and shape of a row of each column; nothing is read."""
        views = (self._arrays.lazily(name) for name in PAYLOADS[self.kind])
        return [(view.dtype, view.shape[1:]) for view in views]

    def sizes(self, rows: Rows | None = None) -> Rows:
        """Bytes that these documents take on a device, or all, int64 (N,)."""
        per_token = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in self.layout)
        return (self.lengths if rows is None else self.lengths[rows]) * per_token + SPAN_BYTES

    @property
    def nbytes(self) -> int:
        """What all of it takes on a device."""
        return int(self.sizes().sum())

    def block(self, columns: Sequence[Tensor], spans: Tensor, longest: int, codebook: CodebookThere | None) -> Block:
        """Documents of it on a device, of so many tokens at most."""
        if codebook is not None:
            codes, residuals, scales = columns
            return ResidualBlock(codes, residuals, scales, spans, codebook)
        if self.kind == "int8":
            values, scales = columns
            return Int8Block(values, scales, spans, longest)
        return VectorBlock(columns[0], spans, longest)


class Placement(Protocol):
    """Where the documents of a segment are for the searches of a device."""

    def blocks(self, chosen: Rows | None) -> Iterator[tuple[Block, int]]:
        """These rows, which rise, or all; with the place of each block's first one among them.

        A block can be used until the next is asked for.
        """
        ...


@final
class Loaded:
    """The tokens of a segment on a device. The memory is free when nobody refers to this any more.

    Args:
        stored: how they lie in the file.
        device: where to.
    """

    def __init__(self, stored: StoredTokens, device: torch.device) -> None:
        self.columns = [to_device(tensor_of(column), device) for column in stored.columns]
        self.spans = spans_of(to_device(offsets_of(stored.lengths), device)).contiguous()
        self.nbytes = stored.nbytes
        self.device = device


@final
class Resident:
    """Documents that stay on a device: a `Placement`.

    Args:
        block: all of them.
        device: where they are.
        loaded: what they were made of, and what stays for as long as this is held.
    """

    def __init__(self, block: Block, device: torch.device, loaded: Sequence[Loaded]) -> None:
        self._block, self._device, self._loaded = block, device, loaded

    @classmethod
    def of(cls, stored: StoredTokens, loaded: Loaded, codebook: CodebookThere | None) -> Resident:
        """A segment, and the codebook there that its residuals are read with."""
        longest = int(stored.lengths.max(initial=0))
        return cls(stored.block(loaded.columns, loaded.spans, longest, codebook), loaded.device, [loaded])

    @classmethod
    def joined(cls, stored: Sequence[StoredTokens], loaded: Sequence[Loaded]) -> Resident:
        """Segments of vectors, at least one, as if they were one: a copy."""
        starts = offsets_of([int(each.lengths.sum()) for each in stored])
        spans = [each.spans + int(start) for each, start in zip(loaded, starts[:-1], strict=True)]
        longest = max(int(each.lengths.max(initial=0)) for each in stored)
        block = VectorBlock(torch.cat([each.columns[0] for each in loaded]), torch.cat(spans), longest)
        return cls(block, loaded[0].device, list(loaded))

    def blocks(self, chosen: Rows | None) -> Iterator[tuple[Block, int]]:
        """See `Placement.blocks`: one."""
        yield self._block if chosen is None else self._block.only(queued_to_device(chosen, self._device)), 0


class _Slot(NamedTuple):
    """Memory for one block, on the host and on the device, and what has to be over before each is filled again."""

    host: Tensor
    there: Tensor
    copied: Any
    used: Any


@final
class Lane:
    """The way of blocks to a device. One search at a time may use it: hold `alone` meanwhile.

    Args:
        device: where to.
        capacity: bytes of the largest block.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        self.capacity, self.alone = capacity, threading.Lock()
        self._streams = torch.get_device_module(device)
        self._device = device
        self._copying = self._streams.Stream(device)
        self._turn = 0
        self._lent: _Slot | None = None

    @once
    def _slots(self) -> Sequence[_Slot]:
        """Memory that nobody pays for who brings nothing."""
        return [self._slot(_room(self.capacity)) for _ in range(2)]

    def _slot(self, size: int) -> _Slot:
        host = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=self._device.type == "cuda")
        there = torch.empty(size, dtype=torch.uint8, device=self._device)
        slot = _Slot(host, there, self._streams.Event(), self._streams.Event())
        slot.used.record(self._streams.current_stream(self._device))  # by whoever had that memory before
        return slot

    def bring(self, rows: Sequence[tuple[np.dtype[Any], tuple[int, ...]]], fill: Callable[..., None]) -> list[Tensor]:
        """Arrays on the device that may be used until the next call, or until `rest`.

        Waits for the device only to fetch the block before the last, whose memory on the host is written to now.

        Args:
            rows: dtype and shape of each array.
            fill: writes them, given as as many NumPy arrays.
        """
        self.rest()
        self._lent = slot = self._slots[self._turn]
        self._turn = 1 - self._turn
        slot.copied.synchronize()
        fill(*_arrays_in(to_host(slot.host), rows))
        computing, size = self._streams.current_stream(self._device), _size_of(rows)
        with self._streams.stream(self._copying):
            self._copying.wait_event(slot.used)
            slot.there[:size].copy_(slot.host[:size], non_blocking=True)
            slot.copied.record(self._copying)
        computing.wait_event(slot.copied)
        return _tensors_in(slot.there, rows)

    def rest(self) -> None:
        """Say that what is to be computed with the last block is on its way."""
        if self._lent is not None:
            self._lent.used.record(self._streams.current_stream(self._device))
            self._lent = None


@final
class Streamed:
    """A segment that is brought for each search: a `Placement`. Only what may be returned is brought.

    Args:
        stored: its tokens.
        lane: the way.
        codebook: the codebook there, of residuals.
    """

    def __init__(self, stored: StoredTokens, lane: Lane, codebook: CodebookThere | None) -> None:
        self._stored, self._lane, self._codebook = stored, lane, codebook

    def blocks(self, chosen: Rows | None) -> Iterator[tuple[Block, int]]:
        """See `Placement.blocks`."""
        stored = self._stored
        rows = np.arange(len(stored)) if chosen is None else chosen
        lengths, starts = stored.lengths[rows], offsets_of(stored.lengths)[rows]
        for part in blocks_of(stored.sizes(rows), self._lane.capacity):
            own, firsts = lengths[part], starts[part]

            def fill(spans: NDArray[Any], *columns: NDArray[Any], own: Offsets = own, firsts: Rows = firsts) -> None:
                _write_spans(spans, own)
                for column, source in zip(columns, stored.columns, strict=True):
                    if len(column) and int(firsts[0]) + len(column) == int(firsts[-1] + own[-1]):  # side by side
                        column[:] = source[int(firsts[0]) : int(firsts[0]) + len(column)]
                    else:
                        np.take(source, ranges(firsts, own), axis=0, out=column, mode="clip")

            spans, *columns = self._lane.bring(_rows_of(own, stored.layout), fill)
            yield stored.block(columns, spans, int(own.max()), self._codebook), int(part.start)


@final
class Decoded:
    """Documents that are decoded on the host, and brought as vectors: a `Placement` of what is looked at seldom.

    Args:
        payload: what decodes them.
        lane: the way.
    """

    def __init__(self, payload: Payload, lane: Lane) -> None:
        self._payload, self._lane = payload, lane

    def blocks(self, chosen: Rows | None) -> Iterator[tuple[Block, int]]:
        """See `Placement.blocks`."""
        rows = np.arange(len(self._payload)) if chosen is None else chosen
        lengths = self._payload.lengths[rows]
        layout = [(np.dtype(np.float32), (self._payload.dimension,))]
        for part in blocks_of(decoded_sizes(self._payload)[rows], self._lane.capacity):
            own, some = lengths[part], rows[part]

            def fill(spans: NDArray[Any], values: NDArray[Any], own: Offsets = own, some: Rows = some) -> None:
                _write_spans(spans, own)
                values[:] = to_host(self._payload.decode(some).tokens)

            spans, values = self._lane.bring(_rows_of(own, layout), fill)
            yield VectorBlock(values, spans, int(own.max())), int(part.start)


def decoded_sizes(payload: Payload) -> Rows:
    """Bytes that its documents take on a device as vectors, int64 (N,)."""
    return payload.lengths * (4 * payload.dimension) + SPAN_BYTES


def _room(capacity: int) -> int:
    """Bytes for a block of so many, whose arrays begin at multiples of `ALIGNED`."""
    return capacity + 4 * ALIGNED


def _write_spans(spans: NDArray[Any], lengths: Offsets) -> None:
    offsets = offsets_of(lengths)
    spans[:, 0], spans[:, 1] = offsets[:-1], offsets[1:]


def _rows_of(
    lengths: Offsets, layout: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]
) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    tokens = int(lengths.sum())
    return [(np.dtype(np.int64), (len(lengths), 2)), *((dtype, (tokens, *shape)) for dtype, shape in layout)]


def _places_of(rows: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> Iterator[tuple[int, int]]:
    """Where each array begins and ends in a block."""
    start = 0
    for dtype, shape in rows:
        end = start + dtype.itemsize * int(np.prod(shape))
        yield start, end
        start = -(-end // ALIGNED) * ALIGNED


def _size_of(rows: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> int:
    return max(end for _, end in _places_of(rows))


def _arrays_in(memory: NDArray[Any], rows: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> list[NDArray[Any]]:
    places = zip(_places_of(rows), rows, strict=True)
    return [memory[start:end].view(dtype).reshape(shape) for (start, end), (dtype, shape) in places]


def _tensors_in(memory: Tensor, rows: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> list[Tensor]:
    places = zip(_places_of(rows), rows, strict=True)
    return [memory[start:end].view(_DTYPES[dtype.name]).view(shape) for (start, end), (dtype, shape) in places]


_DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("int64", "int32", "int8", "uint8", "float16", "float32")
}


if TYPE_CHECKING:
    _placements: list[type[Placement]] = [Resident, Streamed, Decoded]
