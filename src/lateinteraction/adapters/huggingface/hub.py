"""HubStore: puts a checkpoint on a hub, as one commit of the files that `writing` makes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, final

from attrs import field, frozen
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.writing import write_checkpoint
from lateinteraction.domain.errors import InvalidOption, LateInteractionError
from lateinteraction.domain.ports import ModelStore

# Its bases are the HTTP client's own errors, whichever client this hub library brings: no connection, a time-out.
_VENDOR_ERRORS = (HfHubHTTPError, *HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError)


_MODEL_FILES = (
    *("*.json", "*.jinja", "*.safetensors", "*.bin", "*.metadata", "vocab*", "merges.txt", "*.model"),
    *("*_Dense/*", "*_Pooling/*", "*_Normalize/*"),
)
"""What a model that was there before may have left, and a reader would take for this one's."""


@final
@frozen(kw_only=True)
class HubStore:
    """A `ModelStore` of checkpoints: a model repository, made where there is none.

    Args:
        name: "someone/something"; without an owner, the one the token belongs to.
        private: whether a new repository is; one that is there stays as it is.
        token: may write; None takes the one this machine is logged in with.
        revision: branch to commit to, made where there is none; None is the default one.
        message: of the commit.
        endpoint: of a hub of one's own; None is the hub library's.
    """

    name: str = field(kw_only=False)
    private: bool = True
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    message: str = "Save a late-interaction model"
    endpoint: str | None = None

    def save(self, model: Checkpoint) -> str:
        """Commit the checkpoint; the repository's name, owner included.

        Raises:
            InvalidOption: a name that is none, a token that is missing or may not write, or a hub out of reach.
            InvalidRecipe: a marker that the tokenizer does not know.
        """
        api = HfApi(endpoint=self.endpoint, token=self.token, library_name="lateinteraction")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            write_checkpoint(model, folder)
            with _Translated(self.name):
                repository = api.create_repo(self.name, private=self.private, exist_ok=True).repo_id
                if self.revision is not None:
                    api.create_branch(repository, branch=self.revision, exist_ok=True)
                api.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    revision=self.revision,
                    commit_message=self.message,
                    delete_patterns=list(_MODEL_FILES),
                )
        return repository


@frozen
class _Translated:
    """Turns what the hub library raises while pushing into `InvalidOption`, with what to do about it."""

    name: str

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, LateInteractionError) or not isinstance(error, _VENDOR_ERRORS):
            return
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')[:200]}"
        expected, remedy = _judged(error)
        raise InvalidOption(f"pushing to {self.name!r} ({reason})", expected, remedy) from error


def _judged(error: BaseException) -> tuple[str, str]:
    """What was expected instead, and the remedy."""
    if isinstance(error, HFValidationError):
        return "a name such as 'someone/something'", "Correct the name."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 403:
            return "a token that may write there", "Use a token with write access, or a name of your own."
        if status == 404:
            return "an owner that the hub knows", "Check the name."
        if status != 401:
            return "a hub that takes it", "Nothing was pushed; try again later."
    elif not isinstance(error, LocalTokenNotFoundError):
        return "a hub that can be reached", "Nothing was pushed; try again where there is a network."
    return "a token that the hub knows", "Log in with `hf auth login`, or give a token."


if TYPE_CHECKING:
    _: type[ModelStore[Checkpoint]] = HubStore
