"""Exporting a checkpoint: its transformer and projection as one ONNX graph, checked against torch before it is there.

The graph gives a row for every token, (B, L) to (B, L, D); which rows to keep, and the recipe's dimension and
normalisation, are the encoder's business. Weights are float32, or bytes as `quantisation` has it.
"""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from lateinteraction.adapters.encoding.tokenisation import SpecialTokens
from lateinteraction.adapters.neural.transfer import to_device, to_host
from lateinteraction.adapters.onnx.folder import (
    DESCRIPTION,
    MODEL,
    TOKENIZER,
    Description,
    Weights,
    sha256_of,
    write_description,
)
from lateinteraction.adapters.onnx.session import INPUTS, OUTPUT, Session, open_session
from lateinteraction.adapters.publication import published
from lateinteraction.domain.errors import InvalidModel, InvalidOption, MissingExtra
from lateinteraction.domain.recipe import EncodingRecipe

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPSET = 23
"""The first with attention as one operator: MiniLM-L6, 40 documents, one thread, CPU seconds: 0.93, with opset 18 1.17.
It also gives tokens that may attend to nothing what torch gives them."""
_TOLERANCE = 1e-5
"""Most by which a coordinate may differ from torch's, as a share of the row's length."""
_LEAST_COSINE = 0.95
"""Least mean cosine between a graph with bytes and torch. Trained models reach 0.997; one below this has weights or
activations that bytes cannot hold."""
_CHECKED_LENGTHS = (1, 24, 256)
"""Lengths at which a graph is compared, as far as the model goes: beyond a window of local attention, too."""
_TINY = 1e-12
_PACKAGES = ("lateinteraction", "onnxruntime", "onnxscript", "torch", "transformers")
_CHATTY = ("torch.onnx._internal.exporter._registration",)
"""Loggers that tell what an export might use besides."""
_EXPORTING = threading.Lock()  # filters of warnings belong to the process: one export at a time, each puts them back


class Exportable(Protocol):
    """What an export reads of a checkpoint."""

    @property
    def transformer(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def projection(self) -> nn.Module: ...
    @property
    def recipe(self) -> EncodingRecipe: ...
    @property
    def source(self) -> str: ...
    @property
    def specials(self) -> SpecialTokens: ...
    @property
    def positions(self) -> int | None: ...


def export_onnx(
    checkpoint: Exportable, folder: str | Path, *, weights: Weights = "float32", overwrite: bool = False
) -> None:
    """Write a folder that `OnnxEncoder` reads: all of it, or none.

    The checkpoint stays as it is; a copy in float32, on the host, is what is exported and what the graph is compared
    with, at several lengths, before the folder is there.

    Args:
        checkpoint: a model in torch.
        folder: made with what is above it; must be new, or empty, unless `overwrite`.
        weights: "float32", or "int8": about a quarter of the size and faster, embeddings nearly the same.
        overwrite: whether an exported model that is there is replaced. Nothing else ever is.

    Raises:
        InvalidOption: weights of another name, a folder that holds something, or a place that cannot be written to.
        InvalidModel: a model that cannot be exported, or whose graph gives something else than it does.
        MissingExtra: onnxscript or ONNX Runtime is not installed.
    """
    if weights not in ("float32", "int8"):
        raise InvalidOption(f"weights = {weights!r}", "'float32' or 'int8'", "Choose one of the two.")
    _check_extra()
    with published(Path(folder), marks=(DESCRIPTION, MODEL), overwrite=overwrite) as draft:
        model = _Rows(checkpoint)
        expected = _expected(model, checkpoint.positions)
        program = _exported(model)
        if weights == "int8":
            _quantise(model, program)
        program.save(draft / MODEL)
        _write_tokenizer(checkpoint, draft / TOKENIZER)
        session = open_session(draft / MODEL)
        _check(model.name, session, expected, weights)
        write_description(draft, _describe(checkpoint, model, session, weights))


class _Rows(nn.Module):
    """Token embeddings (B, L, D) of ids (B, L) with their mask (B, L): a copy of a model, in float32 on the host."""

    def __init__(self, checkpoint: Exportable) -> None:
        super().__init__()
        self.transformer = copy.deepcopy(checkpoint.transformer)
        self.projection = copy.deepcopy(checkpoint.projection)
        for tensor in chain(self.parameters(), self.buffers()):
            tensor.data = to_device(tensor.data, "cpu")
        self.float().eval().requires_grad_(requires_grad=False)
        config = self.transformer.config
        if hasattr(config, "use_cache"):
            config.use_cache = False  # of keys and values: texts do not grow here
        if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
            self.transformer.set_attn_implementation("sdpa")
        self.name = f"{checkpoint.source}, a {type(self.transformer).__name__}"

    @property
    def vocabulary(self) -> int:
        """How many token embeddings there are."""
        return cast(nn.Embedding, self.transformer.get_input_embeddings()).num_embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.projection(self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0])


@frozen(eq=False)
class _Sample:
    """Three sequences: one of L tokens, one of half as many and padding, one that attends to half of its L tokens.

    Args:
        ids, mask: int64 (3, L).
        present: bool (3, L), all but padding.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    present: NDArray[np.bool_]


def _sample(vocabulary: int, length: int) -> _Sample:
    ids = np.random.default_rng(length).integers(vocabulary, size=(3, length))
    mask = np.ones_like(ids)
    mask[1:, (length + 1) // 2 :] = 0
    present = mask > 0
    present[2] = True
    return _Sample(np.where(present, ids, 0), mask, present)


def _check_extra() -> None:
    for package in ("onnxscript", "onnxruntime"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError as error:
            raise MissingExtra(
                f"an export to ONNX without {package}",
                f"the package {package}",
                'Run: pip install "lateinteraction[onnx]".',
            ) from error


def _exported(model: _Rows) -> ONNXProgram:
    from onnxscript import optimizer
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    traced = _sample(model.vocabulary, 9)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (to_device(traced.ids, "cpu"), to_device(traced.mask, "cpu")),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,  # it would also fuse rotary embeddings, for a batch of one only
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes=(dynamic, dynamic),
                verbose=False,
            )
            assert program is not None
            optimizer.optimize(program.model)
            ClearMetadataAndDocStringPass()(program.model)  # it would tell of paths on this machine
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        raise _cannot_export(model, f"{type(error).__name__}: {_first_line(error)}") from error
    return program


def _quantise(model: _Rows, program: ONNXProgram) -> None:
    from lateinteraction.adapters.onnx.quantisation import quantise

    if not quantise(program.model):
        raise _cannot_export(model, "its graph has no constant matrix")


def _write_tokenizer(checkpoint: Exportable, file: Path) -> None:
    tokenizer = copy.deepcopy(cast("Any", checkpoint.tokenizer).backend_tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(file))


def _expected(model: _Rows, positions: int | None) -> list[tuple[_Sample, NDArray[np.float32]]]:
    """What the model itself gives for each length to be compared at: rows of all tokens but padding."""
    found: list[tuple[_Sample, NDArray[np.float32]]] = []
    for length in sorted({min(each, positions or each) for each in _CHECKED_LENGTHS}):
        sample = _sample(model.vocabulary, length)
        with torch.inference_mode():
            rows = to_host(model(to_device(sample.ids, "cpu"), to_device(sample.mask, "cpu")))[sample.present]
        if not np.all(np.isfinite(rows)):
            raise InvalidModel(
                f"{model.name} that gives embeddings that are not finite",
                "a model whose weights are numbers",
                "Get the whole checkpoint again.",
            )
        found.append((sample, rows))
    return found


def _check(
    name: str, session: Session, samples: Sequence[tuple[_Sample, NDArray[np.float32]]], weights: Weights
) -> None:
    """Compare what the graph gives with what it should, row by row."""
    for sample, expected in samples:
        difference, cosine = _compared(session.run(sample.ids, sample.mask)[sample.present], expected)
        # Written so that what is not a number is no success.
        if not (difference <= _TOLERANCE if weights == "float32" else cosine >= _LEAST_COSINE):
            raise InvalidModel(
                f"{name} whose graph differs from it by {difference:.1e} of a row's length, with a mean cosine of "
                f"{cosine:.4f}, at {sample.ids.shape[1]} tokens",
                f"at most {_TOLERANCE}" if weights == "float32" else f"a cosine of at least {_LEAST_COSINE}",
                "Use it with runtime='torch'." if weights == "float32" else "Export it with weights='float32'.",
            )


def _compared(given: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[float, float]:
    """Largest difference as a share of its row's length, and mean cosine of the rows that have a length."""
    lengths = np.maximum(np.linalg.norm(expected, axis=1), _TINY)
    difference = np.max(np.abs(given - expected) / lengths[:, None])
    cosines = np.sum(given * expected, axis=1) / np.maximum(lengths * np.linalg.norm(given, axis=1), _TINY)
    return float(difference), float(np.mean(cosines, where=lengths > _TINY))


def _describe(checkpoint: Exportable, model: _Rows, session: Session, weights: Weights) -> Description:
    folder = session.file.parent
    return Description(
        recipe=checkpoint.recipe,
        specials=checkpoint.specials,
        dimension=session.dimension,
        positions=checkpoint.positions,
        vocabulary=model.vocabulary,
        weights=weights,
        source=checkpoint.source,
        versions={name: metadata.version(name) for name in _PACKAGES},
        sha256={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    )


def _cannot_export(model: _Rows, reason: str) -> InvalidModel:
    return InvalidModel(
        f"{model.name} that cannot be exported ({reason})",
        "a transformer that torch.onnx can export",
        "Use it with runtime='torch', or install newer versions of torch, onnxscript and transformers.",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of its own workings to itself; of log records, only those of this thread."""
    thread = threading.get_ident()

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in _CHATTY]
    with _EXPORTING:
        for logger in loggers:
            logger.addFilter(is_of_another_thread)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for logger in loggers:
                logger.removeFilter(is_of_another_thread)
