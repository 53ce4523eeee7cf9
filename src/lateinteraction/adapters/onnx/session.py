"""One exported graph in ONNX Runtime: padded ids in, token embeddings out, its errors translated.

Shapes: B sequences of at most L tokens in a batch; D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.domain.errors import InvalidModel, MissingExtra

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "token_embeddings"
_SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Optimisations of ONNX Runtime 1.32 that cost time: MiniLM-L6, 40 documents, one thread, CPU seconds in float32 and
int8: with both 1.10 and 0.61, without the first 0.96 and 0.49, without either 0.95 and 0.48."""
_SILENT = 4
"""The last of ONNX Runtime's severities, fatal: what it would log besides comes back as an exception."""

_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


@frozen(eq=False)
class Session:
    """A graph that is ready to run, on the CPU. Several threads may run it at once.

    Args:
        inference: ONNX Runtime's session.
        file: what it was read from.
    """

    inference: InferenceSession
    file: Path

    @property
    def dimension(self) -> int:
        """Width of the rows it gives."""
        return int(self.inference.get_outputs()[0].shape[-1])

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token embeddings (B, L, D) of padded ids (B, L), of which those with 1 in the mask (B, L) are attended to.

        Raises:
            MemoryError: there was too little.
            InvalidModel: the graph does not run on these.
        """
        with _translated(self.file):
            outputs = self.inference.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))
        return cast("NDArray[np.float32]", outputs[0])


def open_session(file: Path, *, threads: int | None = None) -> Session:
    """A session that logs nothing; settings of the host's own sessions are left alone.

    Args:
        file: a graph with the names above; external data lies beside it.
        threads: of one operation; None leaves the number to ONNX Runtime.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
        InvalidModel: a file that it cannot read or run, or with other inputs and outputs.
        MemoryError: there was too little.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra(
            "a model in ONNX without ONNX Runtime",
            "the package onnxruntime",
            'Run: pip install "lateinteraction[onnx]".',
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads or 0
    with _translated(file):
        inference = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(_SLOW_FUSIONS)
        )
    inputs = {each.name: each.type for each in inference.get_inputs()}
    outputs = [(each.name, each.type, len(each.shape)) for each in inference.get_outputs()]
    if inputs != dict.fromkeys(INPUTS, "tensor(int64)") or outputs != [(OUTPUT, "tensor(float)", 3)]:
        raise InvalidModel(
            f"{file} with inputs {sorted(inputs)} and outputs {[name for name, _, _ in outputs]}",
            f"{list(INPUTS)} of int64 and {OUTPUT!r} (B, L, D) of float32",
            "Export the model again.",
        )
    return Session(inference, file)


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    """ONNX Runtime's exceptions, which share no base of their own, as MemoryError or InvalidModel."""
    try:
        yield
    except _native_errors() as error:
        reason = " ".join(str(error).split())
        if any(sign in reason for sign in _OUT_OF_MEMORY):
            raise MemoryError(reason) from error
        raise InvalidModel(
            f"{file}, on which ONNX Runtime fails ({type(error).__name__}: {reason:.300})",
            "a graph that it runs",
            "Export the model again, or install a newer onnxruntime.",
        ) from error


@cache
def _native_errors() -> tuple[type[Exception], ...]:
    from onnxruntime import capi

    native: dict[str, Any] = vars(capi.onnxruntime_pybind11_state)  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(each for each in native.values() if isinstance(each, type) and issubclass(each, Exception))
