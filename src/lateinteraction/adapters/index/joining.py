"""What searches keep in memory of segments: small ones joined, so that nobody pays for each of them; vectors narrowed.

A segment costs a search 0.15 ms, however small it is, and an index that grows by single documents has dozens. The small
ones are searched as one payload and the very small ones as another; a commit, which makes one of these, leaves the
first as it is. What is joined is kept from one state of the index to the next for as long as it is of use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.adapters.index.columns import Rows
from lateinteraction.adapters.index.files import FileRecord
from lateinteraction.adapters.index.segments import Segment

if TYPE_CHECKING:
    from lateinteraction.adapters.index.narrowing import Narrowed
    from lateinteraction.adapters.index.payloads import Payload

MOST_DOCUMENTS, MOST_TOKENS = 512, 2**15
"""Of a segment that is joined with others: a larger one takes longer to be scored than what it costs besides."""
JOINED_APART = 64
"""Documents of a segment from which it is joined with its like alone: a commit makes the others' group anew, of a
megabyte. In three groups and in two, after 10,000 additions of one document, a search takes 4.0 and 3.8 ms."""
JOINED_TOKENS = 2**18
"""Of all that is joined: 64 MB of float16 at 128 dimensions."""
LEAST_NARROWED, NARROWED_TOKENS = 2**13, 2**19
"""Tokens of vectors whose bytes are kept beside them, and the most of all these: 69 MB at 128 dimensions."""

Key = tuple[tuple[FileRecord, ...], ...]
"""The files of segments, with their digests: numbers mean something else after a folder is restored from a copy."""


@final
@frozen(eq=False)
class Group:
    """Segments that are searched as one: several small ones, or a single one.

    Args:
        places: where they are in the snapshot.
        firsts: the row of the first document of each, int64.
    """

    places: NDArray[np.int64]
    firsts: Rows

    def mask(self, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Which rows of the group may be found, given those of all segments."""
        return masks[self.places[0]] if len(self.places) == 1 else np.concatenate([masks[n] for n in self.places])

    def found(self, rows: Rows) -> tuple[NDArray[np.int64], Rows]:
        """The segments of these rows of the group, and their rows there."""
        own = np.searchsorted(self.firsts, rows, side="right") - 1
        return self.places[own], rows - self.firsts[own]


@final
class Joined:
    """The payloads of groups, made when they are first asked for. Threads may call at once.

    Args:
        segments: of a snapshot.
        before: those of an earlier state of the index.
    """

    def __init__(self, segments: Sequence[Segment], before: Joined | None = None) -> None:
        self._segments = segments
        self.groups = tuple(_group(segments, places) for places in _together(segments))
        known = {} if before is None else before._payloads
        keys = {self._key(group) for group in self.groups}
        self._payloads: dict[Key, Payload] = {key: payload for key, payload in dict(known).items() if key in keys}
        narrowed = {} if before is None else before._narrowed
        self._narrow = {self._key(group) for group in _narrowed(segments, self.groups)}
        self._narrowed: dict[Key, Narrowed] = {key: one for key, one in dict(narrowed).items() if key in self._narrow}

    def payload(self, group: Group) -> Payload:
        """The tokens of a group. Imports torch."""
        if len(group.places) == 1:
            return self._segments[group.places[0]].payload
        key = self._key(group)
        if key not in self._payloads:  # two threads may both join them, to the same end
            from lateinteraction.adapters.index.payloads import joined

            self._payloads[key] = joined([self._segments[place].payload for place in group.places])
        return self._payloads[key]

    def narrowed(self, group: Group) -> Narrowed | None:
        """What finds the best of its vectors; None where the group has something else, or too few or many."""
        from lateinteraction.adapters.index.narrowing import Narrowed
        from lateinteraction.adapters.index.payloads import Vectors

        key = self._key(group)
        if key not in self._narrow:
            return None
        payload = self.payload(group)
        assert isinstance(payload, Vectors)
        return self._narrowed.get(key) or self._narrowed.setdefault(key, Narrowed(payload))

    def _key(self, group: Group) -> Key:
        return tuple(self._segments[place].record.files for place in group.places)


def _group(segments: Sequence[Segment], places: Sequence[int]) -> Group:
    sizes = [segments[place].record.documents for place in places]
    return Group(np.array(places, np.int64), np.cumsum([0, *sizes[:-1]]))


def _narrowed(segments: Sequence[Segment], groups: Sequence[Group]) -> Iterable[Group]:
    left = NARROWED_TOKENS
    for group in groups:
        records = [segments[place].record for place in group.places]
        tokens = sum(record.tokens for record in records)
        if records[0].kind == "vectors" and LEAST_NARROWED <= tokens <= left:
            left -= tokens
            yield group


def _together(segments: Sequence[Segment]) -> Iterable[list[int]]:
    """Places of segments that are searched together, the newest joined first where not all can be."""
    groups: dict[tuple[str, bool], list[int]] = {}
    alone: list[list[int]] = []
    left = JOINED_TOKENS
    for place in reversed(range(len(segments))):
        record = segments[place].record
        small = record.documents <= MOST_DOCUMENTS and record.tokens <= min(MOST_TOKENS, left)
        if small and record.kind != "residual":
            groups.setdefault((record.kind, record.documents >= JOINED_APART), []).insert(0, place)
            left -= record.tokens
        else:
            alone.append([place])
    return sorted([*alone, *groups.values()])
