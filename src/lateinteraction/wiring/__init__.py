"""The composition root: names and options become ports. Decisions only; the one place that knows both sides.

Everything heavy is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from attrs import asdict, evolve, frozen

from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.ports import Encoder, Index, Progress
from lateinteraction.domain.recipe import TokenPooling
from lateinteraction.domain.text import Document

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from lateinteraction.adapters.bm25 import Bm25Ranker
    from lateinteraction.adapters.encoding.encoder import EncodingOptions, WorkingEncoder
    from lateinteraction.adapters.files import Passages
    from lateinteraction.adapters.flat import FlatIndex
    from lateinteraction.adapters.huggingface.default_model import DefaultModel
    from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
    from lateinteraction.adapters.huggingface.reading import CheckpointOptions
    from lateinteraction.adapters.onnx.encoder import OnnxEncoder
    from lateinteraction.adapters.processes.encoder import ProcessEncoder
    from lateinteraction.adapters.processes.frames import Frame
    from lateinteraction.application.explanation import Explainer
    from lateinteraction.application.retrieval import Reranker, Retriever, Searchable, Searcher
    from lateinteraction.domain.evaluation import EvaluationSet


Runtime = Literal["torch", "onnx"]
OnnxWeights = Literal["float32", "int8"]


@frozen(eq=False)
class Encoders:
    """One model, as each kind of array its embeddings are wanted in.

    Args:
        host: embeddings as NumPy arrays. Loads no torch where the model does not run in it.
        tensors: embeddings as torch tensors, made when first asked for.
        own: the encoder itself, where it runs in this process and in PyTorch: what can be saved and exported.
        close: ends what runs elsewhere.
    """

    host: WorkingEncoder[NDArray[Any]]
    tensors: Callable[[], WorkingEncoder[Tensor]]
    own: HuggingFaceEncoder | None = None
    close: Callable[[], object] = lambda: None


def model(
    source: str | Path | None = None,
    *,
    device: str | Sequence[str] = "auto",
    runtime: Runtime = "torch",
    recipe: Mapping[str, object] | None = None,
    checkpoint: CheckpointOptions | None = None,
    encoding: EncodingOptions | None = None,
) -> Encoders:
    """The encoders of a model: in this process, or, for several devices, one worker process for each.

    Args:
        source: a folder or a hub name; None is the offline default model.
        device: "auto", "cpu", "cuda:1", …; several of them, such as ["cuda:0", "cuda:1"] or ["cpu", "cpu"].
        runtime: "torch", or "onnx" for a folder that `export` wrote.
        recipe: settings of `EncodingRecipe` that replace the model's own.
        checkpoint: what to read and how; not for ONNX folders.
        encoding: how texts are worked through.
    """
    if runtime not in ("torch", "onnx"):
        raise InvalidOption(f"runtime = {runtime!r}", "'torch' or 'onnx'", "Choose one of the two.")
    if runtime == "onnx" and checkpoint is not None:
        raise InvalidOption("checkpoint options for a model in ONNX", "none", "They were settled by the export.")
    if isinstance(device, str):
        if runtime == "onnx":
            return _of_host(_onnx_encoder(source, device, recipe, encoding))
        return _of_tensors(encoder(source, device=device, recipe=recipe, checkpoint=checkpoint, encoding=encoding))
    devices = list(device)
    if len(devices) == 1:
        return model(
            source, device=devices[0], runtime=runtime, recipe=recipe, checkpoint=checkpoint, encoding=encoding
        )
    processes = _process_encoder(source, devices, runtime, recipe, (checkpoint, encoding))
    return evolve(_of_host(processes), close=processes.close)


def with_progress(encoding: EncodingOptions | None, progress: Progress) -> EncodingOptions:
    """The same options, and who is told how far the work has come."""
    from lateinteraction.adapters.encoding.encoder import EncodingOptions

    return evolve(encoding or EncodingOptions(), progress=progress)


def _of_tensors(own: HuggingFaceEncoder) -> Encoders:
    from lateinteraction.adapters.encoding.conversion import Converted
    from lateinteraction.adapters.neural.transfer import to_numpy

    return Encoders(Converted(own, to_numpy), lambda: own, own)


def _of_host(host: WorkingEncoder[NDArray[Any]]) -> Encoders:
    def tensors() -> WorkingEncoder[Tensor]:
        from lateinteraction.adapters.encoding.conversion import Converted
        from lateinteraction.adapters.neural.transfer import to_torch

        return Converted(host, partial(to_torch, device="cpu"))

    return Encoders(host, tensors)


def encoder(
    source: str | Path | None = None,
    *,
    device: str = "auto",
    recipe: Mapping[str, object] | None = None,
    checkpoint: CheckpointOptions | None = None,
    encoding: EncodingOptions | None = None,
) -> HuggingFaceEncoder:
    """The encoder of a model in PyTorch, in this process; arguments as in `model`."""
    from lateinteraction.adapters.encoding.encoder import EncodingOptions
    from lateinteraction.adapters.huggingface.default_model import locate_default_model
    from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
    from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint

    options = evolve(checkpoint or CheckpointOptions(), device=device)
    read = read_checkpoint(locate_default_model() if source is None else source, recipe=recipe, options=options)
    return HuggingFaceEncoder(read, encoding or EncodingOptions())


def _onnx_encoder(
    source: str | Path | None,
    device: str,
    recipe: Mapping[str, object] | None,
    encoding: EncodingOptions | None,
    threads: int | None = None,
) -> OnnxEncoder:
    from lateinteraction.adapters.encoding.encoder import EncodingOptions
    from lateinteraction.adapters.onnx.encoder import OnnxEncoder, OnnxOptions

    if device not in ("auto", "cpu"):
        raise InvalidOption(f"device {device!r} for a model in ONNX", "'cpu'", "Use runtime='torch' on accelerators.")
    if source is None:
        raise InvalidOption("no folder of a model in ONNX", "the one that `export` wrote", "Name it.")
    options = OnnxOptions(recipe=recipe or {}, encoding=encoding or EncodingOptions(), threads=threads)
    return OnnxEncoder(source, options)


def _process_encoder(
    source: str | Path | None,
    devices: Sequence[str],
    runtime: Runtime,
    recipe: Mapping[str, object] | None,
    options: tuple[CheckpointOptions | None, EncodingOptions | None],
) -> ProcessEncoder:
    """Workers with the same settings, but for their devices and a fair share of this machine's cores."""
    import os
    import sys

    from lateinteraction.adapters.processes.encoder import Job, ProcessEncoder

    checkpoint, encoding = options
    if checkpoint is not None and checkpoint.projection is not None:
        raise InvalidOption(
            "a new projection for several devices", "a model that has one", "Make it on one device, save it, load that."
        )
    settings = {
        "source": None if source is None else str(source),
        "runtime": runtime,
        "recipe": {
            name: asdict(value)
            if isinstance(value, TokenPooling)
            else list(cast("Iterable[object]", value))
            if isinstance(value, (tuple, set, frozenset))
            else value
            for name, value in (recipe or {}).items()
        },
        "checkpoint": None if checkpoint is None else asdict(checkpoint),
        "encoding": None if encoding is None else asdict(evolve(encoding, progress=None)),
    }
    on_cpu = sum(device in ("auto", "cpu") for device in devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // on_cpu) if on_cpu else None
    return ProcessEncoder(
        [sys.executable, "-P", "-m", "lateinteraction.entrypoints.worker"],
        [Job(settings={**settings, "device": device}, threads=threads) for device in devices],
        progress=None if encoding is None else encoding.progress,
    )


def serve_encoder(requests: BinaryIO, answers: BinaryIO) -> None:
    """A worker's work: load what the first request describes, and answer the others."""
    from lateinteraction.adapters.processes.serving import serve

    serve(requests, answers, _worker_encoder)


def _worker_encoder(job: Frame) -> WorkingEncoder[NDArray[Any]]:
    from lateinteraction.adapters.encoding.encoder import EncodingOptions

    settings = job.message
    source, device, recipe, threads = (settings[name] for name in ("source", "device", "recipe", "threads"))
    encoding = EncodingOptions(**(settings["encoding"] or {}))
    if settings["runtime"] == "onnx":
        return _onnx_encoder(source, device, recipe, encoding, threads)
    from lateinteraction.adapters.huggingface.reading import CheckpointOptions

    options = CheckpointOptions(**(settings["checkpoint"] or {}))
    return model(source, device=device, recipe=recipe, checkpoint=options, encoding=encoding).host


def save(encoders: Encoders, folder: str | Path, *, overwrite: bool = False) -> str:
    """Write a model into a folder, as the layout that PyLate and sentence-transformers read too."""
    from lateinteraction.adapters.huggingface.writing import FolderStore

    return FolderStore(folder, overwrite=overwrite).save(_saved(encoders, "saved").checkpoint)


def push(
    encoders: Encoders, name: str, *, private: bool = True, token: str | None = None, revision: str | None = None
) -> str:
    """Put the same files on a hub."""
    from lateinteraction.adapters.huggingface.hub import HubStore

    store = HubStore(name, private=private, token=token, revision=revision)
    return store.save(_saved(encoders, "pushed").checkpoint)


def export(encoders: Encoders, folder: str | Path, *, weights: OnnxWeights = "float32", overwrite: bool = False) -> str:
    """Write a model into a folder that ONNX Runtime runs without PyTorch."""
    from lateinteraction.adapters.onnx.export import export_onnx

    export_onnx(_saved(encoders, "exported").checkpoint, folder, weights=weights, overwrite=overwrite)
    return str(folder)


def _saved(encoders: Encoders, verb: str) -> HuggingFaceEncoder:
    if encoders.own is None:
        raise InvalidOption(
            f"a model to be {verb} that runs in ONNX Runtime or in other processes",
            "one that runs in PyTorch in this process",
            "Load it with runtime='torch' on one device first.",
        )
    if encoders.own.checkpoint.narrowed:
        raise InvalidOption(
            f"a model to be {verb} whose weights 'auto' narrowed to bfloat16 for its device",
            "weights of a precision that was chosen",
            "Load it with CheckpointOptions(dtype='float32'), or 'bfloat16' if that is meant.",
        )
    return encoders.own


def retriever(encoder: Encoder[Tensor], index: Index[Tensor]) -> Retriever[Tensor]:
    """Search with an encoder over an index."""
    from lateinteraction.application.retrieval import Retriever

    return Retriever(encoder, index)


def searcher(encoder: Encoder[Tensor], snapshot: Searchable[Tensor]) -> Searcher[Tensor]:
    """Search with an encoder over a state of an index."""
    from lateinteraction.application.retrieval import Searcher

    return Searcher(encoder, snapshot)


def memory_index() -> FlatIndex:
    """An exact index in memory."""
    from lateinteraction.adapters.flat import FlatIndex

    return FlatIndex()


def reranker(encoder: Encoder[Tensor]) -> Reranker[Tensor]:
    """Rank given documents with an encoder and MaxSim."""
    from lateinteraction.adapters.neural.scorer import MaxSimScorer
    from lateinteraction.adapters.neural.transfer import to_host
    from lateinteraction.application.retrieval import Reranker

    return Reranker(encoder, MaxSimScorer(), to_host)


def explainer(encoder: WorkingEncoder[Tensor]) -> Explainer[Tensor]:
    """Explain MaxSim scores of an encoder."""
    from lateinteraction.adapters.neural.scorer import MaxSimScorer
    from lateinteraction.adapters.neural.transfer import to_host
    from lateinteraction.application.explanation import Explainer

    scorer = MaxSimScorer()
    return Explainer(encoder, encoder, scorer, scorer, to_host)


@frozen
class Baselines:
    """The same documents searched three ways: token by token, by one pooled vector, and by words."""

    late_interaction: Retriever[Tensor]
    mean_pooled: Retriever[Tensor]
    bm25: Bm25Ranker
    explainer: Explainer[Tensor]


def baselines(
    documents: Sequence[Document],
    source: str | Path | None = None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Baselines:
    """Index documents for all three, encoding each only once."""
    from lateinteraction.adapters.bm25 import Bm25Ranker
    from lateinteraction.adapters.neural.pooling import MeanPooledEncoder, mean_pooled, normalised
    from lateinteraction.application.retrieval import Retriever

    lexical = Bm25Ranker(documents)
    encoding = None if progress is None else with_progress(None, progress)
    raw = encoder(source, device=device, recipe={"normalise": False, "pooling": None}, encoding=encoding)
    unit = raw.with_recipe(raw.recipe.merge({"normalise": True}))
    embeddings = raw.encode_documents(documents)
    tokens, vectors = memory_index(), memory_index()
    tokens.add(documents, normalised(embeddings))
    vectors.add(documents, mean_pooled(embeddings))
    pooled = Retriever(MeanPooledEncoder(raw), vectors)
    return Baselines(retriever(unit, tokens), pooled, lexical, explainer(unit))


def passages(paths: Sequence[str | Path]) -> Passages:
    """The passages of files and folders."""
    from lateinteraction.adapters.files import read_passages

    return read_passages(paths)


def listed_documents(source: Path | BinaryIO) -> tuple[Document, ...]:
    """The documents of a list, one a line, plain or JSON: a file, or an open stream such as standard input."""
    from lateinteraction.adapters.files import read_list

    return read_list(source)


def standard_library_functions(documents: int, queries: int) -> EvaluationSet:
    """The running interpreter's own functions as a collection, their docstrings as queries."""
    from lateinteraction.adapters.standard_library import standard_library_functions

    return standard_library_functions(documents, queries)


def diagnose(device: str = "auto") -> dict[str, object]:
    """What `doctor` shows: versions, devices, chosen kernels and why, the model, extras; None for what is missing."""
    from lateinteraction.adapters.huggingface.default_model import HUB_NAME, describe_default_model
    from lateinteraction.adapters.neural.diagnosis import describe_devices

    model = describe_default_model()
    packages = (
        "lateinteraction", "numpy", "attrs", "torch", "numba", "triton", "transformers", "tokenizers", "safetensors",
    )  # fmt: skip
    return {
        "versions": {package: _version(package) for package in packages},
        "extras": {
            "demo": _version("bm25s"),
            "hnsw": _version("voyager"),
            "lexical": _version("PyStemmer"),
            "onnx": _version("onnxruntime"),
            "pooling": _version("scipy"),
            "testing": _version("hypothesis"),
        },
        **describe_devices(device),
        "default_model": {
            "name": HUB_NAME,
            "folder": None if model.folder is None else str(model.folder),
            "weights": _weights(model),
        },
    }


def _weights(model: DefaultModel) -> str:
    if model.digest is None:
        return "not installed" if model.folder is None else "not readable"
    return "as published" if model.usable_offline else f"not as published: sha256 {model.digest}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
