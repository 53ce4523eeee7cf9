"""Reading a plain transformers encoder from a folder or, by name, from the hub: all of it or an error.

Weights come from safetensors only, code from the installed transformers only. Projections and the settings that
late-interaction checkpoints carry are not read: such a checkpoint is refused, never loaded in part.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers.utils.logging as transformers_logging
from attrs import frozen
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer
from transformers.utils.hub import cached_file

from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.neural.transfer import resolve_device, to_device
from lateinteraction.domain.errors import InvalidModel, InvalidOption, shown
from lateinteraction.domain.ports import Progress
from lateinteraction.domain.recipe import EncodingRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WeightsDtype = Literal["float32", "bfloat16", "float16"]
_DTYPES = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})
_PLAIN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
"""sentence-transformers modules that leave the token embeddings of the transformer as they are."""
_VENDOR_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
_EXPECTED_FILES = "the config.json, tokenizer.json and model.safetensors of a transformers encoder"
_CHECK_FOLDER = "Check the path, or download the model again."
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LOADING = threading.Lock()  # one load at a time, so that hooks are put back in the order they were set


@frozen(kw_only=True)
class EncoderOptions:
    """Where and how an encoder runs.

    Args:
        device: "auto", "cpu", "cuda:1", …
        dtype: of the weights; embeddings are float32 in any case.
        tokens_per_batch: most tokens of a batch, padding included; None suits the device and the recipe.
        progress: told how many documents of a call are done.
        local_files_only: whether a hub name may only come from the local cache.

    Raises:
        InvalidOption: a dtype that is none of the three.
    """

    device: str = "auto"
    dtype: WeightsDtype = "float32"
    tokens_per_batch: int | None = None
    progress: Progress | None = None
    local_files_only: bool = False

    def __attrs_post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise InvalidOption(f"dtype = {self.dtype!r}", f"one of {', '.join(_DTYPES)}", "Choose one of them.")


_DEFAULTS = EncoderOptions()


def load_plain_encoder(
    source: str | Path, *, recipe: EncodingRecipe | None = None, options: EncoderOptions = _DEFAULTS
) -> HuggingFaceEncoder:
    """Read a transformers encoder (BERT, DistilBERT, RoBERTa, XLM-R, MPNet, ModernBERT, …) that carries no projection.

    Args:
        source: a folder with config.json, tokenizer.json and model.safetensors, or a hub name such as
            "sentence-transformers/all-MiniLM-L6-v2". Only a name can cause a download.
        recipe: how text becomes tokens; the default recipe where None.
        options: where and how it runs.

    Raises:
        InvalidModel: no such folder or name, a file that is missing or damaged, weights that do not fill the model
            or are more than it takes, a projection, or custom code.
        InvalidRecipe: settings this model or tokenizer cannot honour.
        InvalidOption: a device this machine does not have, or too small a batch.
    """
    device = resolve_device(options.device)
    place = _place_of(source)
    tokenizer, model, weights = _read(place, options)
    _check_weights(place, model, weights)
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = to_device(tensor.data, device)
    return HuggingFaceEncoder(
        model,
        tokenizer,
        recipe or EncodingRecipe(),
        tokens_per_batch=options.tokens_per_batch,
        progress=options.progress,
    )


@frozen
class _Place:
    """A folder that exists, or a name that may be on the hub."""

    name: str
    is_folder: bool

    def __str__(self) -> str:
        return f"folder {self.name}" if self.is_folder else f"model {self.name!r}"


@frozen
class _Weights:
    """What transformers says about the fit of weights and model: names of tensors."""

    missing: frozenset[str]
    unexpected: frozenset[str]


def _place_of(source: str | Path) -> _Place:
    if not isinstance(source, str | Path):
        raise InvalidModel(f"{shown(source)} as a model", "a model's folder or its hub name", "Give a str or a Path.")
    path = Path(source).expanduser()
    if str(source) and path.is_dir():
        if not (path / "config.json").is_file():
            raise InvalidModel(f"folder {path}, which has no config.json", _EXPECTED_FILES, _CHECK_FOLDER)
        return _Place(str(path), is_folder=True)
    if isinstance(source, Path) or not _HUB_NAME.fullmatch(source) or path.exists():
        raise InvalidModel(
            f"{str(source)!r}, which is no folder here", "a model's folder or its hub name", "Check the path."
        )
    return _Place(source, is_folder=False)


def _read(place: _Place, options: EncoderOptions) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, _Weights]:
    offline = place.is_folder or options.local_files_only
    with _Translated(place):
        modules = _module_kinds(place, offline)
    if not modules <= _PLAIN_MODULES:
        raise InvalidModel(
            f"{place} with modules {sorted(modules - _PLAIN_MODULES)}",
            f"a plain encoder: no modules but {sorted(_PLAIN_MODULES)}",
            "Load it as the checkpoint it is; without its modules the embeddings would be others.",
        )
    with _Translated(place), _LOADING, _quiet():
        # False, not the default: the default asks on the terminal, with an alarm signal, whether to run a file's code.
        tokenizer = AutoTokenizer.from_pretrained(place.name, local_files_only=offline, trust_remote_code=False)
        model, info = AutoModel.from_pretrained(
            place.name,
            local_files_only=offline,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=_DTYPES[options.dtype],
            output_loading_info=True,
        )
    mismatched = {key[0] for key in info["mismatched_keys"]}
    return tokenizer, model, _Weights(frozenset(info["missing_keys"]) | mismatched, frozenset(info["unexpected_keys"]))


def _module_kinds(place: _Place, offline: bool) -> frozenset[str]:
    """Class names of a sentence-transformers checkpoint's modules; empty where there is no modules.json."""
    file = cached_file(
        place.name, "modules.json", local_files_only=offline, _raise_exceptions_for_missing_entries=False
    )
    if file is None:
        return frozenset()
    modules = json.loads(Path(file).read_text(encoding="utf-8"))
    return frozenset(str(module["type"]).rpartition(".")[2] for module in modules)


def _check_weights(place: _Place, model: PreTrainedModel, weights: _Weights) -> None:
    """Refuse a model of which a part is random, and weights of which a part of the encoder is left over."""
    random = sorted(name for name in weights.missing if "pooler" not in name.split("."))
    if random:
        raise InvalidModel(
            f"{place}, whose weights lack {len(random)} tensors, {random[0]} among them",
            "weights for every part of the encoder",
            "Nothing is filled with random values; get the whole checkpoint.",
        )
    parts = {name for name, _ in model.named_children()} - {"pooler"}
    own = [name.removeprefix(f"{model.base_model_prefix}.") for name in sorted(weights.unexpected)]
    left = [name for name in own if name.split(".")[0] in parts and not name.endswith("position_ids")]
    left += [name for name in own if name in ("linear.weight", "linear.bias")]
    if left:
        raise InvalidModel(
            f"{place}, whose weights hold {len(left)} tensors the model has no place for, {left[0]} among them",
            "weights that are this encoder's and no more",
            "Check that config.json belongs to the weights; a projection needs its own checkpoint format.",
        )


@frozen
class _Translated:
    """Turns what the vendors raise while reading into `InvalidModel`.

    A class, not `except`: tokenizers raises `Exception` itself, and naming that in a handler would catch everything.
    """

    place: _Place

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or not (kind is Exception or issubclass(kind, _VENDOR_ERRORS)):
            return
        reason = next(iter(str(error).splitlines()), "no reason given")[:200]
        if self.place.is_folder:
            raise InvalidModel(f"{self.place} ({kind.__name__}: {reason})", _EXPECTED_FILES, _CHECK_FOLDER) from error
        raise InvalidModel(
            f"{self.place}, which is no folder here and could not be had by name ({kind.__name__}: {reason})",
            "a name in the local cache or on a hub that can be reached",
            f"Download it where there is a network (`hf download {self.place.name}`), or give a folder.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep this thread's progress bar and load report off the terminal; other threads and the host's settings stay.

    What the report says is judged by `_check_weights`.
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
