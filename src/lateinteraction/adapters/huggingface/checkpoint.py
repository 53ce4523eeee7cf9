"""Checkpoint: a late-interaction model in memory. Made by `reading`, run by `encoder`, kept by `writing` and `hub`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, frozen

from lateinteraction.adapters.encoding.tokenisation import SpecialTokens
from lateinteraction.adapters.huggingface.formats.description import Format
from lateinteraction.adapters.huggingface.formats.transformer import usable_positions
from lateinteraction.adapters.huggingface.projection import Projection
from lateinteraction.domain.recipe import EncodingRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@frozen(eq=False, kw_only=True)
class Checkpoint:
    """A late-interaction model in memory, whatever files it came from.

    Args:
        transformer: its last hidden state is one row per token.
        tokenizer: of the transformers library, with a `tokenizers` backend.
        projection: of the hidden states; empty where the model has none.
        recipe: how text becomes tokens, and which of them keep an embedding.
        source: what it was read from, for messages and the model card.
        format: whose files they were.
        narrowed: whether "auto" took weights of fewer bits than they may have in the files.
    """

    transformer: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    projection: Projection
    recipe: EncodingRecipe
    source: str
    format: Format
    narrowed: bool = False

    @property
    def dimension(self) -> int:
        """Of the token embeddings, before the recipe keeps the leading ones."""
        return self.projection.width or hidden_width(self.transformer)

    @property
    def specials(self) -> SpecialTokens:
        """The tokenizer's ids with a meaning of their own."""
        return special_tokens_of(self.tokenizer)

    @property
    def positions(self) -> int | None:
        """Most tokens the transformer can place; None where no limit is known."""
        return usable_positions(self.transformer)

    def with_recipe(self, recipe: EncodingRecipe) -> Checkpoint:
        """The same model read by another recipe; the weights are shared."""
        return evolve(self, recipe=recipe)


def hidden_width(transformer: PreTrainedModel) -> int:
    """Dimensions of the last hidden state."""
    return int(transformer.config.get_text_config().hidden_size)


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """The ids that transformers, which types them as nearly anything, knows to be special."""
    known = (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    mask, end, padding, unknown = (each if isinstance(each, int) else None for each in known)
    return SpecialTokens(mask, end, padding, unknown)
