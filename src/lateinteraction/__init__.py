"""Late-interaction (ColBERT-type) retrieval: encode, index, search, rerank, explain, evaluate.

Names are loaded when first used, so that importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lateinteraction.adapters.encoding.encoder import EncodingOptions as EncodingOptions
    from lateinteraction.adapters.huggingface.projection import PcaProjection as PcaProjection
    from lateinteraction.adapters.huggingface.projection import RandomProjection as RandomProjection
    from lateinteraction.adapters.huggingface.reading import CheckpointOptions as CheckpointOptions
    from lateinteraction.adapters.index.device import Device as Device
    from lateinteraction.adapters.index.device import DeviceOptions as DeviceOptions
    from lateinteraction.adapters.index.options import SearchOptions as SearchOptions
    from lateinteraction.adapters.index.settings import IndexOptions as IndexOptions
    from lateinteraction.api import Index as Index
    from lateinteraction.api import Model as Model
    from lateinteraction.api import Result as Result
    from lateinteraction.api import load_model as load_model
    from lateinteraction.application.evaluation import evaluate as evaluate
    from lateinteraction.application.progress import BuildLine as BuildLine
    from lateinteraction.application.progress import ProgressLine as ProgressLine
    from lateinteraction.domain.embeddings import TokenEmbeddings as TokenEmbeddings
    from lateinteraction.domain.embeddings import TokenTrace as TokenTrace
    from lateinteraction.domain.errors import LateInteractionError as LateInteractionError
    from lateinteraction.domain.evaluation import EvaluationSet as EvaluationSet
    from lateinteraction.domain.evaluation import Measure as Measure
    from lateinteraction.domain.evaluation import RelevanceJudgments as RelevanceJudgments
    from lateinteraction.domain.explanation import Explanation as Explanation
    from lateinteraction.domain.quantisation import BinaryEmbeddings as BinaryEmbeddings
    from lateinteraction.domain.quantisation import Int8Embeddings as Int8Embeddings
    from lateinteraction.domain.ranking import Fusion as Fusion
    from lateinteraction.domain.ranking import Hit as Hit
    from lateinteraction.domain.ranking import Ranking as Ranking
    from lateinteraction.domain.recipe import EncodingRecipe as EncodingRecipe
    from lateinteraction.domain.recipe import TokenPooling as TokenPooling
    from lateinteraction.domain.text import Document as Document
    from lateinteraction.domain.text import Query as Query

    __version__: str

_HOMES = {
    "Index": "api",
    "Model": "api",
    "Result": "api",
    "load_model": "api",
    "TokenTrace": "domain.embeddings",
    "EncodingOptions": "adapters.encoding.encoder",
    "PcaProjection": "adapters.huggingface.projection",
    "RandomProjection": "adapters.huggingface.projection",
    "CheckpointOptions": "adapters.huggingface.reading",
    "Device": "adapters.index.device",
    "DeviceOptions": "adapters.index.device",
    "IndexOptions": "adapters.index.settings",
    "SearchOptions": "adapters.index.options",
    "TokenPooling": "domain.recipe",
    "BinaryEmbeddings": "domain.quantisation",
    "Int8Embeddings": "domain.quantisation",
    "BuildLine": "application.progress",
    "ProgressLine": "application.progress",
    "evaluate": "application.evaluation",
    "TokenEmbeddings": "domain.embeddings",
    "LateInteractionError": "domain.errors",
    "EvaluationSet": "domain.evaluation",
    "Measure": "domain.evaluation",
    "RelevanceJudgments": "domain.evaluation",
    "Explanation": "domain.explanation",
    "Fusion": "domain.ranking",
    "Hit": "domain.ranking",
    "Ranking": "domain.ranking",
    "EncodingRecipe": "domain.recipe",
    "Document": "domain.text",
    "Query": "domain.text",
}

__all__ = [
    "BinaryEmbeddings",
    "BuildLine",
    "CheckpointOptions",
    "Device",
    "DeviceOptions",
    "Document",
    "EncodingOptions",
    "EncodingRecipe",
    "EvaluationSet",
    "Explanation",
    "Fusion",
    "Hit",
    "Index",
    "IndexOptions",
    "Int8Embeddings",
    "LateInteractionError",
    "Measure",
    "Model",
    "PcaProjection",
    "ProgressLine",
    "Query",
    "RandomProjection",
    "Ranking",
    "RelevanceJudgments",
    "Result",
    "SearchOptions",
    "TokenEmbeddings",
    "TokenPooling",
    "TokenTrace",
    "__version__",
    "evaluate",
    "load_model",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("lateinteraction")
    if name in _HOMES:
        return getattr(import_module(f"lateinteraction.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lateinteraction' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
