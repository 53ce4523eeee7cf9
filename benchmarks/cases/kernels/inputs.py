"""What is scored: sizes, packed random tokens, tokens around centroids, and scores in float64 to compare with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.quantisation import quantise_to_int8
from lateinteraction.kernels.operands import Tokens, spans_of

VARIABLES = ("DOCUMENTS", "REPEATS")
DIMENSION = 128
QUERY_LENGTH = 32
SHORTEST, LONGEST = 20, 300


@frozen
class Sizes:
    """How much is measured: what the figures say, or a trial of it.

    Args:
        documents: ragged ones to score; other counts follow it in a trial.
        repeats: rounds in which every contestant has its turn.
        trial: nothing is recorded.
    """

    documents: int = 1_000
    repeats: int = 11
    trial: bool = False

    @classmethod
    def chosen(cls) -> Sizes:
        """From the variables DOCUMENTS and REPEATS."""
        given = {name.lower(): int(os.environ[name]) for name in VARIABLES if os.environ.get(name)}
        return cls(**given, trial=bool(given))

    def reduced(self, count: int, least: int = 1) -> int:
        """So many, or in a trial the same share of them as of the documents."""
        return max(least, min(count, count * self.documents // 1_000)) if self.trial else count


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch, and for our kernels, which follow it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def unit_rows(generator: np.random.Generator, rows: int, dimension: int = DIMENSION) -> Tensor:
    """Random unit vectors float32 (rows, dimension)."""
    made = torch.from_numpy(generator.standard_normal((rows, dimension), np.float32))
    return torch.nn.functional.normalize(made, dim=1)


def packed(values: Tensor, lengths: Sequence[int] | NDArray[np.int64], scales: Tensor | None = None) -> Tokens:
    """Items of these lengths, one behind the other."""
    offsets = offsets_of(np.asarray(lengths, np.int64))
    return Tokens(values, spans_of(torch.from_numpy(offsets.copy())), int(np.max(lengths, initial=0)), scales)


def ragged(generator: np.random.Generator, documents: int) -> Tokens:
    """Documents of 20 to 300 random unit vectors."""
    lengths = generator.integers(SHORTEST, LONGEST + 1, documents)
    return packed(unit_rows(generator, int(lengths.sum())), lengths)


def queries_of(generator: np.random.Generator, count: int) -> Tokens:
    """Queries of 32 random unit vectors."""
    return packed(unit_rows(generator, count * QUERY_LENGTH), [QUERY_LENGTH] * count)


def offsets_from(tokens: Tokens) -> Offsets:
    """The offsets (N+1,) of packed items."""
    spans = tokens.spans.numpy()
    return np.concatenate([spans[:1, 0], spans[:, 1]])


def quantised(tokens: Tokens) -> Tokens:
    """The same in eight bits, with a scale for each token."""
    made = quantise_to_int8(TokenEmbeddings(tokens.values.numpy(), offsets_from(tokens)))
    return tokens._replace(values=torch.from_numpy(made.codes.tokens), scales=torch.from_numpy(made.scales))


def exact_scores(queries: Tokens, documents: Tokens) -> NDArray[np.float64]:
    """MaxSim (Q, N) in float64, one document at a time; each query and document has a token."""
    rows = _widened(queries).T
    starts = queries.spans[:, 0].numpy()
    scores = np.empty((len(starts), len(documents.spans)))
    values = _widened(documents)
    for column, (start, end) in enumerate(documents.spans.tolist()):
        scores[:, column] = np.add.reduceat((values[start:end] @ rows).max(axis=0), starts)
    return scores


def check_close(found: Tensor | NDArray[np.float32], truth: NDArray[np.float64], what: str, within: float) -> None:
    """That these are the same, relative to the largest.

    Raises:
        AssertionError: they are not, and so there is nothing to time.
    """
    given = found.numpy() if isinstance(found, Tensor) else found
    assert given.shape == truth.shape, f"{what}: {given.shape} in place of {truth.shape}"
    np.testing.assert_allclose(given, truth, rtol=within, atol=within * float(np.abs(truth).max()), err_msg=what)


def _widened(tokens: Tokens) -> NDArray[np.float64]:
    values = tokens.values.double()
    return (values if tokens.scales is None else values * tokens.scales.double()[:, None]).numpy()
