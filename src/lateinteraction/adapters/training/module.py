"""TrainedModule: all that is trained, as one module, so that whoever wraps modules sees every parameter used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from lateinteraction.adapters.encoding.learning import Sheet


@final
class TrainedModule(nn.Module):
    """A model's network, and what a loss learns.

    Args:
        network: gives rows of sheets, as `Learner.network`.
        learned: modules of the loss, such as a learnable temperature.
    """

    def __init__(self, network: nn.Module, learned: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.network = network
        self.loss = nn.ModuleList(learned)

    def forward(self, sheets: Sequence[Sheet]) -> Tensor:
        """Kept rows (K, D) of the sheets. The loss's parameters have a part in them, of nothing: their gradients come
        by the loss, and are reduced among processes with those of the network only if the graph of this leads there."""
        rows: Tensor = self.network(sheets)
        for parameter in self.loss.parameters():
            rows = rows + 0 * parameter.sum().type(rows.dtype)
        return rows
