"""Verification and repair: what is damaged, what can be saved, what that would lose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import final

from attrs import evolve, field, frozen

from lateinteraction.adapters.index.commits import (
    COMMITS,
    LogEnd,
    aborted,
    check_log,
    committed,
    log_identity,
    log_size,
    salvage_end,
)
from lateinteraction.adapters.index.files import FileRecord, StoredFile
from lateinteraction.adapters.index.leases import leased
from lateinteraction.adapters.index.manifests import Manifest, generation_of
from lateinteraction.adapters.index.reading import OpenGeneration, open_state
from lateinteraction.adapters.index.recovery import lock_writer
from lateinteraction.adapters.index.states import State, load, newest
from lateinteraction.adapters.index.storage import Storage
from lateinteraction.adapters.index.writing import Writer
from lateinteraction.domain.errors import CorruptIndex, IndexMismatch, StorageFailed

_log = logging.getLogger(__name__)


@frozen
class VerifyReport:
    """What reading every byte of the newest generation found.

    Attributes:
        generation: its number; None where it cannot be told.
        digest: of its manifest, in hexadecimal.
        content: what the caller's function says of what the index holds; None where anything is damaged.
        files: data files of the generation.
        bytes: in them.
        records: commits and aborts in the log.
        damages: one by one, each with its file.
        remarks: what is odd and harms nothing.
    """

    generation: int | None = None
    digest: str | None = None
    content: str | None = None
    files: int = 0
    bytes: int = 0
    records: int = 0
    damages: tuple[str, ...] = field(default=(), converter=tuple)
    remarks: tuple[str, ...] = field(default=(), converter=tuple)

    @property
    def sound(self) -> bool:
        return not self.damages


@frozen
class RepairReport:
    """What a repair would do, or did.

    Attributes:
        damages: as `VerifyReport` has them; none, and there is nothing to repair.
        newest: the last generation that anything speaks of.
        restored: the generation whose content is taken; None where none can be.
        lost: in words, one by one.
        written: the generation that the repair made; None where it only reports.
    """

    damages: tuple[str, ...] = field(converter=tuple)
    newest: int | None = None
    restored: int | None = None
    lost: tuple[str, ...] = field(default=(), converter=tuple)
    written: int | None = None


def verify(storage: Storage, patience: float, content: Callable[[OpenGeneration], str] | None = None) -> VerifyReport:
    """Read the whole log, the newest manifest and every block of its files. Changes nothing.

    Args:
        storage: the folder.
        patience: as readers have it.
        content: what to say of what the index holds, such as a digest of all documents; called where files are sound.

    Raises:
        IndexMismatch: a newer version of this library wrote it.
    """
    while True:
        log = check_log(storage)
        try:
            state = newest(storage, patience)
        except CorruptIndex as error:
            return VerifyReport(records=log.records, damages=(*log.damages, str(error)))
        if state is None:
            return VerifyReport()
        report = _verified(storage, state, content)
        if report.sound or log_size(storage) == state.end.size:  # else it may have been collected meanwhile
            # A log without a record beside a newest generation is that of an index whose making was cut short.
            damages = (*(log.damages if log.records else ()), *report.damages)
            remarks = _remarks(storage, state)
            return evolve(report, records=log.records, damages=damages, remarks=remarks)


def repair(storage: Storage, patience: float, *, accept_loss: bool) -> RepairReport:
    """Say what a damaged index would lose if it was made whole again, and do so where that is accepted.

    The newest generation whose files are all sound is taken, without files that its segments can do without: all but
    the first of each. Where there is none, the newest that can be read is taken without the segments that are damaged.
    What is taken becomes a new generation, whose note says what was lost;
    no file is changed.

    Raises:
        IndexLocked: somebody writes.
        CorruptIndex: nothing can be saved, and loss is accepted.
        IndexMismatch, StorageFailed: a file is of a newer format, or the system refuses to read or to write; nothing
            is given up for that.
    """
    lock = lock_writer(storage) if accept_loss else None
    try:
        damages = verify(storage, patience if lock is None else 0.0).damages
        if not damages:
            return RepairReport(())
        rescue = _rescue(storage)
        report = RepairReport(damages, rescue.newest, rescue.restored, rescue.lost)
        if lock is None:
            return report
        if rescue.manifest is None:
            raise CorruptIndex("; ".join(damages), "a generation or a segment that is sound", "Restore a snapshot.")
        _log.warning("repair takes generation %d; lost: %s", rescue.restored, "; ".join(rescue.lost))
        writer = Writer(storage, lock, rescue.manifest, rescue.end)
        note = f"Repaired from generation {rescue.restored}. Lost: {'; '.join(rescue.lost) or 'nothing that is known'}."
        return evolve(report, written=writer.commit(segments=rescue.manifest.segments, note=note).generation)
    finally:
        if lock is not None:
            lock.release()


@frozen
class _Rescue:
    """What can be saved: a manifest of sound files only, and the end of the log to go on from."""

    newest: int
    restored: int | None
    manifest: Manifest | None
    lost: tuple[str, ...]
    end: LogEnd


def _verified(storage: Storage, state: State, content: Callable[[OpenGeneration], str] | None) -> VerifyReport:
    records = {record.name: record for record in state.manifest.records()}
    told = None
    with leased(storage, state.manifest.generation):
        damages = [each for record in records.values() for each in _unreadable(storage, record)]
        if content is not None and not damages:
            try:
                with open_state(storage, state, log_identity(storage)) as opened:
                    told = content(opened)
            except CorruptIndex as error:
                damages.append(str(error))
    return VerifyReport(
        generation=state.manifest.generation,
        digest=state.digest.hex(),
        content=told,
        files=len(records),
        bytes=sum(record.length for record in records.values()),
        damages=damages,
    )


def _damages(storage: Storage, record: FileRecord) -> list[str]:
    try:
        return StoredFile.open(storage, record).verify()
    except CorruptIndex as error:
        return [str(error)]


def _unreadable(storage: Storage, record: FileRecord) -> list[str]:
    """Damages, and what may be none: a file that the system does not let us read, or that says it is newer."""
    try:
        return _damages(storage, record)
    except (StorageFailed, IndexMismatch) as error:
        return [str(error)]


def _remarks(storage: Storage, state: State) -> list[str]:
    remarks = [state.manifest.note] if state.manifest.note else []
    if state.end.loose:
        remarks.append(f"{COMMITS} ends with what is no record: a commit was cut short, or the last one's is damaged")
    digests = {record.generation: record.digest for record in committed(storage)}
    for generation in _generations(storage):
        try:
            if generation < state.manifest.generation:
                load(storage, generation, digests.get(generation))
        except (CorruptIndex, FileNotFoundError, StorageFailed) as error:
            remarks.append(f"of an earlier generation: {error}")
    return remarks


def _generations(storage: Storage) -> list[int]:
    """Those that have a manifest and were not aborted, newest first."""
    found = {each for each in map(generation_of, storage.names()) if each is not None}
    return sorted(found - aborted(storage), reverse=True)


def _rescue(storage: Storage) -> _Rescue:
    digests = {record.generation: record.digest for record in committed(storage)}
    manifests: dict[int, Manifest] = {}
    generations = _generations(storage)
    for generation in generations:
        with suppress(CorruptIndex, FileNotFoundError):
            manifests[generation] = load(storage, generation, digests.get(generation))[0]
    end = salvage_end(storage)
    end = evolve(end, number=max([end.number, *generations]), loose=False)
    last = max([*digests, *generations], default=0)
    sound = _Soundness(storage)
    spared = {generation: _spared(manifest, sound) for generation, manifest in manifests.items()}
    whole = next((each for each in spared.values() if all(map(sound, each.records()))), None)
    taken = whole if whole is not None else _without_damaged(next(iter(spared.values()), None), sound)
    if taken is None:
        return _Rescue(last, None, None, ("everything",), end)
    return _Rescue(last, taken.generation, taken, tuple(_lost(taken, manifests.get(last), last)), end)


@final
class _Soundness:
    """Whether files are sound, each read once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._answers: dict[FileRecord, bool] = {}

    def __call__(self, record: FileRecord) -> bool:
        if record not in self._answers:
            self._answers[record] = not _damages(self._storage, record)
        return self._answers[record]


def _spared(manifest: Manifest, sound: _Soundness) -> Manifest:
    """Without damaged files of segments that these can do without: all but their first."""
    segments = [
        evolve(segment, files=[*segment.files[:1], *filter(sound, segment.files[1:])]) for segment in manifest.segments
    ]
    return evolve(manifest, segments=segments)


def _without_damaged(manifest: Manifest | None, sound: _Soundness) -> Manifest | None:
    if manifest is None or not all(map(sound, manifest.shared.values())):
        return None
    segments = [segment for segment in manifest.segments if all(map(sound, segment.records()))]
    return evolve(manifest, segments=segments) if segments else None


def _lost(taken: Manifest, last: Manifest | None, newest: int) -> Iterator[str]:
    """What the newest generation has and the one that is taken has not."""
    if last is None:
        yield f"what was written after generation {taken.generation}: the manifest of generation {newest} is damaged"
        return
    staying = {segment.number: segment for segment in taken.segments}
    for segment in last.segments:
        if segment.number not in staying:
            yield f"segment {segment.number} of {segment.documents} documents"
            continue
        if segment.deltas != staying[segment.number].deltas:
            yield f"removals and updates in segment {segment.number} after generation {taken.generation}"
        gone = [record.name for record in segment.files if record not in staying[segment.number].files]
        if gone:
            yield f"what is kept beside segment {segment.number} of {segment.documents} documents: {', '.join(gone)}"
    if back := staying.keys() - {segment.number for segment in last.segments}:
        yield f"the merging or removal of segments {', '.join(map(str, sorted(back)))}, which are back"
    if (taken.settings, taken.shared) != (last.settings, last.shared):
        yield f"changes of settings or codebooks after generation {taken.generation}"
