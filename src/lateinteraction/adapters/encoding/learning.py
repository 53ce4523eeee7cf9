"""What a trainer needs of a model: its tokens on the host, rows that gradients flow through, and an encoder to watch.

Whoever brings a model implements `Learner`; whoever trains one takes it. How rows become a loss is left to both.

Shapes: B sequences of at most L tokens in a rectangle; K tokens of it keep an embedding of D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from attrs import frozen
from torch import Tensor, nn

from lateinteraction.adapters.encoding.batches import Batch
from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser
from lateinteraction.adapters.neural.transfer import queued_to_device
from lateinteraction.domain.ports import Encoder
from lateinteraction.domain.recipe import EncodingRecipe


@frozen(eq=False)
class Sheet:
    """One rectangle of sequences, on a device.

    Args:
        ids: int64 (B, L), padded.
        attended: int64 (B,), how many leading tokens of each sequence the others may attend to.
        kept: int64 (K,), places of the tokens that keep an embedding among the B·L.
        full: whether every token may attend to every other: there is no padding.
    """

    ids: Tensor
    attended: Tensor
    kept: Tensor
    full: bool


def sheet_of(batch: Batch, device: torch.device) -> Sheet:
    """A batch on a device, in one transfer that nobody waits for."""
    return placed_sheet_of(batch, device)[0]


def placed_sheet_of(batch: Batch, device: torch.device) -> tuple[Sheet, Tensor]:
    """The same, and the places int64 (K,) in the output that the batch has for its rows."""
    ids, attended, kept, places = queued_to_device(batch.sheet, device).split(batch.parts)
    return Sheet(ids.view(batch.sequences, batch.width), attended, kept, batch.full), places


class Learner(Protocol):
    """A model that can be trained.

    `network(sheets)` gives the kept rows of all sheets, one sheet after the other, float32 (float64 where the weights
    are), (K, D): projected, cut to the recipe's dimension, and normalised where the recipe says so.
    """

    @property
    def recipe(self) -> EncodingRecipe: ...
    @property
    def tokeniser(self) -> RecipeTokeniser:
        """Follows the recipe; several threads may call it."""
        ...

    @property
    def network(self) -> nn.Module: ...
    @property
    def encoder(self) -> Encoder[Tensor]:
        """Of the weights as they are; may be called between steps, and leaves the network as it was."""
        ...

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Of the network, those that are alike and run one after the other: what is shared out among processes."""
        ...

    @property
    def groups(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """All parameters that are trained, by the names that learning rates are set for."""
        ...
