"""Devices: an index is searched there with the same answers as on the host, whole or brought there as it is needed.

What stays on a device is planned by what segments take, as their files say, and by what is free. A segment is there
once, for all states of an index that have it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Literal, final, get_args

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from lateinteraction.adapters.index.device_search import Asked, PlacedView, search_there
from lateinteraction.adapters.index.options import SearchOptions
from lateinteraction.adapters.index.resident import (
    Decoded,
    Lane,
    Loaded,
    Placement,
    Resident,
    StoredTokens,
    Streamed,
    decoded_sizes,
)
from lateinteraction.adapters.index.snapshot import IndexSnapshot
from lateinteraction.adapters.index.stages import WORKING_BYTES, CodebookThere
from lateinteraction.adapters.index.views import SegmentView
from lateinteraction.adapters.neural.admission import check_queries, check_width
from lateinteraction.adapters.neural.transfer import resolve_device, to_device
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption, OutOfMemory
from lateinteraction.domain.filters import Filter
from lateinteraction.domain.ranking import Ranking, check_cutoff
from lateinteraction.domain.text import DocumentId
from lateinteraction.kernels.operands import Codec

if TYPE_CHECKING:
    from lateinteraction.adapters.index.codebook import Codebook
    from lateinteraction.adapters.index.files import FileRecord
    from lateinteraction.adapters.index.index import StoredIndex
    from lateinteraction.adapters.index.segments import Segment

Keeping = Literal["auto", "resident", "streamed"]

SHARE = 0.8
"""Of the memory that is free on a device. The rest is for whoever else computes there."""
BLOCK_BYTES = 2**27
"""Of a segment that is brought at a time: milliseconds on the way, beside which it costs little to start computing."""

JOINED = 2**14
"""Tokens of a segment that is joined with its neighbours: looking at one more takes some thirty operations, which is a
hundred times as long as reading so many tokens of 128 dimensions."""


@final
@frozen
class DeviceOptions:
    """How an index is kept on a device.

    Args:
        keep: "resident": all of it; "streamed": nothing, it is brought for each search; "auto": what fits.
        memory: bytes that it may take there, with the gigabyte that searches compute with; without, `SHARE` of what is
            free.
        block: bytes that are brought at a time.

    Raises:
        InvalidOption: another word, or no bytes.
    """

    keep: Keeping = "auto"
    memory: int | None = None
    block: int = BLOCK_BYTES

    def __attrs_post_init__(self) -> None:
        if self.keep not in get_args(Keeping):
            raise InvalidOption(f"keep = {self.keep!r}", "'auto', 'resident' or 'streamed'", "Choose one.")
        for name, count in (("memory", self.memory), ("block", self.block)):
            if count is not None and (isinstance(count, bool) or count < 1):
                raise InvalidOption(f"{name} = {count!r}", "at least 1 byte", "Leave it out.")


@final
@frozen
class Plan:
    """What of an index stays on a device.

    Attributes:
        resident: bytes of each segment that stays; 0 of those that are brought.
        working: bytes of the codebook, of what searches compute with, and of blocks on their way.
        memory: bytes that there are for all of it; None: nobody counts.
    """

    resident: tuple[int, ...]
    working: int
    memory: int | None

    @property
    def bytes(self) -> int:
        """All that it takes."""
        return self.working + sum(self.resident)


def plan_of(needs: Sequence[int], working: int, blocks: int, memory: int | None, keep: Keeping) -> Plan:
    """What stays of segments that take so many bytes: all, where it fits; else, of the first ones, those that do.

    Args:
        needs: bytes of each, at least 1.
        working: bytes that are needed in any case.
        blocks: bytes that are needed besides where a segment is brought.
        memory: bytes that there are; None: any number.
        keep: as of `DeviceOptions`.

    Raises:
        InvalidOption: what has to be there does not fit.
    """
    whole = Plan(tuple(needs), working, memory)
    if keep == "resident" or (keep == "auto" and (memory is None or whole.bytes <= memory)):
        return _checked(whole, "Leave `keep` to 'auto', and what does not fit is brought as it is needed.")
    left = 0 if memory is None or keep == "streamed" else memory - working - blocks
    resident: list[int] = []
    for need in needs:
        resident.append(need if need <= left else 0)
        left -= resident[-1]
    found = Plan(tuple(resident), working + blocks, memory)
    return _checked(found, "Free memory of the device, make `block` smaller, or search on the host.")


@final
@frozen(eq=False)
class Placed:
    """The segments of one state of an index as they are for a device.

    Args:
        plan: what stays there.
        segments: where the tokens of each segment are.
        kept: where those of kept vectors are, of segments that have some.
        joints: of small segments, where they are together with their neighbours, and their first row there.
        lane: the way of what is brought.
    """

    plan: Plan
    segments: tuple[Placement, ...]
    kept: tuple[Placement | None, ...]
    joints: tuple[tuple[Placement, int] | None, ...]
    lane: Lane


@final
class Device:
    """A device, and what of indexes is on it. Threads may use it at once.

    A segment's memory is free when nobody holds a state that was placed with it.

    Args:
        name: "cuda", "cuda:1", …; "cpu" computes the same on the host.
        options: how indexes are kept.

    Raises:
        InvalidOption: this machine has no such device, or it is of a kind that the kernels do not compute on.
    """

    def __init__(self, name: str, options: DeviceOptions | None = None) -> None:
        device = resolve_device(name)
        if device.type not in ("cpu", "cuda"):
            raise InvalidOption(f"device {name!r}", "a CUDA or ROCm device", "Leave it out, and the host searches.")
        nameless = device.type == "cuda" and device.index is None  # which would be another one in another thread
        self.device = torch.device("cuda", torch.cuda.current_device()) if nameless else device
        self.options = options or DeviceOptions()
        self._loaded: weakref.WeakValueDictionary[FileRecord, Loaded] = weakref.WeakValueDictionary()
        self._codebooks: weakref.WeakKeyDictionary[Codebook, CodebookThere] = weakref.WeakKeyDictionary()
        self._one_at_a_time = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of segments that are there."""
        return sum(loaded.nbytes for loaded in list(self._loaded.values()))

    def place(self, snapshot: IndexSnapshot) -> Placed:
        """Bring there what stays there of a state of an index.

        Raises:
            InvalidOption: what has to be there does not fit.
            OutOfMemory: there is less memory than the device said.
            CorruptIndex: the index is damaged.
        """
        with self._one_at_a_time, out_of_memory(self.device):
            stored = [_stored(segment, snapshot.codebook) for segment in snapshot.segments]
            held = self.loaded(snapshot)
            kept = [segment.kept for segment in snapshot.segments]
            sizes = [each.sizes() for each in stored] + [decoded_sizes(each) for each in kept if each is not None]
            lane = Lane(self.device, max([self.options.block, *(int(each.max(initial=0)) for each in sizes)]))
            working = WORKING_BYTES + (0 if snapshot.codebook is None else snapshot.codebook.centroids.nbytes)
            blocks = [0, 2 * lane.capacity] if len(sizes) == len(stored) else [2 * lane.capacity, 0]
            needs = [each.nbytes for each in stored]
            memory = self._memory(sum(each.nbytes for each in held if each is not None))
            plan = plan_of(needs, working + blocks[0], blocks[1], memory, self.options.keep)
            loaded = [
                self._load(_file(segment), each) if stays else None
                for segment, each, stays in zip(snapshot.segments, stored, plan.resident, strict=True)
            ]
            placements = tuple(
                Streamed(each, lane, self._codebook(each.codebook))
                if there is None
                else Resident.of(each, there, self._codebook(each.codebook))
                for each, there in zip(stored, loaded, strict=True)
            )
            exactly = tuple(None if each is None else Decoded(each, lane) for each in kept)
            return Placed(plan, placements, exactly, _joints(stored, loaded), lane)

    def loaded(self, snapshot: IndexSnapshot) -> list[Loaded | None]:
        """What is there of a state by now; it stays for as long as this is held."""
        return [self._loaded.get(_file(segment)) for segment in snapshot.segments]

    def _memory(self, held: int) -> int | None:
        """Bytes that there are for an index of which so many are there."""
        if self.options.memory is not None:
            return self.options.memory
        free = free_memory(self.device)
        return None if free is None else int(SHARE * (free + held))

    def _load(self, record: FileRecord, stored: StoredTokens) -> Loaded:
        loaded = self._loaded.get(record)
        if loaded is None:
            loaded = self._loaded[record] = Loaded(stored, self.device)
        return loaded

    def _codebook(self, codebook: Codebook | None) -> CodebookThere | None:
        if codebook is None:
            return None
        there = self._codebooks.get(codebook)
        if there is None:
            there = CodebookThere(Codec(*(to_device(part, self.device) for part in codebook.codec)))
            self._codebooks[codebook] = there
        return there


@final
@frozen(eq=False)
class SnapshotOnDevice:
    """A state of an index that is searched on a device.

    Args:
        snapshot: the state.
        placed: the same, there: `device.place(snapshot)`.
        device: which.
    """

    snapshot: IndexSnapshot
    placed: Placed
    device: Device

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
        options: SearchOptions | None = None,
    ) -> list[Ranking]:
        """The k best for each query, as `IndexSnapshot.search` finds them; inverted lists are not looked into.

        Scores may differ by what kernels promise: 1e-6 of what is summed.

        Raises:
            InvalidOption: another interaction than MaxSim, which is the host's.
            OutOfMemory: a query is too long, or the device is used by others.
        """
        chosen = options or SearchOptions()
        if chosen.interaction != "maxsim":
            raise InvalidOption(f"interaction = {chosen.interaction!r}", "'maxsim' on a device", "Search on the host.")
        check_cutoff(k)
        check_queries(queries)
        check_width(self.snapshot.settings.dimension, queries)
        masks = self.snapshot.eligible(where, candidates)
        asked = [number for number, mask in enumerate(masks) if mask.any()]
        centroids = 0 if self.snapshot.codebook is None else len(self.snapshot.codebook)
        views = [
            PlacedView(
                SegmentView(segment.payload, masks[number], vectors=segment.kept),
                self.placed.segments[number],
                self.placed.kept[number],
                centroids if segment.kind == "residual" else 0,
                self.placed.joints[number],
            )
            for number in asked
            for segment in [self.snapshot.segments[number]]
        ]
        with out_of_memory(self.device.device):
            found = search_there(Asked(views, k, chosen), queries, self.device.device, self.placed.lane)
        numbers = np.array(asked, np.int64)
        return [self.snapshot.ranking(numbers[hits.segments], hits.rows, hits.scores, k) for hits in found]


@final
class IndexOnDevice:
    """A stored index that is searched on a device, as it is now. Threads may use it at once.

    Args:
        index: what is searched.
        device: where.
    """

    def __init__(self, index: StoredIndex, device: Device) -> None:
        self._index, self._device = index, device
        self._placed: Placed | None = None
        self._state: weakref.ref[IndexSnapshot] | None = None
        self._one_at_a_time = threading.Lock()

    def snapshot(self) -> SnapshotOnDevice:
        """The index as it is now; brings there what is new. Costs nothing where that is nothing.

        Raises:
            InvalidOption, OutOfMemory: what has to be there does not fit.
        """
        snapshot = self._index.snapshot()
        with self._one_at_a_time:
            if self._placed is None or self._state is None or self._state() is not snapshot:
                remaining = self._device.loaded(snapshot)
                self._placed = None  # what the index has no more is free, unless somebody still searches it
                self._placed = self._device.place(snapshot)
                self._state = weakref.ref(snapshot)
                del remaining
            return SnapshotOnDevice(snapshot, self._placed, self._device)

    def search(
        self,
        queries: TokenEmbeddings[Tensor],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
        options: SearchOptions | None = None,
    ) -> list[Ranking]:
        """See `SnapshotOnDevice.search`."""
        return self.snapshot().search(queries, k, where=where, candidates=candidates, options=options)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device; None on the host, whose files are mapped and take nothing."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@contextmanager
def out_of_memory(device: torch.device) -> Iterator[None]:
    """Say in our words that a device has no memory left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"no memory left on {device}",
            "room for the index and for what a search computes with",
            "Give `DeviceOptions` less `memory` or 'streamed', ask fewer queries at once, or end what else is there.",
        ) from error


def _checked(plan: Plan, remedy: str) -> Plan:
    if plan.memory is not None and plan.bytes > plan.memory:
        given = f"an index that takes {plan.bytes / 1e6:,.0f} MB of the device"
        raise InvalidOption(given, f"at most {plan.memory / 1e6:,.0f} MB", remedy)
    return plan


def _stored(segment: Segment, codebook: Codebook | None) -> StoredTokens:
    return StoredTokens(segment.kind, segment.arrays, segment.payload, codebook if segment.kind == "residual" else None)


def _joints(
    stored: Sequence[StoredTokens], loaded: Sequence[Loaded | None]
) -> tuple[tuple[Placement, int] | None, ...]:
    """Small segments of vectors that are neighbours and resident, joined."""
    found: list[tuple[Placement, int] | None] = []
    small = [
        there is not None and each.kind == "vectors" and int(each.lengths.sum()) <= JOINED
        for each, there in zip(stored, loaded, strict=True)
    ]
    for together, group in groupby(range(len(stored)), small.__getitem__):
        own = list(group)
        there = [each for number in own if (each := loaded[number]) is not None]
        if not together or len(own) == 1:
            found += [None] * len(own)
            continue
        joint = Resident.joined([stored[number] for number in own], there)
        rows = offsets_of([len(stored[number]) for number in own])
        found += [(joint, int(row)) for row in rows[:-1]]
    return tuple(found)


def _file(segment: Segment) -> FileRecord:
    """What holds its tokens, and says by its digest which they are."""
    return segment.record.files[0]
