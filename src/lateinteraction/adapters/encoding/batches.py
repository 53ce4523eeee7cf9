"""Ragged sequences to rectangles for a model: like lengths together, the longest first.

Shapes: B sequences of at most L tokens in a batch; K tokens of them keep an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.adapters.encoding.tokenisation import TokenisedTexts

Positions = NDArray[np.int64]


@frozen(eq=False)
class Batch:
    """One rectangle of sequences. All that a device needs is one array, so that it is one transfer.

    Args:
        sequences, width: B and L.
        sheet: int64 (B·L + B + 2·K,): padded ids, attended counts, rows to keep and their places in the output.
        full: whether every token may attend to every other: there is no padding.
    """

    sequences: int
    width: int
    sheet: NDArray[np.int64]
    full: bool

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Lengths of the four parts of the sheet."""
        kept = (len(self.sheet) - self.sequences * (self.width + 1)) // 2
        return self.sequences * self.width, self.sequences, kept, kept


def by_falling_length(lengths: NDArray[np.int64]) -> Positions:
    """Positions of the sequences that have tokens, the longest first: memory that suffices for the first batch then
    suffices for all."""
    return np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]


def count_of_next(lengths: NDArray[np.int64], order: Positions, first: int, tokens_per_batch: int) -> int:
    """How many sequences of `order`, from `first` on, make the next batch.

    B sequences cost B × the longest: at most `tokens_per_batch`, unless one alone costs more.
    """
    return min(len(order) - first, max(1, tokens_per_batch // int(lengths[order[first]])))


def plan_batches(lengths: NDArray[np.int64], tokens_per_batch: int) -> Iterator[Positions]:
    """Positions of the sequences of each batch. Sequences without tokens are in none."""
    order = by_falling_length(lengths)
    first = 0
    while first < len(order):
        last = first + count_of_next(lengths, order, first, tokens_per_batch)
        yield order[first:last]
        first = last


def make_batch(tokenised: TokenisedTexts, places: NDArray[np.int64], rows: Positions, padding_id: int) -> Batch:
    """The batch of some sequences, the longest of which is the first.

    Args:
        places: int64 (T,), where each token's embedding goes, if it is kept.
    """
    lengths = np.diff(tokenised.offsets)[rows]
    width = int(lengths[0])
    column = np.arange(width)
    present = column < lengths[:, None]
    token = np.where(present, tokenised.offsets[rows, None] + column, 0)
    kept = present & tokenised.kept[token]
    attended = tokenised.attended[rows]
    sheet = [
        np.where(present, tokenised.token_ids[token], padding_id).reshape(-1),
        attended,
        np.flatnonzero(kept),
        places[token[kept]],
    ]
    return Batch(len(rows), width, np.concatenate(sheet), full=bool(np.all(attended == width)))
