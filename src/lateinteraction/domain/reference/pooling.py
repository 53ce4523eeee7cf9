"""Hierarchical token pooling in plain NumPy: a document's similar tokens become their mean.

Clavié, Chaffin and Adams, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact via
Token Pooling", arXiv 2409.14683. Precision as in `maxsim_all_pairs`. Shapes: n tokens of a document, K clusters, D
dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.reference.maxsim import Embeddings, Floats, precision_of, similarities

Flavour = Literal["exact", "pylate"]


@frozen
class Merge:
    """One step of a clustering: two clusters, each a node, become one."""

    left: int
    right: int
    height: float


def pool(embeddings: Embeddings, factor: float, *, protected: int = 1, flavour: Flavour = "exact") -> Embeddings:
    """Replace the tokens of each document, but its first `protected`, by the means of K clusters.

        K = max(⌊n / factor⌋, 1),  n the tokens that are not protected

    Ward's linkage on cosine distances 1 − x · y, as the paper and all its implementations use it, though Ward's
    criterion is stated for squared Euclidean distances. Rows are taken to be unit vectors.

    Args:
        embeddings: the documents; each is pooled on its own.
        factor: at least 1, not necessarily whole; 1 changes nothing.
        protected: tokens at the start that stay as they are ([CLS], the document marker).
        flavour: `exact` gives exactly K clusters, so output lengths follow from input lengths, in the order of
            their first tokens, means divided by their norm. `pylate` is what PyLate 1.6 gives through SciPy: at
            most K clusters (fewer where merges tie), in the order that `fcluster` numbers them, means as they are.

    Raises:
        InvalidOption: a factor below 1, a negative number of protected tokens, or an unknown flavour.
    """
    _check_options(factor, protected, flavour)
    pooled = [_pool_one(document, factor, protected, flavour) for document in embeddings]
    tokens = np.concatenate([embeddings.tokens[:0], *pooled]).astype(precision_of(embeddings.tokens))
    return TokenEmbeddings(tokens, offsets_of([len(document) for document in pooled]))


def ward(distances: NDArray[np.float64]) -> list[Merge]:
    """The n−1 merges of Ward's linkage on distances (n, n), in rising height.

    Nodes 0 … n−1 are the items; merge m makes node n + m. The closest two clusters merge, the lowest pair of
    nodes where several are as close, and the new one's distances follow from theirs:

        d(i∪j, k)² = ((n_i + n_k) d(i,k)² + (n_j + n_k) d(j,k)² − n_k d(i,j)²) / (n_i + n_j + n_k)

    Lance and Williams, The Computer Journal 9(4), 1967, with Ward's coefficients.
    """
    size = len(distances)
    between = {(i, j): float(distances[i, j]) for i in range(size) for j in range(i + 1, size)}
    sizes = dict.fromkeys(range(size), 1)
    merges: list[Merge] = []
    for node in range(size, 2 * size - 1):
        left, right = min(between, key=lambda pair: (between[pair], pair))
        height = between.pop((left, right))
        merges.append(Merge(left, right, height))
        joined = sizes.pop(left), sizes.pop(right)
        for other, count in sizes.items():
            to_left = between.pop((min(left, other), max(left, other)))
            to_right = between.pop((min(right, other), max(right, other)))
            squared = (joined[0] + count) * to_left**2 + (joined[1] + count) * to_right**2 - count * height**2
            between[other, node] = math.sqrt(max(squared, 0.0) / (sum(joined) + count))
        sizes[node] = sum(joined)
    return merges


def _pool_one(document: Floats, factor: float, protected: int, flavour: Flavour) -> Floats:
    rest = document[protected:].astype(np.float64)
    if factor == 1 or len(rest) < 2:
        return document
    merges = ward(1.0 - similarities(rest, rest))
    count = max(int(len(rest) // factor), 1)
    clusters = _scipy_clusters(merges, count) if flavour == "pylate" else _clusters(merges, count)
    means = np.stack([rest[cluster].mean(axis=0) for cluster in clusters])
    if flavour == "exact":
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        means = means / np.where(norms > 0, norms, 1.0)  # antipodal tokens: their mean has no direction
    return np.concatenate([document[:protected], means])


def _clusters(merges: list[Merge], count: int) -> list[list[int]]:
    """Exactly `count` clusters, in the order of their first items."""
    size = len(merges) + 1
    members = {item: [item] for item in range(size)}
    for node, merge in enumerate(merges[: size - count], start=size):
        members[node] = sorted(members.pop(merge.left) + members.pop(merge.right))
    return sorted(members.values())


def _scipy_clusters(merges: list[Merge], count: int) -> list[list[int]]:
    """At most `count` clusters, numbered as `scipy.cluster.hierarchy.fcluster(…, criterion="maxclust")` does.

    SciPy cuts at the lowest height that leaves at most `count` clusters, so every merge of that height counts. It
    then walks down from the root: below a node, the child that is itself a merge comes before the one that is an item.
    """
    size = len(merges) + 1
    cut = merges[size - count - 1].height

    def leaves(node: int) -> list[int]:
        if node < size:
            return [node]
        return leaves(merges[node - size].left) + leaves(merges[node - size].right)

    def walk(node: int) -> list[list[int]]:
        if node < size or merges[node - size].height <= cut:
            return [sorted(leaves(node))]
        children = sorted((merges[node - size].left, merges[node - size].right), key=lambda child: child < size)
        return [cluster for child in children for cluster in walk(child)]

    return walk(2 * size - 2)


def _check_options(factor: float, protected: int, flavour: Flavour) -> None:
    if not (factor >= 1 and math.isfinite(factor)):
        raise InvalidOption(f"factor = {factor!r}", "a finite number of at least 1", "2 halves the tokens.")
    if protected < 0:
        raise InvalidOption(f"protected = {protected!r}", "a whole number of at least 0", "0 protects none.")
    if flavour not in ("exact", "pylate"):
        raise InvalidOption(f"flavour = {flavour!r}", "'exact' or 'pylate'", "Choose one of the two.")
