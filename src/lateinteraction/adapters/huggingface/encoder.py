"""HuggingFaceEncoder: texts to packed token embeddings with any transformers encoder.

Data goes one way: ragged ids on the host, one transfer per batch to the device, kept rows into one flat buffer
there. Nothing comes back. Reading a model from disk is left to `checkpoint`, the recipe's rules to `tokenisation`.

Shapes: N texts, T tokens in all, K kept tokens; B texts of at most L tokens in a batch; D dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from lateinteraction.adapters.huggingface.tokenisation import RecipeTokeniser, TokenisedTexts
from lateinteraction.adapters.neural.transfer import to_device
from lateinteraction.domain.embeddings import TokenEmbeddings, TokenTrace
from lateinteraction.domain.errors import InvalidModel, InvalidOption, InvalidRecipe, TruncatedTextWarning
from lateinteraction.domain.ports import Progress
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CPU_TOKENS_PER_BATCH = 1_024
"""MiniLM-L6, 80 documents of 132 tokens on average, one thread, CPU seconds: 512: 3.6, 1k: 3.5, 2k: 3.7, 4k: 4.0,
8k: 5.1, 16k: 6.0; 32 documents at once, sorted by characters: 5.2. Two threads, 50 such documents, best seconds:
512: 1.41, 1k: 1.36, 2k: 1.52, 4k: 1.63, 8k: 2.15; 32 at once: 1.99. From 8k on, the allocator returns every
intermediate result to the system and faults it in again (300,000 page faults; none up to 2k)."""
ACCELERATOR_TOKENS_PER_BATCH = 16_384
"""Enough rows to fill a large GPU's matrix units with a base-sized model; not measured yet."""


@frozen(eq=False)
class EncodingReport:
    """What one call did.

    Args:
        texts: how many were given.
        tokens: how many the model saw.
        padding: how many it computed on top, to make batches rectangular.
        kept: how many kept an embedding.
        truncated: int64, positions of the texts that were longer than `length` tokens and were cut.
        length: the recipe's limit, in tokens.
    """

    texts: int
    tokens: int
    padding: int
    kept: int
    truncated: NDArray[np.int64]
    length: int


class HuggingFaceEncoder:
    """An `Encoder[Tensor]` and `TokenTracer` over a transformers model whose last hidden state is one row per token.

    It runs where the model's weights are. Embeddings are float32 whatever the weights are, on the same device, and
    ordinary tensors: a loss may use them. Several threads may call it at once.

    Args:
        model: put into evaluation mode; weights, dtype and device stay as they are.
        tokenizer: copied; must have a `tokenizers` backend.
        recipe: how text becomes tokens.
        tokens_per_batch: most tokens of a batch, padding included; None suits the device and the recipe.
        progress: told how many documents of a call are done, after each batch; not told of queries.

    Raises:
        InvalidRecipe: settings this model or tokenizer cannot honour.
        InvalidModel: a model or tokenizer that cannot be used, or that do not belong together.
        InvalidOption: a batch that could not hold one text of the recipe's length.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        recipe: EncodingRecipe,
        *,
        tokens_per_batch: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._tokeniser = RecipeTokeniser(tokenizer, recipe)
        _check_model(model, self._tokeniser.largest_id)
        _check_recipe(model, recipe)
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._recipe = recipe
        self._dimension = recipe.dimension or model.config.hidden_size
        self._tokens_per_batch = tokens_per_batch
        self._budget = _budget_of(tokens_per_batch, model.device, max(recipe.query_length, recipe.document_length))
        self._progress = progress

    @property
    def recipe(self) -> EncodingRecipe:
        return self._recipe

    def with_recipe(self, recipe: EncodingRecipe) -> HuggingFaceEncoder:
        """The same model read by another recipe; the weights are shared."""
        return HuggingFaceEncoder(
            self._model, self._tokenizer, recipe, tokens_per_batch=self._tokens_per_batch, progress=self._progress
        )

    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[Tensor]:
        """Embeddings of the kept tokens; warns once when queries were cut."""
        embeddings, report = self.encode_queries_with_report(queries)
        _warn_of_truncation(report, "queries", "query_length")
        return embeddings

    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[Tensor]:
        """Embeddings of the kept tokens; warns once when documents were cut."""
        embeddings, report = self.encode_documents_with_report(documents)
        _warn_of_truncation(report, "documents", "document_length")
        return embeddings

    def encode_queries_with_report(self, queries: Sequence[Query]) -> tuple[TokenEmbeddings[Tensor], EncodingReport]:
        """The same embeddings, and what became of the texts instead of a warning."""
        tokenised = self._tokeniser.queries([query.text for query in queries])
        return self._embed(tokenised, self._recipe.query_length, None)

    def encode_documents_with_report(
        self, documents: Sequence[Document]
    ) -> tuple[TokenEmbeddings[Tensor], EncodingReport]:
        """The same embeddings, and what became of the texts instead of a warning."""
        tokenised = self._tokeniser.documents([document.text for document in documents])
        return self._embed(tokenised, self._recipe.document_length, self._progress)

    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace:
        """Ids and characters of the tokens that `encode_queries` embeds."""
        return self._tokeniser.trace_queries([query.text for query in queries])

    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace:
        """Ids and characters of the tokens that `encode_documents` embeds."""
        return self._tokeniser.trace_documents([document.text for document in documents])

    def _embed(
        self, tokenised: TokenisedTexts, length: int, progress: Progress | None
    ) -> tuple[TokenEmbeddings[Tensor], EncodingReport]:
        offsets = tokenised.kept_offsets
        # Allocated outside inference mode, so that autograd may save what it gets for a backward pass.
        buffer = torch.empty((int(offsets[-1]), self._dimension), dtype=torch.float32, device=self._model.device)
        lengths = np.diff(tokenised.offsets)
        total, done, computed = len(lengths), int(np.count_nonzero(lengths == 0)), 0
        if progress is not None and done:
            progress(done, total)
        for batch in _batches(tokenised, self._budget, self._tokeniser.padding_id):
            self._fill(buffer, batch)
            done, computed = done + batch.texts, computed + batch.texts * batch.width
            if progress is not None:
                progress(done, total)
        tokens = int(lengths.sum())
        report = EncodingReport(total, tokens, computed - tokens, int(offsets[-1]), tokenised.truncated, length)
        return TokenEmbeddings(buffer, offsets), report

    @torch.inference_mode()
    def _fill(self, buffer: Tensor, batch: _Batch) -> None:
        """Write the kept rows of a batch to their places; queues work on the device and waits for none of it."""
        sheet = to_device(batch.sheet, self._model.device)
        ids, attended, source, destination = sheet.split(batch.parts)
        ids = ids.view(batch.texts, batch.width)
        mask = None
        if not batch.full:
            mask = (torch.arange(batch.width, device=sheet.device) < attended[:, None]).long()
        # What precision the model has is the options' choice, not that of whoever happens to call under autocast.
        with torch.autocast(sheet.device.type, enabled=False):
            hidden = self._model(input_ids=ids, attention_mask=mask)[0]
        rows = hidden.flatten(0, 1).index_select(0, source)[:, : self._dimension].float()
        if self._recipe.normalise:
            rows = nn.functional.normalize(rows, dim=-1)
        buffer.index_copy_(0, destination, rows)


@frozen(eq=False)
class _Batch:
    """One rectangle of texts. All that the device needs is one array, so that it is one transfer.

    Args:
        texts, width: B and L.
        sheet: int64 (B·L + B + 2·K,): padded ids, attended counts, rows to keep and their places in the output.
        full: whether every token may attend to every other, padding included: there is none.
    """

    texts: int
    width: int
    sheet: NDArray[np.int64]
    full: bool

    @property
    def parts(self) -> tuple[int, int, int, int]:
        kept = (len(self.sheet) - self.texts * (self.width + 1)) // 2
        return self.texts * self.width, self.texts, kept, kept


def plan_batches(lengths: NDArray[np.int64], tokens_per_batch: int) -> Iterator[NDArray[np.int64]]:
    """Positions of the texts of each batch: longest first, texts of like length together.

    A batch of B texts costs B × its longest, at most `tokens_per_batch` unless one text alone costs more. Texts
    without tokens are in no batch. Longest first: memory that suffices for the first batch suffices for all.
    """
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    first = 0
    while first < len(order):
        last = first + max(1, tokens_per_batch // int(lengths[order[first]]))
        yield order[first:last]
        first = last


def _batches(tokenised: TokenisedTexts, tokens_per_batch: int, padding_id: int) -> Iterator[_Batch]:
    lengths = np.diff(tokenised.offsets)
    place = np.cumsum(tokenised.kept) - 1
    for texts in plan_batches(lengths, tokens_per_batch):
        width = int(lengths[texts[0]])
        column = np.arange(width)
        present = column < lengths[texts, None]
        token = np.where(present, tokenised.offsets[texts, None] + column, 0)
        kept = present & tokenised.kept[token]
        attended = tokenised.attended[texts]
        sheet = [
            np.where(present, tokenised.token_ids[token], padding_id).reshape(-1),
            attended,
            np.flatnonzero(kept),
            place[token[kept]],
        ]
        yield _Batch(len(texts), width, np.concatenate(sheet), full=bool(np.all(attended == width)))


def _budget_of(tokens_per_batch: int | None, device: torch.device, longest: int) -> int:
    if tokens_per_batch is None:
        return max(longest, CPU_TOKENS_PER_BATCH if device.type == "cpu" else ACCELERATOR_TOKENS_PER_BATCH)
    if not isinstance(tokens_per_batch, int) or tokens_per_batch < longest:
        raise InvalidOption(
            f"tokens_per_batch = {tokens_per_batch!r}", f"{longest} or more, the recipe's length", "Raise it."
        )
    return tokens_per_batch


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


def _check_recipe(model: PreTrainedModel, recipe: EncodingRecipe) -> None:
    positions = _usable_positions(model)
    for setting in ("query_length", "document_length"):
        if positions is not None and getattr(recipe, setting) > positions:
            raise InvalidRecipe(
                f"{setting} = {getattr(recipe, setting)}", f"at most {positions}, the model's positions", "Lower it."
            )
    width = model.config.hidden_size
    if recipe.dimension is not None and recipe.dimension > width:
        raise InvalidRecipe(f"dimension = {recipe.dimension}", f"at most {width}, the model's width", "Lower it.")
    attention = str(getattr(model.config, "_attn_implementation", None))
    if "flash" in attention and recipe.expansion == "fixed" and not recipe.attend_to_expansion:
        raise InvalidRecipe(
            f"unattended expansion with {attention}, which drops unattended tokens and so gives them no embedding",
            "attention that computes every token",
            "Load the model with attn_implementation='sdpa', or set attend_to_expansion.",
        )


def _usable_positions(model: PreTrainedModel) -> int | None:
    """Most tokens the model can place; RoBERTa-like tables lose those up to their padding row. None: no limit known."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - reserved
    return getattr(model.config, "max_position_embeddings", None)


def _warn_of_truncation(report: EncodingReport, role: str, setting: str) -> None:
    if len(report.truncated):
        warnings.warn(
            f"{len(report.truncated)} of {report.texts} {role} were cut to {setting} = {report.length} tokens. "
            f"Raise it, or split them.",
            TruncatedTextWarning,
            stacklevel=3,
        )
