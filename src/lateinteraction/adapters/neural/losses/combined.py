"""Losses made of losses: weighted sums, one for each source, leading dimensions, documents as they will be pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, final

from attrs import asdict, field, frozen
from torch import Tensor, nn

from lateinteraction.adapters.neural.losses.objective import Objective, check_number
from lateinteraction.adapters.neural.pooling import normalised, pooled
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidOption, shown
from lateinteraction.domain.recipe import TokenPooling
from lateinteraction.domain.training import Targets

Embeddings = TokenEmbeddings[Tensor]


def _parts(given: Sequence[tuple[float, Objective]]) -> tuple[tuple[float, Objective], ...]:
    parts = tuple(given)
    if not parts:
        raise InvalidOption("no losses to weigh", "at least one", "Give (weight, loss) pairs.")
    for weight, _ in parts:
        check_number("weight", weight)
    return parts


@final
@frozen(eq=False)
class Weighted:
    """Σ weight × loss.

    ColBERTv2's mix (Santhanam et al., NAACL 2022) is
    `Weighted([(1, Distillation()), (1, Contrastive(own_negatives=False))])`.

    Args:
        parts: weights, above 0, and losses.
    """

    parts: tuple[tuple[float, Objective], ...] = field(converter=_parts)

    @property
    def learned(self) -> tuple[nn.Module, ...]:
        return tuple(module for _, loss in self.parts for module in loss.learned)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"loss": "weighted", "parts": [[weight, dict(loss.settings)] for weight, loss in self.parts]}

    def __call__(self, queries: Embeddings, documents: Embeddings, targets: Targets[Tensor]) -> Tensor:
        (weight, first), *rest = self.parts
        total = weight * first(queries, documents, targets)
        for weight, loss in rest:
            total = total + weight * loss(queries, documents, targets)
        return total


@final
@frozen(eq=False)
class PerSource:
    """A loss for each source, by its name: scores here, pairs there.

    Args:
        losses: by source.
    """

    losses: Mapping[str, Objective] = field(converter=lambda losses: MappingProxyType(dict(losses)))

    @property
    def learned(self) -> tuple[nn.Module, ...]:
        return tuple(module for loss in self.losses.values() for module in loss.learned)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"loss": "per_source", "losses": {name: dict(loss.settings) for name, loss in self.losses.items()}}

    def __call__(self, queries: Embeddings, documents: Embeddings, targets: Targets[Tensor]) -> Tensor:
        if targets.source is None or targets.source not in self.losses:
            raise InvalidOption(
                f"a batch of source {targets.source!r}, and losses for {', '.join(map(repr, self.losses))}",
                "a loss for each source",
                "Name it too.",
            )
        return self.losses[targets.source](queries, documents, targets)


def _dimensions(given: Sequence[int]) -> tuple[int, ...]:
    dimensions = tuple(given)
    if not dimensions or any(isinstance(each, bool) or not isinstance(each, int) or each < 1 for each in dimensions):
        raise InvalidOption(f"dimensions = {shown(given)}", "whole numbers of at least 1", "Such as (128, 64, 32).")
    return dimensions


@final
@frozen(eq=False)
class Matryoshka:
    """A loss of the leading dimensions, for several numbers of them (Kusupati et al., NeurIPS 2022, eq. 1).

    Cut tokens are made unit vectors again before they are compared, as those of an index with fewer dimensions are.

    Args:
        loss: of each.
        dimensions: how many are kept.
        weights: of each, above 0; None: 1.
    """

    loss: Objective
    dimensions: tuple[int, ...] = field(converter=_dimensions)
    weights: tuple[float, ...] | None = field(
        default=None, converter=lambda given: None if given is None else tuple(given)
    )

    def __attrs_post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.dimensions):
            raise InvalidOption(
                f"{len(self.weights)} weights for {len(self.dimensions)} dimensions",
                "one for each",
                "Leave them out for 1.",
            )
        for weight in self.weights or ():
            check_number("weight", weight)

    @property
    def learned(self) -> tuple[nn.Module, ...]:
        return self.loss.learned

    @property
    def settings(self) -> Mapping[str, object]:
        return {
            "loss": "matryoshka",
            "of": dict(self.loss.settings),
            "dimensions": list(self.dimensions),
            "weights": list(self.weights or [1.0] * len(self.dimensions)),
        }

    def __call__(self, queries: Embeddings, documents: Embeddings, targets: Targets[Tensor]) -> Tensor:
        if max(self.dimensions) > queries.dimension:
            raise InvalidOption(
                f"{max(self.dimensions)} dimensions of a model that has {queries.dimension}",
                f"at most {queries.dimension}",
                "Name fewer.",
            )
        weights = self.weights or (1.0,) * len(self.dimensions)
        losses = [
            weight * self.loss(_leading(queries, dimension), _leading(documents, dimension), targets)
            for weight, dimension in zip(weights, self.dimensions, strict=True)
        ]
        return sum(losses[1:], start=losses[0])


@final
@frozen(eq=False)
class Pooled:
    """A loss of documents as they will be stored: pooled hierarchically, with gradients through the means.

    Which tokens are pooled follows from the embeddings as they are and has no gradient (Veneroso et al., CRISP,
    arXiv 2505.11471, train through clusters likewise).

    Args:
        loss: of the pooled documents.
        pooling: as in a recipe; the recipe of the model that is trained pools nothing itself.
    """

    loss: Objective
    pooling: TokenPooling

    @property
    def learned(self) -> tuple[nn.Module, ...]:
        return self.loss.learned

    @property
    def settings(self) -> Mapping[str, object]:
        return {"loss": "pooled", "of": dict(self.loss.settings), "pooling": asdict(self.pooling)}

    def __call__(self, queries: Embeddings, documents: Embeddings, targets: Targets[Tensor]) -> Tensor:
        return self.loss(queries, pooled(documents, self.pooling), targets)


def _leading(embeddings: Embeddings, dimension: int) -> Embeddings:
    return normalised(TokenEmbeddings(embeddings.tokens[:, :dimension], embeddings.offsets))


if TYPE_CHECKING:
    _weighted: type[Objective] = Weighted
    _per_source: type[Objective] = PerSource
    _matryoshka: type[Objective] = Matryoshka
    _pooled: type[Objective] = Pooled
