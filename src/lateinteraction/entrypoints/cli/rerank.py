"""`rerank`: a list of documents from a file or from standard input, ordered by score with a query."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

from rich.text import Text

from lateinteraction import wiring
from lateinteraction.api import load_model
from lateinteraction.domain.errors import UnreadableFile
from lateinteraction.domain.text import Document
from lateinteraction.entrypoints.cli.display import (
    emit_json,
    encoding_progress,
    json_score,
    matched_document,
    notes,
    output,
    show_hit,
    told_of_truncation,
)


def run(query: str, source: str, k: int | None, *, model: str | None, device: str, as_json: bool) -> None:
    """Read, score, show."""
    started = perf_counter()
    documents = _documents(source)
    with encoding_progress() as progress:
        loaded = load_model(model, device=device, progress=progress)
        results = loaded.rerank(query, documents, k)
    if as_json:
        hits = [
            {"id": one.id, "score": json_score(one.score), "text": one.text, "metadata": dict(one.metadata)}
            for one in results
        ]
        timing = {"total_s": round(perf_counter() - started, 3)}
        emit_json({"query": query, "hits": hits, "documents": len(documents), "timing": timing})
        return
    console = output()
    for rank, result in enumerate(results, start=1):
        with told_of_truncation():
            explanation = loaded.explain(query, Document(result.id, result.text))
        show_hit(console, rank, result.score, result.id, [_line(matched_document(explanation))])


def _documents(source: str) -> tuple[Document, ...]:
    if source == "-" and sys.stdin is None:
        raise UnreadableFile("standard input, which is closed", "one document a line", "Name a file, or pipe one in.")
    if source == "-" and sys.stdin.isatty():
        notes().print("Type the documents, one a line; Ctrl-D ends the list.", style="dim")
    documents = wiring.listed_documents(sys.stdin.buffer if source == "-" else Path(source))
    if not documents:
        place = "standard input" if source == "-" else source
        raise UnreadableFile(f"{place} without a document", "one document a line", "Give texts, or JSON objects.")
    return documents


def _line(text: Text) -> Text:
    return Text(" ").join(text.split("\n"))
