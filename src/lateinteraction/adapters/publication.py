"""A folder that appears whole or not at all: made beside its place, brought to the disk, renamed.

Shared by the adapters that write models; what a folder holds is theirs.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lateinteraction.domain.errors import InvalidOption, LateInteractionError


@contextmanager
def published(target: Path, *, marks: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """A new folder to fill, which is at `target` afterwards, unless an error leaves the block.

    Args:
        target: made with what is above it; must be new or empty.
        marks: files by which a folder of this kind is known.
        overwrite: whether a folder of this kind that is there is replaced; no other ever is. Between two renames there
            is then neither; when the second fails, the old one is put back.

    Raises:
        InvalidOption: a folder that holds something, or a place that cannot be written to.
    """
    target = target.expanduser().absolute()
    _check_target(target, marks, overwrite=overwrite)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in (*draft.rglob("*"), draft):
            _sync(path)
        _put_in_place(draft, target)
    except LateInteractionError:
        raise
    except OSError as error:
        raise InvalidOption(
            f"{target}, which cannot be written ({type(error).__name__}: {error.strerror or error})",
            "a place with room, that this user may write to",
            "Name another folder; nothing was left behind.",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_target(target: Path, marks: Sequence[str], *, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    is_one = target.is_dir() and not target.is_symlink() and all((target / name).is_file() for name in marks)
    if overwrite and is_one:
        return
    raise InvalidOption(
        f"{target}, which {'holds one already' if is_one else 'is there and holds something else'}",
        "a folder that is new or empty",
        "Name another folder, or pass overwrite=True." if is_one else "Name another folder.",
    )


def _put_in_place(draft: Path, target: Path) -> None:
    if not target.is_dir() or not any(target.iterdir()):
        draft.replace(target)
    else:
        old = target.with_name(f"{draft.name}.old")
        target.rename(old)
        try:
            draft.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # there, folders cannot be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
