"""What people type: strings in, results out. Coercion only; decisions are in `wiring`, work in the application.

    model = load_model()                      Model: an encoder with its scorer
    index = Index(model)                      Index: documents to search, in memory or in a folder
    index.add([...]); index.search("...")     → list[Result]

Each object leads to the next level: `model.encoder`, `index.retriever`.
"""

from __future__ import annotations

from lateinteraction.api.index import By, Index
from lateinteraction.api.model import Model, load_model
from lateinteraction.api.typed import Result

__all__ = ["By", "Index", "Model", "Result", "load_model"]
