"""How the suites make tensors and read them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.testing.contracts import Conversions


class Tensors(Conversions[Tensor]):
    """For a suite of an adapter of torch tensors, before it among the bases."""

    def tensor(self, array: NDArray[np.floating]) -> Tensor:
        return torch.tensor(array)

    def array(self, tensor: Tensor) -> NDArray[np.floating]:
        return tensor.detach().numpy()
