"""What commands write: JSON, progress, and hits with the tokens that matched in colour.

Results go to standard output, progress and notes to standard error. Colour and progress appear only where the stream
is a terminal that shows them (rich also honours NO_COLOR and TERM).
"""

from __future__ import annotations

import json
import math
import sys
import unicodedata
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from lateinteraction.application.progress import most_memory
from lateinteraction.domain import ports
from lateinteraction.domain.errors import TruncatedTextWarning
from lateinteraction.domain.explanation import Explanation, TokenMatch
from lateinteraction.domain.pace import Pace

EXCERPT_LINES = 6
STRONG, FAIR = 0.75, 0.5
"""A match is shown strong or fair from these shares of the best contribution on; weaker ones are left plain."""
STYLES = ("bold black on bright_yellow", "bold yellow")

_MARGIN = " " * 14
_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def output() -> Console:
    """Standard output."""
    return _console(sys.stdout)


def notes() -> Console:
    """Standard error."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    """Plain text unless told otherwise; where the stream is no terminal, lines are as long as they are."""
    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())


def emit_json(payload: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    readable = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(payload, ensure_ascii=not readable, allow_nan=False, indent=2), flush=True)


def json_score(score: float) -> float | None:
    """JSON has no −∞; a document without tokens, which has that score, gets null."""
    return score if math.isfinite(score) else None


@contextmanager
def encoding_progress() -> Generator[ports.Progress]:
    """A bar on standard error while the block loads a model and encodes; reports that come later are ignored."""
    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[pace]}"))
    pace = Pace()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading the model", total=None, pace="")

        def update(done: int, total: int | None) -> None:
            nonlocal pace
            pace = pace.after(done, total, monotonic())
            bar.update(task, description="encoding", completed=done, total=total, pace=str(pace))

        yield update


@contextmanager
def building_progress(first: str) -> Generator[ports.StageProgress]:
    """A bar on standard error while the block fills or rewrites an index: stage (at first `first`), pace, memory."""
    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[pace]}"))
    pace = Pace()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(first, total=None, pace="")

        def update(stage: ports.Stage, done: int, total: int | None) -> None:
            nonlocal pace
            pace = pace.after(done, total, monotonic())
            held = most_memory()
            shown = str(pace) if held is None else f"{pace} · {held / 1e9:.1f} GB"
            bar.update(task, description=stage, completed=done, total=total, pace=shown)

        yield update


@contextmanager
def told_of_truncation() -> Generator[None]:
    """Says no second time that a document was cut: explaining it encodes it again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)
        yield


def visible(text: str) -> str:
    """The text with a mark in place of each character that would steer the terminal; as long as before.

    Files and their names can hold escape sequences, and marks that reverse the direction of what follows.
    """
    return "".join("\ufffd" if _steers(character) else character for character in text)


def _steers(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in _DIRECTIONS


def matched_query(explanation: Explanation) -> Text:
    """The query, each token in the colour of what it gave to the score."""
    return _coloured(explanation.query.text, [(one.query_span, one.contribution) for one in explanation.matches])


def matched_document(explanation: Explanation) -> Text:
    """The document, each token that answered one of the query in the colour of what it gave."""
    return _coloured(explanation.document.text, [(one.document_span, one.contribution) for one in explanation.matches])


def _coloured(text: str, shares: Sequence[tuple[tuple[int, int], float]]) -> Text:
    coloured = Text(visible(text))
    best = max((share for _, share in shares), default=0.0)
    for (start, end), share in sorted(shares, key=lambda each: each[1]):  # what matters more is painted over
        if best > 0 and share >= FAIR * best:
            coloured.stylize(STYLES[0] if share >= STRONG * best else STYLES[1], start, end)
    return coloured


def excerpt(explanation: Explanation, lines: int = EXCERPT_LINES) -> list[Text]:
    """The lines of the document that gave most to the score, outdented, their matches coloured."""
    rows = list(matched_document(explanation).split("\n", allow_blank=True))
    shares = _shares_by_line(explanation.document.text, explanation.matches, len(rows))
    first = max(range(max(1, len(rows) - lines + 1)), key=lambda row: (math.fsum(shares[row : row + lines]), -row))
    chosen = rows[first : first + lines]
    indents = [len(row.plain) - len(row.plain.lstrip()) for row in chosen if row.plain.strip()]
    return [row[min(indents, default=0) :] if row.plain.strip() else Text() for row in chosen]


def _shares_by_line(text: str, matches: Sequence[TokenMatch], lines: int) -> list[float]:
    shares = [0.0] * lines
    for match in matches:
        start, end = match.document_span
        if start < end:
            shares[text.count("\n", 0, start)] += match.contribution
    return shares


def show_hit(console: Console, rank: int, score: float, title: str, rows: Sequence[Text] = ()) -> None:
    """One hit: its rank, score and place, and below it some lines of its text."""
    console.print(Text.assemble(f"{rank:3}  ", (f"{score:7.3f}", "bold"), "  ", (visible(title), "cyan")))
    for row in rows:
        for line in row.wrap(console, console.width - len(_MARGIN)) if console.is_terminal else [row]:
            console.print(Text(_MARGIN) + line if line else "")


def counted(number: int, singular: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{number:,} {singular}{'' if number == 1 else 's'}"
