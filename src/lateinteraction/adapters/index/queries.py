"""PreparedQuery: a query, and what payloads make of it, once for all segments."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.adapters.index.codebook import Around, Codebook
from lateinteraction.adapters.index.hits import Scores
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.index.options import TABLED
from lateinteraction.adapters.neural.transfer import all_finite, to_device, to_host
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.domain.quantisation import quantise_to_int8
from lateinteraction.kernels.operands import CentroidTable, Tokens

NEAR_CELLS = 4
"""Cells in which a query token looks for centroids, besides those of the other tokens. Share of its true 20 nearest,
with 12,000 centroids: 2 .967, 4 .987, 8 .995, 16 .999; what is found in 100,000 documents is the same with 2, 4, 8."""


@final
class PreparedQuery:
    """One query, and what payloads make of its tokens: each once, however many segments there are.

    Args:
        values: (S, D).

    Raises:
        InvalidEmbeddings: NaN or infinity.
    """

    def __init__(self, values: Tensor) -> None:
        own = values.detach().type(torch.float32).contiguous()
        check_finite(own)
        self.tokens = Tokens(own, torch.tensor([[0, len(own)]], device="cpu"), len(own))
        self._tables: dict[tuple[Codebook, bytes | None], Tensor] = {}
        self._around: dict[Codebook, Around] = {}
        self._nearest: dict[tuple[Codebook, int, int], tuple[NDArray[np.int64], Scores]] = {}
        self._tables_of_bytes: dict[tuple[Codebook, bytes | None], CentroidTable] = {}

    def __len__(self) -> int:
        return self.tokens.longest

    @once
    def apart(self) -> Tokens:
        """Each token as a query of its own."""
        places = torch.arange(len(self), device="cpu")
        return self.tokens._replace(spans=torch.stack([places, places + 1], dim=1), longest=min(1, len(self)))

    def table(self, codebook: Codebook, least: Scores | None = None) -> Tensor:
        """How similar each token is to each centroid, (K, S); where `least` (S,) is given, nowhere below it."""
        key = codebook, None if least is None else least.tobytes()
        if key not in self._tables:
            self._tables[key] = (
                kernels.centroid_scores(self.tokens.values, codebook.centroids)
                if least is None
                else self.table(codebook).maximum(to_device(least, "cpu"))
            )
        return self._tables[key]

    def has_table(self, codebook: Codebook) -> bool:
        """Whether `table` was called before, and costs nothing."""
        return (codebook, None) in self._tables

    def nearest(self, codebook: Codebook, nprobe: int, known: int) -> tuple[NDArray[np.int64], Scores]:
        """The most similar of the first `known` centroids (S, nprobe) of each token, and their similarities."""
        if (codebook, nprobe, known) not in self._nearest:
            if len(codebook) <= TABLED:
                table = self.table(codebook)[:known]
                found = kernels.probe(table, nprobe)
                similarities = table.mT.gather(1, found)
            else:
                if codebook not in self._around:
                    self._around[codebook] = codebook.around(self.tokens.values, NEAR_CELLS)
                found, similarities = codebook.nearest(self._around[codebook], nprobe, known)
            self._nearest[codebook, nprobe, known] = to_host(found), to_host(similarities)
        return self._nearest[codebook, nprobe, known]

    def table_of_bytes(self, codebook: Codebook, least: Scores | None = None) -> CentroidTable:
        """The same in eight bits."""
        key = codebook, None if least is None else least.tobytes()
        if key not in self._tables_of_bytes:
            table = self.table(codebook)
            lifted = table if least is None else table.maximum(to_device(least, "cpu"))
            self._tables_of_bytes[key] = kernels.quantise_table(lifted)
        return self._tables_of_bytes[key]

    @once
    def in_eight_bits(self) -> Tokens:
        """The tokens rounded as `int8` rounds those of documents."""
        made = quantise_to_int8(TokenEmbeddings(to_host(self.tokens.values), offsets_of([len(self)])))
        return self.tokens._replace(values=to_device(made.codes.tokens, "cpu"), scales=to_device(made.scales, "cpu"))


def check_finite(values: Tensor) -> None:
    """Raise `InvalidEmbeddings` for values that no score can be made of."""
    if not all_finite(values):
        raise InvalidEmbeddings(
            "token embeddings with NaN, infinity or beyond float16", "finite values", "Check the encoder."
        )
