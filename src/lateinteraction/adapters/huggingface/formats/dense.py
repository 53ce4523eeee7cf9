"""Dense layers as checkpoints hold them: a folder with config.json and weights each, or one tensor among the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lateinteraction.adapters.huggingface.formats.description import Description, flag, refused
from lateinteraction.adapters.huggingface.formats.stanford import check_width
from lateinteraction.adapters.huggingface.projection import DenseLayer, Projection, activation_path, check_chain
from lateinteraction.adapters.huggingface.sources import Place, joined
from lateinteraction.domain.errors import InvalidModel, shown

_INLINE = frozenset({"linear.weight"})
_REFETCH = "Get the whole checkpoint again."


def read_projection(place: Place, description: Description, width: int, *, pickled: bool) -> Projection:
    """The projection that a description speaks of, for hidden states of `width` dimensions; on the host.

    Raises:
        InvalidModel: layers that do not chain, differ from what their config.json says, or lack tensors.
    """
    if description.inline_projection:
        layers = [_inline_layer(place, description, pickled=pickled)]
        check_width(place, layers[0].width)
    else:
        layers = [_read_layer(place, inner, pickled=pickled) for inner in description.dense]
    for number, layer in enumerate(layers, start=1):
        check_chain(width, layer, number)
        width = layer.width
    if description.dense:
        _check_no_second(place, description, layers, pickled=pickled)
    return Projection(layers).without_identities()


def _inline_layer(place: Place, description: Description, *, pickled: bool) -> DenseLayer:
    files = place.weights(description.transformer, pickled=pickled)
    tensors = place.tensors(files, _INLINE)
    if not tensors:
        raise InvalidModel(f"{place}, whose weights have no linear.weight", "ColBERT's projection", _REFETCH)
    return DenseLayer(_floats(place, tensors)["linear.weight"])


def _check_no_second(place: Place, description: Description, layers: Sequence[DenseLayer], *, pickled: bool) -> None:
    """Some checkpoints hold Stanford's format and PyLate's at once: that is fine where both say the same."""
    files = place.weights(description.transformer, pickled=pickled)
    inline = place.tensors(files, _INLINE).get("linear.weight")
    if inline is not None and not (len(layers) == 1 and inline.equal(layers[0].weight.data)):
        raise InvalidModel(
            f"{place}, with a linear.weight among its weights that is not its dense layer",
            "one projection",
            "Keep the one that the model was trained with.",
        )


def _read_layer(place: Place, inner: str, *, pickled: bool) -> DenseLayer:
    file = joined(inner, "config.json")
    place.fetch([file])
    config = place.read_object(file)
    if config is None:
        raise InvalidModel(f"{place}, which has no {file}", "the widths and activation of a dense layer", _REFETCH)
    tensors = _floats(place, place.tensors(place.weights(inner, pickled=pickled)))
    shape = _shape(place, file, config)
    residual = flag(place, file, config, "use_residual", default=False)
    bias = flag(place, file, config, "bias", default="linear.bias" in tensors)
    names = {"linear.weight"} | ({"linear.bias"} if bias else set())
    names |= {"residual.weight"} if residual and shape[0] != shape[1] else set()
    if set(tensors) != names or tuple(tensors["linear.weight"].shape) != shape:
        found = {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items())}
        raise refused(
            place, f"{found} in {inner}", f"{sorted(names)}, a weight of shape {shape}, as {file} says", _REFETCH
        )
    return DenseLayer(
        tensors["linear.weight"],
        bias=tensors.get("linear.bias"),
        activation=_activation(place, file, config),
        residual=tensors.get("residual.weight", residual),
    )


def _shape(place: Place, file: str, config: Mapping[str, Any]) -> tuple[int, int]:
    shape = config.get("out_features"), config.get("in_features")
    if not all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in shape):
        raise refused(place, f"in_features and out_features {shape[::-1]} in {file}", "whole numbers", _REFETCH)
    return shape  # pyright: ignore[reportReturnType]


def _activation(place: Place, file: str, config: Mapping[str, Any]) -> str:
    try:
        return activation_path(config.get("activation_function"))
    except InvalidModel as error:
        what = f"activation_function = {shown(config.get('activation_function'))} in {file}"
        raise refused(place, what, error.expected, error.remedy) from error


def _floats(place: Place, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors, known to be floating point: a quantised layer needs its own reader."""
    whole = sorted(name for name, tensor in tensors.items() if not tensor.is_floating_point())
    if whole:
        raise refused(place, f"{whole[0]} of dtype {tensors[whole[0]].dtype}", "floating point", _REFETCH)
    return tensors
