"""Normalised and mean-pooled forms of raw token embeddings, for encoders whose recipe leaves them as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.ports import Encoder
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query


def normalised(embeddings: TokenEmbeddings[Tensor]) -> TokenEmbeddings[Tensor]:
    """Every token divided by its L2 norm; a zero token stays zero."""
    return TokenEmbeddings(torch.nn.functional.normalize(embeddings.tokens, dim=1), embeddings.offsets)


def mean_pooled(embeddings: TokenEmbeddings[Tensor]) -> TokenEmbeddings[Tensor]:
    """One normalised token for each item: the mean of its tokens. An empty item stays empty.

    MaxSim over such items is the cosine of the pooled vectors (Reimers and Gurevych, EMNLP 2019, mean pooling).
    """
    means = [tokens.mean(dim=0) for tokens in embeddings if len(tokens)]
    pooled = torch.stack(means) if means else embeddings.tokens[:0]
    return normalised(TokenEmbeddings(pooled, offsets_of(np.minimum(embeddings.lengths, 1))))


@final
@frozen
class MeanPooledEncoder:
    """An `Encoder` of one vector per text, over an encoder whose recipe does not normalise."""

    encoder: Encoder[Tensor]

    @property
    def recipe(self) -> EncodingRecipe:
        return self.encoder.recipe

    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[Tensor]:
        return mean_pooled(self.encoder.encode_queries(queries))

    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[Tensor]:
        return mean_pooled(self.encoder.encode_documents(documents))


if TYPE_CHECKING:
    _: type[Encoder[Tensor]] = MeanPooledEncoder
