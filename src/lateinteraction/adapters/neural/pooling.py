"""Fewer embeddings for a text: hierarchical pooling of its tokens, or one mean of them all.

What is computed is said by `domain.reference.pooling`; the clustering is SciPy's (extra `pooling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.neural.transfer import to_device, to_host
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import MissingExtra
from lateinteraction.domain.ports import Encoder
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
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


def pooled(embeddings: TokenEmbeddings[Tensor], pooling: TokenPooling) -> TokenEmbeddings[Tensor]:
    """Hierarchical pooling of every item (Clavié, Chaffin and Adams, arXiv 2409.14683); gradients pass the means.

    Only the clustering runs on the host. Rows are taken to be unit vectors.

    Raises:
        MissingExtra: SciPy is not installed.
    """
    if pooling.changes_nothing:
        return embeddings
    parts = [_pool_one(tokens, pooling) for tokens in embeddings]
    lengths = [len(part) for part in parts]
    return TokenEmbeddings(torch.cat([embeddings.tokens[:0], *parts]), offsets_of(lengths))


def _pool_one(tokens: Tensor, pooling: TokenPooling) -> Tensor:
    kept, rest = tokens[: pooling.protected], tokens[pooling.protected :]
    count = max(int(len(rest) // pooling.factor), 1)
    if count >= len(rest):
        return tokens
    labels = _labels(to_host((rest.detach() @ rest.detach().T).float()), count, pooling)
    cluster = to_device(labels, tokens.device)
    sums = rest.new_zeros((labels.max() + 1, rest.shape[1])).index_add(0, cluster, rest)
    means = sums / torch.bincount(cluster, minlength=len(sums))[:, None]
    if pooling.flavour == "exact":
        means = torch.nn.functional.normalize(means, dim=1)
    return torch.cat([kept, means.type(tokens.dtype)])


def _labels(similarities: NDArray[np.float32], count: int, pooling: TokenPooling) -> NDArray[np.int64]:
    """The cluster of each token, numbered from 0 without gaps."""
    try:
        from scipy.cluster import hierarchy
    except ImportError as error:
        raise MissingExtra(
            "token pooling without SciPy", "the package scipy", 'Run: pip install "lateinteraction[pooling]".'
        ) from error
    size = len(similarities)
    distances = np.maximum(1 - similarities, 0)  # rounding, and rows that are no unit vectors, can take it below
    merges = hierarchy.linkage(distances[np.triu_indices(size, k=1)], method="ward")
    if pooling.flavour == "pylate":
        labels = hierarchy.fcluster(merges, t=count, criterion="maxclust")
    else:
        # Exactly `count` clusters, ties or not: the first merges, in rising height.
        labels = np.arange(size)
        node = np.arange(2 * size - 1)  # the label that stands for a cluster: that of its first token
        for new, (left, right) in enumerate(merges[: size - count, :2].astype(np.int64), start=size):
            node[new] = min(node[left], node[right])
            labels[labels == max(node[left], node[right])] = node[new]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


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
