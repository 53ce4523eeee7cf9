"""Projection: what stands between a transformer's last hidden state and a token embedding.

Dense layers in a row, each `activation(x Wᵀ + b)` with x, or x Rᵀ where the widths differ, added on request. Reading
and writing them is left to `formats` and `writing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from lateinteraction.adapters.neural.transfer import to_device
from lateinteraction.domain.errors import InvalidModel, InvalidOption, shown
from lateinteraction.domain.text import Query

IDENTITY = "torch.nn.modules.linear.Identity"
_ELEMENTWISE = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish),
    *(nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink),
)
ACTIVATIONS = MappingProxyType(
    {IDENTITY: nn.Identity, **{f"torch.nn.modules.activation.{each.__name__}": each for each in _ELEMENTWISE}}
)
"""By the dotted path that checkpoints hold. Elementwise and without parameters, so that leading rows of a layer are
leading dimensions of its output; made without arguments, as checkpoints mean them."""
_TOKENS_AT_ONCE = 65_536
"""Tokens widened to float64 at a time: 400 MB at 768 dimensions."""
_SHORT_NAMES = MappingProxyType({f"torch.nn.{path.rpartition('.')[2]}": path for path in ACTIVATIONS})


def activation_path(name: object) -> str:
    """The key of `ACTIVATIONS` that a checkpoint means.

    Raises:
        InvalidModel: a name outside the list: importing what a file names would run its code.
    """
    path = _SHORT_NAMES.get(name, name) if isinstance(name, str) else name
    if not isinstance(path, str) or path not in ACTIVATIONS:
        known = ", ".join(sorted(each.rpartition(".")[2] for each in ACTIVATIONS))
        raise InvalidModel(
            f"the activation {shown(name)} of a dense layer",
            f"one of {known}",
            "Nothing that a file names is imported.",
        )
    return path


class DenseLayer(nn.Module):
    """`activation(x Wᵀ + b)`, with x or x Rᵀ added where it has a residual.

    Args:
        weight: W (out, in).
        bias: b (out,), or None.
        activation: a key of `ACTIVATIONS`.
        residual: R (out, in); True is x itself, which needs in = out; None adds nothing.

    Raises:
        InvalidModel: shapes that do not fit, or an activation outside the list.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    residual_weight: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        activation: str = IDENTITY,
        residual: Tensor | bool | None = None,
    ) -> None:
        super().__init__()
        self.activation_name = activation_path(activation)
        self.activation = ACTIVATIONS[self.activation_name]()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        projected = isinstance(residual, Tensor)
        self.residual_weight = nn.Parameter(residual) if projected else None
        self.has_residual = projected or bool(residual)
        self._check_shapes()

    def _check_shapes(self) -> None:
        shapes = [tuple(self.weight.shape)]
        fits = self.weight.ndim == 2
        if self.bias is not None:
            shapes.append(tuple(self.bias.shape))
            fits = fits and self.bias.shape == self.weight.shape[:1]
        if self.residual_weight is not None:
            shapes.append(tuple(self.residual_weight.shape))
            fits = fits and self.residual_weight.shape == self.weight.shape
        elif self.has_residual:
            fits = fits and self.weight.shape[0] == self.weight.shape[1]
        if not fits:
            raise InvalidModel(
                f"a dense layer with tensors of shapes {shapes}",
                "a weight (out, in), a bias (out,), and a residual (out, in) unless in = out",
                "Get the whole checkpoint again.",
            )

    @property
    def input_width(self) -> int:
        return self.weight.shape[1]

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    @property
    def changes_nothing(self) -> bool:
        """Whether every output is exactly its input; waits for the device."""
        if self.has_residual or self.bias is not None or self.activation_name != IDENTITY:
            return False
        return self.width == self.input_width and torch.equal(self.weight, torch.eye(self.width).type_as(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(nn.functional.linear(x, self.weight, self.bias))
        if not self.has_residual:
            return out
        return out + (x if self.residual_weight is None else nn.functional.linear(x, self.residual_weight))

    def leading(self, dimension: int) -> DenseLayer:
        """A layer that gives the first `dimension` of this one's outputs; shares its memory."""
        if dimension == self.width:
            return self
        residual = None
        if self.has_residual:
            whole = torch.eye(self.width).type_as(self.weight) if self.residual_weight is None else self.residual_weight
            residual = whole.data[:dimension]
        bias = None if self.bias is None else self.bias.data[:dimension]
        return DenseLayer(self.weight.data[:dimension], bias=bias, activation=self.activation_name, residual=residual)


class Projection(nn.Module):
    """Zero or more dense layers.

    Args:
        layers: each takes what the one before it gives.

    Raises:
        InvalidModel: layers that do not chain.
    """

    def __init__(self, layers: Iterable[DenseLayer] = ()) -> None:
        super().__init__()
        self._layers = nn.ModuleList(layers)
        chain = list(self.layers)
        for number, (first, second) in enumerate(pairwise(chain), start=2):
            check_chain(first.width, second, number)

    @property
    def layers(self) -> tuple[DenseLayer, ...]:
        return tuple(cast("Iterator[DenseLayer]", iter(self._layers)))

    @property
    def width(self) -> int | None:
        """Dimensions of what it gives; None where there is no layer, so that it gives what it gets."""
        return self.layers[-1].width if len(self._layers) else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Token embeddings (…, width) of hidden states (…, in)."""
        for layer in self._layers:
            hidden = layer(hidden)
        return hidden

    def without_identities(self) -> Projection:
        """The same function without the layers that change nothing: each would cost a matrix product."""
        return Projection(layer for layer in self.layers if not layer.changes_nothing)

    def leading(self, dimension: int) -> Projection:
        """What gives the first `dimension` of this one's outputs; needs a layer."""
        *first, last = self.layers
        return Projection([*first, last.leading(dimension)])


def check_chain(width: int, layer: DenseLayer, number: int) -> None:
    """Raise unless dense layer `number` (from 1) takes what comes before it."""
    if layer.input_width != width:
        raise InvalidModel(
            f"dense layer {number}, which takes {layer.input_width} dimensions",
            f"the {width} that come before it",
            "The layers belong to another model; get the whole checkpoint again.",
        )


@frozen
class RandomProjection:
    """A projection to be trained: normal values of variance 1 / in, so that outputs vary about as much as inputs.

    Args:
        dimension: of its output.
        seed: the same one gives the same values on every device.
    """

    dimension: int = field()
    seed: int = field()

    def __attrs_post_init__(self) -> None:
        _check_whole("dimension", self.dimension, least=1)
        _check_whole("seed", self.seed, least=0)

    def layer(self, width: int) -> DenseLayer:
        """The layer for hidden states of `width` dimensions, on the host."""
        generator = torch.Generator().manual_seed(self.seed)
        return DenseLayer(torch.randn((self.dimension, width), generator=generator) / width**0.5)


def _texts(given: Iterable[str]) -> tuple[str, ...]:
    """Texts that can be tokenised; a lone str is a sequence of its characters, and nobody means that."""
    if isinstance(given, str):
        raise InvalidOption("one text to fit a projection on", "a list of them", "Put it into a list.")
    texts = tuple(given)
    for text in texts:
        Query(text)
    return texts


@frozen
class PcaProjection:
    """The directions along which the token embeddings of some texts are longest.

    The leading eigenvectors of the uncentred second moment Σ x xᵀ, so that similarities are kept as well as any
    projection of that width can, in the least squares sense (Eckart and Young, 1936); no bias.

    Args:
        dimension: of its output.
        texts: a sample of the documents to come; a few hundred suffice.
    """

    dimension: int = field()
    texts: tuple[str, ...] = field(converter=_texts, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_whole("dimension", self.dimension, least=1)
        if not all(self.texts) or not self.texts:
            raise InvalidOption("texts to fit a projection on", "at least one, none of them empty", "Give a sample.")

    def layer(self, tokens: NDArray[Any]) -> DenseLayer:
        """The layer for token embeddings (T, in) like these, on the host.

        Raises:
            InvalidOption: fewer tokens, or fewer dimensions, than it is to have.
        """
        if min(tokens.shape) < self.dimension:
            raise InvalidOption(
                f"a projection to {self.dimension} dimensions",
                f"at most {min(tokens.shape)}, fitted on {tokens.shape[0]} tokens of {tokens.shape[1]} dimensions",
                "Give more texts, or fewer dimensions.",
            )
        moment = np.zeros((tokens.shape[1],) * 2, dtype=np.float64)
        for first in range(0, len(tokens), _TOKENS_AT_ONCE):
            part = tokens[first : first + _TOKENS_AT_ONCE].astype(np.float64)
            moment += part.T @ part
        directions = np.linalg.eigh(moment).eigenvectors[:, ::-1][:, : self.dimension].T
        # Either sign of an eigenvector is one; with its largest entry positive it is always the same one.
        largest = directions[np.arange(self.dimension), np.abs(directions).argmax(axis=1)]
        return DenseLayer(to_device((directions * np.sign(largest)[:, None]).astype(np.float32), "cpu"))


def _check_whole(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidOption(
            f"{name} = {shown(value)}", f"a whole number of at least {least}", "128 dimensions are usual."
        )
