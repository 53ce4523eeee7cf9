"""Network: a transformer and its projection as one module, rows out. What encoders run and what training changes.

Shapes: B sequences of at most L tokens in a sheet; K kept rows; H hidden, D output dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Literal, Self, final

import torch
from torch import Tensor, nn

from lateinteraction.adapters.encoding.learning import Sheet
from lateinteraction.adapters.huggingface.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Masking = Literal["everywhere", "windowed", "counted"]
"""How a model is told what to attend to: by a mask (B, 1, 1, L); by that and one for its sliding windows; or by a mask
(B, L), of which transformers makes its own and waits for the device once for each padded batch."""
_SEES_ALL = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
"""Model types whose every layer attends to every attended token, and which take a mask (B, 1, 1, L) as it is."""


@final
class Network(nn.Module):
    """Kept rows of sheets: projected, cut to the recipe's dimension, at least float32, normalised where it says so.

    Holds the checkpoint's own modules, whatever mode, dtype and device they are in.

    Args:
        checkpoint: a model.

    Attributes:
        frozen: modules that are in evaluation mode even in training, so that they drop nothing out.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.transformer = checkpoint.transformer
        self.projection = checkpoint.projection
        self._normalise = checkpoint.recipe.normalise
        self.dimension = checkpoint.recipe.dimension or checkpoint.dimension
        self._masking = _masking_of(checkpoint.transformer)
        self.frozen: tuple[nn.Module, ...] = ()

    def train(self, mode: bool = True) -> Self:
        """Everything into training mode, or evaluation mode, but what is frozen."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, sheets: Sequence[Sheet]) -> Tensor:
        """Rows (K, D) of the sheets, one sheet after the other."""
        rows = [self.rows(sheet) for sheet in sheets]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def rows(self, sheet: Sheet) -> Tensor:
        """Rows (K, D) of one sheet."""
        mask = None if sheet.full else self._mask(sheet.attended, sheet.ids.shape[1])
        hidden: Tensor = self.transformer(input_ids=sheet.ids, attention_mask=mask)[0]
        rows = self.projection(hidden.flatten(0, 1).index_select(0, sheet.kept))[:, : self.dimension]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        return nn.functional.normalize(rows, dim=-1) if self._normalise else rows

    def _mask(self, attended: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """What the model takes as it is; of a mask (B, L) transformers would ask the device what is in it."""
        position = torch.arange(width, device=attended.device)
        seen = position < attended[:, None]
        if self._masking == "counted":
            return seen.long()
        everywhere = seen[:, None, None, :]
        if self._masking == "everywhere":
            return everywhere
        near = (position[:, None] - position).abs() <= self.transformer.config.sliding_window
        return {"full_attention": everywhere, "sliding_attention": everywhere & near}


def _masking_of(model: PreTrainedModel) -> Masking:
    config = model.config
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return "counted"
    if config.model_type in _SEES_ALL:
        return "everywhere"
    # Older transformers made ModernBERT's masks from another argument.
    windowed = config.model_type == "modernbert" and "sliding_window_mask" not in signature(model.forward).parameters
    return "windowed" if windowed else "counted"
