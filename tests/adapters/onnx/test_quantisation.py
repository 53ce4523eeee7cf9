"""Graphs with bytes for matrices: near the original, and each row by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnxscript import ir

from lateinteraction.adapters.onnx.quantisation import MICROSOFT, quantise

IN, OUT = 24, 10
WEIGHT = np.random.default_rng(3).normal(size=(IN, OUT)).astype(np.float32)
ROWS = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(IN)), elements=st.floats(-8, 8, width=32))


def value(name: str, kind: ir.DataType, shape: list[Any]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))


def constant(name: str, content: NDArray[Any]) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(content, name=name))


def model_of(inputs: list[ir.Value], constants: list[ir.Value], nodes: list[ir.Node], output: ir.Value) -> ir.Model:
    output.name, output.type = "out", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, [output], nodes=nodes, initializers=constants, opset_imports={"": 23}, name="graph")
    return ir.Model(graph, ir_version=10)


def product(weight: NDArray[np.float32] = WEIGHT, *, twice: bool = False) -> ir.Model:
    """x W, or x W + x W₂."""
    x = value("x", ir.DataType.FLOAT, [None, None, len(weight)])
    constants = [constant("W", weight)]
    tape = ir.tape.Tape()
    output = tape.op("MatMul", [x, constants[0]])
    if twice:
        constants.append(constant("W2", weight[::-1].copy()))
        output = tape.op("Add", [output, tape.op("MatMul", [x, constants[1]])])
    return model_of([x], constants, list(tape.nodes), output)


def look_up(table: NDArray[np.float32], axis: int = 0) -> ir.Model:
    ids, constants = value("x", ir.DataType.INT64, [None, None]), [constant("E", table)]
    tape = ir.tape.Tape()
    output = tape.op("Gather", [constants[0], ids], {"axis": axis})
    return model_of([ids], constants, list(tape.nodes), output)


class Runner:
    """A model in ONNX Runtime."""

    def __init__(self, model: ir.Model) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(self.session.run(None, {"x": x})[0])


def quantised(model: ir.Model, expected: int = 1) -> Runner:
    assert quantise(model) == expected
    return Runner(model)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


QUANTISED = quantised(product())


@given(ROWS)
def test_a_product_is_within_the_steps_of_its_bytes(rows: NDArray[np.float32]) -> None:
    steps = np.abs(rows).max(axis=1, keepdims=True) / 127, np.abs(WEIGHT).max(axis=0) / 127
    exact = rows.astype(np.float64) @ WEIGHT
    most = steps[0] / 2 * np.abs(WEIGHT).sum(axis=0) + np.abs(rows).sum(axis=1, keepdims=True) * steps[1] / 2
    bound = most + IN * steps[0] * steps[1] / 4 + 1e-4
    assert np.all(np.abs(QUANTISED(rows[None])[0] - exact) <= bound)


@given(ROWS, ROWS, st.floats(0.001, 1000))
def test_a_row_does_not_depend_on_the_others(
    rows: NDArray[np.float32], others: NDArray[np.float32], factor: float
) -> None:
    alone = QUANTISED(rows[None])[0]
    others = (others * factor).astype(np.float32)
    together = QUANTISED(np.concatenate([rows, others])[None])[0]
    assert np.array_equal(together[: len(rows)], alone)
    stacked = QUANTISED(np.stack([rows, np.roll(rows, 1, axis=1) * np.float32(factor)]))[0]
    assert np.array_equal(stacked, alone)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6])
def test_rows_of_any_size_are_as_exact(scale: float) -> None:
    rows = np.random.default_rng(5).normal(size=(1, 4, IN)).astype(np.float32)
    small = QUANTISED((rows * scale).astype(np.float32))
    expected = (rows @ WEIGHT) * scale if scale > 1e-12 else np.zeros_like(small)
    assert np.allclose(small, expected, rtol=0, atol=0.05 * scale * np.abs(rows @ WEIGHT).max())


def test_a_zero_row_stays_zero() -> None:
    assert np.array_equal(QUANTISED(np.zeros((1, 2, IN), np.float32)), np.zeros((1, 2, OUT), np.float32))


def test_a_zero_column_stays_zero() -> None:
    weight = WEIGHT.copy()
    weight[:, 4] = 0
    assert np.all(quantised(product(weight))(np.ones((1, 2, IN), np.float32))[..., 4] == 0)


def test_matrices_that_share_a_factor_share_its_bytes() -> None:
    model = product(twice=True)
    run = quantised(model, 2)
    assert operators(model).count("QuantizeLinear") == 1
    rows = np.random.default_rng(6).normal(size=(2, 3, IN)).astype(np.float32)
    assert np.allclose(run(rows), rows @ (WEIGHT + WEIGHT[::-1]), atol=0.5)


def test_only_bytes_and_scales_are_kept() -> None:
    model = product()
    quantise(model)
    assert "W" not in model.graph.initializers
    kinds = {name: each.dtype for name, each in model.graph.initializers.items()}
    assert kinds["W.bytes"] == ir.DataType.INT8
    assert MICROSOFT in model.opset_imports


def test_a_large_table_is_kept_as_bytes() -> None:
    rows = 5_000
    table = np.random.default_rng(7).normal(size=(rows, 8)).astype(np.float32)
    table[11] = 0
    ids = np.array([[0, rows - 1, 11], [4, 4, 2]])
    given_rows = quantised(look_up(table))(ids)
    assert np.all(np.abs(given_rows - table[ids]) <= np.abs(table[ids]).max(axis=-1, keepdims=True) / 127 / 2 + 1e-6)
    assert np.array_equal(given_rows[0, 2], np.zeros(8))


def test_a_small_table_or_one_of_columns_stays_as_it_is() -> None:
    table = np.random.default_rng(8).normal(size=(512, 8)).astype(np.float32)
    for model in (look_up(table), look_up(table.T.repeat(600, axis=0).copy(), axis=1)):
        before = operators(model)
        assert quantise(model) == 0
        assert operators(model) == before


def test_a_product_of_two_that_vary_stays_as_it_is() -> None:
    x, y = (value(name, ir.DataType.FLOAT, [None, 3, 3]) for name in ("x", "y"))
    tape = ir.tape.Tape()
    output = tape.op("MatMul", [x, y])
    assert quantise(model_of([x, y], [], list(tape.nodes), output)) == 0


@settings(max_examples=5)
@given(st.integers(1, 40))
def test_any_number_of_rows_fits(rows: int) -> None:
    assert QUANTISED(np.ones((rows, 2, IN), np.float32)).shape == (rows, 2, OUT)


def test_a_saved_graph_is_read_by_onnx_runtime(tmp_path: Path) -> None:
    model = product()
    quantise(model)
    ir.save(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["out"]
