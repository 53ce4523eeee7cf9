"""Makes the golden indexes that tests open for ever: `python tools/golden_index.py`

One small folder for each codec under tests/adapters/index/golden/<format version>, with what it answered at that time.
A version that is there is never made again: what was released once has to stay readable as it was. Whoever changes the
format raises its version, and makes the golden indexes of the new one before it is released.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lateinteraction.adapters.index import codebook, folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.manifests import FORMAT
from lateinteraction.adapters.index.search import SearchOptions
from lateinteraction.adapters.index.settings import Codec, IndexOptions, IndexSettings
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.filters import filter_from_json
from lateinteraction.domain.text import Document, DocumentId

GOLDEN = Path(__file__).parent.parent / "tests" / "adapters" / "index" / "golden"
CODECS: tuple[Codec, ...] = ("float16", "int8", "residual4", "residual2", "residual1")
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
    """Make the indexes of the present version; the exit status."""
    folder = GOLDEN / str(FORMAT)
    if folder.exists():
        print(f"{folder} is there, and stays as it is", file=sys.stderr)
        return 1
    folding.COMPRESS_AT = COMPRESS_AT
    codebook.EXACT_TOKENS, codebook.SCANNED_TOKENS = COMPRESS_AT, SCANNED
    for codec in CODECS:
        make(folder / codec, codec)
        print(f"{codec}: {sum(path.stat().st_size for path in (folder / codec).rglob('*') if path.is_file()):,} bytes")
    return 0


def make(folder: Path, codec: Codec) -> None:
    """An index, and beside it what it answers."""
    folder.mkdir(parents=True)
    with StoredIndex.create(FolderStorage(folder / "index", create=True), IndexSettings(IndexOptions(codec))) as index:
        index.add([document(number) for number in range(70)], embeddings(range(70)))
        index.remove([DocumentId(name(number)) for number in (5, 33, 60)])
        index.update({DocumentId(name(number)): {"number": 100 + number, "moved": True} for number in (4, 48)})
        index.add([document(number) for number in range(70, 76)], embeddings(range(70, 76)))
        expected = answers(index)
    (folder / "index" / "lock").unlink()  # it names the process that held it; the next writer makes its own
    lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in expected.items())
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def answers(index: StoredIndex) -> dict[str, Any]:
    """All that is asked of it."""
    snapshot, queries = index.snapshot(), embeddings(range(1_002, 1_005))
    some = list(snapshot.ids())[::9]
    return {
        "documents": [
            {"id": each.id, "text": each.text, "metadata": dict(each.metadata)} for each in snapshot.get(snapshot.ids())
        ],
        "segments": dict(snapshot.stats().segments),
        "content": index.verify().content,
        "queries": [numbers(query) for query in queries],
        "stored": [
            {"id": identifier, "tokens": numbers(tokens)}
            for identifier, tokens in zip(some, snapshot.fetch(some), strict=True)
        ],
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
