"""A small index of numbers over `Generations`, which knows what it was told is committed. Needs no torch, no pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from attrs import define, evolve, field

from lateinteraction.adapters.index.files import FileRecord
from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.manifests import SegmentRecord
from lateinteraction.adapters.index.reading import OpenGeneration
from lateinteraction.adapters.index.writing import Writer
from lateinteraction.domain.errors import UnreadableFile

PATIENCE = 0.05
Content = frozenset[int] | None


def numbers_of(opened: OpenGeneration, segment: SegmentRecord) -> frozenset[int]:
    """What a segment holds and has not lost since."""
    there = opened.file(segment.files[0]).whole("numbers")
    gone = opened.file(segment.deltas["gone"]).whole("numbers") if "gone" in segment.deltas else ()
    return frozenset(map(int, there)) - frozenset(map(int, gone))


def content_of(opened: OpenGeneration) -> frozenset[int]:
    """All numbers of a generation; none is there twice."""
    parts = [numbers_of(opened, segment) for segment in opened.manifest.segments]
    assert sum(map(len, parts)) == len(frozenset().union(*parts))
    return frozenset().union(*parts)


def told(opened: OpenGeneration) -> str:
    """The content in words."""
    return " ".join(map(str, sorted(content_of(opened))))


def read(storage: Any) -> Content:
    """What a reader answers; None where there is no index."""
    try:
        with Generations(storage, patience=PATIENCE).read() as opened:
            return content_of(opened)
    except UnreadableFile:
        return None


def referenced(storage: Any) -> dict[str, bytes]:
    """The newest manifest and every file that it names, with their bytes."""
    try:
        with Generations(storage, patience=PATIENCE).read() as opened:
            names = [record.name for record in opened.manifest.records()]
            return {"": opened.digest, **{name: storage.read(name) for name in names}}
    except UnreadableFile:
        return {}


@define
class Ledger:
    """Adds and removes numbers, and remembers what was acknowledged."""

    storage: Any
    acknowledged: Content = None
    in_flight: Content = None
    writer: Writer = field(init=False, default=None)

    @property
    def generations(self) -> Generations:
        return Generations(self.storage, patience=PATIENCE)

    @property
    def possible(self) -> tuple[Content, ...]:
        """What may be found after a crash."""
        return (self.acknowledged,) if self.in_flight is None else (self.acknowledged, self.in_flight)

    def create(self) -> None:
        self._do(frozenset(), lambda: self.generations.create({"dimension": 4}))

    def open(self) -> None:
        self.writer = self.generations.writer()

    def close(self) -> None:
        self.writer.close()

    def add(self, *numbers: int) -> None:
        self._do(
            (self.acknowledged or frozenset()) | {*numbers},
            lambda: self.writer.commit(segments=[*self.writer.base.segments, self._segment(numbers)]),
        )

    def replace(self, gone: int, *numbers: int) -> None:
        """Remove one and add others in one commit."""
        self._do(
            (self.acknowledged or frozenset()) - {gone} | {*numbers},
            lambda: self.writer.commit(
                segments=[*self._without(gone), self._segment(numbers)], settings={"dimension": 4, "gone": gone}
            ),
        )

    def merge(self) -> None:
        """All in one segment."""
        self._do(self.acknowledged, lambda: self.writer.commit(segments=[self._segment(self.acknowledged or ())]))

    def collect(self) -> None:
        self.writer.collect()

    def _do(self, after: Content, commit: Callable[[], object]) -> None:
        self.in_flight = after
        commit()
        self.acknowledged, self.in_flight = after, None

    def _segment(self, numbers: Iterable[int]) -> SegmentRecord:
        number = self.writer.number()
        record = self._file("segment", numbers, number)
        return SegmentRecord(number=number, documents=len([*numbers]), tokens=0, kind="exact", files=[record])

    def _without(self, gone: int) -> list[SegmentRecord]:
        with self.generations.read() as opened:
            holding = [gone in numbers_of(opened, segment) for segment in opened.manifest.segments]
            before = [
                [*opened.file(segment.deltas["gone"]).whole("numbers")] if "gone" in segment.deltas else []
                for segment in opened.manifest.segments
            ]
        return [
            evolve(segment, deltas={"gone": self._file("delta", [*earlier, gone])}) if holds else segment
            for segment, holds, earlier in zip(self.writer.base.segments, holding, before, strict=True)
        ]

    def _file(self, kind: str, numbers: Iterable[int], number: int | None = None) -> FileRecord:
        with self.writer.new_file(kind, number) as file:
            file.add("numbers", np.array([*numbers], dtype=np.int64))
            return file.close()


Step = Callable[[Ledger], None]
STEPS: tuple[Step, ...] = (
    Ledger.create,
    Ledger.open,
    lambda ledger: ledger.add(1, 2, 3),
    lambda ledger: ledger.replace(2, 4, 5),
    Ledger.collect,
    lambda ledger: ledger.replace(4),
    Ledger.merge,
    Ledger.collect,
    Ledger.close,
)
"""Three generations with deltas, a merge, two collections: all that a folder sees in its life."""
CONTENT = frozenset({1, 3, 5})
"""What the ledger has in the end."""


def check_goes_on(folder: Any, possible: tuple[Content, ...]) -> None:
    """A reader finds a possible state, a writer finds the same, commits more, and all is sound."""
    found = read(folder)
    assert found in possible
    book = Ledger(folder, acknowledged=found)
    if found is None:
        book.create()
    book.open()
    assert read(folder) == book.acknowledged == (found or frozenset())
    book.add(100)
    book.collect()
    book.replace(100, 101)
    book.collect()
    book.close()
    assert read(folder) == (found or frozenset()) | {101}
    report = book.generations.verify(told)
    assert report.damages == ()
    assert report.content == " ".join(map(str, sorted(book.acknowledged)))
    assert not [name for name in folder.names() if name.startswith(("tmp-", "lease-"))]
