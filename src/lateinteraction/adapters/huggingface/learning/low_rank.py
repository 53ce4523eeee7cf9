"""Low-rank adapters: W x + (α/r) B A x, with A (r, in) and B (out, r) trained and W left as it is.

Hu et al. (LoRA), arXiv 2106.09685, §4.1. A few lines in place of a package: linear layers, merged by one addition, and
kept apart as named tensors. Files and the model beneath are left to the caller: the same tensors over other weights
are another model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from attrs import field, frozen
from torch import Tensor, nn

from lateinteraction.adapters.huggingface.network import Network
from lateinteraction.adapters.neural.transfer import to_device
from lateinteraction.domain.errors import InvalidModel, InvalidOption, shown


def _names(given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(given)


@frozen(kw_only=True)
class LowRank:
    """Which matrices have one of low rank beside them.

    Args:
        rank: r.
        alpha: α; the product is scaled by α/r.
        dropout: of the product's input.
        layers: last parts of names of linear layers, such as ("query", "value"); None: all of the transformer's blocks.

    Raises:
        InvalidOption: one of these out of range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    layers: tuple[str, ...] | None = field(default=None, converter=_names)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidOption(f"rank = {shown(self.rank)}", "a whole number of at least 1", "16 is usual.")
        if not 0 < self.alpha < math.inf:
            raise InvalidOption(f"alpha = {shown(self.alpha)}", "a finite number above 0", "Twice the rank is usual.")
        if not 0 <= self.dropout < 1:
            raise InvalidOption(f"dropout = {shown(self.dropout)}", "at least 0 and below 1", "0 is usual.")


@final
class LowRankLinear(nn.Module):
    """A linear layer, and a product of low rank that is added to what it gives; nothing at first.

    Args:
        linear: stays as it is.
        options: of the product.
    """

    def __init__(self, linear: nn.Linear, options: LowRank) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.dropout = nn.Dropout(options.dropout)
        self.scale = options.alpha / options.rank
        like = linear.weight
        self.down = nn.Parameter(like.new_empty((options.rank, linear.in_features)))
        self.up = nn.Parameter(like.new_zeros((linear.out_features, options.rank)))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.linear(self.dropout(x), self.down)
        return self.linear(x) + self.scale * nn.functional.linear(inner, self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer alone, with the product added to its weight."""
        self.linear.weight += self.scale * (self.up @ self.down)
        return self.linear


def adapted(transformer: nn.Module, options: LowRank) -> None:
    """Put adapters beside linear layers of the transformer's lists of layers, in place.

    Raises:
        InvalidOption: no layer has such a name.
    """
    found = [
        (module, name, child)
        for path, module in transformer.named_modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) and _is_meant(f"{path}.{name}", options)
    ]
    if not found:
        raise InvalidOption(
            f"adapters beside {', '.join(map(repr, options.layers or ('all linear layers',)))}",
            "names of linear layers of the transformer",
            "See [name for name, _ in model.named_modules()].",
        )
    for module, name, child in found:
        setattr(module, name, LowRankLinear(child, options))


def merged(transformer: nn.Module) -> None:
    """Take the adapters away again, adding what they are to their layers, in place."""
    for module in list(transformer.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(module, name, child.merged())


def _is_meant(path: str, options: LowRank) -> bool:
    if options.layers is not None:
        return any(path.endswith(f".{name}") for name in options.layers)
    return any(part.isdigit() for part in path.split("."))


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
