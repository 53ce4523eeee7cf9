"""`search`: files in, places with scores out; one index in memory for one query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from attrs import frozen

from lateinteraction import wiring
from lateinteraction.api import Index, Result, load_model
from lateinteraction.domain.errors import UnreadableFile
from lateinteraction.domain.filters import matches
from lateinteraction.domain.text import Document, Query
from lateinteraction.entrypoints.cli.display import (
    counted,
    emit_json,
    encoding_progress,
    excerpt,
    json_score,
    notes,
    output,
    show_hit,
    told_of_truncation,
    visible,
)
from lateinteraction.entrypoints.cli.filters import filter_of

if TYPE_CHECKING:
    from lateinteraction.adapters.files import Passages


@frozen
class SearchRequest:
    """What a person typed.

    Args:
        where: a filter in its JSON form, as text.
    """

    query: str
    paths: tuple[Path, ...]
    k: int
    where: str | None = None


@frozen
class _Found:
    """Results with the index that explains them, and seconds for each part of the work."""

    results: Sequence[Result]
    index: Index | None
    searched: int
    seconds: dict[str, float]


def run(request: SearchRequest, *, model: str | None, device: str, as_json: bool) -> None:
    """Read, encode, search, show."""
    started = perf_counter()
    Query(request.query)  # refused before anything is read
    where = None if request.where is None else filter_of(request.where)
    passages = wiring.passages(request.paths)
    if not passages.documents:
        raise UnreadableFile(
            f"{', '.join(map(str, request.paths))} without any text{_skipped(passages)}",
            "files of UTF-8 text, or folders that hold some",
            "Check the paths.",
        )
    # What the filter leaves out need not be encoded: the ranking of the rest is the same.
    wanted = [document for document in passages.documents if where is None or matches(where, document.metadata)]
    found = _search(request, wanted, model, device, {"read": perf_counter() - started})
    found.seconds["total"] = perf_counter() - started
    if as_json:
        emit_json(_payload(request, passages, found))
    else:
        _show(request, passages, found)


def _search(
    request: SearchRequest, documents: Sequence[Document], model: str | None, device: str, seconds: dict[str, float]
) -> _Found:
    if not documents:
        return _Found((), None, 0, seconds)
    with encoding_progress() as progress:
        started = perf_counter()
        index = Index(load_model(model, device=device, progress=progress))
        loaded = perf_counter()
        index.add(documents)
    encoded = perf_counter()
    results = index.search(request.query, request.k)
    seconds |= {"load": loaded - started, "encode": encoded - loaded, "search": perf_counter() - encoded}
    return _Found(results, index, len(documents), seconds)


def _payload(request: SearchRequest, passages: Passages, found: _Found) -> dict[str, Any]:
    return {
        "query": request.query,
        "hits": [_hit(result) for result in found.results],
        "files": passages.files,
        "documents": len(passages.documents),
        "searched": found.searched,
        "skipped": dict(passages.skipped_by_reason),
        "timing": {f"{part}_s": round(value, 3) for part, value in found.seconds.items()},
    }


def _hit(result: Result) -> dict[str, Any]:
    place = {name: result.metadata[name] for name in ("path", "line", "last_line")}
    others = {name: value for name, value in result.metadata.items() if name not in place}
    return {"id": result.id, "score": json_score(result.score), **place, "text": result.text, "metadata": others}


def _show(request: SearchRequest, passages: Passages, found: _Found) -> None:
    console = output()
    for rank, result in enumerate(found.results, start=1):
        assert found.index is not None  # there are results
        name = f"  {result.metadata['name']}" if "name" in result.metadata else ""
        place = f"{result.metadata['path']}:{result.metadata['line']}{name}"
        with told_of_truncation():
            explanation = found.index.explain(request.query, result.id)
        show_hit(console, rank, result.score, place, excerpt(explanation))
    notes().print(visible(_summary(passages, found)), style="dim")


def _summary(passages: Passages, found: _Found) -> str:
    parts = [f"{counted(found.searched, 'document')} of {counted(passages.files, 'file')}"]
    if found.searched < len(passages.documents):
        parts.append(f"{len(passages.documents) - found.searched:,} left out by --where")
    if "encode" in found.seconds:
        rate = found.searched / max(found.seconds["encode"], 1e-9)
        parts.append(f"encoded in {found.seconds['encode']:.1f} s ({rate:,.0f} documents/s)")
        parts.append(f"searched in {found.seconds['search']:.2f} s")
    return " · ".join(parts) + _skipped(passages)


def _skipped(passages: Passages) -> str:
    reasons = passages.skipped_by_reason
    listed = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    return f" · skipped {sum(reasons.values())}: {listed}" if reasons else ""
