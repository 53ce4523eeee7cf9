# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false
"""xtr-warp-rs 2.1 answering requests about its indexes; runs with the interpreter of .peers/index-t211."""

from __future__ import annotations

from typing import Any

from xtr_warp.search import XTRWarp

from benchmarks.peers.index_serving import Items, OpenIndex, Parameters, Rows, serve_library


class XtrWarp:
    """`xtr_warp.search.XTRWarp` with its defaults, on the CPU."""

    def build(self, folder: str, documents: Items) -> None:
        """See `Library`."""
        XTRWarp(index=folder, device="cpu").create(
            embeddings_source=documents.each(), device="cpu", show_progress=False
        )

    def open(self, folder: str, threads: int) -> OpenIndex:
        """See `Library`. What is left out among the parameters it chooses for the index and the query."""
        index: Any = XTRWarp(index=folder, device="cpu").load(device="cpu")

        def find(queries: Rows, k: int, parameters: Parameters) -> list[list[int]]:
            ranked = index.search(queries, top_k=k, num_threads=threads, show_progress=False, **parameters)
            return [[int(document) for document, _ in each] for each in ranked]

        return find


if __name__ == "__main__":
    serve_library(XtrWarp())
