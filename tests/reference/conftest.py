"""The numerical derivative that hand-derived gradients are checked against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Differences = Callable[[Callable[[Floats], float], Floats], Floats]


@pytest.fixture(scope="session")
def central_differences() -> Differences:
    """∂f/∂x of a scalar function of one float64 array: (f(x + h e) − f(x − h e)) / 2h for every entry."""

    def differences(function: Callable[[Floats], float], point: Floats, step: float = 1e-5) -> Floats:
        slopes = np.empty(point.shape)
        for entry in np.ndindex(point.shape):
            ahead, behind = point.copy(), point.copy()
            ahead[entry] += step
            behind[entry] -= step
            slopes[entry] = (function(ahead) - function(behind)) / (2 * step)
        return slopes

    return differences
