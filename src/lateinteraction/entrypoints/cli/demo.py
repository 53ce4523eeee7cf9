"""`demo`: the running Python's own library, encoded and searched with a real model, and measured.

The first result comes before anything is measured; what is measured is late interaction beside a pooled vector of the
same model and beside BM25.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lateinteraction import wiring
from lateinteraction.application.evaluation import Search, evaluate
from lateinteraction.domain.evaluation import EvaluationSet
from lateinteraction.domain.ports import Progress
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, Query
from lateinteraction.entrypoints.cli.display import (
    emit_json,
    encoding_progress,
    excerpt,
    json_score,
    matched_query,
    output,
    show_hit,
    told_of_truncation,
)

if TYPE_CHECKING:
    from lateinteraction.wiring import Baselines

_Example = tuple[Query, Ranking]

QUERIES = 100
EXAMPLES = 3
HITS = 3
MEASURES = ("nDCG@10", "MRR@10")
_LABELS = {"late_interaction": "late interaction", "mean_pooled": "one mean-pooled vector", "bm25": "BM25"}

SHOWN_FIRST = ("shlex.split", "statistics.mode", "fractions.Fraction.from_float", "datetime.datetime.combine")
"""Examples that speak for themselves; where a Python lacks them others take their place."""


class _Pace:
    """Passes progress on, and notes how fast it was."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._reports: list[tuple[int, float]] = []

    def __call__(self, done: int, total: int | None) -> None:
        self._reports.append((done, perf_counter()))
        self._progress(done, total)

    @property
    def documents_per_second(self) -> float | None:
        """Between the first and the last report, so that loading the model does not count; None without two."""
        if len(self._reports) < 2:
            return None
        (first, began), (last, ended) = self._reports[0], self._reports[-1]
        return (last - first) / (ended - began)


def run(documents: int, *, model: str | None, device: str, as_json: bool) -> None:
    """Encode, show three searches, measure."""
    started = perf_counter()
    collection = wiring.standard_library_functions(documents, min(documents, QUERIES))
    if not as_json:
        _announce(collection)
    with encoding_progress() as progress:
        pace = _Pace(progress)
        rankers = wiring.baselines(collection.documents, model, device=device, progress=pace)
    encoded, documents_per_second = perf_counter(), pace.documents_per_second
    queries = _examples(collection)
    rankings = [rankers.late_interaction.search([query], HITS)[0] for query in queries[:1]]
    first_result = perf_counter()
    rankings += rankers.late_interaction.search(queries[1:], HITS)
    examples = list(zip(queries, rankings, strict=True))
    if not as_json:
        _show_examples(collection, rankers, examples)
    measuring = perf_counter()
    means = _means(collection, rankers)
    timing = {
        "load_and_encode_s": encoded - started,
        "documents_per_s": documents_per_second,
        "first_result_s": first_result - started,
        "measure_s": perf_counter() - measuring,
        "total_s": perf_counter() - started,
    }
    if as_json:
        emit_json(_payload(collection, examples, means, timing))
    else:
        _show_measures(collection, means, timing)


def _announce(collection: EvaluationSet) -> None:
    output().print(
        f"{len(collection.documents)} functions of the standard library of Python {platform.python_version()}, "
        f"without their docstrings;\n{len(collection.queries)} of the docstrings are the queries. "
        "Every token of a function keeps an embedding of its own."
    )


def _examples(collection: EvaluationSet) -> list[Query]:
    """Queries worth looking at."""
    telling = [query for name in SHOWN_FIRST for query in collection.queries if query.id == name]
    others = [query for query in collection.queries if query not in telling]
    return [*telling, *others][:EXAMPLES]


def _show_examples(collection: EvaluationSet, rankers: Baselines, examples: Sequence[_Example]) -> None:
    console = output()
    documents = {document.id: document for document in collection.documents}
    for query, ranking in examples:
        with told_of_truncation():
            best = rankers.explainer.explain(query, documents[ranking.documents[0]])
        console.print(Text.assemble("\n", ("query ", "bold"), matched_query(best)))
        for rank, hit in enumerate(ranking, start=1):
            right = "  ← its own function" if hit.document == query.id else ""
            show_hit(
                console, rank, hit.score, _place(documents[hit.document]) + right, excerpt(best) if rank == 1 else ()
            )


def _place(document: Document) -> str:
    return f"{document.id}  {Path(str(document.metadata['path'])).name}:{document.metadata['line']}"


def _means(collection: EvaluationSet, rankers: Baselines) -> dict[str, dict[str, float]]:
    searches: Mapping[str, Search] = {
        "late_interaction": rankers.late_interaction.search,
        "mean_pooled": rankers.mean_pooled.search,
        "bm25": rankers.bm25.search,
    }
    return {name: evaluate(search, collection, MEASURES).means for name, search in searches.items()}


def _show_measures(
    collection: EvaluationSet, means: Mapping[str, Mapping[str, float]], timing: Mapping[str, float | None]
) -> None:
    console = output()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"{len(collection.queries)} docstrings, each looking for its own function")
    for measure in MEASURES:
        table.add_column(measure, justify="right")
    for name, figures in means.items():
        table.add_row(_LABELS[name], *(f"{figures[measure]:.3f}" for measure in MEASURES))
    console.print(table)
    pace = timing["documents_per_s"]
    console.print(
        f"first result after {timing['first_result_s']:.1f} s"
        + (f" · {pace:,.0f} documents/s encoded" if pace else "")
        + f" · measured in {timing['measure_s']:.1f} s · {timing['total_s']:.1f} s in all"
    )
    console.print('Now your own files:  li search "what you look for" PATH')


def _payload(
    collection: EvaluationSet,
    examples: Sequence[_Example],
    means: Mapping[str, Mapping[str, float]],
    timing: Mapping[str, float | None],
) -> dict[str, Any]:
    places = {document.id: document.metadata for document in collection.documents}
    return {
        "python": platform.python_version(),
        "documents": len(collection.documents),
        "queries": len(collection.queries),
        "examples": [
            {
                "query": query.text,
                "answer": query.id,
                "hits": [
                    {
                        "id": hit.document,
                        "score": json_score(hit.score),
                        "path": places[hit.document]["path"],
                        "line": places[hit.document]["line"],
                    }
                    for hit in ranking
                ],
            }
            for query, ranking in examples
        ],
        "measures": means,
        "timing": {name: None if value is None else round(value, 3) for name, value in timing.items()},
    }
