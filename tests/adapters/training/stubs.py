"""A model of a few numbers, for what must be exact: an embedding, dropout and a layer, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lateinteraction.adapters.encoding.batches import make_batch, plan_batches
from lateinteraction.adapters.encoding.learning import Sheet
from lateinteraction.adapters.training.batches import MicroBatch, Rectangles
from lateinteraction.domain.embeddings import offsets_of

WORDS, HIDDEN, WIDTH = 20, 8, 6


class StubNetwork(nn.Module):
    """Rows of tokens that know of each other only the mean of their sequence."""

    def __init__(self, seed: int = 0, *, dropout: float = 0.3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(WORDS, HIDDEN, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.layer = nn.Linear(HIDDEN, WIDTH, dtype=dtype)
        self.dtypes: list[torch.dtype] = []

    def forward(self, sheets: Sequence[Sheet]) -> Tensor:
        return torch.cat([self.rows(sheet) for sheet in sheets])

    def rows(self, sheet: Sheet) -> Tensor:
        seen = (torch.arange(sheet.ids.shape[1]) < sheet.attended[:, None])[..., None]
        words = self.dropout(self.words(sheet.ids))
        mean = (words * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True)
        made = self.layer(words + mean)
        self.dtypes.append(made.dtype)
        rows = made.flatten(0, 1).index_select(0, sheet.kept)
        return nn.functional.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=-1)


class Texts:
    """What a tokeniser gives: made-up tokens, of which some are dropped."""

    def __init__(self, generator: np.random.Generator, lengths: Sequence[int]) -> None:
        self.offsets = offsets_of(lengths)
        self.token_ids = generator.integers(0, WORDS, self.offsets[-1])
        self.kept = generator.random(self.offsets[-1]) < 0.8
        self.kept[self.offsets[:-1][np.diff(self.offsets) > 0]] = True
        self.attended = np.array(lengths, np.int64)

    def rectangles(self, budget: int) -> Rectangles:
        lengths, places = np.diff(self.offsets), np.cumsum(self.kept) - 1
        batches = tuple(make_batch(self, places, rows, 0) for rows in plan_batches(lengths, budget))
        destinations = np.concatenate([batch.sheet[len(batch.sheet) - batch.parts[3] :] for batch in batches])
        order = np.empty(len(destinations), np.int64)
        order[destinations] = np.arange(len(order))
        kept = offsets_of(self.kept)[self.offsets]
        return Rectangles(batches, order, kept, len(self.token_ids), sum(b.sequences * b.width for b in batches), 0)


def micro_batch(sizes: Sequence[int], seed: int, *, budget: int = 10**6, longest: int = 7) -> MicroBatch:
    """Queries with so many documents each."""
    generator = np.random.default_rng(seed)
    groups = offsets_of(sizes)
    return MicroBatch(
        queries=Texts(generator, generator.integers(1, longest, len(sizes))).rectangles(budget),
        documents=Texts(generator, generator.integers(1, longest, groups[-1])).rectangles(budget),
        groups=groups,
        teacher=generator.standard_normal(groups[-1]),
        rows=np.arange(len(sizes)),
        source="made up",
        query_keys=generator.integers(0, 2**40, len(sizes)),
        document_keys=generator.integers(0, 2**40, groups[-1]),
    )
