"""Arrays by name: what columns, postings and payloads read from, whether it lies in a file or in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.domain.errors import CorruptIndex


class Arrays(Protocol):
    """Read-only arrays by name; a name that is not there is `CorruptIndex`, and so is what turns out to be damaged.

    Threads may call at once.
    """

    def __contains__(self, name: object) -> bool: ...

    def whole(self, name: str) -> NDArray[Any]:
        """All of an array, verified now; a view of what is stored."""
        ...

    def lazily(self, name: str) -> NDArray[Any]:
        """A view that is not verified: `check` the rows before they are used."""
        ...

    def check(self, name: str, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
        """Verify rows firsts[i] … lasts[i]−1 for every i; cheap where that was done before.

        Empty ranges are allowed. Rows that the array does not have are `CorruptIndex`: whatever named them is damaged.
        """
        ...

    def check_all(self, name: str) -> None:
        """Verify every row."""
        ...

    def let_go(self) -> None:
        """Take no memory for what was read and lies in a file; it is read again when it is asked for."""
        ...


@final
class InMemory:
    """`Arrays` of a dictionary: what was just built and is not stored yet."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = {name: _read_only(array) for name, array in arrays.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def whole(self, name: str) -> NDArray[Any]:
        return self.lazily(name)

    def lazily(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            raise CorruptIndex(f"no array {name!r}", f"one of {sorted(self._arrays)}", "Build it with its kind.")
        return self._arrays[name]

    def check(self, name: str, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
        array = self.lazily(name)
        check_rows(repr(name), len(array) if array.ndim else 1, firsts, lasts)

    def check_all(self, name: str) -> None:
        self.lazily(name)

    def let_go(self) -> None:
        """Nothing: it lies nowhere else."""


def check_rows(place: str, rows: int, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
    """Raise `CorruptIndex` unless 0 ≤ firsts[i] ≤ lasts[i] ≤ rows for every i."""
    if len(firsts) and (int(firsts.min()) < 0 or int(lasts.max()) > rows or bool((firsts > lasts).any())):
        raise CorruptIndex(
            f"rows {int(firsts.min())} … {int(lasts.max())} of {place}",
            f"ranges within its {rows} rows",
            "The array that names them is damaged: verify the index.",
        )


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
