# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""The ONNX backend of sentence-transformers answering requests; runs with .peers/sentence-transformers-onnx.

That release has no multi-vector model: its Transformer module runs the exported encoder, a module of this file
projects and normalises the rows, so that it computes what the other contestants compute.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Transformer

from benchmarks.peers.serving import Answer, read_texts, serve, timed, write_rows

PROJECTION = "projection.safetensors"


class Rows(torch.nn.Module):
    """Token embeddings times a matrix (dimension, width), normalised."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        self.linear.weight = torch.nn.Parameter(matrix, requires_grad=False)

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Replace the rows."""
        rows = self.linear(features["token_embeddings"])
        return features | {"token_embeddings": torch.nn.functional.normalize(rows, dim=-1)}


def save(source: str, folder: str, projection: str) -> Answer:
    """Export a plain encoder to ONNX, and put the matrix `linear.weight` of a .safetensors file beside it."""
    model = Transformer(source, backend="onnx", model_args={"export": True, "provider": "CPUExecutionProvider"})
    model.save(folder)
    save_file({"linear.weight": load_file(projection)["linear.weight"]}, Path(folder) / PROJECTION)
    return {}


@lru_cache(maxsize=1)
def load(folder: str, document_length: int, threads: int) -> Any:
    """The model of a folder; the last one is kept."""
    # ONNX Runtime heeds none of the variables that give the others their number of threads.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    transformer = Transformer(
        folder,
        max_seq_length=document_length,
        backend="onnx",
        model_args={"provider": "CPUExecutionProvider", "session_options": options, "file_name": "onnx/model.onnx"},
    )
    rows = Rows(load_file(Path(folder) / PROJECTION)["linear.weight"])
    return SentenceTransformer(modules=[transformer, rows], device="cpu")


def encode(folder: str, texts: str, out: str, document_length: int, threads: int) -> Answer:
    """Embed documents."""
    model = load(folder, document_length, threads)
    return write_rows(out, _encode(model, read_texts(texts)))


def time(folder: str, texts: str, document_length: int, threads: int) -> Answer:
    """Embed documents; nothing is written."""
    documents, model = read_texts(texts), load(folder, document_length, threads)
    return timed(lambda: _encode(model, documents))


def _encode(model: Any, documents: list[str]) -> Any:
    rows = model.encode(documents, output_value="token_embeddings", show_progress_bar=False)
    return [each.numpy() for each in rows]


if __name__ == "__main__":
    serve({"save": save, "encode": encode, "time": time})
