"""Ours answering the same requests, in a process of its own like every other contestant."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

import lateinteraction as li
from benchmarks.peers.serving import Answer, read_texts, serve, timed
from lateinteraction.domain.text import DocumentId

Runtime = Literal["torch", "onnx"]


@lru_cache(maxsize=1)
def load(folder: str, runtime: Runtime) -> Any:
    """The model of a folder; the last one is kept."""
    warnings.simplefilter("ignore", UserWarning)  # that documents are cut is part of the exercise
    return li.load_model(folder, device="cpu", runtime=runtime)


def encode(folder: str, texts: str, out: str, runtime: Runtime, role: str = "document") -> Answer:
    """Embed texts as queries or documents."""
    model = load(folder, runtime)
    call = model.encode_queries if role == "query" else model.encode_documents
    made = call(read_texts(texts), output="numpy")
    np.savez(Path(out), tokens=made.tokens, offsets=made.offsets)
    return {}


def time(folder: str, texts: str, runtime: Runtime) -> Answer:
    """Embed documents; nothing is written."""
    documents, model = read_texts(texts), load(folder, runtime)
    return timed(lambda: model.encode_documents(documents, output="numpy"))


def padding(folder: str, texts: str, runtime: Runtime) -> Answer:
    """How many tokens the documents have, and how many were computed on top of them."""
    documents = [li.Document(DocumentId(str(number)), text) for number, text in enumerate(read_texts(texts))]
    _, report = load(folder, runtime).encoder.encode_documents_with_report(documents)
    return {"tokens": report.tokens, "padding": report.padding}


if __name__ == "__main__":
    serve({"encode": encode, "time": time, "padding": padding})
