"""Collection: what no kept generation and no lease names is removed. Only the holder of the writer's lock collects."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet

from lateinteraction.adapters.index.commits import committed
from lateinteraction.adapters.index.leases import held
from lateinteraction.adapters.index.manifests import Manifest, generation_of, number_of
from lateinteraction.adapters.index.states import load
from lateinteraction.adapters.index.storage import Storage, is_temporary
from lateinteraction.domain.errors import CorruptIndex

_log = logging.getLogger(__name__)


def collect(
    storage: Storage,
    known: dict[int, Manifest],
    newest: Manifest,
    *,
    keep: int,
    counter: int,
    pending: AbstractSet[str],
) -> int:
    """Remove what nobody needs; how many files. What the system refuses for now is tried by the next collection.

    Args:
        storage: the folder.
        known: manifests by generation, as far as they are read; afterwards those that are kept.
        newest: stays, whatever the log says.
        keep: how many of the last generations stay, with every one that a reader holds.
        counter: data files of this number and above are not ours to judge.
        pending: temporaries in use.
    """
    names = storage.names()
    last = {record.generation for record in committed(storage, keep)}
    staying = {newest.generation} | last | held(storage, names)
    needed = _needed(storage, known, staying)
    removed = 0
    for name in names:  # manifests come first, so none ever names what is gone already
        generation, number = generation_of(name), number_of(name)
        if generation is not None:
            doomed = generation < newest.generation and generation not in staying
        elif number is not None:
            doomed = needed is not None and number < counter and name not in needed
        else:
            doomed = is_temporary(name) and name not in pending
        removed += doomed and storage.unlink(name)
    return removed


def _needed(storage: Storage, known: dict[int, Manifest], generations: AbstractSet[int]) -> AbstractSet[str] | None:
    """The data files of these generations; None where a manifest cannot be read, so nobody knows."""
    manifests: dict[int, Manifest] = {}
    for generation in generations:
        try:
            manifests[generation] = known.get(generation) or load(storage, generation, None)[0]
        except FileNotFoundError:
            continue  # collected before its reader's lease was there; that reader tries again
        except CorruptIndex as error:
            _log.warning("no data file is collected: %s", error)
            return None
    known.clear()
    known.update(manifests)
    return {record.name for manifest in manifests.values() for record in manifest.records()}
