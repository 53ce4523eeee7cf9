"""The composition root of exchange: what other tools wrote, open files, and indexes with a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lateinteraction.domain.ports import AddCounts, Encoder, OnDuplicate, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.index.hnsw.graph import GraphOptions
    from lateinteraction.adapters.index.hnsw.index import HnswIndex, Interaction


def export_index(
    folder: str | Path, target: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> int:
    """Write an index as files that any tool reads; how many documents."""
    from lateinteraction.adapters.index.exchange.open_files import export
    from lateinteraction.wiring.indexes import stored_index

    index = stored_index(folder)
    try:
        return export(index.snapshot(), Path(target), overwrite=overwrite, progress=progress)
    finally:
        index.close()


def import_index(
    source: str | Path,
    folder: str | Path,
    *,
    trust_pickle: bool = False,
    texts: Mapping[str, str] | None = None,
    encoder: Encoder[Tensor] | None = None,
    on_duplicate: OnDuplicate = "error",
    progress: Progress | None = None,
) -> AddCounts:
    """Take the documents of a folder of ours, PyLate, fast-plaid or Stanford's ColBERT into an index, new or there.

    Args:
        source: the folder that is read.
        folder: of the index.
        trust_pickle: whether ids are read that stand in pickles.
        texts: by id; only exports of ours hold them themselves.
        encoder: what made the embeddings: a new index remembers it, and what the index or the source knows of it must
            be the same.
        on_duplicate: what becomes of an id that is there.
        progress: told of the documents that were taken.
    """
    from lateinteraction.adapters.index.exchange.folders import read_folder
    from lateinteraction.adapters.index.exchange.incoming import index_for, take_in
    from lateinteraction.adapters.index.fingerprint import fingerprint_of
    from lateinteraction.adapters.index.generations import Generations
    from lateinteraction.adapters.index.storage import FolderStorage
    from lateinteraction.wiring.indexes import stored_index

    incoming = read_folder(Path(source), trust_pickle=trust_pickle, texts=texts)
    there = Path(folder).exists() and Generations(FolderStorage(folder)).exists()
    if there:
        index = stored_index(folder, encoder)
    else:
        fingerprint = None if encoder is None else fingerprint_of(encoder)
        index = index_for(FolderStorage(folder, create=True), incoming, encoder=fingerprint)
    try:
        return take_in(index, incoming, on_duplicate=on_duplicate, progress=progress)
    finally:
        index.close()


def hnsw_index(
    folder: str | Path | None = None,
    encoder: Encoder[Tensor] | None = None,
    options: GraphOptions | None = None,
    *,
    interaction: Interaction = "maxsim",
    progress: Progress | None = None,
) -> HnswIndex:
    """An index with a graph: in memory, or over the index in folder/documents with its graph in folder/graph."""
    from lateinteraction.adapters.index.hnsw.index import HnswIndex

    if folder is None:
        from lateinteraction.adapters.flat import FlatIndex

        return HnswIndex(FlatIndex(), options, interaction=interaction, progress=progress)
    from lateinteraction.adapters.index.hnsw.saved import load_graph
    from lateinteraction.adapters.index.storage import FolderStorage
    from lateinteraction.wiring.indexes import stored_index

    graph = load_graph(FolderStorage(Path(folder) / "graph", create=True), options)
    held = stored_index(Path(folder) / "documents", encoder)
    return HnswIndex(held, options, interaction=interaction, graph=graph, progress=progress)


def save_graph(index: HnswIndex, folder: str | Path) -> bool:
    """Write the graph of an index beside its documents; whether there is one yet."""
    from functools import partial

    from lateinteraction.adapters.index.hnsw.saved import save_graph
    from lateinteraction.adapters.index.storage import FolderStorage

    return index.save(partial(save_graph, FolderStorage(Path(folder) / "graph", create=True)))
