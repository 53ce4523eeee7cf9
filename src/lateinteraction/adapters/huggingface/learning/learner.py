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

from lateinteraction.adapters.encoding.batches import make_batch
from lateinteraction.adapters.encoding.encoder import EncodingOptions
from lateinteraction.adapters.encoding.learning import sheet_of
from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser
from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder, tokeniser_of
from lateinteraction.adapters.huggingface.learning.low_rank import LowRank, adapted, merged
from lateinteraction.adapters.huggingface.network import Network
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidModel, InvalidOption, shown
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lateinteraction.adapters.encoding.learning import Learner
    from lateinteraction.domain.ports import Encoder


def _count_of_layers(_: object, __: object, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidOption(f"frozen_layers = {shown(value)}", "a whole number of at least 0", "0 trains all of them.")


@frozen(kw_only=True)
class LearnerOptions:
    """What of a model is trained.

    Args:
        frozen_layers: so many lowest layers stay as they are, without dropout, and whatever else they depend on.
        frozen_words: the embeddings of words stay as they are, whatever the layers.
        low_rank: small matrices are trained beside the transformer's, which stay as they are; None trains these.
        gradient_checkpointing: what layers compute is computed again when gradients need it, and not kept.

    Raises:
        InvalidOption: one of these out of range.
    """

    frozen_layers: int = field(default=0, validator=_count_of_layers)
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
        self._network = Network(checkpoint)
        encoder = HuggingFaceEncoder(checkpoint, encoding or EncodingOptions())
        self._encoder = _EncoderBetweenSteps(encoder, self._network)
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
    def layers(self) -> Sequence[nn.Module]:
        return list(layers_of(self._network.transformer))

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
        if options.frozen_words:
            network.transformer.get_input_embeddings().requires_grad_(False)
        _freeze(network, self._tokeniser, options.frozen_layers)
        if options.gradient_checkpointing:
            _compute_again(network.transformer)
        network.train()


@final
class _EncoderBetweenSteps:
    """An encoder that finds modules in training and leaves them so."""

    def __init__(self, encoder: HuggingFaceEncoder, network: Network) -> None:
        self._encoder, self._network = encoder, network

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
        was = self._network.training
        self._network.eval()
        try:
            yield
        finally:
            self._network.train(was)


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


def _freeze(network: Network, tokeniser: RecipeTokeniser, count: int) -> None:
    """Freeze the lowest layers, what they depend on, and what no row depends on.

    Of what is trained below a frozen layer, such as embeddings or a bias that layers share, the layer would change too.
    Where processes share gradients, each waits for those of every parameter, and a pooler never has one. Which these
    are, one pass over a text tells.
    """
    layers = layers_of(network.transformer) if count else ()
    if count > len(layers):
        raise InvalidModel(
            f"{count} frozen layers of a model that has {len(layers)}", f"at most {len(layers)}", "Freeze fewer."
        )
    lower = layers[:count]
    for layer in lower:
        layer.requires_grad_(False)
    states: list[Tensor] = []
    hooks = [each.register_forward_hook(lambda *seen: states.append(_hidden(seen[2]))) for each in lower[-1:]]
    rows = _rows_of_a_text(network, tokeniser)
    for hook in hooks:
        hook.remove()
    below = [state for state in states if state.requires_grad]
    for parameter, gradient in _gradients(network, below):
        if gradient is not None:
            parameter.requires_grad_(False)
    if not rows.requires_grad:
        raise InvalidOption("a model of which nothing is trained", "something that is", "Freeze less of it.")
    for parameter, gradient in _gradients(network, [rows]):
        if gradient is None:
            parameter.requires_grad_(False)
    if lower:
        network.frozen = (*lower, *filter(_is_frozen, network.transformer.children()))


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, and none that is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _hidden(given: Tensor | tuple[Tensor, ...]) -> Tensor:
    return given[0] if isinstance(given, tuple) else given


def _gradients(network: Network, outputs: Sequence[Tensor]) -> list[tuple[nn.Parameter, Tensor | None]]:
    """What is trained, each with its gradient of the outputs, None where they do not depend on it."""
    trained = [each for each in network.parameters() if each.requires_grad]
    if not outputs:
        return []
    found = torch.autograd.grad([each.sum() for each in outputs], trained, allow_unused=True, retain_graph=True)
    return list(zip(trained, found, strict=True))


def _rows_of_a_text(network: Network, tokeniser: RecipeTokeniser) -> Tensor:
    texts = tokeniser.documents(["a text that has some words of its own"])
    batch = make_batch(texts, texts.kept.cumsum() - 1, texts.items[:1], tokeniser.padding_id)
    network.eval()
    return network([sheet_of(batch, next(network.parameters()).device)])


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


if TYPE_CHECKING:
    _: type[Learner] = HuggingFaceLearner
