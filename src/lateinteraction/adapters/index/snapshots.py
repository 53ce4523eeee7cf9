"""Snapshots: one generation in a folder of its own, its files linked, its log one record long."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lateinteraction.adapters.index.commits import LogEnd, append, commit_after
from lateinteraction.adapters.index.manifests import manifest_name
from lateinteraction.adapters.index.reading import OpenGeneration
from lateinteraction.adapters.index.storage import FolderStorage, Storage
from lateinteraction.domain.errors import InvalidOption, StorageFailed, UnreadableFile


def write_snapshot(storage: Storage, opened: OpenGeneration, folder: Path) -> None:
    """Make a folder that holds this generation and is an index of its own.

    Hard links where the file system has them, else copies. It is no index before the last step: whoever finds half of
    one after a crash is told so.

    Raises:
        InvalidOption: the folder holds something.
        StorageFailed: it cannot be written; what was written is removed.
    """
    target = FolderStorage(folder, create=True)
    if any(target.path.iterdir()):
        raise InvalidOption(f"{folder}, which holds something", "a folder that is new or empty", "Name another folder.")
    names = [*dict.fromkeys(record.name for record in opened.manifest.records()), manifest_name(opened.generation)]
    complete = False
    try:
        for name in names:
            _link(storage, name, target)
        target.sync_folder()
        end = LogEnd()
        append(target, end, commit_after(end, opened.generation, opened.digest))
        complete = True
    finally:
        if not complete:
            with suppress(StorageFailed):
                for name in target.names():
                    target.unlink(name)


def _link(storage: Storage, name: str, target: FolderStorage) -> None:
    try:
        storage.link_into(name, target.path)
    except FileNotFoundError as error:
        raise UnreadableFile(
            f"{name}, which is collected by now", "a generation that is still on the disk", "Refresh, then try again."
        ) from error
