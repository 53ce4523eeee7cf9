"""Matrices of a graph as signed bytes, and tokens, while they meet one, as unsigned bytes with a scale of their own.

What is usual, one scale for all activations of a batch, lets the batch decide what a text's embedding is. Here the
largest value of a token sets that token's scale, so that neither padding nor another text has a say.

MiniLM-L6, 40 documents (half ACL abstracts, half Debian descriptions; 5,837 tokens), one thread with AVX512-VNNI: CPU
seconds, cosine with float32 (mean; least), file, and how far the largest coordinate of a normalised embedding moves
where its text is encoded alone.
    float32                                    0.93                    90 MB   0
    one scale a batch, matrices QInt8          0.43   0.931;  0.712    59 MB   0.1
      and a scale for each of their columns    0.43   0.9888; 0.947    59 MB   0.08
      as QUInt8                                0.68   0.9890; 0.937    59 MB   0.1
    one scale a token (here)                   0.50   0.9976; 0.992    59 MB   0
      and token embeddings as bytes (here)     0.51   0.9976; 0.991    24 MB   0
      with matrices of 7 bits                  0.51   0.9960; 0.768    24 MB   0
      with tokens of 7 bits                    0.50   0.9934; 0.981    24 MB   0
    MatMulNBits, 8 bits, blocks of 32          0.91   0.9996; 0.998    60 MB   0
nDCG@10 of MiniLM-L6 in float32 and here: Cranfield 0.4412 and 0.4435, Vaswani 0.4988 and 0.4999.
x86 processors without VNNI add two products in 16 bits, which may saturate; there, it is less exact.

Shapes: x (…, I) times a matrix (I, O), R rows of x in all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

MICROSOFT = "com.microsoft"
"""ONNX Runtime's own operators, of which MatMulIntegerToFloat is used here."""
_LARGEST = 127
_ZERO = 128
_TINY = 1e-12
_VOCABULARY = 4_096
"""Rows from which on a table is one of a vocabulary, and worth it; positions and segments have fewer."""


def quantise(model: ir.Model) -> int:
    """Replace products with constant matrices, and look-ups in vocabularies, by those with bytes; in place.

    Returns:
        how many it replaced.
    """
    quantiser = _Quantiser(model.graph)
    for node in tuple(model.graph):
        quantiser.visit(node)
    model.opset_imports.setdefault(MICROSOFT, 1)
    return quantiser.replaced


class _Quantiser:
    """Walks a graph from its first node to its last. What several nodes use is made once, before the first of them."""

    def __init__(self, graph: ir.Graph) -> None:
        self.replaced = 0
        self._graph = graph
        self._tape = ir.tape.Tape()
        self._constants: dict[str, ir.Value] = {}
        self._rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def visit(self, node: ir.Node) -> None:
        """Replace the node where it is a product or a look-up of that kind."""
        if node.domain:
            return
        if node.op_type == "MatMul":
            x, matrix = node.inputs
            if x is not None and matrix is not None and (content := self._content(matrix)) is not None:
                self._replace(node, matrix, self._product(x, matrix, content))
        elif node.op_type == "Gather":
            (table, ids), axis = node.inputs, node.attributes.get("axis")
            if table is None or ids is None or (axis is not None and axis.as_int() != 0):
                return
            if (content := self._content(table)) is not None and len(content) >= _VOCABULARY:
                self._replace(node, table, self._look_up(table, ids, content))

    def _content(self, value: ir.Value) -> NDArray[np.float32] | None:
        """What is behind a value that is a constant matrix of float32."""
        if value.const_value is None or value.name not in self._graph.initializers:
            return None
        content = np.asarray(value.const_value)
        return content if content.ndim == 2 and content.dtype == np.float32 else None

    def _replace(self, node: ir.Node, constant: ir.Value, result: ir.Value) -> None:
        self._graph.insert_before(node, self._tape.nodes)
        self._tape = ir.tape.Tape()
        old = node.outputs[0]
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        result.name, result.type, result.shape = old.name, old.type, old.shape  # it may be what the graph gives
        if constant.name is not None and not constant.uses():
            del self._graph.initializers[constant.name]
        self.replaced += 1

    def _product(self, x: ir.Value, matrix: ir.Value, content: NDArray[np.float32]) -> ir.Value:
        """(s q) (c W): integers q W first, then the scales s of rows and c of columns."""
        if x not in self._rows:
            self._rows[x] = self._bytes_of_rows(x, len(content))
        rows, scales = self._rows[x]
        scale = _scale(content, axis=0)
        inputs = [
            rows,
            self._constant(f"{matrix.name}.bytes", _bytes(content, scale)),
            self._constant("eight_bits.one", np.float32(1)),
            self._constant(f"{matrix.name}.scale", scale[0]),
            self._constant("eight_bits.zero", np.uint8(_ZERO)),
        ]
        return self._tape.op("Mul", [self._tape.op("MatMulIntegerToFloat", inputs, domain=MICROSOFT), scales])

    def _bytes_of_rows(self, x: ir.Value, width: int) -> tuple[ir.Value, ir.Value]:
        """x / s + 128 as bytes (…, I), and s (…, 1)."""
        op = self._tape.op
        last = self._constant("eight_bits.last", np.array([-1]))
        largest = op("ReduceMax", [op("Abs", [x]), last], {"keepdims": 1})
        per_step = self._constant("eight_bits.per_step", np.float32(1 / _LARGEST))
        scales = op("Max", [op("Mul", [largest, per_step]), self._constant("eight_bits.tiny", np.float32(_TINY))])
        # QuantizeLinear takes one scale a row of a matrix, and a zero for each.
        flat = op("Reshape", [x, self._constant(f"eight_bits.rows_of_{width}", np.array([-1, width]))])
        flat_scales = op("Reshape", [scales, last])
        zeros = op("ConstantOfShape", [op("Shape", [flat_scales])], {"value": ir.tensor(np.array([_ZERO], np.uint8))})
        rows = op("QuantizeLinear", [flat, flat_scales, zeros], {"axis": 0})
        return op("Reshape", [rows, op("Shape", [x])]), scales

    def _look_up(self, table: ir.Value, ids: ir.Value, content: NDArray[np.float32]) -> ir.Value:
        scale = _scale(content, axis=1)
        rows = self._tape.op("Gather", [self._constant(f"{table.name}.bytes", _bytes(content, scale)), ids])
        scales = self._tape.op("Gather", [self._constant(f"{table.name}.scale", scale), ids])
        return self._tape.op("Mul", [self._tape.op("Cast", [rows], {"to": ir.DataType.FLOAT}), scales])

    def _constant(self, name: str, content: Any) -> ir.Value:
        if name not in self._constants:
            tensor, shape = ir.tensor(np.asarray(content), name=name), ir.Shape(np.shape(content))
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
            self._graph.register_initializer(value)
            self._constants[name] = value
        return self._constants[name]


def _scale(matrix: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Largest absolute value along an axis, which stays, per step of a byte."""
    return np.maximum(np.abs(matrix).max(axis=axis, keepdims=True) / _LARGEST, _TINY).astype(np.float32)


def _bytes(matrix: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.clip(np.rint(matrix / scale), -_LARGEST, _LARGEST).astype(np.int8)
