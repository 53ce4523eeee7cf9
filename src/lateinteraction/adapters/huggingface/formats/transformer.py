"""The transformer and the tokenizer of a checkpoint: all of both or an error, and nothing on the terminal.

Nothing is filled with random values, nothing of an encoder is left over, and no code of a checkpoint's own is run
unless that was asked for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers.utils.logging as transformers_logging
from attrs import frozen
from tokenizers import Tokenizer, normalizers
from torch import nn
from transformers import AutoModel, AutoTokenizer

from lateinteraction.adapters.huggingface.formats.description import NOTHING
from lateinteraction.adapters.huggingface.sources import Place, Translated, joined
from lateinteraction.domain.errors import InvalidModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOADING = threading.Lock()  # one load at a time, so that hooks are put back in the order they were set


@frozen(kw_only=True)
class TransformerOptions:
    """How a transformer is loaded.

    Args:
        dtype: of the weights.
        attention: transformers' name of an implementation; None is its own choice.
        trust_remote_code: whether code that comes with the files may be run.
        pickled: whether pytorch_model.bin may be read where there is no safetensors.
        sha256: digest that the weights must have; None is any.
        inline_projection: whether a `linear.weight` among the weights is expected.
    """

    dtype: torch.dtype = torch.float32
    attention: str | None = None
    trust_remote_code: bool = False
    pickled: bool = False
    sha256: str | None = None
    inline_projection: bool = False


@frozen
class _Fit:
    """What transformers says about the fit of weights and model: names of tensors."""

    missing: frozenset[str]
    unexpected: frozenset[str]


def load_transformer(
    place: Place, inner: str, options: TransformerOptions
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in evaluation mode on the host, and its tokenizer, which has a padding token if it has an end.

    Raises:
        InvalidModel: files that are missing or damaged, that ask for their own code or another model's weights, or
            weights that are not exactly this model's.
        ModelMismatch: weights of another digest.
    """
    with Translated(place):
        config = _checked_config(place, inner, options)
    files = place.weights(inner, pickled=options.pickled)
    if options.sha256 is not None:
        place.check_digest(files, options.sha256)
    folder = str(place.folder / inner)
    attention = {} if options.attention is None else {"attn_implementation": options.attention}
    with Translated(place), _LOADING, quiet():
        tokenizer = cast(
            "PreTrainedTokenizerBase",
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=options.trust_remote_code),
        )
        model, info = AutoModel.from_pretrained(
            folder,
            use_safetensors=files[0].suffix == ".safetensors",
            dtype=options.dtype,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            **attention,
        )
    mismatched = {key[0] for key in info["mismatched_keys"]}
    fit = _Fit(frozenset(info["missing_keys"]) | mismatched, frozenset(info["unexpected_keys"]))
    _check_fit(place, model, fit, inline=options.inline_projection or "HF_ColBERT" in _architectures(config))
    _check_tokenizer(place, tokenizer)
    _check_rows(place, model, tokenizer)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def lower_cased(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, changed to see every text in lower case, unless it already does."""
    backend = cast(Tokenizer, tokenizer.backend_tokenizer)
    if backend.normalizer is None or backend.normalizer.normalize_str("ÀB") != backend.normalizer.normalize_str("àb"):
        rest = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    return tokenizer


def usable_positions(model: PreTrainedModel) -> int | None:
    """Most tokens the model can place; RoBERTa-like tables lose those up to their padding row. None: no limit known."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - reserved
    return getattr(model.config, "max_position_embeddings", None)


def _architectures(config: Mapping[str, Any]) -> list[str]:
    return list(config.get("architectures") or ())


def _checked_config(place: Place, inner: str, options: TransformerOptions) -> Mapping[str, Any]:
    name = joined(inner, "config.json")
    config = place.read_object(name)
    if config is None:
        raise InvalidModel(f"{place}, which has no {name}", "a transformer's configuration", "Get it all again.")
    if (place.folder / inner / "adapter_config.json").is_file():
        raise InvalidModel(
            f"{place}, which holds an adapter to another model's weights",
            "the whole weights",
            "Merge the adapter into its model with peft's merge_and_unload, and save that.",
        )
    ready = [each for each in _architectures(config) if each.endswith("ForRetrieval")]
    if ready:
        raise InvalidModel(f"{place}, a {ready[0]}", "a model of texts alone", "Load it with transformers itself.")
    tokenizer = place.read_object(joined(inner, "tokenizer_config.json")) or NOTHING
    asks = {"AutoConfig", "AutoModel"} & set(config.get("auto_map") or ())
    asks |= {"AutoTokenizer"} & set(tokenizer.get("auto_map") or ())
    if asks and not options.trust_remote_code:
        raise InvalidModel(
            f"{place}, which asks for custom code as {', '.join(sorted(asks))}",
            "a model that the installed transformers brings",
            "Read that code; then allow it with trust_remote_code, or take `auto_map` out of the configuration.",
        )
    return config


def _check_fit(place: Place, model: PreTrainedModel, fit: _Fit, *, inline: bool) -> None:
    """Refuse a model of which a part is random, and weights of which a part of the encoder is left over."""
    random = sorted(name for name in fit.missing if "pooler" not in name.split("."))
    if random:
        raise InvalidModel(
            f"{place}, whose weights lack {len(random)} tensors, {random[0]} among them",
            "weights for every part of the encoder",
            "Nothing is filled with random values; get the whole checkpoint.",
        )
    parts = {name for name, _ in model.named_children()} - {"pooler"}
    own = [name.removeprefix(f"{model.base_model_prefix}.") for name in sorted(fit.unexpected)]
    left = [name for name in own if name.split(".")[0] in parts and not name.endswith("position_ids")]
    left += [name for name in own if name == "linear.bias" or (name == "linear.weight" and not inline)]
    if left:
        raise InvalidModel(
            f"{place}, whose weights hold {len(left)} tensors the model has no place for, {left[0]} among them",
            "weights that are this encoder's and no more",
            "Check that config.json belongs to the weights; a projection needs its own checkpoint format.",
        )


def _check_tokenizer(place: Place, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse one without a `tokenizers` backend, and the empty one that transformers makes where there are no files."""
    if not tokenizer.is_fast or len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_ids)):
        raise InvalidModel(
            f"{place}, whose tokenizer is a {type(tokenizer).__name__} with {len(tokenizer.get_vocab())} tokens",
            "a tokenizer.json with a vocabulary",
            "Put the model's tokenizer.json beside its weights; convert an old one with transformers.",
        )


def _check_rows(place: Place, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise InvalidModel(
            f"{place}, whose tokenizer has ids up to {largest} and whose model has {rows} token embeddings",
            "a tokenizer whose ids the model knows",
            "Take both from the same place; resize the model's embeddings where tokens were added.",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep this thread's progress bar and load report off the terminal; other threads and the host's settings stay.

    What the report says is judged by `_check_fit`.
    """
    thread = threading.get_ident()

    def hide_report(record: logging.LogRecord) -> bool:
        return record.thread != thread or "LOAD REPORT" not in record.getMessage()

    def hide_bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if threading.get_ident() == thread:
            return factory(*args, **{**options, "disable": True})
        return previous(factory, args, options) if previous is not None else factory(*args, **options)

    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)  # newer than our oldest transformers
    previous = set_hook(hide_bar) if set_hook is not None else None
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(hide_report)
    try:
        yield
    finally:
        logger.removeFilter(hide_report)
        if set_hook is not None:
            set_hook(previous)
