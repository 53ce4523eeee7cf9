"""Where a model's files are: a folder here, or what a hub keeps under a name, fetched as it is asked for.

Every file of a name comes from the same commit. What files mean is left to `formats`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from attrs import field, frozen
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lateinteraction.domain.errors import InvalidModel, LateInteractionError, ModelMismatch, shown

SAFE_WEIGHTS = "model.safetensors"
PICKLED_WEIGHTS = "pytorch_model.bin"
SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_TRANSFORMER_FILES = (
    *("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "chat_template.jinja", *SENTENCE_CONFIGS),
)
_ROOT_FILES = ("modules.json", "config_sentence_transformers.json", "artifact.metadata", *_TRANSFORMER_FILES)
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
    *HfHubHTTPError.__bases__,  # the HTTP client's own error, whichever client this hub library brings
)
_EXPECTED_FILES = "the config.json, tokenizer.json and model.safetensors of a transformers encoder"
_CHECK_FOLDER = "Check the path, or download the model again."
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_INNER_PATH = re.compile(r"(?!\.\.?(/|$))[\w.-]+(/(?!\.\.?(/|$))[\w.-]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@frozen(kw_only=True)
class HubAccess:
    """How names are looked up.

    Args:
        revision: branch, tag or commit; None is the default branch.
        token: of the hub; None takes the one this machine is logged in with.
        endpoint: of a hub of one's own; None is the hub library's.
        cache_folder: where downloads are kept; None is the hub library's own place.
        local_files_only: whether only that place is looked at.
        code: whether files of code are fetched too.
    """

    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    cache_folder: Path | None = None
    local_files_only: bool = False
    code: bool = False


@frozen
class Place:
    """A folder with a model's files.

    Args:
        folder: on this machine.
        name: the hub's, where the folder is the local copy of one commit.
        hub: how more files of that name are had.
    """

    folder: Path
    name: str | None = None
    hub: HubAccess | None = None

    def __str__(self) -> str:
        return f"folder {self.folder}" if self.name is None else f"model {self.name!r}"

    def fetch(self, names: Sequence[str]) -> None:
        """Get those of these files that the hub has and this machine has not; nothing to do for a plain folder."""
        if self.name is None or self.hub is None or all((self.folder / name).exists() for name in names):
            return
        commit = self.folder.name if _COMMIT.fullmatch(self.folder.name) else self.hub.revision
        with Translated(self):
            _download(self.name, self.hub, commit, names)

    def fetch_transformer(self, inner: str) -> None:
        """Get the small files of a transformer that is not at the root."""
        if inner:
            self.fetch([joined(inner, name) for name in _TRANSFORMER_FILES])

    def read_object(self, name: str) -> Mapping[str, Any] | None:
        """A JSON object; None where there is no such file."""
        content = self.read_json(name)
        if content is not None and not isinstance(content, dict):
            raise InvalidModel(f"{self}, whose {name} is {shown(content)}", "a JSON object", _CHECK_FOLDER)
        return cast("Mapping[str, Any] | None", content)

    def read_json(self, name: str) -> object:
        """What a JSON file holds; None where there is no such file."""
        file = self.folder / name
        if not file.is_file():
            return None
        with Translated(self):
            return json.loads(file.read_text(encoding="utf-8"))

    def weights(self, inner: str = "", *, pickled: bool = False) -> tuple[Path, ...]:
        """The files that hold the tensors of the model, or of one of its parts: safetensors wherever there are any.

        Raises:
            InvalidModel: there are none of a kind that may be read, or one of several is missing.
        """
        for name in (SAFE_WEIGHTS, PICKLED_WEIGHTS) if pickled else (SAFE_WEIGHTS,):
            files = self._weights_named(joined(inner, name))
            if files:
                return files
        raise InvalidModel(
            f"{self}, which has no {joined(inner, SAFE_WEIGHTS)}",
            "weights as safetensors",
            f"Get the whole checkpoint. If it has only a {PICKLED_WEIGHTS}, convert it, or allow pickled_weights.",
        )

    def _weights_named(self, name: str) -> tuple[Path, ...]:
        index = f"{name}.index.json"
        self.fetch([name])
        if (self.folder / name).is_file():
            return (self.folder / name,)
        self.fetch([index])
        listed = self.read_object(index)
        if listed is None:
            return ()
        with Translated(self):
            names = sorted({joined(name.rpartition("/")[0], inner_path(self, file)) for file in _files_of(listed)})
        self.fetch(names)
        missing = [each for each in names if not (self.folder / each).is_file()]
        if missing:
            raise InvalidModel(f"{self}, which has no {missing[0]}", f"every file that {index} lists", _CHECK_FOLDER)
        return tuple(self.folder / each for each in names)

    def tensors(self, files: Sequence[Path], names: frozenset[str] | None = None) -> dict[str, Tensor]:
        """Tensors of weights files on the host: all, or those of these names that are there."""
        found: dict[str, Tensor] = {}
        with Translated(self):
            for file in files:
                found |= _pickled_tensors(file, names) if file.suffix == ".bin" else _safe_tensors(file, names)
        return found

    def check_digest(self, files: Sequence[Path], sha256: str) -> None:
        """Raise `ModelMismatch` unless the one weights file has this digest, hexadecimal."""
        remedy = "Get the weights again from a place you trust, or give the digest of these."
        if len(files) != 1:
            raise ModelMismatch(f"{self} with {len(files)} weights files", "one, with the given sha256", remedy)
        with files[0].open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != sha256.lower():
            raise ModelMismatch(f"{files[0]} with sha256 {digest}", f"sha256 {sha256.lower()}", remedy)


def locate(source: str | Path, hub: HubAccess) -> Place:
    """The place of a folder or a hub name. Only a name that is no folder here can cause a download.

    Raises:
        InvalidModel: neither a folder that may hold a model nor a name that could be had.
    """
    if not isinstance(source, str | Path):
        raise InvalidModel(f"{shown(source)} as a model", "a model's folder or its hub name", "Give a str or a Path.")
    path = Path(source).expanduser()
    if str(source) and path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "modules.json")):
            raise InvalidModel(f"folder {path}, which has no config.json", _EXPECTED_FILES, _CHECK_FOLDER)
        return Place(path)
    if isinstance(source, Path) or not _HUB_NAME.fullmatch(source) or path.exists():
        raise InvalidModel(
            f"{str(source)!r}, which is no folder here", "a model's folder or its hub name", "Check the path."
        )
    with Translated(Place(path, name=source)):
        folder = _download(source, hub, hub.revision, (*_ROOT_FILES, "*.py") if hub.code else _ROOT_FILES)
    return Place(folder, name=source, hub=hub)


def joined(inner: str, name: str) -> str:
    """The path of a file in a folder of the checkpoint; "" is its root."""
    return f"{inner}/{name}" if inner else name


def inner_path(place: Place, path: object) -> str:
    """A path that a file of the checkpoint names, known to stay inside it.

    Raises:
        InvalidModel: an absolute path, one with "..", or one that is no path at all.
    """
    if path == "":
        return ""
    if not isinstance(path, str) or not _INNER_PATH.fullmatch(path):
        raise InvalidModel(
            f"{place}, which points to {shown(path)}",
            "paths inside it: names of letters, digits, '.', '_' and '-'",
            "Do not use it unless you know where it comes from.",
        )
    return path


@frozen
class Translated:
    """Turns what the vendors raise while reading into `InvalidModel`.

    A class, not `except`: tokenizers raises `Exception` itself, and naming that in a handler would catch everything.
    """

    place: Place

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, LateInteractionError):
            return
        # torch passes on the errors of a module that is not imported here, because it also does what must not be done.
        if not (kind is Exception or issubclass(kind, _VENDOR_ERRORS) or kind.__module__ == "_pickle"):
            return
        reason = f"{kind.__name__}: {next(iter(str(error).splitlines()), 'no reason given')[:200]}"
        if self.place.name is None or self.place.hub is not None:
            raise InvalidModel(f"{self.place} ({reason})", _EXPECTED_FILES, _CHECK_FOLDER) from error
        raise InvalidModel(
            f"{self.place}, which is no folder here and could not be had by name ({reason})",
            "a name in the local cache or on a hub that can be reached",
            _remedy(self.place.name, error),
        ) from error


def _remedy(name: str, error: BaseException | None) -> str:
    if isinstance(error, RevisionNotFoundError):
        return "Check the revision."
    if isinstance(error, GatedRepoError):
        return f"Accept its conditions on the hub's page of {name}, and give a token of that account."
    if isinstance(error, RepositoryNotFoundError):
        return "Check the name; a private model needs a token that may read it."
    return f"Download it where there is a network (`hf download {name}`), or give a folder."


class _NoBar(tqdm):
    """Small files arrive without a word."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})


def _download(name: str, hub: HubAccess, revision: str | None, names: Sequence[str]) -> Path:
    large = any(each.endswith((".safetensors", ".bin")) for each in names)
    return Path(
        snapshot_download(
            name,
            revision=revision,
            token=hub.token,
            endpoint=hub.endpoint,
            cache_dir=hub.cache_folder,
            local_files_only=hub.local_files_only,
            # These two are there in any case; where nothing matches, the hub library complains in the log.
            allow_patterns=["config.json", "modules.json", *names],
            tqdm_class=tqdm if large else _NoBar,
        )
    )


def _files_of(index: Mapping[str, Any]) -> set[object]:
    return set(index["weight_map"].values())


def _safe_tensors(file: Path, names: frozenset[str] | None) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys() if names is None or name in names}  # noqa: SIM118


def _pickled_tensors(file: Path, names: frozenset[str] | None) -> dict[str, Tensor]:
    """Read by torch's own reader of tensors alone, which refuses whatever else a pickle could do."""
    content = torch.load(file, map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in content.items() if names is None or name in names}
