"""What low-rank training changes, as named tensors: the adapters and the projection, without the model beneath.

Files and the model beneath are left to the caller: the same tensors over other weights are another model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lateinteraction.adapters.huggingface.low_rank import LowRankLinear
from lateinteraction.adapters.huggingface.network import Network
from lateinteraction.adapters.neural.transfer import to_device
from lateinteraction.domain.errors import InvalidModel


def adapter_state(network: Network) -> dict[str, Tensor]:
    """Copies of the adapters' matrices and the projection's tensors, on their device, by their names in the network.

    Each adapter has `….scale` beside `….down` and `….up`, a float64 scalar: α/r is in no matrix.
    """
    scales = {name: torch.tensor(scale, dtype=torch.float64) for name, scale in _scales(network).items()}
    return {name: tensor.detach().clone() for name, tensor in _tensors(network).items()} | scales


def load_adapter_state(network: Network, state: Mapping[str, Tensor]) -> None:
    """Put such tensors into a network that has the same adapters, in place.

    Raises:
        InvalidModel: other names, shapes or scales than the network's; nothing is written then.
    """
    tensors, scales = _tensors(network), _scales(network)
    unmatched = sorted(state.keys() ^ (tensors.keys() | scales.keys()))
    if unmatched:
        raise _misfit(f"{unmatched[0]!r}, which only one of state and model has")
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape:
            raise _misfit(f"{name!r} of shape {tuple(state[name].shape)}, which is {tuple(tensor.shape)} in the model")
    for name, scale in scales.items():
        if float(state[name]) != scale:
            raise _misfit(f"{name!r} = {float(state[name]):g}, which is {scale:g} in the model")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(to_device(state[name], tensor.device))


def _adapters(network: Network) -> dict[str, LowRankLinear]:
    return {name: module for name, module in network.named_modules() if isinstance(module, LowRankLinear)}


def _tensors(network: Network) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, adapter in _adapters(network).items():
        found |= {f"{name}.down": adapter.down, f"{name}.up": adapter.up}
    return found | {f"projection.{name}": tensor for name, tensor in network.projection.named_parameters()}


def _scales(network: Network) -> dict[str, float]:
    return {f"{name}.scale": adapter.scale for name, adapter in _adapters(network).items()}


def _misfit(given: str) -> InvalidModel:
    return InvalidModel(
        f"adapters with {given}",
        "those of a model with the same LowRank options and projection",
        "Make the learner with the options that the adapters were trained with.",
    )
