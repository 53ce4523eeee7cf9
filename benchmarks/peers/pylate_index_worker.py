# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""PyLate 1.6's PLAID and WARP answering requests; runs with the interpreter of .peers/pylate-index.

`python -m benchmarks.peers.pylate_index_worker PLAID` or `WARP`. They are called as its front page calls them, ids and
all. What their constructors take for searching is set on the open index, so that it is loaded once for all of a grid.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pylate import indexes

from benchmarks.peers.index_serving import Items, OpenIndex, Parameters, Rows, serve_library


class PyLate:
    """One of its kinds of index with its defaults, on the CPU."""

    def __init__(self, kind: str) -> None:
        self._make: Any = {"PLAID": indexes.PLAID, "WARP": indexes.WARP}[kind]

    def build(self, folder: str, documents: Items) -> None:
        """See `Library`."""
        ids = [str(place) for place in range(len(documents.lengths))]
        self._of(folder).add_documents(documents_ids=ids, documents_embeddings=documents.each())

    def open(self, folder: str, threads: int) -> OpenIndex:
        """See `Library`. PLAID shares queries out among threads by its own rule where there are several."""
        index = self._of(folder)
        # PLAID hands everything on to the index of its backend, which is where the settings lie.
        settings = getattr(index, "_index", index)
        several = None if self._make is indexes.PLAID else threads
        settings.num_threads = 1 if threads == 1 else several

        def find(queries: Rows, k: int, parameters: Parameters) -> list[list[int]]:
            for name, value in parameters.items():
                assert hasattr(settings, name), name
                setattr(settings, name, value)
            return [[int(hit["id"]) for hit in each] for each in index(queries, k=k)]

        return find

    def _of(self, folder: str) -> Any:
        place = Path(folder)
        return self._make(
            index_folder=str(place.parent), index_name=place.name, override=False, device="cpu", show_progress=False
        )


if __name__ == "__main__":
    serve_library(PyLate(sys.argv[1]))
