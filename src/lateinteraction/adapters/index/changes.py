"""Changes: what one commit makes different, gathered, written as files, and committed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from lateinteraction.adapters.index import folding, tombstones, updates
from lateinteraction.adapters.index.columns import Column, of_arrays, store
from lateinteraction.adapters.index.encoding import Form, merged, sampled, store_tokens
from lateinteraction.adapters.index.files import FileRecord, FileWriter
from lateinteraction.adapters.index.folding import Size
from lateinteraction.adapters.index.manifests import SegmentRecord
from lateinteraction.adapters.index.parts import Incoming, Left, Part
from lateinteraction.adapters.index.segments import KEPT, REMOVED, UPDATED, Kind
from lateinteraction.adapters.index.settings import IndexSettings
from lateinteraction.adapters.index.snapshot import IndexSnapshot, Place
from lateinteraction.adapters.index.writing import Writer
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.ports import StageProgress
from lateinteraction.domain.text import Document, Metadata

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.index.codebook import Codebook

_log = logging.getLogger(__name__)


@final
class Changes:
    """The next generation in the making. Nothing is committed before `commit`.

    Args:
        writer: of the index.
        snapshot: the generation that it starts from.
        check: called now and then while `commit` works; what it raises ends that, and nothing is committed.
        progress: told of steps of training, where a codebook is made or grows, and of documents that are written, each
            with how many there will be; not of those that stay where they are.
    """

    def __init__(
        self, writer: Writer, snapshot: IndexSnapshot, check: Callable[[], None], progress: StageProgress | None = None
    ) -> None:
        self.snapshot = snapshot
        self._writer, self._check, self._progress = writer, check, progress
        self._settings: IndexSettings = snapshot.settings
        self._left = [Left(segment) for segment in snapshot.segments]
        self._incoming: Incoming | None = None
        self._shared = dict(snapshot.opened.manifest.shared)
        self._made: Codebook | None = None
        self._compacting = self._retraining = self._told = False
        self._done = self._total = 0

    def add(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], taken: NDArray[np.bool_]) -> None:
        """Take those documents that are marked; once for a commit."""
        assert self._incoming is None, "one addition makes one segment"
        self._settings = self._settings.of_width(embeddings.dimension)
        self._incoming = Incoming(documents, embeddings, np.flatnonzero(taken), self._settings.analyser)

    def remove(self, places: Iterable[Place]) -> None:
        """Forget documents."""
        gone: dict[int, list[int]] = {}
        for place in places:
            gone.setdefault(place.segment, []).append(place.row)
        for number, rows in gone.items():
            self._left[number].remove(rows)

    def remove_where(self, masks: Sequence[NDArray[np.bool_]]) -> None:
        """Forget the documents that are marked, bool (N,) for each segment."""
        for left, mask in zip(self._left, masks, strict=True):
            if mask.any():
                left.remove(np.flatnonzero(mask))

    def update(self, metadata: Mapping[Place, Metadata]) -> None:
        """Give documents other metadata."""
        for place, new in metadata.items():
            self._left[place.segment].updates[place.row] = new

    def compact(self, *, retrain: bool = False) -> None:
        """Have all segments rewritten for which it makes a difference; with a codebook trained anew if asked for.

        Raises:
            InvalidOption: a codec without a codebook cannot retrain one.
        """
        if retrain and self._settings.bits is None:
            codec = self._settings.options.codec
            tier = self._settings.options.tier
            raise InvalidOption(
                f"retrain with codec = {codec!r}, tier = {tier!r}", "a residual codec", "This one has no codebook."
            )
        self._compacting, self._retraining = True, retrain

    def commit(self) -> None:
        """Make it the next generation; nothing where nothing has changed."""
        parts = self._parts()
        groups = [parts[group] for group in self._groups(parts)]
        rewritten = self._rewritten(groups)
        self._total = sum(part.documents for number in rewritten for part in groups[number])
        records = [
            self._written(group) if number in rewritten else self._with_deltas(group[0])
            for number, group in enumerate(groups)
        ]
        if records != [segment.record for segment in self.snapshot.segments]:
            self._step(0)
            self._writer.commit(segments=records, shared=self._shared, settings=self._settings.to_json())

    def _step(self, documents: int) -> None:
        self._check()
        self._done += documents
        if self._progress is not None and documents:
            self._progress("writing", self._done, self._total)

    def _trains(self, done: int, total: int | None) -> None:
        self._check()
        if self._progress is not None:
            self._progress("training", done, total)

    def _parts(self) -> list[Part]:
        """All that the next generation holds."""
        parts: list[Part] = [left for left in self._left if left.documents]
        if self._incoming is not None:
            parts.append(self._incoming)
        return parts

    def _groups(self, parts: Sequence[Part]) -> Iterator[slice]:
        """Neighbours that become one segment."""
        sizes = [Size(part.documents, part.tokens) for part in parts]
        if self._compacting:
            yield from folding.groups(sizes)
            return
        least = folding.compress_at(self._settings, trained=self._trained)
        last = 0 if self._incoming is None else 1 + folding.folded(sizes[:-1], sizes[-1], compress_at=least)
        for number in range(len(sizes) - last):
            yield slice(number, number + 1)
        if last:
            yield slice(len(sizes) - last, len(sizes))

    @property
    def _trained(self) -> bool:
        """Whether this change starts from an index with a codebook."""
        return "codebook" in self.snapshot.opened.manifest.shared

    def _kind(self, parts: Sequence[Part]) -> Kind:
        coded = any(part.segment.record.kind == "residual" for part in parts)
        tokens = sum(part.tokens for part in parts)
        return folding.kind_of(self._settings, tokens, trained=self._trained, coded=coded)

    def _rewritten(self, groups: Sequence[Sequence[Part]]) -> set[int]:
        """The numbers of those groups that are written anew.

        Of segments that stay by themselves and are worn so many as one folding may take; the next commits see to the
        others.
        """
        needed = [number for number, group in enumerate(groups) if self._changes(group)]
        tokens = sum(part.tokens for number in needed for part in groups[number])
        for number, group in enumerate(groups):
            if number not in needed and not self._compacting and isinstance(group[0], Left) and group[0].worn:
                if tokens and tokens + group[0].tokens > folding.MOST_TOKENS:
                    continue
                tokens += group[0].tokens
                needed.append(number)
        return set(needed)

    def _changes(self, group: Sequence[Part]) -> bool:
        """Whether a group is no segment that can stay as it is stored, with removals and updates beside it."""
        first, kind = group[0], self._kind(group)
        if len(group) > 1 or not isinstance(first, Left):
            return True
        retrained = self._retraining and kind == "residual"
        return self._compacting and (retrained or not first.whole or first.segment.kind != kind)

    def _written(self, parts: Sequence[Part]) -> SegmentRecord:
        """Parts as one new segment."""
        kind = self._kind(parts)
        codebook = self._codebook(parts) if kind == "residual" else None
        number = self._writer.number()
        file = self._writer.new_file("segment", number)
        store(file, self._columns(parts))
        forms = [(file, Form(kind, codebook, anew=self._retraining and codebook is not None))]
        if codebook is not None and self._keeps(parts):
            kept = Form("int8" if self._settings.options.keep == "int8" else "vectors", kept=True)
            forms.append((self._writer.new_file(KEPT, number), kept))
        lengths = np.concatenate([part.lengths for part in parts])
        own, *_ = store_tokens(forms, parts, self._step)
        for each, _ in forms:
            each.add("tokens.offsets", offsets_of(lengths))
        if codebook is not None:
            store(file, of_arrays(self._listed(own["residual.codes"], lengths, len(codebook))))
        return SegmentRecord(number, len(lengths), int(lengths.sum()), kind, [each.close() for each, _ in forms])

    def _keeps(self, parts: Sequence[Part]) -> bool:
        """Whether vectors are kept beside the residuals of these: never some that were made of residuals."""
        if self._settings.options.keep == "nothing":
            return False
        lost = sum(part.documents for part in parts if not part.exact)
        if lost and not self._told:
            self._told = True
            whole = sum(part.documents for part in parts)
            _log.warning("no vectors are kept beside %d documents: those of %d of them were lost", whole, lost)
        return not lost

    def _columns(self, parts: Sequence[Part]) -> Iterator[Column]:
        """Of an addition by itself those that it has; else they are merged."""
        if self._incoming is not None and len(parts) == 1 and parts[0] is self._incoming:
            return of_arrays(self._incoming.arrays)
        return merged(parts)

    def _with_deltas(self, left: Part) -> SegmentRecord:
        """A segment as it is stored, with what is different now."""
        assert isinstance(left, Left), "an addition is written"
        segment = left.segment
        deltas: dict[str, FileRecord] = {}
        if left.removing:
            deltas[REMOVED] = self._delta(REMOVED, tombstones.build(left.gone))
        if left.updates:
            deltas[UPDATED] = self._delta(UPDATED, updates.build(left.updates, segment.updates))
        return evolve(segment.record, deltas={**segment.record.deltas, **deltas}) if deltas else segment.record

    def _delta(self, kind: str, arrays: Mapping[str, NDArray[Any]]) -> FileRecord:
        return _filled(self._writer.new_file(kind), arrays)

    def _codebook(self, parts: Sequence[Part]) -> Codebook:
        """What these parts are to be stored with. See `codebook_for`."""
        from lateinteraction.adapters.index.codebook import codebook_for

        if self._made is not None and self._retraining:
            return self._made
        assert self._settings.bits is not None
        before = self._made or (None if self._retraining else self.snapshot.codebook)
        every, unlike = self._parts(), [part for part in parts if part.segment.record.kind != "residual"]
        known = self.snapshot.codebook
        if known is not None and not any(part.tokens for part in every):
            return known  # nothing is left to train another one on
        self._made = codebook_for(
            sum(part.tokens for part in every),
            self._settings.bits,
            before,
            lambda count: sampled(every, count, self._step),
            (lambda count: sampled(unlike, count, self._step)) if unlike else None,
            self._settings.options.centroids,
            self._trains,
        )
        if self._made is not before:
            self._shared["codebook"] = _filled(self._writer.new_file("codebook"), self._made.arrays())
        return self._made

    def _listed(self, codes: NDArray[np.int32], lengths: Offsets, centroids: int) -> dict[str, NDArray[Any]]:
        """Inverted lists of residuals, where reading all codes would take longer, or where they are asked for."""
        from lateinteraction.adapters.index.lists import build_lists

        wanted = folding.listed(self._settings, len(codes), centroids)
        return build_lists(codes, lengths, centroids) if wanted else {}


def _filled(file: FileWriter, arrays: Mapping[str, NDArray[Any]]) -> FileRecord:
    for name, array in arrays.items():
        file.add(name, array)
    return file.close()
