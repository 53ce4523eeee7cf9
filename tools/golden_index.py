"""Makes the golden indexes that tests open for ever: `python tools/golden_index.py`

One small folder for each form under tests/adapters/index/golden/<format version>, with what it answered at that time.
What is there is never made again: what was released once has to stay readable as it was. Whoever changes the format
raises its version, and makes the golden indexes of the new one before it is released; a new form is added to its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.manifests import FORMAT
from lateinteraction.adapters.index.search import SearchOptions
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.filters import filter_from_json
from lateinteraction.domain.text import Document, DocumentId

GOLDEN = Path(__file__).parent.parent / "tests" / "adapters" / "index" / "golden"
FORMS: Mapping[str, IndexOptions] = MappingProxyType(
    {
        "float16": IndexOptions("float16"),
        "int8": IndexOptions("int8"),
        "residual4": IndexOptions("residual4"),
        "residual2": IndexOptions("residual2"),
        "residual1": IndexOptions("residual1"),
        "kept-int8": IndexOptions("residual4", keep="int8", tier="compressed"),
        "kept-float16": IndexOptions("residual2", keep="float16", tier="listed", centroids=16),
    }
)
DOCUMENTS, DOCUMENTS_OF_KEPT = 70, 30
WIDTH = 8
COMPRESS_AT, SCANNED = 100, 120
"""Tokens from which on these small indexes are compressed, and beyond which they have inverted lists."""
WORDS = ("Paris", "lies", "on", "the", "Seine", "cities", "running", "naïve", "parse_date", "東京都", "straße")
WHERE = (
    None,
    {"field": "number", "operator": ">", "value": 20},
    {
        "operator": "OR",
        "conditions": [
            {"field": "kind", "operator": "==", "value": "odd"},
            {"field": "moved", "operator": "==", "value": True},
        ],
    },
)
TEXTS = ("the city of Paris", "runs", "parse date", "東京", "nothing of it")


def main() -> int:
    """Make those of the present version that are not there; the exit status."""
    version = GOLDEN / str(FORMAT)
    missing = {name: options for name, options in FORMS.items() if not (version / name).exists()}
    if not missing:
        print(f"all of {version} are there, and stay as they are", file=sys.stderr)
        return 1
    folding.COMPRESS_AT = COMPRESS_AT
    folding.SCANNED_TOKENS = SCANNED
    for name, options in missing.items():
        make(version / name, options)
        files = [path for path in (version / name).rglob("*") if path.is_file()]
        print(f"{name}: {sum(path.stat().st_size for path in files):,} bytes")
    return 0


def make(folder: Path, options: IndexOptions) -> None:
    """An index, and beside it what it answers."""
    folder.mkdir(parents=True)
    count = DOCUMENTS if options.keep == "nothing" else DOCUMENTS_OF_KEPT
    removed = [number for number in (5, 33, 60) if number < count]
    moved = {number: {"number": 100 + number, "moved": True} for number in (4, 48) if number < count}
    with StoredIndex.create(FolderStorage(folder / "index", create=True), IndexSettings(options)) as index:
        add(index, range(count))
        index.remove([DocumentId(name(number)) for number in removed])
        index.update({DocumentId(name(number)): metadata for number, metadata in moved.items()})
        add(index, range(count, count + 6))
        expected = answers(index)
    (folder / "index" / "lock").unlink()  # it names the process that held it; the next writer makes its own
    lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in expected.items())
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def add(index: StoredIndex, numbers: range) -> None:
    """One commit."""
    index.add([document(number) for number in numbers], embeddings(numbers))


def answers(index: StoredIndex) -> dict[str, Any]:
    """All that is asked of it."""
    snapshot, queries = index.snapshot(), embeddings(range(1_002, 1_005))
    some = list(snapshot.ids())[::9]
    return {
        "documents": [
            {"id": each.id, "text": each.text, "metadata": dict(each.metadata)} for each in snapshot.get(snapshot.ids())
        ],
        "segments": dict(snapshot.stats().segments),
        "tier": snapshot.stats().tier,
        "content": index.verify().content,
        "queries": [numbers(query) for query in queries],
        "stored": tokens_of(some, snapshot.fetch(some)),
        "coded": tokens_of(some, snapshot.coded(some)),
        "searches": [
            {"effort": effort, "where": where, "rankings": [ranking(each) for each in found]}
            for effort in ("fast", "exact")
            for where in WHERE
            for options in [SearchOptions(effort)]
            for found in [
                snapshot.search(queries, 5, where=None if where is None else filter_from_json(where), options=options)
            ]
        ],
        "texts": [{"text": text, **ranking(snapshot.search_text([text], 5)[0])} for text in TEXTS],
    }


def tokens_of(ids: list[DocumentId], found: TokenEmbeddings[torch.Tensor]) -> list[dict[str, Any]]:
    """As JSON."""
    return [{"id": identifier, "tokens": numbers(tokens)} for identifier, tokens in zip(ids, found, strict=True)]


def ranking(found: Any) -> dict[str, Any]:
    """As JSON."""
    return {"ids": list(found.documents), "scores": [float(f"{float(score):.9g}") for score in found.scores]}


def numbers(tokens: torch.Tensor) -> list[list[float]]:
    """As JSON, and as close as float32 is."""
    return [[float(f"{float(value):.9g}") for value in token] for token in tokens]


def name(number: int) -> str:
    """The id of a document."""
    return f"straße/{number}" if number % 7 == 0 else f"d{number}"


def document(number: int) -> Document:
    """Texts of several scripts, and metadata of every kind."""
    text = " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 2 + number % 4))
    metadata = {"number": number, "kind": "odd" if number % 2 else "even", "share": number / 8, "none": None}
    return Document(DocumentId(name(number)), text, metadata if number % 5 else {})


def embeddings(numbers: range) -> TokenEmbeddings[torch.Tensor]:
    """Document n has n % 5 tokens, drawn from its number."""
    lengths = [number % 5 for number in numbers]
    drawn = [np.random.default_rng(n).standard_normal((size, WIDTH)) for n, size in zip(numbers, lengths, strict=True)]
    tokens = torch.from_numpy(np.concatenate(drawn).astype(np.float32))
    return TokenEmbeddings(torch.nn.functional.normalize(tokens, dim=1), offsets_of(lengths))


if __name__ == "__main__":
    sys.exit(main())
