"""The only crossing between host memory and a device, and between NumPy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidOption


def to_host(tensor: Tensor) -> NDArray[Any]:
    """A NumPy array of the same values; shares memory with a CPU tensor. bfloat16, which NumPy lacks, is widened."""
    host = tensor.detach().cpu()
    return host.float().numpy() if host.dtype == torch.bfloat16 else host.numpy()


def to_device(array: NDArray[Any] | Tensor, device: torch.device | str) -> Tensor:
    """A tensor on the device; shares memory where nothing has to move."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor.to(device)


def queued_to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor on the device for which nobody waits: pinned first, where it goes to CUDA.

    For what is small and sent often, since pinned memory is never given back.
    """
    if device.type != "cuda":
        return to_device(array, device)
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).pin_memory().to(device, non_blocking=True)


def to_torch(embeddings: TokenEmbeddings[NDArray[Any]], device: torch.device | str) -> TokenEmbeddings[Tensor]:
    """The same embeddings as a tensor on the device."""
    return TokenEmbeddings(to_device(embeddings.tokens, device), embeddings.offsets)


def to_numpy(embeddings: TokenEmbeddings[Tensor]) -> TokenEmbeddings[NDArray[Any]]:
    """The same embeddings as a NumPy array."""
    return TokenEmbeddings(to_host(embeddings.tokens), embeddings.offsets)


ROWS_AT_ONCE = 2**15
"""Rows of a tensor on the host that are looked at together: 4 million numbers at 128 dimensions."""


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; waits for the device.

    On the host block by block: all at once takes as many bytes again as there are numbers, and is no quicker.
    """
    blocks = tensor.split(ROWS_AT_ONCE) if tensor.device.type == "cpu" and tensor.ndim else (tensor,)
    return all(bool(torch.isfinite(block).all().item()) for block in blocks)


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first CUDA device, else Apple's, else the CPU.

    Raises:
        InvalidOption: a name torch does not know, or a device this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    remedy = "Use 'auto', 'cpu', 'cuda', 'cuda:1', 'mps', …"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidOption(f"device {name!r}", "a device that torch knows", remedy) from error
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present.get(device.type, 0):
        raise InvalidOption(f"device {name!r}", "a device of this machine", remedy)
    return device
