"""Graphs on the disk: one data file with checksums, whose name vouches for its content.

It is written beside an older one and published whole, and the older one is removed afterwards. What it says is compared
with the documents when it is opened, so that it may be older or newer than these; see `HnswIndex.refresh`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from attrs import asdict
from numpy.typing import NDArray

from lateinteraction.adapters.index import texts
from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import damaged
from lateinteraction.adapters.index.files import FileRecord, FileWriter, StoredFile
from lateinteraction.adapters.index.hnsw.graph import GraphOptions, SavedGraph, TokenGraph
from lateinteraction.adapters.index.storage import Storage, is_temporary
from lateinteraction.adapters.index.texts import Texts
from lateinteraction.domain.errors import CorruptIndex, IndexLocked, IndexMismatch
from lateinteraction.domain.text import DocumentId

_log = logging.getLogger(__name__)

KIND, VERSION = "graph", 1
LOCK = "lock"
_NAME = re.compile(r"graph-(\d{1,18})-([0-9a-f]{32})")
_MADE_WITH = ("links", "effort", "seed")
"""Options that a graph cannot change any more."""


def save_graph(storage: Storage, saved: SavedGraph) -> str:
    """Write a graph, and remove those that were there; the name of its file.

    Raises:
        StorageFailed: the system refused a write; what was there still is.
        IndexLocked: another process writes one.
    """
    lock = storage.lock(LOCK, b"writes a graph")
    if lock is None:
        raise IndexLocked("a graph that another process writes", "one at a time", "Try again when it is done.")
    try:
        name = _written(storage, saved)
        for other in storage.names():
            if other != name and (_NAME.fullmatch(other) or is_temporary(other)):
                storage.unlink(other)
        return name
    finally:
        lock.release()


def _written(storage: Storage, saved: SavedGraph) -> str:
    with FileWriter(storage, "graph", KIND) as file:
        for name, array in _arrays(saved).items():
            file.add(name, array)
        record = file.close()
        name = f"graph-{record.length}-{record.digest}"
        if name in storage.names():
            file.abandon()
        else:
            storage.publish(file.temporary, name)
            storage.sync_folder()
    return name


def load_graph(storage: Storage, options: GraphOptions | None = None) -> SavedGraph | None:
    """The graph of a folder; None where there is none that serves, which a warning explains if it was damaged.

    Args:
        storage: of the graph, and of nothing else.
        options: that it is to have; one that was made otherwise does not serve.

    Raises:
        MissingExtra: Voyager is not installed.
    """
    options = options or GraphOptions()
    for name, record in _records(storage):
        try:
            return _read(StoredFile.open(storage, record), options)
        except (CorruptIndex, IndexMismatch) as error:
            _log.warning("the graph in %s is built anew: %s", name, error)
    return None


def _records(storage: Storage) -> Iterator[tuple[str, FileRecord]]:
    for name in storage.names():
        match = _NAME.fullmatch(name)
        if match is not None:
            yield name, FileRecord(name, int(match[1]), match[2])


def _arrays(saved: SavedGraph) -> dict[str, NDArray[Any]]:
    graph = saved.graph
    documents = graph.documents()
    present = [identifier for identifier, _ in documents if identifier is not None]
    description = {"version": VERSION, "dimension": graph.dimension, **_kept(graph.options)}
    rows = [saved.sketches[identifier] for identifier in present]
    return {
        "graph.description": np.frombuffer(json.dumps(description).encode(), np.uint8),
        "graph.lengths": np.array([length for _, length in documents], np.int64),
        "graph.live": np.array([identifier is not None for identifier, _ in documents], np.uint8),
        "graph.sketches": np.array(rows, np.float16).reshape(len(present), graph.dimension),
        **texts.build(present, "graph.ids"),
        "graph.bytes": np.frombuffer(graph.stored(), np.uint8),
    }


def _kept(options: GraphOptions) -> dict[str, int]:
    return {name: value for name, value in asdict(options).items() if name in _MADE_WITH}


def _read(arrays: Arrays, options: GraphOptions) -> SavedGraph:
    description = _description(arrays)
    if description.get("version") != VERSION or any(
        description.get(name) != value for name, value in _kept(options).items()
    ):
        raise IndexMismatch(
            f"a graph made with {description}", f"{_kept(options)}, version {VERSION}", "Build it anew."
        )
    lengths, live = arrays.whole("graph.lengths"), arrays.whole("graph.live")
    ids, sketches = Texts(arrays, "graph.ids"), arrays.whole("graph.sketches")
    dimension = int(description.get("dimension", 0))
    if len(lengths) != len(live) or len(ids) != int(live.sum()) or sketches.shape != (len(ids), dimension):
        raise damaged("graph.lengths", "documents that do not fit", "a length, and an id or none, for each slot")
    known = [DocumentId(identifier) for identifier in ids.at(np.arange(len(ids)))]
    following = iter(known)
    graph = TokenGraph(dimension, options, arrays.whole("graph.bytes").tobytes())
    graph.restore([next(following) if each else None for each in live], lengths)
    if graph.elements != int(lengths.sum()):
        raise damaged("graph.bytes", f"{graph.elements} tokens", f"{int(lengths.sum())}, as its documents have")
    return SavedGraph(graph, dict(zip(known, sketches, strict=True)))


def _description(arrays: Arrays) -> Mapping[str, Any]:
    try:
        return dict(json.loads(bytes(arrays.whole("graph.description"))))
    except (ValueError, TypeError) as error:
        raise damaged("graph.description", "what is no JSON object", "how the graph was made") from error
