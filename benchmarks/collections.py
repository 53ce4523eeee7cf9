"""Collections in BEIR's folder layout, from $LATEINTERACTION_DATA or from shared/data beside the checkout.

`corpus.jsonl[.gz]` {_id, title, text}, `queries.jsonl[.gz]` {_id, text}, `qrels/<split>.tsv[.gz]` (query-id, corpus-id,
score).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

from lateinteraction.domain.evaluation import EvaluationSet, RelevanceJudgments
from lateinteraction.domain.text import Document, DocumentId, Query, QueryId


def read_collection(name: str, split: str = "test") -> EvaluationSet:
    """Documents are title + text; only queries that are judged in the split are kept."""
    folder = _root() / name
    grades: dict[QueryId, dict[DocumentId, int]] = {}
    for line in _lines(folder / "qrels" / f"{split}.tsv", skip=1):
        query, document, grade = line.split("\t")
        grades.setdefault(QueryId(query), {})[DocumentId(document)] = int(grade)
    return EvaluationSet(
        documents=[
            Document(DocumentId(row["_id"]), f"{row.get('title', '')} {row['text']}".strip())
            for row in map(json.loads, _lines(folder / "corpus.jsonl"))
        ],
        queries=[
            Query(row["text"], QueryId(row["_id"]))
            for row in map(json.loads, _lines(folder / "queries.jsonl"))
            if row["_id"] in grades
        ],
        judgments=RelevanceJudgments(grades),
    )


def _root() -> Path:
    given = os.environ.get("LATEINTERACTION_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        raise SystemExit(f"no collections at {root}: set LATEINTERACTION_DATA to a folder of BEIR-layout folders")
    return root


def _lines(path: Path, skip: int = 0) -> Iterator[str]:
    zipped = path.with_name(path.name + ".gz")
    with gzip.open(zipped, "rt", encoding="utf-8") if zipped.exists() else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number >= skip and line.strip():
                yield line.rstrip("\n")
