"""Numbers: ids for texts that were given none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from lateinteraction.domain.text import DocumentId


class Numbers:
    """ "0", "1", …, each at most once, without those that an index has.

    Args:
        held: those of some ids that it has. Asked for as many as are wanted at once, and where all of them are taken,
            as in an index that was numbered before, for single ones at strides that double.
    """

    def __init__(self, held: Callable[[Sequence[DocumentId]], AbstractSet[DocumentId]]) -> None:
        self._held = held
        self._next = 0

    def take(self, count: int, besides: AbstractSet[DocumentId] = frozenset()) -> list[DocumentId]:
        """The next so many ids, none of them `besides`."""
        taken: list[DocumentId] = []
        while wanted := count - len(taken):
            block = [_name(number) for number in range(self._next, self._next + wanted)]
            held = self._held(block)
            free = [name for name in block if name not in held]
            self._next = self._next + wanted if free else self._beyond(self._next + wanted - 1)
            taken += [name for name in free if name not in besides]
        return taken

    def _beyond(self, last: int) -> int:
        """A number above `last`, which the index has, that it has not, and that follows one that it has."""
        stride = 1
        while self._held([_name(last + stride)]):
            last, stride = last + stride, 2 * stride
        first = last + stride
        while first - last > 1:
            middle = (last + first) // 2
            if self._held([_name(middle)]):
                last = middle
            else:
                first = middle
        return first


def _name(number: int) -> DocumentId:
    return DocumentId(str(number))
