"""A projection computes what its layers say, and a new one is what was asked for, always the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lateinteraction.adapters.huggingface.projection import (
    ACTIVATIONS,
    IDENTITY,
    DenseLayer,
    PcaProjection,
    Projection,
    RandomProjection,
    activation_path,
)
from lateinteraction.domain.errors import InvalidModel, InvalidOption, InvalidText

TANH = "torch.nn.modules.activation.Tanh"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_layer(width: int, input_width: int, kind: str, activation: str, seed: int) -> DenseLayer:
    residual: dict[str, Any] = {
        "plain": None,
        "bias": None,
        "itself": True,
        "matrix": normal(width, input_width, seed=9),
    }
    bias = normal(width, seed=8) if kind == "bias" else None
    return DenseLayer(normal(width, input_width, seed=seed), bias=bias, activation=activation, residual=residual[kind])


# ── what a layer computes ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_layer_is_an_activated_product_with_its_residual_added_after() -> None:
    x, weight, bias, residual = normal(3, 4), normal(5, 4, seed=1), normal(5, seed=2), normal(5, 4, seed=3)
    layer = DenseLayer(weight, bias=bias, activation=TANH, residual=residual)
    torch.testing.assert_close(layer(x), torch.tanh(x @ weight.T + bias) + x @ residual.T)


def test_a_residual_of_equal_widths_is_the_input_itself() -> None:
    x, weight = normal(3, 4), normal(4, 4, seed=1)
    torch.testing.assert_close(DenseLayer(weight, residual=True)(x), x @ weight.T + x)


@pytest.mark.parametrize("path", ACTIVATIONS)
def test_every_activation_of_the_list_works_on_each_value_alone(path: str) -> None:
    activation = ACTIVATIONS[path]()
    x = normal(7, 5)
    alone = torch.stack([activation(value) for value in x.reshape(-1)]).reshape(x.shape)
    torch.testing.assert_close(activation(x), alone)
    assert not list(activation.parameters())


@pytest.mark.parametrize("path", ACTIVATIONS)
def test_an_activation_is_known_by_both_of_its_paths(path: str) -> None:
    assert activation_path(path) == path
    assert activation_path(f"torch.nn.{path.rpartition('.')[2]}") == path


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.modules.activation.Softmax",  # looks at its neighbours
        "torch.nn.modules.activation.PReLU",  # has a parameter
        "torch.nn.modules.activation.GLU",  # halves the width
        "torch.nn.functional.relu",
        "Tanh",
        "os.system",
        "torch.load",
        "",
        None,
        7,
        ["torch.nn.Tanh"],
    ],
)
def test_an_activation_outside_the_list_is_refused_and_not_imported(name: object) -> None:
    with pytest.raises(InvalidModel, match="one of CELU") as refused:
        activation_path(name)
    assert "imported" in refused.value.remedy


@pytest.mark.parametrize(
    ("weight", "more"),
    [
        (normal(4), {}),
        (normal(2, 3, 4), {}),
        (normal(5, 4), {"bias": normal(4)}),
        (normal(5, 4), {"bias": normal(5, 1)}),
        (normal(5, 4), {"residual": normal(4, 5)}),
        (normal(5, 4), {"residual": True}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(weight: Tensor, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidModel, match="shapes"):
        DenseLayer(weight, **more)


# ── leading dimensions ──────────────────────────────────────────────────────────────────────────────────────────────


@given(
    kind=st.sampled_from(["plain", "bias", "itself", "matrix"]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    dimension=st.integers(1, 6),
    seed=st.integers(0, 100),
)
def test_the_leading_rows_of_the_last_layer_give_the_leading_dimensions(
    kind: str, activation: str, dimension: int, seed: int
) -> None:
    first = random_layer(6, 5, "bias", TANH, seed + 1)
    projection = Projection([first, random_layer(6, 6, kind, activation, seed)])
    x = normal(4, 5, seed=seed)
    cut = projection.leading(dimension)
    assert cut.width == dimension
    torch.testing.assert_close(cut(x), projection(x)[:, :dimension])


def test_leading_dimensions_leave_the_projection_as_it_was() -> None:
    projection = Projection([random_layer(4, 4, "itself", IDENTITY, 1)])
    before = projection(normal(2, 4))
    projection.leading(2)
    torch.testing.assert_close(projection(normal(2, 4)), before)


# ── layers in a row ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_projection_gives_what_it_gets() -> None:
    x = normal(2, 3)
    assert Projection()(x) is x
    assert Projection().width is None
    assert Projection().layers == ()


def test_layers_run_one_after_the_other_and_the_last_has_the_width() -> None:
    first, second = random_layer(6, 4, "bias", TANH, 1), random_layer(3, 6, "plain", IDENTITY, 2)
    projection, x = Projection([first, second]), normal(5, 4)
    assert projection.width == 3
    assert projection.layers == (first, second)
    torch.testing.assert_close(projection(x), second(first(x)))


def test_layers_that_do_not_chain_are_refused_by_number() -> None:
    layers = [random_layer(6, 4, "plain", IDENTITY, 1), random_layer(3, 5, "plain", IDENTITY, 2)]
    with pytest.raises(InvalidModel, match="layer 2, which takes 5 dimensions; expected the 6"):
        Projection(layers)


def test_only_a_layer_that_changes_nothing_is_left_out() -> None:
    eye, nearly = torch.eye(4), torch.eye(4)
    nearly[1, 2] = 1e-7
    kept = [
        DenseLayer(nearly),
        DenseLayer(eye, bias=torch.zeros(4)),
        DenseLayer(eye, activation=TANH),
        DenseLayer(eye, residual=True),
        DenseLayer(torch.eye(3, 4)),
    ]
    assert Projection([DenseLayer(eye), *kept]).without_identities().layers == tuple(kept)
    assert Projection([DenseLayer(eye.bfloat16())]).without_identities().layers == ()


def test_the_parts_of_a_projection_are_parameters_that_can_be_trained() -> None:
    projection = Projection([random_layer(4, 4, "bias", TANH, 1), random_layer(3, 4, "matrix", TANH, 2)])
    projection(normal(2, 4)).sum().backward()
    parameters = list(projection.parameters())
    assert len(parameters) == 4
    assert all(isinstance(each, nn.Parameter) and each.grad is not None for each in parameters)


# ── new projections ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_random_projection_is_its_seed() -> None:
    first, again, other = (RandomProjection(8, seed).layer(32).weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (8, 32)


def test_a_random_projection_leaves_the_generators_of_others_alone() -> None:
    before = torch.get_rng_state()
    RandomProjection(8, 1).layer(32)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_random_projection_gives_varies_as_much_as_what_it_gets() -> None:
    spread = RandomProjection(256, 0).layer(512)(normal(200, 512, seed=5)).detach().std()
    assert 0.9 < float(spread) < 1.1


@given(dimension=st.integers(1, 6), rows=st.integers(8, 40), seed=st.integers(0, 1000))
def test_the_fitted_directions_are_orthonormal_and_keep_most_of_the_second_moment(
    dimension: int, rows: int, seed: int
) -> None:
    tokens = np.random.default_rng(seed).standard_normal((rows, 6)).astype(np.float32)
    weight = PcaProjection(dimension, ("text",)).layer(tokens).weight.detach().numpy().astype(np.float64)
    np.testing.assert_allclose(weight @ weight.T, np.eye(dimension), atol=1e-5)
    values = np.linalg.svd(tokens.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(((tokens @ weight.T) ** 2).sum(), (values[:dimension] ** 2).sum(), rtol=1e-5)


def test_fitting_takes_lengths_as_they_are_and_not_around_their_mean() -> None:
    tokens = np.float32([[10, 0], [10, 1], [10, -1]])
    np.testing.assert_allclose(PcaProjection(1, ("text",)).layer(tokens).weight.detach().numpy(), [[1, 0]], atol=1e-6)


def test_a_fitted_projection_does_not_depend_on_the_sign_an_eigenvector_comes_with() -> None:
    tokens = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    weights = [PcaProjection(4, ("text",)).layer(each).weight.detach().numpy() for each in (tokens, -tokens)]
    np.testing.assert_array_equal(*weights)
    assert all(row[np.abs(row).argmax()] > 0 for row in weights[0])


@pytest.mark.parametrize(("rows", "width"), [(3, 8), (8, 3)])
def test_more_dimensions_than_tokens_or_inputs_are_refused(rows: int, width: int) -> None:
    with pytest.raises(InvalidOption, match="at most 3"):
        PcaProjection(4, ("text",)).layer(np.ones((rows, width), dtype=np.float32))


@pytest.mark.parametrize(
    "choice",
    [
        lambda: RandomProjection(0, 1),
        lambda: RandomProjection(True, 1),
        lambda: RandomProjection(8, -1),
        lambda: RandomProjection("8", 1),
        lambda: PcaProjection(0, ("a",)),
        lambda: PcaProjection(8, ()),
        lambda: PcaProjection(8, ("a", "")),
    ],
)
def test_a_choice_out_of_range_is_refused(choice: Any) -> None:
    with pytest.raises(InvalidOption):
        choice()


def test_one_text_or_half_a_character_is_nothing_to_fit_on() -> None:
    with pytest.raises(InvalidOption, match="one text to fit a projection on"):
        PcaProjection(2, "one long text")
    with pytest.raises(InvalidText, match="surrogate"):
        PcaProjection(2, ["fox", "half \ud800"])
    with pytest.raises(InvalidText):
        PcaProjection(2, ["fox", 3])  # pyright: ignore[reportArgumentType]
