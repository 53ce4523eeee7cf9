"""Memory of arrays, such as mapped files, lent to tensors, which know none that is read-only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def lent(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory, said to be writeable: torch warns of an array that is not. To be read, never written."""
    return np.asarray(_Lent(np.ascontiguousarray(array)))


class _Lent:
    """An array's memory, said to be writeable; keeps the array alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.owner = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
