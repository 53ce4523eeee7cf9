# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""sentence-transformers 6.2 answering requests; runs with the interpreter of .peers/sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize
from tokenizers import AddedToken

from benchmarks.peers.serving import Answer, read_texts, serve, timed, write_rows

ACTIVATIONS = {"identity": torch.nn.Identity, "tanh": torch.nn.Tanh, "gelu": torch.nn.GELU, "relu": torch.nn.ReLU}


def save(
    source: str,
    folder: str,
    recipe: Mapping[str, Any],
    layers: list[dict[str, Any]],
    seed: int,
    pooling: Mapping[str, Any] | None = None,
) -> Answer:
    """Make a model of a plain encoder in sentence-transformers' own layout, and save it."""
    torch.manual_seed(seed)
    fixed = recipe["expansion"] == "fixed"
    transformer = Transformer(
        source,
        query_length=None if fixed else recipe["query_length"],
        document_length=recipe["document_length"],
        query_expansion={
            "strategy": "fixed",
            "attend": recipe["attend_to_expansion"],
            "length": recipe["query_length"],
        }
        if fixed
        else None,
    )
    prefixes = [each for each in (recipe["query_prefix"], recipe["document_prefix"]) if each]
    if prefixes:
        tokens = [AddedToken(each, normalized=False, special=True) for each in prefixes]
        transformer.tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        transformer.model.resize_token_embeddings(len(transformer.tokenizer))
    modules: list[torch.nn.Module] = [transformer]
    width = transformer.get_embedding_dimension()
    for layer in layers:
        modules.append(
            Dense(
                width,
                layer["width"],
                bias=layer["bias"],
                activation_function=ACTIVATIONS[layer["activation"]](),
                module_input_name="token_embeddings",
                use_residual=layer["residual"],
            )
        )
        width = layer["width"]
    tasks = ["query", "document"] if recipe["query_skiplist"] else ["document"]
    modules.append(MultiVectorMask(list(recipe["skiplist"]), skiplist_tasks=tasks))
    modules.append(Normalize(module_input_name="token_embeddings"))
    if pooling is not None:
        modules.append(HierarchicalTokenPooling(**pooling))
    prompts = {
        role: (recipe[f"{role}_prefix"] or "") + (recipe[f"{role}_prompt"] or "") for role in ("query", "document")
    }
    MultiVectorEncoder(modules=modules, device="cpu", prompts=prompts).save_pretrained(folder)
    return {}


@lru_cache(maxsize=1)
def load(folder: str) -> Any:
    """The model of a folder; the last one is kept."""
    return MultiVectorEncoder(folder, device="cpu")


def encode(folder: str, texts: str, out: str, role: str = "document", prompt: bool = False) -> Answer:
    """Embed texts as queries or documents; a prompt of the model is always used here."""
    model = load(folder)
    call = model.encode_query if role == "query" else model.encode_document
    return write_rows(out, call(read_texts(texts), convert_to_numpy=True, show_progress_bar=False))


def time(folder: str, texts: str) -> Answer:
    """Embed documents with the settings sentence-transformers has; nothing is written."""
    documents, model = read_texts(texts), load(folder)
    return timed(lambda: model.encode_document(documents, convert_to_numpy=True, show_progress_bar=False))


if __name__ == "__main__":
    serve({"save": save, "encode": encode, "time": time})
