"""Fingerprints: how an encoder embeds one known sentence, so that an index is not searched with another encoder.

What matters is what comes out: the same model in another precision or runtime has the same fingerprint, and other
weights, prefixes, prompts, skiplists or pooling have another, whatever the model is called.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.neural.transfer import to_host
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import IndexMismatch
from lateinteraction.domain.ports import Encoder
from lateinteraction.domain.text import Document, DocumentId, Query

if TYPE_CHECKING:
    from torch import Tensor

PROBE = "In 1984, Dr. O'Neill-Müller's snake_case function moved 3.5 % of 東京's data to E-mail: is that so?"

ALIKE = 0.99
"""Least cosine between two fingerprints of one encoder. Eight-bit weights move it by under 0.005 on MiniLM; another
model, or another prefix, by over 0.05."""


def fingerprint_of(encoder: Encoder[Tensor]) -> Mapping[str, str]:
    """What an index remembers of its encoder: for each role, the number of tokens and their mean in eight bits."""
    return {
        "query": _printed(encoder.encode_queries([Query(PROBE)])),
        "document": _printed(encoder.encode_documents([Document(DocumentId("probe"), PROBE)])),
    }


def check_fingerprint(known: Mapping[str, str], encoder: Encoder[Tensor]) -> None:
    """Raise `IndexMismatch` where an encoder embeds the sentence otherwise than the index remembers."""
    check_same(known, fingerprint_of(encoder))


def check_same(known: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise `IndexMismatch` where two fingerprints are those of encoders that embed the sentence differently."""
    for role, before in known.items():
        if not _alike(before, found.get(role, "")):
            raise IndexMismatch(
                f"an encoder that embeds a known {role} otherwise than the one this index was filled with",
                "the same model and recipe",
                "Open it with that model, or make a new index with this one.",
            )


def _printed(embeddings: TokenEmbeddings[Tensor]) -> str:
    tokens = to_host(embeddings.tokens).astype(np.float64)
    mean = tokens.mean(axis=0) if len(tokens) else np.zeros(tokens.shape[1])
    largest = np.abs(mean).max(initial=0.0) or 1.0
    codes = np.rint(mean / largest * 127).astype(np.int8)
    return f"{len(tokens)}:{base64.b64encode(codes.tobytes()).decode()}"


def _alike(before: str, now: str) -> bool:
    (tokens, first), (other_tokens, second) = _read(before), _read(now)
    if tokens != other_tokens or len(first) != len(second):
        return False
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return norms == 0 or float(first @ second) >= ALIKE * norms


def _read(printed: str) -> tuple[str, NDArray[np.float64]]:
    tokens, _, codes = printed.partition(":")
    try:
        return tokens, np.frombuffer(base64.b64decode(codes, validate=True), np.int8).astype(np.float64)
    except binascii.Error:
        return tokens, np.empty(0)
