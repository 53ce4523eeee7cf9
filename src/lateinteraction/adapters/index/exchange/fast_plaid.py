"""Folders of fast-plaid 1.x: JSON and .npy files. Of those beside them that hold pickles none is opened.

Codes and residuals stand in a pair of files for each chunk, or in one merged pair, or, since 1.7, some here and some
there. A chunk's own file is the newer one wherever there are both.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index.exchange.foreign import (
    finite,
    read_array,
    read_lengths,
    read_object,
    unreadable,
    whole_number,
)
from lateinteraction.adapters.index.exchange.incoming import Incoming
from lateinteraction.adapters.index.exchange.residuals import PlaidChunk, PlaidCodec, incoming_of
from lateinteraction.domain.text import DocumentId

DESCRIPTION = "metadata.json"


def is_fast_plaid(folder: Path) -> bool:
    """Whether these files are there."""
    return (folder / DESCRIPTION).is_file() and (folder / "centroids.npy").is_file()


def read_fast_plaid(
    folder: Path, ids: Mapping[int, DocumentId] | None = None, texts: Mapping[str, str] | None = None
) -> Incoming:
    """The documents of a folder; see `residuals.incoming_of` for ids and texts.

    Raises:
        UnreadableFile: a file that is missing, damaged, or does not fit the others.
        IndexMismatch: ids that do not fit the documents.
    """
    description = read_object(folder / DESCRIPTION)
    bits = whole_number(folder / DESCRIPTION, description, "nbits", 1)
    count = whole_number(folder / DESCRIPTION, description, "num_chunks")
    centroids, weights = folder / "centroids.npy", folder / "bucket_weights.npy"
    codec = PlaidCodec(
        folder,
        finite(centroids, read_array(centroids, "f", 2)),
        finite(weights, read_array(weights, "f", 1)),
        bits,
    )
    lengths = [read_lengths(folder / f"doclens.{number}.json") for number in range(count)]
    codes = _parts(folder, "codes", lengths, "iu", 1)
    residuals = _parts(folder, "residuals", lengths, "u", 2)
    chunks = [
        PlaidChunk(folder / f"{number}.codes", *each)
        for number, each in enumerate(zip(lengths, codes, residuals, strict=True))
    ]
    documents = sum(map(len, lengths))
    if description.get("num_documents", documents) != documents:
        raise unreadable(
            folder / DESCRIPTION,
            f"which counts {description['num_documents']} documents",
            f"{documents}, as in doclens",
        )
    return incoming_of(folder, codec, chunks, ids, texts)


def _parts(
    folder: Path, suffix: str, lengths: list[NDArray[np.int64]], kinds: str, dimensions: int
) -> list[NDArray[Any]]:
    """The rows of each chunk, wherever they are."""
    own = [folder / f"{number}.{suffix}.npy" for number in range(len(lengths))]
    merged_file = folder / f"merged_{suffix}.npy"
    if all(path.is_file() for path in own) or not merged_file.is_file():
        return [read_array(path, kinds, dimensions) for path in own]
    merged = read_array(merged_file, kinds, dimensions)
    rows = [_rows_when_merged(folder, suffix, path.name, each) for path, each in zip(own, lengths, strict=True)]
    ends = list(accumulate(rows))
    return [
        read_array(path, kinds, dimensions) if path.is_file() else merged[end - count : end]
        for path, count, end in zip(own, rows, ends, strict=True)
    ]


def _rows_when_merged(folder: Path, suffix: str, name: str, lengths: NDArray[np.int64]) -> int:
    """How many rows a chunk has in the merged file: as its manifest says, else as many as it has now."""
    path = folder / f"merged_{suffix}.manifest.json"
    if not path.is_file():
        return int(lengths.sum())
    entry = read_object(path).get(name)
    if entry is None:
        return int(lengths.sum())
    if not isinstance(entry, dict):
        raise unreadable(path, f"in which {name} is no object", "the rows of each chunk")
    return whole_number(path, cast("dict[str, Any]", entry), "rows")
