"""HuggingFaceEncoder: texts to packed token embeddings with any transformers model.

This module is the engine: one transfer per batch to the device, kept rows into one flat buffer there. Nothing comes
back. The loop around it is `adapters.encoding`, reading a model from disk is `checkpoint`.

Shapes: B sequences of at most L tokens in a batch; D dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, final

import torch
from torch import Tensor, nn

from lateinteraction.adapters.encoding.batches import Batch
from lateinteraction.adapters.encoding.encoder import EncodingOptions, Engine, TextEncoder
from lateinteraction.adapters.encoding.learning import placed_sheet_of
from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser
from lateinteraction.adapters.huggingface.checkpoint import Checkpoint, special_tokens_of
from lateinteraction.adapters.huggingface.network import Network
from lateinteraction.adapters.neural.pooling import pooled
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidModel, InvalidRecipe
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CPU_TOKENS_PER_BATCH = 1_024
"""MiniLM-L6, 80 documents of 132 tokens on average, one thread, CPU seconds: 512: 3.6, 1k: 3.5, 2k: 3.7, 4k: 4.0,
8k: 5.1, 16k: 6.0; 32 documents at once, sorted by characters: 5.2. Two threads, 50 such documents, best seconds:
512: 1.41, 1k: 1.36, 2k: 1.52, 4k: 1.63, 8k: 2.15; 32 at once: 1.99. From 8k on, the allocator returns every
intermediate result to the system and faults it in again (300,000 page faults; none up to 2k)."""
ACCELERATOR_TOKENS_PER_BATCH = 16_384
"""Enough rows to fill a large GPU's matrix units with a base-sized model; not measured yet."""

_SCARCE = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
_DEFAULTS = EncodingOptions()


@final
class HuggingFaceEncoder(TextEncoder[Tensor]):
    """An `Encoder[Tensor]` and `TokenTracer` over a checkpoint: its transformer's last hidden state, projected.

    It runs where the weights are. Embeddings are float32 whatever the weights are, on the same device, and ordinary
    tensors: a loss may use them. Several threads may call it at once.

    Args:
        checkpoint: put into evaluation mode; weights, dtype and device stay as they are.
        options: how texts are worked through.

    Raises:
        InvalidRecipe: settings this model or tokenizer cannot honour.
        InvalidModel: a model or tokenizer that cannot be used, or that do not belong together.
        InvalidOption: a batch that could not hold one text of the recipe's length.
    """

    def __init__(self, checkpoint: Checkpoint, options: EncodingOptions = _DEFAULTS) -> None:
        recipe = checkpoint.recipe
        tokeniser = tokeniser_of(checkpoint.tokenizer, recipe, options)
        _check_model(checkpoint.transformer, tokeniser.largest_id)
        _check_recipe(checkpoint, recipe)
        self.checkpoint = checkpoint
        super().__init__(_TorchEngine(Network(checkpoint).eval()), tokeniser, recipe, options)

    def with_recipe(self, recipe: EncodingRecipe) -> HuggingFaceEncoder:
        """The same model read by another recipe; the weights are shared."""
        return HuggingFaceEncoder(self.checkpoint.with_recipe(recipe), self.options)


def tokeniser_of(
    tokenizer: PreTrainedTokenizerBase, recipe: EncodingRecipe, options: EncodingOptions = _DEFAULTS
) -> RecipeTokeniser:
    """The tokeniser of a transformers tokenizer, which must have a `tokenizers` backend.

    Raises:
        InvalidModel: it has none.
    """
    if not tokenizer.is_fast:
        raise InvalidModel(
            f"the tokenizer of {tokenizer.name_or_path!r}, a {type(tokenizer).__name__}",
            "one with a `tokenizers` backend (a tokenizer.json)",
            "Convert it with transformers and save it again.",
        )
    backend = cast("Tokenizer", tokenizer.backend_tokenizer)
    return RecipeTokeniser(backend, special_tokens_of(tokenizer), recipe, options.on_too_long)


class _TorchEngine:
    """The forward pass in PyTorch."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._model = network.transformer

    @property
    def tokens_per_batch(self) -> int:
        return CPU_TOKENS_PER_BATCH if self._model.device.type == "cpu" else ACCELERATOR_TOKENS_PER_BATCH

    def allocate(self, rows: int) -> Tensor:
        # Outside inference mode, so that autograd may save what it gets for a backward pass.
        return torch.empty((rows, self._network.dimension), dtype=torch.float32, device=self._model.device)

    @torch.inference_mode()
    def fill(self, embeddings: Tensor, batch: Batch) -> None:
        """Queues work on the device and waits for none of it."""
        sheet, places = placed_sheet_of(batch, self._model.device)
        # What precision the model has is the options' choice, not that of whoever happens to call under autocast.
        with torch.autocast(sheet.ids.device.type, enabled=False):
            rows = self._network.rows(sheet)
        embeddings.index_copy_(0, places, rows.float())

    def joined(self, parts: list[Tensor]) -> Tensor:
        whole = self.allocate(sum(len(part) for part in parts))
        first = 0
        while parts:
            part = parts.pop(0)
            whole[first : first + len(part)] = part
            first += len(part)
        return whole

    def pool(self, embeddings: TokenEmbeddings[Tensor], pooling: TokenPooling) -> TokenEmbeddings[Tensor]:
        return pooled(embeddings, pooling)

    def ran_out_of_memory(self, error: Exception) -> bool:
        """CPU allocators and CUDA's libraries raise plain RuntimeErrors, told by their words."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        said = str(error).lower()
        return any(words in said for words in _SCARCE)

    def free(self) -> None:
        """Accelerators keep freed blocks of other sizes in their cache."""
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def _check_model(model: PreTrainedModel, largest_id: int) -> None:
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if largest_id >= rows:
        raise InvalidModel(
            f"a tokenizer with ids up to {largest_id} and a model with {rows} token embeddings",
            "a tokenizer whose ids the model knows",
            "Take both from the same place; resize the model's embeddings where tokens were added.",
        )
    if model.config.is_encoder_decoder:
        raise InvalidModel(
            f"{type(model).__name__}, an encoder with a decoder", "an encoder alone", "Load the encoder's own class."
        )


def _check_recipe(checkpoint: Checkpoint, recipe: EncodingRecipe) -> None:
    model = checkpoint.transformer
    positions = checkpoint.positions
    for setting in ("query_length", "document_length"):
        if positions is not None and getattr(recipe, setting) > positions:
            raise InvalidRecipe(
                f"{setting} = {getattr(recipe, setting)}", f"at most {positions}, the model's positions", "Lower it."
            )
    width = checkpoint.dimension
    if recipe.dimension is not None and recipe.dimension > width:
        raise InvalidRecipe(f"dimension = {recipe.dimension}", f"at most {width}, the model's width", "Lower it.")
    attention = str(getattr(model.config, "_attn_implementation", None))
    if "flash" in attention and recipe.expansion == "fixed" and not recipe.attend_to_expansion:
        raise InvalidRecipe(
            f"unattended expansion with {attention}, which drops unattended tokens and so gives them no embedding",
            "attention that computes every token",
            "Load the model with attention='sdpa', or set attend_to_expansion.",
        )


if TYPE_CHECKING:
    _: type[Engine[Tensor]] = _TorchEngine
