"""`index`: a folder of documents that stay: filled, searched, changed, looked after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from attrs import asdict, frozen

from lateinteraction import wiring
from lateinteraction.api import By, Index, Result, load_model
from lateinteraction.domain.errors import InvalidOption, UnreadableFile
from lateinteraction.domain.ports import OnDuplicate
from lateinteraction.domain.text import DocumentId
from lateinteraction.entrypoints.cli.display import (
    building_progress,
    counted,
    emit_json,
    encoding_progress,
    excerpt,
    json_score,
    notes,
    output,
    show_hit,
    told_of_truncation,
)
from lateinteraction.entrypoints.cli.filters import filter_of
from lateinteraction.wiring import exchange, indexes

if TYPE_CHECKING:
    from lateinteraction.adapters.index.search import Effort
    from lateinteraction.adapters.index.settings import IndexOptions


@frozen
class Encoding:
    """Which model, and where it runs."""

    model: str | None
    device: str


@frozen
class IndexQuery:
    """What a person typed.

    Args:
        where: a filter in its JSON form, as text.
    """

    query: str
    k: int
    where: str | None
    by: By
    effort: Effort | None


def create(folder: Path, options: IndexOptions, encoding: Encoding) -> None:
    """Make an index without documents."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidOption(f"{folder}, which holds something", "a new or empty folder", "Name another.")
    with encoding_progress() as progress:
        model = load_model(encoding.model, device=encoding.device, progress=progress)
    with Index(model, folder, options):
        output().print(f"{folder}: an empty index")


def add(
    folder: Path,
    paths: Sequence[Path],
    on_duplicate: OnDuplicate,
    per_commit: int,
    encoding: Encoding,
    *,
    as_json: bool,
) -> None:
    """Read files, encode them, and commit them some at a time."""
    started = perf_counter()
    _must_exist(folder)
    passages = wiring.passages(paths)
    if not passages.documents:
        raise UnreadableFile(
            f"{', '.join(map(str, paths))} without any text", "files of UTF-8 text", "Check the paths."
        )
    with building_progress("loading the model") as progress:
        model = load_model(encoding.model, device=encoding.device)
        with Index(model, folder) as index:
            counts = asdict(
                index.add_stream(
                    passages.documents, on_duplicate=on_duplicate, documents_per_commit=per_commit, progress=progress
                )
            )
            documents = len(index)
    seconds = round(perf_counter() - started, 3)
    if as_json:
        emit_json({**counts, "documents": documents, "timing": {"total_s": seconds}})
    else:
        done = ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)
        output().print(f"{folder}: {done or 'nothing'} in {seconds:.1f} s; {counted(documents, 'document')} now")


def remove(folder: Path, ids: Sequence[str], where: str | None) -> None:
    """Forget documents, by ids or by filter."""
    if bool(ids) == (where is not None):
        raise InvalidOption("ids and --where, or neither", "one of the two", "Name ids, or give a filter.")
    with closing(indexes.stored_index(folder)) as index:
        gone = index.remove([DocumentId(each) for each in ids] if where is None else filter_of(where))
        output().print(f"{folder}: {counted(gone, 'document')} removed; {counted(len(index), 'document')} now")


def search(folder: Path, request: IndexQuery, encoding: Encoding, *, as_json: bool) -> None:
    """Search, show."""
    from lateinteraction import SearchOptions

    options = None if request.effort is None else SearchOptions(request.effort)
    where = None if request.where is None else filter_of(request.where)
    _must_exist(folder)
    with encoding_progress() as progress:
        model = load_model(encoding.model, device=encoding.device, progress=progress)
        index = Index(model, folder)
    with index:
        started = perf_counter()
        results = index.search(request.query, request.k, where=where, by=request.by, options=options)
        seconds = perf_counter() - started
        if as_json:
            hits = [_hit(result) for result in results]
            emit_json({"query": request.query, "hits": hits, "timing": {"search_s": round(seconds, 4)}})
            return
        console = output()
        for rank, result in enumerate(results, start=1):
            with told_of_truncation():
                explanation = index.explain(request.query, result.id)
            show_hit(console, rank, result.score, result.id, excerpt(explanation))
        notes().print(f"{counted(len(index), 'document')}, searched in {seconds:.3f} s", style="dim")


def recall(folder: Path, source: Path, k: int, effort: Effort, encoding: Encoding, *, as_json: bool) -> None:
    """Ask a sample of queries twice, and compare."""
    from lateinteraction import SearchOptions

    _must_exist(folder)
    queries = [document.text for document in wiring.listed_documents(source)]
    with encoding_progress() as progress:
        model = load_model(encoding.model, device=encoding.device, progress=progress)
    with Index(model, folder) as index:
        report = index.recall_report(queries, k, SearchOptions(effort))
    if as_json:
        emit_json(asdict(report))
    else:
        output().print(str(report))


def info(folder: Path, *, as_json: bool) -> None:
    """What an index is made of."""
    with closing(indexes.stored_index(folder)) as index:
        stats = asdict(index.snapshot().stats())
    if as_json:
        emit_json(stats)
        return
    for name, value in stats.items():
        shown = ", ".join(f"{part} {number:,}" for part, number in value.items()) if isinstance(value, dict) else value
        output().print(f"{name:11} {shown:,}" if isinstance(shown, int) else f"{name:11} {shown or '-'}")


def verify(folder: Path, *, as_json: bool) -> bool:
    """Read every byte; whether all is sound."""
    report = indexes.verify_index(folder)
    if as_json:
        emit_json({**_plain(asdict(report)), "sound": report.sound})
        return report.sound
    console = output()
    console.print(f"generation {report.generation}, {counted(report.files, 'file')}, {report.bytes:,} bytes")
    console.print(f"content    {report.content or 'cannot be told'}")
    for damage in report.damages:
        console.print(f"damaged    {damage}")
    for remark in report.remarks:
        console.print(f"remark     {remark}")
    console.print("sound" if report.sound else "DAMAGED: see what `li index repair` would lose")
    return report.sound


def repair(folder: Path, *, accept_loss: bool) -> bool:
    """Say what would be lost, or lose it; whether the index is whole now."""
    report = indexes.repair_index(folder, accept_loss=accept_loss)
    console = output()
    for damage in report.damages:
        console.print(f"damaged    {damage}")
    for lost in report.lost:
        console.print(f"lost       {lost}")
    if not report.damages:
        console.print("nothing to repair")
    elif report.written is not None:
        console.print(
            f"generation {report.written} holds what generation {report.restored} held, as far as it is sound"
        )
    else:
        console.print("nothing was changed: pass --accept-loss to have it so")
    return not report.damages or report.written is not None


def compact(folder: Path, *, retrain: bool) -> None:
    """Rewrite what is worth it, or all with a new codebook."""
    with building_progress("compacting") as progress, closing(indexes.stored_index(folder)) as index:
        index.compact(retrain=retrain, progress=progress)
    info(folder, as_json=False)


def snapshot(folder: Path, target: Path) -> None:
    """Copy the present state into a new folder."""
    with closing(indexes.stored_index(folder)) as index:
        index.copy_to(target)
        output().print(f"{target}: {counted(len(index), 'document')}")


def export(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Write an index as files that any tool reads."""
    with encoding_progress() as progress:
        documents = exchange.export_index(folder, out, overwrite=overwrite, progress=progress)
    output().print(f"{out}: {counted(documents, 'document')}")


def take_in(source: Path, folder: Path, *, trust_pickle: bool, texts: Path | None, on_duplicate: OnDuplicate) -> None:
    """Add what a folder of another tool holds."""
    known = None if texts is None else {str(each.id): each.text for each in wiring.listed_documents(texts)}
    with encoding_progress() as progress:
        counts = exchange.import_index(
            source, folder, trust_pickle=trust_pickle, texts=known, on_duplicate=on_duplicate, progress=progress
        )
    output().print(f"{folder}: {counts.added:,} added, {counts.replaced:,} replaced, {counts.skipped:,} skipped")


def _must_exist(folder: Path) -> None:
    indexes.stored_index(folder).close()


def _hit(result: Result) -> dict[str, Any]:
    return {
        "id": result.id,
        "score": json_score(result.score),
        "text": result.text,
        "metadata": dict(result.metadata),
    }


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(json.dumps(content)))
