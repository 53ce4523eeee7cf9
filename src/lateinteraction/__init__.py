"""Late-interaction (ColBERT-type) retrieval: encode, index, search, rerank, explain, evaluate.

Names are loaded when first used, so that importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lateinteraction.api import Index as Index
    from lateinteraction.api import Model as Model
    from lateinteraction.api import Result as Result
    from lateinteraction.api import load_model as load_model
    from lateinteraction.application.evaluation import evaluate as evaluate
    from lateinteraction.domain.embeddings import TokenEmbeddings as TokenEmbeddings
    from lateinteraction.domain.errors import LateInteractionError as LateInteractionError
    from lateinteraction.domain.evaluation import EvaluationSet as EvaluationSet
    from lateinteraction.domain.evaluation import Measure as Measure
    from lateinteraction.domain.evaluation import RelevanceJudgments as RelevanceJudgments
    from lateinteraction.domain.explanation import Explanation as Explanation
    from lateinteraction.domain.ranking import Hit as Hit
    from lateinteraction.domain.ranking import Ranking as Ranking
    from lateinteraction.domain.recipe import EncodingRecipe as EncodingRecipe
    from lateinteraction.domain.text import Document as Document
    from lateinteraction.domain.text import Query as Query

    __version__: str

_HOMES = {
    "Index": "api",
    "Model": "api",
    "Result": "api",
    "load_model": "api",
    "evaluate": "application.evaluation",
    "TokenEmbeddings": "domain.embeddings",
    "LateInteractionError": "domain.errors",
    "EvaluationSet": "domain.evaluation",
    "Measure": "domain.evaluation",
    "RelevanceJudgments": "domain.evaluation",
    "Explanation": "domain.explanation",
    "Hit": "domain.ranking",
    "Ranking": "domain.ranking",
    "EncodingRecipe": "domain.recipe",
    "Document": "domain.text",
    "Query": "domain.text",
}

__all__ = [
    "Document",
    "EncodingRecipe",
    "EvaluationSet",
    "Explanation",
    "Hit",
    "Index",
    "LateInteractionError",
    "Measure",
    "Model",
    "Query",
    "Ranking",
    "RelevanceJudgments",
    "Result",
    "TokenEmbeddings",
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
