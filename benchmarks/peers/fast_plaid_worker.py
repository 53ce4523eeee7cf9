# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""fast-plaid 1.7 answering requests about its indexes; runs with the interpreter of .peers/index-t211."""

from __future__ import annotations

from typing import Any

from fast_plaid import search

from benchmarks.peers.index_serving import Items, OpenIndex, Parameters, Rows, serve_library


class FastPlaid:
    """`fast_plaid.search.FastPlaid` with its defaults, on the CPU."""

    def build(self, folder: str, documents: Items) -> None:
        """See `Library`."""
        search.FastPlaid(index=folder, device="cpu").create(documents_embeddings=documents.each())

    def open(self, folder: str, threads: int) -> OpenIndex:
        """See `Library`. Queries are shared out among threads by its own rule where there are several."""
        index: Any = search.FastPlaid(index=folder, device="cpu")

        def find(queries: Rows, k: int, parameters: Parameters) -> list[list[int]]:
            ranked = index.search(
                queries, top_k=k, show_progress=False, n_processes=1 if threads == 1 else None, **parameters
            )
            return [[int(document) for document, _ in each] for each in ranked]

        return find


if __name__ == "__main__":
    serve_library(FastPlaid())
