"""Reading a checkpoint of any format, from a folder or hub.

`formats` knows what files mean, `sources` where they are. Here the parts become one model, or an error that names it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from attrs import evolve, field, frozen
from numpy.typing import NDArray
from torch import nn

from lateinteraction.adapters.encoding.batches import make_batch, plan_batches
from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser, SpecialTokens, resolve_skiplist
from lateinteraction.adapters.huggingface.checkpoint import Checkpoint, hidden_width
from lateinteraction.adapters.huggingface.formats import Description, describe
from lateinteraction.adapters.huggingface.formats.dense import read_projection
from lateinteraction.adapters.huggingface.formats.transformer import (
    TransformerOptions,
    load_transformer,
    lower_cased,
    usable_positions,
)
from lateinteraction.adapters.huggingface.projection import PcaProjection, Projection, RandomProjection
from lateinteraction.adapters.huggingface.sources import HubAccess, Place, Translated, locate
from lateinteraction.adapters.neural.transfer import resolve_device, to_device, to_host
from lateinteraction.domain.errors import InvalidModel, InvalidOption, InvalidRecipe, shown
from lateinteraction.domain.recipe import EncodingRecipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WeightsDtype = Literal["auto", "float32", "bfloat16", "float16"]
_DTYPES = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})
_TOKENS_AT_ONCE = 4_096
"""Of a batch while a projection is fitted; what is best for encoding is `encoder`'s to know."""
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def _path(given: str | Path | None) -> str | None:
    return None if given is None else str(Path(given).expanduser())


@frozen(kw_only=True)
class CheckpointOptions:
    """What to read of a checkpoint, from where, and onto which device.

    Args:
        device: "auto", "cpu", "cuda:1", …
        dtype: of the weights; "auto" is bfloat16 on CUDA and float32 elsewhere. Embeddings are float32 in any case.
        attention: transformers' name of an attention implementation; None is its own choice.
        revision: branch, tag or commit of a hub name.
        token: of the hub; None takes the one this machine is logged in with.
        endpoint: of a hub of one's own; None is the hub library's.
        cache_folder: where downloads are kept; None is the hub library's own place.
        local_files_only: whether a hub name may only come from there.
        trust_remote_code: whether code that comes with the files is run. No file can set this.
        pickled_weights: whether pytorch_model.bin is read where there is no safetensors; its tensors, nothing else.
        weights_sha256: digest that model.safetensors must have, hexadecimal; None is any.
        projection: a new one, for a model that has none.

    Raises:
        InvalidOption: a dtype or digest that is none.
    """

    device: str = "auto"
    dtype: WeightsDtype = "auto"
    attention: str | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    cache_folder: str | None = field(default=None, converter=_path)
    local_files_only: bool = False
    trust_remote_code: bool = False
    pickled_weights: bool = False
    weights_sha256: str | None = None
    projection: RandomProjection | PcaProjection | None = None

    def __attrs_post_init__(self) -> None:
        if self.dtype != "auto" and self.dtype not in _DTYPES:
            known = ", ".join(("auto", *_DTYPES))
            raise InvalidOption(f"dtype = {self.dtype!r}", f"one of {known}", "Choose one of them.")
        if self.weights_sha256 is not None and not _SHA256.fullmatch(self.weights_sha256):
            raise InvalidOption(
                f"weights_sha256 = {shown(self.weights_sha256)}",
                "64 hexadecimal digits",
                "Use what `sha256sum` prints.",
            )

    @property
    def hub(self) -> HubAccess:
        """How hub names are looked up."""
        cache = None if self.cache_folder is None else Path(self.cache_folder)
        return HubAccess(
            revision=self.revision,
            token=self.token,
            endpoint=self.endpoint,
            cache_folder=cache,
            local_files_only=self.local_files_only,
            code=self.trust_remote_code,
        )

    def transformer(self, device: torch.device, *, inline_projection: bool) -> TransformerOptions:
        """How the transformer is loaded for this device."""
        automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
        return TransformerOptions(
            dtype=_DTYPES.get(self.dtype, automatic),
            attention=self.attention,
            trust_remote_code=self.trust_remote_code,
            pickled=self.pickled_weights,
            sha256=self.weights_sha256,
            inline_projection=inline_projection,
        )


_DEFAULTS = CheckpointOptions()
_USUAL = EncodingRecipe()


def read_checkpoint(
    source: str | Path, *, recipe: Mapping[str, object] | None = None, options: CheckpointOptions = _DEFAULTS
) -> Checkpoint:
    """Read a checkpoint of PyLate, sentence-transformers, Stanford's ColBERT or transformers, as its files say.

    Args:
        source: a folder, or a hub name such as "lightonai/GTE-ModernColBERT-v1". Only a name can cause a download.
        recipe: settings that replace the files' own.
        options: what to read, and onto which device.

    Raises:
        InvalidModel: no such folder or name, a file that is missing, damaged or contradicts another, weights that do
            not fill the model or are more than it takes, or something that is not supported.
        ModelMismatch: weights of another digest than asked for.
        InvalidRecipe: settings that contradict themselves or the tokenizer.
        InvalidOption: a device this machine does not have, or a new projection for a model that has one.
    """
    device = resolve_device(options.device)
    place = locate(source, options.hub)
    description = _described(place)
    how = options.transformer(device, inline_projection=description.inline_projection)
    transformer, tokenizer = load_transformer(place, description.transformer, how)
    if description.lower_case:
        tokenizer = lower_cased(tokenizer)
    projection = read_projection(place, description, hidden_width(transformer), pickled=options.pickled_weights)
    _move(transformer, device)
    fitted, remarks = _recipe(place, description, (transformer, tokenizer), recipe or {})
    for remark in (*description.remarks, *remarks):
        warnings.warn(remark, stacklevel=2)
    checkpoint = Checkpoint(
        transformer=transformer,
        tokenizer=tokenizer,
        projection=projection,
        recipe=fitted,
        source=str(source),
        format=description.format,
        narrowed=options.dtype == "auto" and how.dtype != torch.float32,
    )
    if options.projection is not None:
        checkpoint = _projected(place, checkpoint, options.projection, has_one=projection.width is not None)
    checkpoint.projection.type(how.dtype)
    _move(checkpoint.projection, device)
    return checkpoint


def _described(place: Place) -> Description:
    try:
        with Translated(place):
            return describe(place)
    except InvalidRecipe as error:
        raise InvalidModel(f"{place}, whose files set {error.given}", error.expected, error.remedy) from error


def _move(module: nn.Module, device: torch.device) -> None:
    for tensor in chain(module.parameters(), module.buffers()):
        tensor.data = to_device(tensor.data, device)


def _recipe(
    place: Place,
    description: Description,
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    replaced: Mapping[str, object],
) -> tuple[EncodingRecipe, list[str]]:
    """The files' settings, fitted to this model, with some of them replaced; and what to warn of.

    What a file sets and the tokenizer does not know is either passed over with a remark (skiplists: they only drop
    tokens) or an error; what the caller sets is left to the encoder, which is strict.
    """
    transformer, tokenizer = model
    settings = {**description.settings}
    if description.format == "multi-vector":
        settings |= _markers_of_prompts(tokenizer, settings)
    settings = {name: value for name, value in settings.items() if name not in replaced}
    positions = usable_positions(transformer)
    for name in set(description.bounded) - set(replaced):
        length = settings.get(name, getattr(_USUAL, name))
        if positions is not None and isinstance(length, int):
            settings[name] = min(length, positions)
    if replaced.get("expansion") == "none":
        settings.pop("attend_to_expansion", None)
    try:
        recipe = _USUAL.merge({**settings, **replaced})
    except InvalidRecipe as error:
        if replaced:
            raise
        raise InvalidModel(f"{place}, whose files set {error.given}", error.expected, error.remedy) from error
    _check_markers(place, tokenizer, recipe, settings)
    recipe, remarks = _with_known_words(place, tokenizer, recipe, settings)
    if recipe.expansion == "fixed" and "expansion" in settings and tokenizer.padding_side == "left":
        remarks.append(
            f"{place} has a tokenizer that pads on the left, where the library that wrote it also puts what queries "
            f"are filled with; here it comes after them. Embeddings of queries differ."
        )
    return recipe, remarks


def _markers_of_prompts(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, object]) -> dict[str, object]:
    """Prompts that begin with an added token, as that marker and the rest.

    sentence-transformers 6 keeps a marker as text that its tokenizer makes one token of. Said as what it is, the
    model can be written for PyLate, which inserts markers and leaves prompts to its caller.
    """
    found: dict[str, object] = {}
    for role in ("query", "document"):
        prompt = settings.get(f"{role}_prompt")
        if not isinstance(prompt, str) or not prompt:
            continue
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        added = cast("Mapping[str, int]", cast("Any", tokenizer).get_added_vocab())
        marker = next((token for token, id_ in added.items() if ids and id_ == ids[0]), None)
        if marker is not None and prompt.startswith(marker):
            found |= {f"{role}_prefix": marker, f"{role}_prompt": prompt.removeprefix(marker)}
    return found


def _check_markers(
    place: Place, tokenizer: PreTrainedTokenizerBase, recipe: EncodingRecipe, settings: Mapping[str, object]
) -> None:
    vocabulary = tokenizer.get_vocab()
    for name in ("query_prefix", "document_prefix", "expansion_token"):
        token: str | None = getattr(recipe, name)
        if name in settings and token is not None and token not in vocabulary:
            ids = len(tokenizer(token, add_special_tokens=False)["input_ids"])
            raise InvalidModel(
                f"{place}, whose {name} = {token!r} is {ids} tokens to its tokenizer",
                "one token that the model was trained with",
                f"Get the whole checkpoint again, or name a token that it has: recipe={{'{name}': …}}.",
            )


def _with_known_words(
    place: Place, tokenizer: PreTrainedTokenizerBase, recipe: EncodingRecipe, settings: Mapping[str, object]
) -> tuple[EncodingRecipe, list[str]]:
    """The recipe without skiplist words that are no single token; an unknown word must not skip every unknown token."""
    names = [name for name in ("skiplist", "query_skiplist") if name in settings and getattr(recipe, name)]
    known = {name: tuple(word for word in getattr(recipe, name) if _is_token(tokenizer, word)) for name in names}
    passed_over = sorted({word for name in names for word in getattr(recipe, name)} - {*chain(*known.values())})
    remark = (
        f"{place} skips {len(passed_over)} words that its tokenizer does not know as one token: "
        f"{' '.join(passed_over):.80}. They are left out of the skiplist."
    )
    return recipe.merge(known), [remark] if passed_over else []


def _is_token(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    try:
        resolve_skiplist(cast("Tokenizer", tokenizer.backend_tokenizer), [word], _unknown_id(tokenizer))
    except InvalidRecipe:
        return False
    return True


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.unk_token_id if isinstance(tokenizer.unk_token_id, int) else None


def _projected(
    place: Place, checkpoint: Checkpoint, choice: RandomProjection | PcaProjection, *, has_one: bool
) -> Checkpoint:
    if has_one:
        raise InvalidOption(
            f"a new projection for {place}, which has its own", "a model without one", "Leave `projection` out."
        )
    if isinstance(choice, RandomProjection):
        layer = choice.layer(hidden_width(checkpoint.transformer))
    else:
        layer = choice.layer(_kept_hidden_states(checkpoint, choice.texts))
    return evolve(checkpoint, projection=Projection([layer]))


@torch.inference_mode()
def _kept_hidden_states(checkpoint: Checkpoint, texts: Sequence[str]) -> NDArray[np.float32]:
    """Hidden states (T, width) of the tokens of documents that the recipe keeps, in no particular order."""
    transformer, recipe = checkpoint.transformer, checkpoint.recipe
    longest = min(recipe.document_length, usable_positions(transformer) or recipe.document_length)
    backend = cast("Tokenizer", checkpoint.tokenizer.backend_tokenizer)
    tokeniser = RecipeTokeniser(
        backend,
        SpecialTokens(unknown=_unknown_id(checkpoint.tokenizer)),
        recipe.merge({"document_length": longest, "expansion": "none", "attend_to_expansion": False}),
    )
    tokenised = tokeniser.documents(texts)
    places = np.zeros(len(tokenised.token_ids), dtype=np.int64)
    parts = [np.zeros((0, hidden_width(transformer)), dtype=np.float32)]
    for rows in plan_batches(np.diff(tokenised.offsets), max(longest, _TOKENS_AT_ONCE)):
        batch = make_batch(tokenised, places, rows, tokeniser.padding_id)
        ids, attended, kept, _ = to_device(batch.sheet, transformer.device).split(batch.parts)
        mask = torch.arange(batch.width, device=ids.device) < attended[:, None]
        hidden = transformer(input_ids=ids.view(batch.sequences, batch.width), attention_mask=mask.long())[0]
        parts.append(to_host(hidden.flatten(0, 1).index_select(0, kept).float()))
    return np.concatenate(parts)
