"""A corpus from a seed: token embeddings of documents with topics, in blocks that never lie in memory together.

Words belong to topics; a word is a unit vector near the centre of its topic, and a token is a word with noise of its
own and a little that all tokens of its document share. A document takes most of its words from one topic, rare ones
seldom (Zipf). A query of 32 tokens repeats tokens of one document, with noise. So there is what an index lives from
(clusters, common words, documents that are alike) and no ranking that is trivially right.

Of 20,000 documents, 1.2 million tokens, spherical k-means leaves residuals of mean norm 0.58 with 4,096 centroids and
0.49 with 12,288, which is what token embeddings of trained encoders leave at that many tokens for each centroid.

A block is made from the seed and its own number alone: the first documents of a large corpus are a small corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from attrs import Factory, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of

DIMENSION = 128
SHORTEST, LONGEST = 20, 100
QUERY_LENGTH = 32
BLOCK = 1_000

TOPICS, WORDS_PER_TOPIC = 500, 24
OWN_TOPIC = 0.7
"""Share of a document's tokens from its main topic; the others are from a second one."""
WORD_SPREAD, TOKEN_NOISE, DOCUMENT_NOISE, QUERY_NOISE = 0.65, 0.44, 0.18, 0.5
"""Norms of what is added: to a topic's centre, to a word, to all tokens of a document, to a query's token."""

Floats = NDArray[np.float32]


@frozen(eq=False)
class Corpus:
    """So many documents from a seed."""

    documents: int
    seed: int = 0
    dimension: int = DIMENSION
    _words: Floats = field(init=False, repr=False, default=Factory(lambda self: self._vocabulary(), True))

    def blocks(self) -> Iterator[TokenEmbeddings[Tensor]]:
        """All documents, 1,000 at a time; float32."""
        for first in range(0, self.documents, BLOCK):
            yield self.block(first // BLOCK)

    def block(self, number: int) -> TokenEmbeddings[Tensor]:
        """Documents 1,000 · number and following."""
        generator = np.random.default_rng((self.seed, 1, number))
        lengths = generator.integers(SHORTEST, LONGEST + 1, BLOCK)
        owners = np.repeat(np.arange(BLOCK), lengths)
        topics = generator.integers(0, TOPICS, (BLOCK, 2))
        chosen = topics[owners, (generator.random(len(owners)) > OWN_TOPIC).astype(np.int64)]
        tokens = self._words[chosen * WORDS_PER_TOPIC + _ranks(generator, len(owners))]
        tokens = tokens + _noise(generator, BLOCK, self.dimension, DOCUMENT_NOISE)[owners]
        tokens += _noise(generator, len(owners), self.dimension, TOKEN_NOISE)
        whole = TokenEmbeddings(torch.from_numpy(_unit(tokens)), offsets_of(lengths))
        return whole.span(0, min(BLOCK, self.documents - number * BLOCK))

    def packed(self) -> TokenEmbeddings[Tensor]:
        """All documents at once."""
        blocks = list(self.blocks())
        lengths = np.concatenate([block.lengths for block in blocks])
        return TokenEmbeddings(torch.cat([block.tokens for block in blocks]), offsets_of(lengths))

    def queries(self, count: int) -> TokenEmbeddings[Tensor]:
        """Queries of 32 tokens, each made from a document of its own choice."""
        generator = np.random.default_rng((self.seed, 2))
        places = [int(place) for place in generator.integers(0, self.documents, count)]
        sources = self._documents(places)
        rows: list[Floats] = []
        for place in places:
            tokens = sources[place]
            own = tokens[generator.integers(0, len(tokens), QUERY_LENGTH)]
            rows.append(_unit(own + _noise(generator, QUERY_LENGTH, self.dimension, QUERY_NOISE)))
        return TokenEmbeddings(torch.from_numpy(np.concatenate(rows)), offsets_of([QUERY_LENGTH] * count))

    def _documents(self, places: Sequence[int]) -> dict[int, Floats]:
        """The tokens of these documents; each block is made once."""
        found: dict[int, Floats] = {}
        for number in sorted({place // BLOCK for place in places}):
            block = self.block(number)
            own = {place for place in places if place // BLOCK == number}
            found |= {place: block[place % BLOCK].numpy().copy() for place in own}
        return found

    def _vocabulary(self) -> Floats:
        """Words (TOPICS · WORDS_PER_TOPIC, D), topic after topic."""
        generator = np.random.default_rng((self.seed, 0))
        centres = _unit(generator.standard_normal((TOPICS, self.dimension), np.float32))
        spread = _noise(generator, TOPICS * WORDS_PER_TOPIC, self.dimension, WORD_SPREAD)
        return _unit(np.repeat(centres, WORDS_PER_TOPIC, axis=0) + spread)


def _ranks(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Words of a topic by Zipf's law: the r-th is drawn ∝ 1 / (r + 3)."""
    weights = 1 / (np.arange(WORDS_PER_TOPIC) + 3.0)
    return generator.choice(WORDS_PER_TOPIC, count, p=weights / weights.sum())


def _noise(generator: np.random.Generator, rows: int, dimension: int, norm: float) -> Floats:
    """Random vectors of about this norm."""
    drawn = generator.standard_normal((rows, dimension), np.float32)
    return drawn * np.float32(norm / np.sqrt(dimension))


def _unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
