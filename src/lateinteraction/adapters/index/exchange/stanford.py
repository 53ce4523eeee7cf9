"""Folders of Stanford's ColBERT 0.2, and of PyLate's copy of it: JSON, and tensors saved by torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index.exchange.foreign import (
    check_array,
    finite,
    read_lengths,
    read_object,
    unreadable,
    whole_number,
)
from lateinteraction.adapters.index.exchange.incoming import Incoming
from lateinteraction.adapters.index.exchange.residuals import PlaidChunk, PlaidCodec, incoming_of
from lateinteraction.adapters.index.exchange.tensors import read_tensors
from lateinteraction.domain.text import DocumentId

DESCRIPTION = "metadata.json"


def is_stanford(folder: Path) -> bool:
    """Whether these files are there."""
    return (folder / DESCRIPTION).is_file() and (folder / "centroids.pt").is_file()


def read_stanford(
    folder: Path, ids: Mapping[int, DocumentId] | None = None, texts: Mapping[str, str] | None = None
) -> Incoming:
    """The documents of a folder; see `residuals.incoming_of` for ids and texts.

    Raises:
        UnreadableFile: a file that is missing, damaged, or does not fit the others.
        IndexMismatch: ids that do not fit the documents.
    """
    description = read_object(folder / DESCRIPTION)
    settings = description.get("config")
    if not isinstance(settings, dict):
        raise unreadable(folder / DESCRIPTION, "without its config", "the settings it was made with")
    bits = whole_number(folder / DESCRIPTION, cast("dict[str, Any]", settings), "nbits", 1)
    centroids = finite(folder / "centroids.pt", _tensor(folder / "centroids.pt", "f", 2))
    codec = PlaidCodec(folder, centroids, _weights(folder / "buckets.pt"), bits)
    chunks = [_chunk(folder, number) for number in range(whole_number(folder / DESCRIPTION, description, "num_chunks"))]
    return incoming_of(folder, codec, chunks, ids, texts)


def _chunk(folder: Path, number: int) -> PlaidChunk:
    codes, residuals = folder / f"{number}.codes.pt", folder / f"{number}.residuals.pt"
    lengths = read_lengths(folder / f"doclens.{number}.json")
    return PlaidChunk(codes, lengths, _tensor(codes, "iu", 1), _tensor(residuals, "u", 2))


def _weights(path: Path) -> NDArray[np.float32]:
    """Of the cut-offs and the weights of the buckets, the weights."""
    pair = read_tensors(path)
    if len(pair) != 2:
        raise unreadable(path, f"which holds {len(pair)} tensors", "cut-offs and weights of the buckets")
    check_array(path, pair[1], "f", 1)
    return finite(path, pair[1])


def _tensor(path: Path, kinds: str, dimensions: int) -> NDArray[Any]:
    found = read_tensors(path)
    if len(found) != 1:
        raise unreadable(path, f"which holds {len(found)} tensors", "one")
    check_array(path, found[0], kinds, dimensions)
    return found[0]
