"""Folders of residual codes, as PLAID and its descendants write them: a centroid for each token and what is left of it.

Of n bits a dimension, the number of a bucket stands lowest bit first, and the bits fill each byte from its highest one
(Santhanam et al., CIKM 2022, and the files of ColBERT 0.2 and fast-plaid 1.x). The centroid and the weights of the
buckets add up to the token, which is then brought to length 1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.adapters.index.exchange.foreign import unreadable
from lateinteraction.adapters.index.exchange.incoming import Batch, Incoming, batches_of
from lateinteraction.adapters.neural.transfer import to_device
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import IndexMismatch
from lateinteraction.domain.text import Document, DocumentId

_log = logging.getLogger(__name__)

BITS = (1, 2, 4, 8)

CODES_AT_A_TIME = 1 << 20
"""Looked at before anything is taken in."""


@final
class PlaidCodec:
    """What codes and residuals are decoded with.

    Args:
        folder: that it is from, for errors.
        centroids: float32 (K, D).
        weights: float32 (2ⁿ,), of the buckets.
        bits: n, of each dimension.

    Raises:
        UnreadableFile: these do not fit together.
    """

    def __init__(self, folder: Path, centroids: NDArray[np.float32], weights: NDArray[np.float32], bits: int) -> None:
        if bits not in BITS or weights.shape != (2**bits,):
            raise unreadable(folder, f"with {bits} bits and {weights.size} buckets", f"{BITS} bits, 2ⁿ buckets")
        if not centroids.size or centroids.shape[1] * bits % 8:
            raise unreadable(folder, f"with centroids {centroids.shape} and {bits} bits", "whole bytes for each token")
        self.centroids = centroids
        self.bytes_per_token = centroids.shape[1] * bits // 8
        self._weights = weights[_buckets_of_bytes(bits)]

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def dimension(self) -> int:
        return self.centroids.shape[1]

    def decode(self, codes: NDArray[np.integer], residuals: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors float32 (T, D) of codes (T,) and residuals (T, D n / 8)."""
        tokens = self.centroids[codes] + self._weights[residuals].reshape(len(codes), self.dimension)
        lengths = np.linalg.norm(tokens, axis=1, keepdims=True)
        lengths[lengths == 0] = 1
        return tokens / lengths


def _buckets_of_bytes(bits: int) -> NDArray[np.int64]:
    """The buckets (256, 8 / n) that each byte holds."""
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).reshape(256, 8 // bits, bits)
    return ones.astype(np.int64) @ (1 << np.arange(bits))


@frozen(eq=False)
class PlaidChunk:
    """Some documents of such a folder; arrays may be mapped.

    Attributes:
        path: of the file of codes, for errors.
        lengths: tokens of each document, int64 (N,).
        codes: (T,).
        residuals: uint8 (T, bytes).
    """

    path: Path
    lengths: NDArray[np.int64]
    codes: NDArray[Any]
    residuals: NDArray[Any]


def check_chunk(chunk: PlaidChunk, codec: PlaidCodec) -> None:
    """Raise `UnreadableFile` where a chunk does not fit, looking at every code."""
    tokens = int(chunk.lengths.sum())
    if chunk.codes.shape != (tokens,) or chunk.residuals.shape != (tokens, codec.bytes_per_token):
        raise unreadable(
            chunk.path,
            f"with codes {chunk.codes.shape} and residuals {chunk.residuals.shape}",
            f"({tokens},) and ({tokens}, {codec.bytes_per_token}), as the documents' lengths say",
        )
    if chunk.codes.dtype.kind not in "iu" or chunk.residuals.dtype != np.uint8:
        raise unreadable(chunk.path, f"of {chunk.codes.dtype} and {chunk.residuals.dtype}", "integers and bytes")
    for first in range(0, tokens, CODES_AT_A_TIME):
        block = chunk.codes[first : first + CODES_AT_A_TIME]
        if not 0 <= int(block.min()) <= int(block.max()) < len(codec):
            raise unreadable(chunk.path, "which names a centroid that is not there", f"0 to {len(codec) - 1}")


def incoming_of(
    folder: Path,
    codec: PlaidCodec,
    chunks: Sequence[PlaidChunk],
    ids: Mapping[int, DocumentId] | None,
    texts: Mapping[str, str] | None,
) -> Incoming:
    """The documents of all chunks.

    Args:
        folder: that they are from.
        codec: of all chunks.
        chunks: in the order of their documents.
        ids: by the number of the document; its number where None. What has neither tokens nor an id was removed.
        texts: by id, of documents that have one; such folders hold none.

    Raises:
        UnreadableFile: chunks that do not fit.
        IndexMismatch: ids that do not fit the documents.
    """
    for chunk in chunks:
        check_chunk(chunk, codec)
    lengths = np.concatenate([np.empty(0, np.int64), *(chunk.lengths for chunk in chunks)])
    known = ids if ids is not None else {number: DocumentId(str(number)) for number in range(len(lengths))}
    nameless = next((number for number in map(int, np.flatnonzero(lengths)) if number not in known), None)
    strangers = next((number for number in known if not 0 <= number < len(lengths)), None)
    if nameless is not None or strangers is not None:
        wrong = f"document {nameless} without an id" if nameless is not None else f"an id for document {strangers}"
        raise IndexMismatch(
            f"{folder} with {wrong}",
            f"ids for its {len(lengths)} documents",
            "A write to it was interrupted: what its ids mean cannot be told. Make it again, or import it without ids.",
        )

    def batches() -> Iterator[Batch]:
        first = 0
        for chunk in chunks:
            for part in _batches_of_chunk(chunk, codec, known, first):
                yield _with_texts(part, texts or {})
            first += len(chunk.lengths)

    _check_texts(folder, set(known.values()), texts)
    present = [known[number] for number in range(len(lengths)) if number in known]
    return Incoming(str(folder), present, codec.dimension, batches)


def _check_texts(folder: Path, ids: set[DocumentId], texts: Mapping[str, str] | None) -> None:
    """Raise `IndexMismatch` where no text is that of a document; warn where some are not."""
    if not texts or not ids:
        return
    missed = [each for each in texts if each not in ids]
    if len(missed) == len(texts):
        raise IndexMismatch(
            f"{len(texts)} texts, such as that of {missed[0]!r}, for {folder}",
            f"texts of its documents, such as {min(ids)!r}",
            "Give texts by these ids, or leave them out.",
        )
    if missed:
        _log.warning("%d of %d texts are of no document in %s", len(missed), len(texts), folder)


def _batches_of_chunk(
    chunk: PlaidChunk, codec: PlaidCodec, known: Mapping[int, DocumentId], first: int
) -> Iterator[tuple[list[DocumentId], TokenEmbeddings[NDArray[np.float32]]]]:
    starts = offsets_of(chunk.lengths)
    for rows in batches_of(chunk.lengths):
        span = slice(int(starts[rows.start]), int(starts[rows.stop]))
        numbers = [number for number in range(rows.start, rows.stop) if first + number in known]
        tokens = codec.decode(chunk.codes[span], chunk.residuals[span])
        ids = [known[first + number] for number in numbers]
        yield ids, TokenEmbeddings(tokens, offsets_of(chunk.lengths[numbers]))


def _with_texts(part: tuple[list[DocumentId], TokenEmbeddings[NDArray[np.float32]]], texts: Mapping[str, str]) -> Batch:
    ids, embeddings = part
    documents = [Document(each, texts.get(each, "")) for each in ids]
    return documents, TokenEmbeddings(to_device(embeddings.tokens, "cpu"), embeddings.offsets)
