"""Frozen layers run apart from the rest, so that what they give can be kept and need not be computed again.

Keeping hidden states is left to the caller.

Shapes: B sequences of at most L tokens in a sheet; K kept rows; H hidden, D output dimensions.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar, cast, final

import torch
from torch import Tensor, nn

from lateinteraction.adapters.encoding.learning import Sheet
from lateinteraction.adapters.huggingface.learning.learner import layers_of
from lateinteraction.adapters.huggingface.network import Network
from lateinteraction.domain.errors import InvalidModel, InvalidOption, shown

M = TypeVar("M", bound=nn.Module)

_SPLIT = frozenset({"bert", "camembert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta"})
"""Model types of which `embeddings` and what else is named so run first, and then each layer on what the one below it
gives and on nothing that a lower layer made. Not MPNet, whose layers share a bias of positions that is trained."""


@final
class SplitNetwork(nn.Module):
    """A network whose lowest layers are frozen: no gradient and no dropout below, whatever mode the rest is in.

    `split(sheets)` gives rows as the network does; `rest(sheet, prefix(sheet))` gives those of one sheet. Modules are
    shared with the network, which stays as it is; several threads may call it.

    Args:
        network: of a model whose embeddings and lowest layers nothing trains.
        layers: how many of its layers are below, from 1 to one less than all.

    Raises:
        InvalidModel: a type of model that is not known to split, or something below that is trained.
        InvalidOption: a number of layers out of range.
    """

    def __init__(self, network: Network, layers: int) -> None:
        super().__init__()
        self.network = network
        self.layers = layers
        transformer = network.transformer
        if transformer.config.model_type not in _SPLIT:
            raise InvalidModel(
                f"a model of type {transformer.config.model_type!r} to be split",
                f"one of {', '.join(sorted(_SPLIT))}",
                "Freeze layers without keeping their hidden states.",
            )
        most = len(layers_of(transformer)) - 1
        if isinstance(layers, bool) or not isinstance(cast("object", layers), int) or not 1 <= layers <= most:
            raise InvalidOption(f"layers = {shown(layers)}", f"a whole number from 1 to {most}", "Freeze others.")
        if any(parameter.requires_grad for module in self._below() for parameter in module.parameters()):
            raise InvalidModel(
                f"{layers} layers to be run without gradients, of which some are trained",
                "layers and embeddings that are frozen",
                f"Use LearnerOptions(frozen_layers={layers}), or more.",
            )

    def forward(self, sheets: Sequence[Sheet]) -> Tensor:
        """Rows (K, D) of the sheets, one sheet after the other."""
        rows = [self.rest(sheet, self.prefix(sheet)) for sheet in sheets]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def prefix(self, sheet: Sheet) -> Tensor:
        """Hidden states (B, L, H) that the frozen layers give. Those of padding mean nothing."""
        for module in self._below():
            module.eval()
        found: list[Tensor] = []

        def keep(_: nn.Module, __: object, given: Tensor | tuple[Tensor, ...]) -> None:
            found.append(given[0] if isinstance(given, tuple) else given)

        *lower, last = layers_of(self.network.transformer)[: self.layers]
        last = _shallow(last)
        vars(last)["_forward_hooks"] = OrderedDict(vars(last)["_forward_hooks"])
        last.register_forward_hook(keep)
        transformer = _with_layers(self.network.transformer, [*lower, last])
        with torch.no_grad():
            _with(self.network, transformer=transformer, projection=nn.Identity()).rows(sheet)
        return found[0]

    def rest(self, sheet: Sheet, hidden: Tensor) -> Tensor:
        """Rows (K, D) of a sheet of which the frozen layers gave `hidden` (B, L, H), in any floating dtype."""
        first, *others = self._embedding_names()
        given = hidden.type(next(self.network.transformer.parameters()).dtype)
        transformer = _with_layers(self.network.transformer, list(layers_of(self.network.transformer))[self.layers :])
        own = _with(transformer, **{first: _Given(given)}, **{name: nn.Identity() for name in others})
        return _with(self.network, transformer=own).rows(sheet)

    def _embedding_names(self) -> list[str]:
        """What runs before the layers: `embeddings`, and after it a map to their width where a model has one."""
        return [name for name, _ in self.network.transformer.named_children() if "embedding" in name]

    def _below(self) -> list[nn.Module]:
        transformer = self.network.transformer
        embeddings = [transformer.get_submodule(name) for name in self._embedding_names()]
        return [*embeddings, *layers_of(transformer)[: self.layers]]


class _Given(nn.Module):
    """Gives one tensor, whatever it is given."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self._given: Callable[[], Tensor] = lambda: given

    def forward(self, *_: object, **__: object) -> Tensor:
        return self._given()


def _shallow(module: M) -> M:
    """The same module again, with the same children and parameters."""
    twin = copy.copy(module)
    vars(twin)["_modules"] = dict(_children(module))
    return twin


def _children(module: nn.Module) -> dict[str, nn.Module | None]:
    return vars(module)["_modules"]


def _with(module: M, **children: nn.Module) -> M:
    """The same module with some other children; the one that is given stays as it is, for whoever else runs it."""
    twin = _shallow(module)
    _children(twin).update(children)
    return twin


def _with_layers(module: M, layers: Sequence[nn.Module]) -> M:
    """The same transformer with some of its layers."""
    whole = layers_of(module)
    path = next(name for name, each in module.named_modules() if each is whole).split(".")
    twins: list[nn.Module] = [twin := _shallow(module)]
    for name in path[:-1]:
        twins.append(_shallow(twins[-1].get_submodule(name)))
        _children(twins[-2])[name] = twins[-1]
    _children(twins[-1])[path[-1]] = nn.ModuleList(layers)
    return twin
