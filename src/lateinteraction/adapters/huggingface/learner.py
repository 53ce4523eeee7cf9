"""HuggingFaceLearner: a checkpoint as a trainer needs it, and as it is afterwards.

What is trained, what stays as it is, and by which names rates are set; how gradients are made is left to the trainer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, final

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from lateinteraction.adapters.encoding.encoder import EncodingOptions
from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser
from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder, tokeniser_of
from lateinteraction.adapters.huggingface.low_rank import LowRank, adapted, merged
from lateinteraction.adapters.huggingface.network import Network
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidModel, InvalidOption, shown
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lateinteraction.adapters.encoding.learning import Learner
    from lateinteraction.domain.ports import Encoder


def _whole(_: object, attribute: object, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidOption(f"frozen_layers = {shown(value)}", "a whole number of at least 0", "0 trains all of them.")


@frozen(kw_only=True)
class LearnerOptions:
    """What of a model is trained.

    Args:
        frozen_layers: so many lowest layers stay as they are, and the embeddings of words with them.
        frozen_words: the embeddings of words stay as they are, whatever the layers.
        low_rank: small matrices are trained beside the transformer's, which stay as they are; None trains these.
        gradient_checkpointing: what layers compute is computed again when gradients need it, and not kept.

    Raises:
        InvalidOption: one of these out of range.
    """

    frozen_layers: int = field(default=0, validator=_whole)
    frozen_words: bool = False
    low_rank: LowRank | None = None
    gradient_checkpointing: bool = False


_DEFAULTS = LearnerOptions()


@final
class HuggingFaceLearner:
    """A `Learner` over a checkpoint, whose modules it changes. Its recipe must pool nothing.

    Args:
        checkpoint: a model; weights in float32, or float64, whatever precision products are then made in.
        options: what of it is trained.
        encoding: how `encoder` works through texts.

    Raises:
        InvalidModel: weights that are too narrow to be trained, or more frozen layers than there are.
        InvalidOption: a recipe that pools.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: LearnerOptions = _DEFAULTS,
        encoding: EncodingOptions | None = None,
    ) -> None:
        _check_precision(checkpoint)
        if checkpoint.recipe.pooling is not None and not checkpoint.recipe.pooling.changes_nothing:
            raise InvalidOption(
                "a model whose recipe pools tokens",
                "one that pools nothing",
                "Train by the loss `Pooled`, and pool later.",
            )
        self._checkpoint, self.options = checkpoint, options
        self._tokeniser = tokeniser_of(checkpoint.tokenizer, checkpoint.recipe)
        self._encoder = _EncoderBetweenSteps(
            HuggingFaceEncoder(checkpoint, encoding or EncodingOptions()), checkpoint.transformer, checkpoint.projection
        )
        self._network = Network(checkpoint)
        self._prepare()

    @property
    def recipe(self) -> EncodingRecipe:
        return self._checkpoint.recipe

    @property
    def tokeniser(self) -> RecipeTokeniser:
        return self._tokeniser

    @property
    def network(self) -> Network:
        return self._network

    @property
    def encoder(self) -> Encoder[Tensor]:
        return self._encoder

    @property
    def groups(self) -> Mapping[str, Sequence[nn.Parameter]]:
        parts = {"transformer": self._network.transformer, "projection": self._network.projection}
        return MappingProxyType(
            {name: [each for each in part.parameters() if each.requires_grad] for name, part in parts.items()}
        )

    def checkpoint(self) -> Checkpoint:
        """The model as it is now: a copy, with what is of low rank added to the matrices it stands beside."""
        transformer = copy.deepcopy(self._checkpoint.transformer)
        if self.options.low_rank is not None:
            merged(transformer)
        return evolve(
            self._checkpoint,
            transformer=transformer.eval().requires_grad_(True),
            projection=copy.deepcopy(self._checkpoint.projection).eval(),
            narrowed=False,
        )

    def _prepare(self) -> None:
        network, options = self._network, self.options
        network.requires_grad_(True)
        if options.low_rank is not None:
            network.transformer.requires_grad_(False)
            adapted(network.transformer, options.low_rank)
        _freeze(network, options)
        _freeze_unused(network, self._tokeniser)
        if options.gradient_checkpointing:
            _compute_again(network.transformer)
        network.train()


@final
class _EncoderBetweenSteps:
    """An encoder that finds modules in training and leaves them so."""

    def __init__(self, encoder: HuggingFaceEncoder, *modules: nn.Module) -> None:
        self._encoder, self._modules = encoder, modules

    @property
    def recipe(self) -> EncodingRecipe:
        return self._encoder.recipe

    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[Tensor]:
        with self._evaluating():
            return self._encoder.encode_queries(queries)

    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[Tensor]:
        with self._evaluating():
            return self._encoder.encode_documents(documents)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        were = [module for module in self._modules if module.training]
        for module in were:
            module.eval()
        try:
            yield
        finally:
            for module in were:
                module.train()


def _check_precision(checkpoint: Checkpoint) -> None:
    dtype = next(checkpoint.transformer.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise InvalidModel(
            f"weights in {dtype}, whose steps would be lost to rounding",
            "float32 weights",
            'Load with CheckpointOptions(dtype="float32"); TrainingOptions(precision="bfloat16") narrows products.',
        )


def _compute_again(transformer: PreTrainedModel) -> None:
    """Keep what goes into layers alone; transformers renamed the switch in version 5."""
    enable = getattr(transformer, "activation_checkpointing_enable", None) or transformer.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _freeze(network: Network, options: LearnerOptions) -> None:
    if options.frozen_layers or options.frozen_words:
        network.transformer.get_input_embeddings().requires_grad_(False)
    if not options.frozen_layers:
        return
    layers = layers_of(network.transformer)
    if options.frozen_layers > len(layers):
        raise InvalidModel(
            f"{options.frozen_layers} frozen layers of a model that has {len(layers)}",
            f"at most {len(layers)}",
            "Freeze fewer.",
        )
    for name, module in network.transformer.named_children():
        if "embedding" in name:
            module.requires_grad_(False)
    for layer in layers[: options.frozen_layers]:
        layer.requires_grad_(False)


def layers_of(transformer: nn.Module) -> nn.ModuleList:
    """The layers of a transformer, the lowest first: its longest list of modules.

    Raises:
        InvalidModel: it has no list of modules.
    """
    lists = [module for module in transformer.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InvalidModel(
            f"{type(transformer).__name__}, which has no list of layers",
            "a transformer of layers",
            "Freeze none of it.",
        )
    return max(lists, key=len)


def _freeze_unused(network: Network, tokeniser: RecipeTokeniser) -> None:
    """Freeze what no row depends on, such as poolers: processes that share gradients wait for every parameter's."""
    from lateinteraction.adapters.encoding.batches import make_batch
    from lateinteraction.adapters.encoding.learning import sheet_of

    texts = tokeniser.documents(["a text that has some words of its own"])
    batch = make_batch(texts, texts.kept.cumsum() - 1, texts.items[:1], tokeniser.padding_id)
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network.eval()
        rows = network([sheet_of(batch, device)])
    if not rows.requires_grad:
        raise InvalidOption("a model of which nothing is trained", "something that is", "Freeze less of it.")
    trained = [each for each in network.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(rows.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


if TYPE_CHECKING:
    _: type[Learner] = HuggingFaceLearner
