"""Smaller forms of token embeddings: eight bits or one bit for each value.

Lossy on purpose, and never without being asked for. NumPy in, NumPy out; codecs of an index are another matter.

Shapes: T tokens, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidEmbeddings

LARGEST_CODE = 127


@frozen(eq=False)
class Int8Embeddings:
    """Eight bits for each value, and a scale for each token: value ≈ code × scale.

    Args:
        codes: int8 (T, D), from −127 to 127, so that a sign can be changed.
        scales: float32 (T,), the largest absolute value of a token, divided by 127; 0 for a token of zeros.
    """

    codes: TokenEmbeddings[NDArray[np.int8]]
    scales: NDArray[np.float32]

    def __attrs_post_init__(self) -> None:
        if self.scales.shape != (self.codes.tokens.shape[0],):
            raise InvalidEmbeddings(
                f"scales of shape {self.scales.shape} for {self.codes.tokens.shape[0]} tokens",
                "one for each token",
                "Quantise with `quantise_to_int8`.",
            )

    def restored(self) -> TokenEmbeddings[NDArray[np.float32]]:
        """The values, each off by at most half a scale."""
        return TokenEmbeddings(self.codes.tokens.astype(np.float32) * self.scales[:, None], self.codes.offsets)


@frozen(eq=False)
class BinaryEmbeddings:
    """One bit for each value: whether it is above 0.

    Args:
        bits: uint8 (T, ⌈D / 8⌉), the first dimension in the highest bit (`numpy.packbits`).
        dimension: D.
    """

    bits: TokenEmbeddings[NDArray[np.uint8]]
    dimension: int

    def __attrs_post_init__(self) -> None:
        if self.bits.tokens.shape[1] != -(-self.dimension // 8):
            raise InvalidEmbeddings(
                f"{self.bits.tokens.shape[1]} bytes for each token of {self.dimension} dimensions",
                f"{-(-self.dimension // 8)} bytes",
                "Quantise with `quantise_to_bits`.",
            )

    def restored(self) -> TokenEmbeddings[NDArray[np.float32]]:
        """Unit vectors of the same signs: every value is 1/√D or −1/√D."""
        signs = np.unpackbits(self.bits.tokens, axis=1, count=self.dimension).astype(np.float32) * 2 - 1
        return TokenEmbeddings(signs / np.float32(np.sqrt(self.dimension)), self.bits.offsets)


def quantise_to_int8(embeddings: TokenEmbeddings[NDArray[Any]]) -> Int8Embeddings:
    """Round each value to the nearest of 255 steps between a token's largest absolute value and its negative.

    Raises:
        InvalidEmbeddings: NaN or infinity, which have no step.
    """
    tokens = _finite(embeddings)
    scales = np.abs(tokens).max(axis=1, initial=0.0) / np.float32(LARGEST_CODE)
    # A scale too small for float32 would divide by 0; the token is as good as 0 then.
    steps = tokens / np.where(scales > 0, scales, 1.0)[:, None]
    codes = np.rint(np.clip(steps, -LARGEST_CODE, LARGEST_CODE)).astype(np.int8)
    return Int8Embeddings(TokenEmbeddings(codes, embeddings.offsets), scales)


def quantise_to_bits(embeddings: TokenEmbeddings[NDArray[Any]]) -> BinaryEmbeddings:
    """Keep whether each value is above 0.

    Raises:
        InvalidEmbeddings: NaN or infinity.
    """
    bits = np.packbits(_finite(embeddings) > 0, axis=1)
    return BinaryEmbeddings(TokenEmbeddings(bits, embeddings.offsets), embeddings.dimension)


def _finite(embeddings: TokenEmbeddings[NDArray[Any]]) -> NDArray[np.float32]:
    tokens = embeddings.tokens.astype(np.float32, copy=False)
    if not np.all(np.isfinite(tokens)):
        raise InvalidEmbeddings("NaN or infinite values", "finite values", "Look for a damaged model.")
    return tokens
