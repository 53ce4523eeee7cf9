"""Exact search as a few lines of NumPy answering the same requests: one product, then the maxima of each document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.index_serving import Items, OpenIndex, Parameters, Rows, serve_library


class BruteForce:
    """All tokens in memory, float32."""

    def build(self, folder: str, documents: Items) -> None:
        """See `Library`."""
        Path(folder).mkdir()
        np.save(Path(folder) / "tokens.npy", documents.tokens.numpy())
        np.save(Path(folder) / "starts.npy", np.cumsum([0, *documents.lengths])[:-1])

    def open(self, folder: str, threads: int) -> OpenIndex:
        """See `Library`. NumPy's threads are those that the process was started with."""
        tokens: Any = np.load(Path(folder) / "tokens.npy")
        starts: Any = np.load(Path(folder) / "starts.npy")

        def best(query: Any, k: int) -> list[int]:
            scores = np.maximum.reduceat(tokens @ query.numpy().T, starts, axis=0).sum(axis=1)
            kept = np.argpartition(-scores, min(k, len(scores) - 1))[:k]
            return [int(place) for place in kept[np.argsort(-scores[kept], kind="stable")]]

        def find(queries: Rows, k: int, parameters: Parameters) -> list[list[int]]:
            assert not parameters
            return [best(query, k) for query in queries]

        return find


if __name__ == "__main__":
    serve_library(BruteForce())
