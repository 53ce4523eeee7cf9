"""Changes: what one commit makes different, gathered, written as files, and committed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from lateinteraction.adapters.index import folding, tombstones, updates
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.columns import Rows, blocks_of, ranges
from lateinteraction.adapters.index.files import FileRecord
from lateinteraction.adapters.index.folding import Size
from lateinteraction.adapters.index.manifests import SegmentRecord
from lateinteraction.adapters.index.segments import (
    PAYLOADS,
    REMOVED,
    UPDATED,
    Kept,
    Kind,
    Segment,
    built,
    merged,
    write,
)
from lateinteraction.adapters.index.settings import IndexSettings
from lateinteraction.adapters.index.snapshot import IndexSnapshot, Place
from lateinteraction.adapters.index.writing import Writer
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings
from lateinteraction.domain.text import Document, Metadata

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.index.codebook import Codebook

TOKENS_AT_A_TIME = 2**17
"""Tokens that are decoded at a time when a segment is stored another way: 64 MB at 128 dimensions."""

SAMPLE = 2**20
"""Tokens, at most, that a codebook grows by: 512 MB at 128 dimensions."""

DRIFT_SAMPLE = 2**15
DRIFT = 0.35
"""Tokens that are looked at for drift, and the share of them that may be far: a quarter is, of those like the first."""


@final
class Changes:
    """The next generation in the making. Nothing is committed before `commit`.

    Args:
        writer: of the index.
        snapshot: the generation that it starts from.
    """

    def __init__(self, writer: Writer, snapshot: IndexSnapshot) -> None:
        self.snapshot = snapshot
        self._writer = writer
        self._settings: IndexSettings = snapshot.settings
        self._made: Codebook | None = None
        self._shared = dict(snapshot.opened.manifest.shared)
        self._incoming: Segment | None = None
        self._parts: list[Kept] = []
        self._live = [segment.live for segment in snapshot.segments]
        self._updates: dict[int, dict[int, Metadata]] = {}
        self._compacting = False

    def add(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], taken: NDArray[np.bool_]) -> None:
        """Take those documents that are marked; once for a commit."""
        rows = np.flatnonzero(taken)
        kept = [documents[row] for row in map(int, rows)]
        self._settings = self._settings.of_width(embeddings.dimension)
        lengths = embeddings.lengths[rows]
        tokens = embeddings.tokens if taken.all() else _of_items(embeddings, rows)
        kind: Kind = "int8" if self._settings.options.codec == "int8" else "vectors"
        arrays = built(kept, lengths, _encoded(kind, [tokens], None), self._settings.analyser)
        record = SegmentRecord(0, len(kept), len(tokens), kind, ())
        self._incoming = Segment(record, InMemory(arrays), {}, lambda: None)

    def remove(self, places: Iterable[Place]) -> None:
        """Forget documents."""
        gone: dict[int, list[int]] = {}
        for place in places:
            gone.setdefault(place.segment, []).append(place.row)
        for number, rows in gone.items():
            mask = self._live[number].copy()
            mask[rows] = False
            self._live[number] = mask

    def update(self, metadata: Mapping[Place, Metadata]) -> None:
        """Give documents other metadata."""
        for place, new in metadata.items():
            self._updates.setdefault(place.segment, {})[place.row] = new

    def compact(self) -> None:
        """Have all segments rewritten for which it makes a difference."""
        self._compacting = True

    def commit(self) -> None:
        """Make it the next generation; nothing where nothing has changed."""
        before = self.snapshot.segments
        parts = [Kept(segment, np.flatnonzero(live)) for segment, live in zip(before, self._live, strict=True)]
        if self._incoming is not None:
            parts.append(Kept(self._incoming, self._incoming.rows))
        self._parts = [part for part in parts if len(part.rows)]
        records = [self._record(self._parts[group]) for group in self._groups()]
        if records != [segment.record for segment in before]:
            self._writer.commit(segments=records, shared=self._shared, settings=self._settings.to_json())

    def _groups(self) -> Iterator[slice]:
        """Neighbours that become one segment."""
        sizes = [Size(len(part.rows), int(part.lengths.sum())) for part in self._parts]
        if self._compacting:
            yield from folding.groups(sizes)
            return
        compressing = self._settings.bits is not None
        last = 0 if self._incoming is None else 1 + folding.folded(sizes[:-1], sizes[-1], compressing=compressing)
        for number in range(len(sizes) - last):
            yield slice(number, number + 1)
        if last:
            yield slice(len(sizes) - last, len(sizes))

    def _record(self, parts: Sequence[Kept]) -> SegmentRecord:
        """One segment of the new generation: written anew, or as it was, with what changed beside it."""
        tokens = sum(int(part.lengths.sum()) for part in parts)
        kind = folding.kind_of(self._settings, tokens)
        if len(parts) == 1 and parts[0].segment is not self._incoming:
            segment = parts[0].segment
            whole = len(parts[0].rows) == segment.record.documents and segment.updates is None
            if not self._compacting or (whole and segment.kind == kind):
                return self._with_deltas(parts[0])
        codebook = None
        if kind == "residual":
            codebook = self._codebook([part for part in parts if part.segment.kind != kind])
        payload = _joined([_stored_as(kind, part, codebook) for part in parts])
        if codebook is not None:
            payload |= _listed(payload, np.concatenate([part.lengths for part in parts]), len(codebook))
        number = self._writer.number()
        file = write(self._writer.new_file("segment", number), merged(parts), payload)
        return SegmentRecord(number, sum(len(part.rows) for part in parts), tokens, kind, (file,))

    def _with_deltas(self, part: Kept) -> SegmentRecord:
        """A segment as it is stored, with what is different now."""
        segment, deltas = part.segment, dict(part.segment.record.deltas)
        if len(part.rows) < len(segment):
            gone = np.ones(segment.record.documents, np.bool_)
            gone[part.rows] = False
            deltas[REMOVED] = self._delta(REMOVED, tombstones.build(gone))
        changes = self._updates.get(self.snapshot.segments.index(segment))
        if changes:
            deltas[UPDATED] = self._delta(UPDATED, updates.build(changes, segment.updates))
        return evolve(segment.record, deltas=deltas)

    def _delta(self, kind: str, arrays: Mapping[str, NDArray[Any]]) -> FileRecord:
        return write(self._writer.new_file(kind), (), arrays)

    def _codebook(self, unlike: Sequence[Kept]) -> Codebook:
        """That of the index; trained on all its documents where it has none yet.

        Args:
            unlike: documents that are to be stored with it. Where too many of their tokens are far from every
                centroid, it gets some for them; codes that are stored keep their meaning.
        """
        from lateinteraction.adapters.index.codebook import centroid_count, sample_size, train

        before = self._made or self.snapshot.codebook
        if before is None:
            assert self._settings.bits is not None
            centroids = centroid_count(sum(int(part.lengths.sum()) for part in self._parts))
            self._made = train(_sampled(self._parts, sample_size(centroids)), centroids, self._settings.bits)
        elif unlike:
            sample = _sampled(unlike, DRIFT_SAMPLE)
            drifted = before.drift(sample, before.assign(sample)) > DRIFT
            self._made = before.grown(_sampled(unlike, SAMPLE)) if drifted else before
        else:
            self._made = before
        if self._made is not before:
            self._shared["codebook"] = write(self._writer.new_file("codebook"), (), self._made.arrays())
        return self._made


def _stored_as(kind: Kind, part: Kept, codebook: Codebook | None) -> dict[str, NDArray[Any]]:
    """The payload of a part: as it is stored where that is of this kind, else encoded some at a time."""
    if part.segment.kind == kind:
        return {name: part.tokens(name) for name in PAYLOADS[kind]}
    blocks = (part.rows[block] for block in blocks_of(part.lengths, TOKENS_AT_A_TIME))
    return _encoded(kind, (part.segment.payload.decode(rows).tokens for rows in blocks), codebook)


def _encoded(kind: Kind, blocks: Iterable[Tensor], codebook: Codebook | None) -> dict[str, NDArray[Any]]:
    """A payload of all blocks, at least one."""
    from lateinteraction.adapters.index.payloads import encode_int8, encode_residual, encode_vectors

    if codebook is not None:
        return _joined([encode_residual(block, codebook) for block in blocks])
    return _joined([(encode_int8 if kind == "int8" else encode_vectors)(block) for block in blocks])


def _joined(payloads: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    if len(payloads) == 1:
        return payloads[0]
    return {name: np.concatenate([each[name] for each in payloads]) for name in payloads[0]}


def _listed(payload: Mapping[str, NDArray[Any]], lengths: Offsets, centroids: int) -> dict[str, NDArray[Any]]:
    """Inverted lists of a residual payload, where it is so large that reading all codes would take longer."""
    from lateinteraction.adapters.index.codebook import tier_of
    from lateinteraction.adapters.index.lists import build_lists

    codes = payload["residual.codes"]
    return build_lists(codes, lengths, centroids) if tier_of(len(codes)) == "listed" else {}


def _sampled(parts: Sequence[Kept], tokens: int) -> Tensor:
    """About so many unit vectors, float32: all tokens of some documents, drawn from a seed."""
    import torch

    generator = np.random.default_rng(0)
    share = min(1.0, tokens / max(1, sum(int(part.lengths.sum()) for part in parts)))
    chosen = [part.rows[generator.random(len(part.rows)) < share] for part in parts]
    found = [part.segment.payload.decode(rows).tokens for part, rows in zip(parts, chosen, strict=True) if len(rows)]
    if not sum(map(len, found)):  # few and long documents, none of which was drawn
        found = [part.segment.payload.decode(part.rows).tokens for part in parts]
    return torch.nn.functional.normalize(torch.cat(found), dim=1)


def _of_items(embeddings: TokenEmbeddings[Tensor], rows: Rows) -> Tensor:
    """The tokens of some items, one after another."""
    from lateinteraction.adapters.neural.transfer import to_device

    starts, lengths = embeddings.offsets[:-1][rows], embeddings.lengths[rows]
    return embeddings.tokens[to_device(ranges(starts, lengths), embeddings.tokens.device)]
