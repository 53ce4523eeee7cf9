# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""PyLate 1.6 answering requests; runs with the interpreter of .peers/pylate."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from pylate import models
from sentence_transformers.models import Transformer

from benchmarks.peers.serving import Answer, read_texts, serve, timed, write_rows

ACTIVATIONS = {"identity": torch.nn.Identity, "tanh": torch.nn.Tanh, "gelu": torch.nn.GELU, "relu": torch.nn.ReLU}


def save(source: str, folder: str, recipe: Mapping[str, Any], layers: list[dict[str, Any]], seed: int) -> Answer:
    """Make a model of a plain encoder the way PyLate does, and save it."""
    torch.manual_seed(seed)
    transformer = Transformer(source)
    modules: list[torch.nn.Module] = [transformer]
    width = transformer.get_word_embedding_dimension()
    for layer in layers:
        modules.append(
            models.Dense(
                width,
                layer["width"],
                bias=layer["bias"],
                activation_function=ACTIVATIONS[layer["activation"]](),
                use_residual=layer["residual"],
            )
        )
        width = layer["width"]
    model = models.ColBERT(
        modules=modules,
        device="cpu",
        prompts={"query": recipe["query_prompt"], "document": recipe["document_prompt"]},
        query_prefix=recipe["query_prefix"] or "",
        document_prefix=recipe["document_prefix"] or "",
        query_length=recipe["query_length"],
        document_length=recipe["document_length"],
        do_query_expansion=recipe["expansion"] == "fixed",
        attend_to_expansion_tokens=recipe["attend_to_expansion"],
        skiplist_words=list(recipe["skiplist"]),
    )
    model.save_pretrained(folder)
    return {}


@lru_cache(maxsize=1)
def load(folder: str) -> Any:
    """The model of a folder; the last one is kept."""
    return models.ColBERT(folder, device="cpu")


def encode(folder: str, texts: str, out: str, role: str = "document", prompt: bool = False, pooling: int = 1) -> Answer:
    """Embed texts as queries or documents; `prompt`: with the model's prompt of that role, `pooling`: the factor."""
    rows = load(folder).encode(
        read_texts(texts),
        is_query=role == "query",
        prompt_name=role if prompt else None,
        pool_factor=pooling,
        show_progress_bar=False,
    )
    return write_rows(out, rows)


def time(folder: str, texts: str) -> Answer:
    """Embed documents with the settings PyLate has; nothing is written."""
    documents, model = read_texts(texts), load(folder)
    return timed(lambda: model.encode(documents, is_query=False, show_progress_bar=False))


if __name__ == "__main__":
    serve({"save": save, "encode": encode, "time": time})
