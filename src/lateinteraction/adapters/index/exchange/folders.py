"""Which tool wrote a folder, and its documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lateinteraction.adapters.index.exchange.document_ids import id_file, read_ids
from lateinteraction.adapters.index.exchange.fast_plaid import is_fast_plaid, read_fast_plaid
from lateinteraction.adapters.index.exchange.incoming import Incoming
from lateinteraction.adapters.index.exchange.open_files import is_export, read_export
from lateinteraction.adapters.index.exchange.stanford import is_stanford, read_stanford
from lateinteraction.domain.errors import UnreadableFile

IN_PYLATE = "fast_plaid_index"
"""The folder of the codes within PyLate's folder of an index."""


def read_folder(folder: Path, *, trust_pickle: bool = False, texts: Mapping[str, str] | None = None) -> Incoming:
    """The documents of a folder that `export` wrote, or PyLate, fast-plaid or Stanford's ColBERT.

    Everything is looked at before this returns. Embeddings of the latter three come as their codes give them.

    Args:
        folder: of an index.
        trust_pickle: whether the ids that PyLate keeps in pickles are read; see `document_ids.read_ids`.
        texts: by id; only exports of ours hold texts themselves.

    Raises:
        UnreadableFile: no such folder, or a file of it that is missing, damaged or not to be trusted.
        IndexMismatch: ids that do not fit the documents, or an export of a later version.
    """
    if is_export(folder):
        return read_export(folder)
    codes = folder / IN_PYLATE if is_fast_plaid(folder / IN_PYLATE) else folder
    read = read_fast_plaid if is_fast_plaid(codes) else read_stanford if is_stanford(codes) else None
    if read is None:
        raise UnreadableFile(
            f"{folder}, which {'is no index that is known' if folder.is_dir() else 'is no folder'}",
            "a folder that `export` wrote, or PyLate, fast-plaid or Stanford's ColBERT",
            "Name the folder that holds manifest.json or metadata.json.",
        )
    names = id_file(folder)
    return read(codes, None if names is None else read_ids(names, trust_pickle=trust_pickle), texts)
