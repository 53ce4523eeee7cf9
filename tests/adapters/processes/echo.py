"""A worker over the fake encoder: `python echo.py`. Some texts make it misbehave."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.encoding.encoder import EncodingReport
from lateinteraction.adapters.processes.frames import Frame
from lateinteraction.adapters.processes.serving import serve
from lateinteraction.domain.embeddings import TokenEmbeddings, TokenTrace
from lateinteraction.domain.errors import InvalidModel, OutOfMemory
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query
from lateinteraction.testing.fakes import HashEncoder


class Echo:
    """`HashEncoder` with reports."""

    def __init__(self) -> None:
        self._encoder = HashEncoder()

    @property
    def recipe(self) -> EncodingRecipe:
        return self._encoder.recipe

    def encode_queries_with_report(
        self, queries: Sequence[Query]
    ) -> tuple[TokenEmbeddings[NDArray[np.float32]], EncodingReport]:
        return _told(self._encoder.encode_queries, queries)

    def encode_documents_with_report(
        self, documents: Sequence[Document]
    ) -> tuple[TokenEmbeddings[NDArray[np.float32]], EncodingReport]:
        for document in documents:
            if document.text == "die":
                os._exit(7)
            if document.text == "slow":
                time.sleep(0.2)
            if document.text == "too much":
                raise OutOfMemory("a text", "memory", "Shorten it.")
        return _told(self._encoder.encode_documents, documents)

    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace:
        return self._encoder.trace_queries(queries)

    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace:
        if any(document.text == "slow" for document in documents):
            time.sleep(1)
        return self._encoder.trace_documents(documents)


def _told(
    encode: Callable[[Sequence[Any]], TokenEmbeddings[NDArray[np.float32]]], items: Sequence[Any]
) -> tuple[TokenEmbeddings[NDArray[np.float32]], EncodingReport]:
    """What the fake only warns of, as a report."""
    long = np.array([row for row, item in enumerate(items) if _is_cut(encode, item)], dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embeddings = encode(items)
    return embeddings, EncodingReport(len(items), 10, 1, 9, long, np.ones_like(long), long[:0], 256)


def _is_cut(encode: Callable[[Sequence[Any]], object], item: Any) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encode([item])
    return bool(caught) or item.text.startswith("long")


def load(job: Frame) -> Echo:
    """What the job's settings describe."""
    if job.message.get("source") == "nowhere":
        raise InvalidModel("no folder", "a folder", "Name one.")
    if job.message.get("source") == "crash":
        sys.exit(3)
    return Echo()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, load)  # type: ignore[arg-type]
