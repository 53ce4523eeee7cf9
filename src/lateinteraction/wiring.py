"""The composition root: names and options become ports. Decisions only; the one place that knows both sides.

Everything heavy is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from attrs import frozen

from lateinteraction.domain.ports import Progress
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.bm25 import Bm25Ranker
    from lateinteraction.adapters.files import Passages
    from lateinteraction.adapters.flat import FlatIndex, FlatSnapshot
    from lateinteraction.adapters.huggingface.default_model import DefaultModel
    from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
    from lateinteraction.application.explanation import Explainer
    from lateinteraction.application.retrieval import Reranker, Retriever, Searcher
    from lateinteraction.domain.evaluation import EvaluationSet


def encoder(
    source: str | Path | None = None,
    *,
    device: str = "auto",
    recipe: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> HuggingFaceEncoder:
    """The encoder of a model.

    Args:
        source: a folder or a hub name; None is the offline default model.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        recipe: settings of `EncodingRecipe` that replace the model's own.
        progress: told how many texts are encoded, of how many.
    """
    from lateinteraction.adapters.huggingface.checkpoint import EncoderOptions, load_plain_encoder
    from lateinteraction.adapters.huggingface.default_model import locate_default_model

    return load_plain_encoder(
        locate_default_model() if source is None else source,
        recipe=EncodingRecipe().merge(recipe or {}),
        options=EncoderOptions(device=device, progress=progress),
    )


def retriever(encoder: HuggingFaceEncoder, index: FlatIndex) -> Retriever[Tensor]:
    """Search with an encoder over an index."""
    from lateinteraction.application.retrieval import Retriever

    return Retriever(encoder, index)


def searcher(encoder: HuggingFaceEncoder, snapshot: FlatSnapshot) -> Searcher[Tensor]:
    """Search with an encoder over a state of an index."""
    from lateinteraction.application.retrieval import Searcher

    return Searcher(encoder, snapshot)


def memory_index() -> FlatIndex:
    """An exact index in memory."""
    from lateinteraction.adapters.flat import FlatIndex

    return FlatIndex()


def reranker(encoder: HuggingFaceEncoder) -> Reranker[Tensor]:
    """Rank given documents with an encoder and MaxSim."""
    from lateinteraction.adapters.neural.scorer import MaxSimScorer
    from lateinteraction.adapters.neural.transfer import to_host
    from lateinteraction.application.retrieval import Reranker

    return Reranker(encoder, MaxSimScorer(), to_host)


def explainer(encoder: HuggingFaceEncoder) -> Explainer[Tensor]:
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
    raw = encoder(source, device=device, recipe={"normalise": False}, progress=progress)
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
    packages = ("lateinteraction", "numpy", "attrs", "torch", "triton", "transformers", "tokenizers", "safetensors")
    return {
        "versions": {package: _version(package) for package in packages},
        "extras": {"demo": _version("bm25s"), "testing": _version("hypothesis")},
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
