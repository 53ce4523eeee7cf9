"""Writing a checkpoint as the one layout that PyLate ≤ 1.6 and sentence-transformers 6 both load.

All of it or nothing: the files are made in a folder beside the one asked for, brought to the disk, and renamed.
Settings that neither library has words for are kept under a key of our own, which both pass over.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from attrs import asdict, field, frozen
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint, hidden_width
from lateinteraction.adapters.huggingface.formats.listing import CONFIG
from lateinteraction.adapters.huggingface.formats.modules import OWN_SETTINGS, OWN_VERSION
from lateinteraction.adapters.huggingface.formats.transformer import quiet
from lateinteraction.adapters.huggingface.model_card import CardFacts, model_card
from lateinteraction.adapters.huggingface.projection import DenseLayer, Projection
from lateinteraction.adapters.publication import published
from lateinteraction.domain.errors import InvalidRecipe
from lateinteraction.domain.ports import ModelStore
from lateinteraction.domain.recipe import EncodingRecipe

_DENSE_TYPE = "sentence_transformers.models.Dense"
"""PyLate takes it for its own class, sentence-transformers 5 and 6 find it, and none needs another installed."""
_RESIDUAL_TYPE = "pylate.models.Dense.Dense"
"""The sentence-transformers that PyLate stands on knows no residual; version 6 takes this for its own class."""
_TRANSFORMER_TYPE = "sentence_transformers.models.Transformer"
_LOCAL_KEYS = ("is_local", "local_files_only", "name_or_path", "trust_remote_code")
"""What transformers notes of the loading into a tokenizer's file; it says nothing of the tokenizer."""


@final
@frozen
class FolderStore:
    """A `ModelStore` of checkpoints: one folder.

    Args:
        folder: made with what is above it; must be new or empty.
        overwrite: whether a checkpoint that is there is replaced. Nothing else ever is.
    """

    folder: Path = field(converter=Path)
    overwrite: bool = False

    def save(self, model: Checkpoint) -> str:
        """Write the checkpoint; the folder's path. Raises as `write_checkpoint` does."""
        write_checkpoint(model, self.folder, overwrite=self.overwrite)
        return str(self.folder)


def write_checkpoint(checkpoint: Checkpoint, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a checkpoint; one warning about settings that PyLate and sentence-transformers will not honour.

    `recipe.dimension` goes into the last dense layer, so that the recipe read back has none. Weights keep their dtype.

    Args:
        checkpoint: a model from anywhere.
        folder: made with what is above it; must be new, or empty, unless `overwrite`.
        overwrite: whether a checkpoint that is there is replaced. Between two renames there is then neither; when the
            second fails, the old one is put back.

    Raises:
        InvalidOption: a folder that holds something, or a place that cannot be written to.
        InvalidRecipe: a marker that the tokenizer does not know.
    """
    files = written_files(checkpoint)
    lost = files.not_honoured
    with published(Path(folder), marks=("config.json", "modules.json"), overwrite=overwrite) as draft:
        try:
            write_files(checkpoint, files, draft)
        except SafetensorError as error:  # what the file system says, in its own words
            raise OSError(str(error)) from error
    if lost:
        warnings.warn(f"PyLate and sentence-transformers will not honour: {'; '.join(lost)}.", stacklevel=2)


@frozen(kw_only=True)
class WrittenFiles:
    """What is to be written, decided before any of it is.

    Args:
        projection: dense layers, at least one.
        recipe: without a dimension, which is in the last of them.
        objects: JSON by path.
        not_honoured: what the others will not do, in words.
    """

    projection: Projection
    recipe: EncodingRecipe
    objects: Mapping[str, object]
    not_honoured: tuple[str, ...]


def written_files(checkpoint: Checkpoint) -> WrittenFiles:
    """The layout of a checkpoint.

    Raises:
        InvalidRecipe: a marker that the tokenizer does not know.
    """
    recipe = checkpoint.recipe
    _check_markers(checkpoint)
    projection = checkpoint.projection
    if projection.width is None:
        parameter = next(checkpoint.transformer.parameters())
        projection = Projection([DenseLayer(torch.eye(hidden_width(checkpoint.transformer)).type_as(parameter.data))])
    if recipe.dimension is not None:
        projection = projection.leading(recipe.dimension)
    recipe = recipe.merge({"dimension": None})
    own = _own_settings(recipe)
    return WrittenFiles(
        projection=projection,
        recipe=recipe,
        objects={
            "modules.json": _modules(projection),
            CONFIG: _config(recipe, own),
            "sentence_bert_config.json": {
                "max_seq_length": max(recipe.query_length, recipe.document_length),
                "do_lower_case": False,
            },
            **{f"{number}_Dense/config.json": _dense(layer) for number, layer in enumerate(projection.layers, start=1)},
        },
        not_honoured=(*_in_words(own), *_misplaced_markers(checkpoint)),
    )


def write_files(checkpoint: Checkpoint, files: WrittenFiles, folder: Path) -> None:
    """Write everything into a folder that is there and empty."""
    tokenizer = _peers_tokenizer(checkpoint)
    with quiet():
        checkpoint.transformer.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _forget_loading(folder / "tokenizer_config.json")
    for number, layer in enumerate(files.projection.layers, start=1):
        (folder / f"{number}_Dense").mkdir()
        save_file(_tensors(layer), folder / f"{number}_Dense" / "model.safetensors", {"format": "pt"})
    for path, content in files.objects.items():
        _write_json(folder / path, content)
    (folder / "README.md").write_text(model_card(_facts(checkpoint, files)), encoding="utf-8")
    usual = (folder / "README.md").stat().st_mode
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(usual)  # safetensors makes its files for their owner alone


def _check_markers(checkpoint: Checkpoint) -> None:
    """Raise where PyLate would have to add a marker to the vocabulary, with random values."""
    vocabulary = checkpoint.tokenizer.get_vocab()
    for name in ("query_prefix", "document_prefix", "expansion_token"):
        token = getattr(checkpoint.recipe, name)
        if token is not None and token not in vocabulary:
            raise InvalidRecipe(
                f"{name} = {token!r}, which is no token of the tokenizer",
                "one known or added token, spaces included",
                "Name a token the model has, such as '[unused0]'.",
            )


def _modules(projection: Projection) -> list[dict[str, object]]:
    kinds = [("", _TRANSFORMER_TYPE)]
    for number, layer in enumerate(projection.layers, start=1):
        kinds.append((f"{number}_Dense", _RESIDUAL_TYPE if layer.has_residual else _DENSE_TYPE))
    return [{"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(kinds)]


def _config(recipe: EncodingRecipe, own: Mapping[str, object]) -> dict[str, object]:
    names = {"lateinteraction": "lateinteraction", "transformers": "transformers", "pytorch": "torch"}
    config: dict[str, object] = {
        "model_type": "ColBERT",
        "__version__": {name: metadata.version(package) for name, package in names.items()},
        "prompts": {"query": recipe.query_prompt, "document": recipe.document_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": recipe.query_prefix or "",
        "document_prefix": recipe.document_prefix or "",
        "query_length": recipe.query_length,
        "document_length": recipe.document_length,
        "attend_to_expansion_tokens": recipe.attend_to_expansion,
        "skiplist_words": list(recipe.skiplist),
        "do_query_expansion": recipe.expansion == "fixed",
    }
    return {**config, OWN_SETTINGS: {"version": OWN_VERSION, **own}} if own else config


def _own_settings(recipe: EncodingRecipe) -> dict[str, object]:
    """Settings that PyLate's layout has no key for, where they are not what it means anyway."""
    usual = EncodingRecipe()
    names = ("keep_special_tokens", "normalise", "query_skiplist", "expansion_token", "pooling")
    own = {name: getattr(recipe, name) for name in names if getattr(recipe, name) != getattr(usual, name)}
    if "query_skiplist" in own:
        own["query_skiplist"] = list(recipe.query_skiplist)
    if recipe.pooling is not None:
        own["pooling"] = asdict(recipe.pooling)
    return own


def _in_words(own: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(f"{name} = {json.dumps(value, ensure_ascii=False):.80}" for name, value in own.items())


def _misplaced_markers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """PyLate puts markers in second place, which is right where a special token is in the first."""
    recipe, tokenizer = checkpoint.recipe, checkpoint.tokenizer
    framed, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if (recipe.query_prefix or recipe.document_prefix) and framed[0] == bare[0]:
        return ("markers in front of the text (PyLate puts them after its first token)",)
    return ()


def _dense(layer: DenseLayer) -> dict[str, object]:
    settings: dict[str, object] = {
        "in_features": layer.input_width,
        "out_features": layer.width,
        "bias": layer.bias is not None,
        "activation_function": layer.activation_name,
    }
    return {**settings, "use_residual": True} if layer.has_residual else settings


def _tensors(layer: DenseLayer) -> dict[str, Tensor]:
    named = {"linear.weight": layer.weight, "linear.bias": layer.bias, "residual.weight": layer.residual_weight}
    return {name: tensor.data.contiguous() for name, tensor in named.items() if tensor is not None}


def _peers_tokenizer(checkpoint: Checkpoint) -> Any:
    """A copy that pads as PyLate saves it, on the right, with what it fills queries with; and that knows no chat.

    sentence-transformers 6 would put texts through a chat template; the one file that could tell it not to is one that
    PyLate reads too, and does not understand then.
    """
    tokenizer = copy.deepcopy(checkpoint.tokenizer)
    filler = tokenizer.mask_token or tokenizer.eos_token
    if filler is not None:
        tokenizer.pad_token = filler
    tokenizer.padding_side = "right"
    tokenizer.chat_template = None
    return tokenizer


def _facts(checkpoint: Checkpoint, files: WrittenFiles) -> CardFacts:
    return CardFacts(
        source=checkpoint.source,
        architecture=type(checkpoint.transformer).__name__,
        dtype=str(checkpoint.transformer.dtype).removeprefix("torch."),
        widths=tuple(layer.width for layer in files.projection.layers),
        recipe=files.recipe,
        not_honoured=files.not_honoured,
        versions={name: metadata.version(name) for name in ("lateinteraction", "transformers", "torch")},
    )


def _forget_loading(file: Path) -> None:
    settings = json.loads(file.read_text(encoding="utf-8"))
    _write_json(file, {name: value for name, value in settings.items() if name not in _LOCAL_KEYS})


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if TYPE_CHECKING:
    _: type[ModelStore[Checkpoint]] = FolderStore
