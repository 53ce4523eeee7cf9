"""A collection that every machine has: the functions of the running interpreter's own standard library.

A function without its docstring is a document, the first paragraph of that docstring is the query that should find it.
Real text and real judgments without a download; which functions are taken depends on the Python version alone.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import frozen

from lateinteraction.domain.errors import InvalidOption, UnreadableFile
from lateinteraction.domain.evaluation import EvaluationSet, RelevanceJudgments
from lateinteraction.domain.text import Document, DocumentId, Query, QueryId

FUNCTIONS_PER_MODULE = 8
"""At most so many are taken from one module, as long as other modules have some: variety, so that queries differ."""

BODY_LINES = range(3, 61)
LONGEST_SOURCE = 800
DOCSTRING_WORDS = range(5, 41)
"""What counts as reasonable: long enough to mean something, short enough to be read whole. 800 characters of Python
are at most 250 tokens of an uncased BERT vocabulary, among 300 functions; without that limit 50 of them exceed 256."""

# Tests are no library; the others are absent from some installations, and the collection should not depend on that.
_LEFT_OUT = frozenset(
    {
        *("test", "tests", "site-packages", "dist-packages", "pydoc_data", "encodings", "venv", "ensurepip"),
        *("idlelib", "tkinter", "turtledemo", "turtle.py", "lib2to3", "distutils"),
    }
)


@frozen
class _Function:
    """One function: its dotted name, its source without docstring, and the docstring's first paragraph."""

    name: str
    path: str
    line: int
    module: str
    source: str
    summary: str

    @property
    def document(self) -> Document:
        place = {"path": self.path, "line": self.line, "module": self.module}
        return Document(DocumentId(self.name), self.source, place)

    @property
    def query(self) -> Query:
        return Query(self.summary, QueryId(self.name))


def standard_library_functions(
    documents: int = 300, queries: int = 100, *, folder: Path | None = None
) -> EvaluationSet:
    """Public functions and methods as documents, the docstrings of some of them as queries.

    The choice is the same on every run and machine with the same Python: modules and functions are taken in the order
    of a hash of their names. No two documents have the same source or the same docstring, so each query has exactly
    one right answer, with grade 1 and the document's own id as the query's.

    Args:
        documents: how many functions.
        queries: how many of their docstrings are queries.
        folder: another tree of Python packages.

    Raises:
        InvalidOption: fewer than one document or query, more queries than documents, or more documents than there are.
        UnreadableFile: the folder holds no Python source, as where the library is zipped or compiled.
    """
    if not 1 <= queries <= documents:
        raise InvalidOption(
            f"{documents} documents and {queries} queries", "1 ≤ queries ≤ documents", "Use 300 and 100."
        )
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    chosen = _choose(_functions(root), documents)
    if len(chosen) < documents:
        raise InvalidOption(
            f"{documents} documents", f"at most {len(chosen)}, the functions that are usable", "Ask for fewer."
        )
    asked = sorted(chosen, key=lambda function: _lot(f"query {function.name}"))[:queries]
    return EvaluationSet(
        [function.document for function in chosen],
        [function.query for function in asked],
        RelevanceJudgments({QueryId(one.name): {DocumentId(one.name): 1} for one in asked}),
    )


def _lot(name: str) -> bytes:
    """Where a name comes in the draw: the same in every process, unlike `hash`."""
    return hashlib.sha256(name.encode()).digest()


def _choose(modules: Iterable[list[_Function]], wanted: int) -> list[_Function]:
    """The first of every module, then what is over; modules are read only as long as more are wanted."""
    chosen: list[_Function] = []
    over: list[_Function] = []
    met: set[str] = set()
    for functions in modules:
        fresh = [function for function in functions if _is_new(function, met)]
        chosen.extend(fresh[:FUNCTIONS_PER_MODULE])
        over.extend(fresh[FUNCTIONS_PER_MODULE:])
        if len(chosen) >= wanted:
            break
    return [*chosen, *over][:wanted]


def _is_new(function: _Function, met: set[str]) -> bool:
    """Whether name, source and docstring are all new; they are then met."""
    marks = {f"name {function.name}", f"source {function.source}", f"summary {function.summary.casefold()}"}
    if met & marks:
        return False
    met |= marks
    return True


def _functions(root: Path) -> Iterator[list[_Function]]:
    """The usable functions of each module, modules and functions in the order of the draw."""
    paths = {_module(path.relative_to(root)): path for path in _sources(root)}
    if not paths:
        raise UnreadableFile(
            f"{root} without Python source",
            "a standard library that is installed as .py files",
            "Use a Python that is not zipped or compiled, or `search` with files of your own.",
        )
    for module in sorted(paths, key=_lot):
        yield sorted(_functions_of(paths[module], module), key=lambda function: _lot(function.name))


def _sources(root: Path) -> Iterator[Path]:
    """Files of public modules. Walks by hand, because third-party packages below the root may be large."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name in _LEFT_OUT or (path.name.startswith(("_", ".")) and path.name != "__init__.py"):
                continue
            if path.suffix == ".py":
                yield path
            elif path.name.isidentifier() and path.is_dir():
                waiting.append(path)


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _functions_of(path: Path, module: str) -> Iterator[_Function]:
    try:
        with tokenize.open(path) as file:  # honours a declared encoding
            text = file.read()
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):  # templates and data that end in .py are no modules
        return
    lines = text.split("\n")
    for node, name in _public_functions(tree, module):
        source, summary = _without_docstring(node, lines), _summary(node)
        if source is not None and len(summary.split()) in DOCSTRING_WORDS and ">>>" not in summary:
            yield _Function(name, str(path), node.lineno, module, source, summary)


_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def _public_functions(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[_FunctionNode, str]]:
    for child in parent.body:
        if isinstance(child, _FunctionNode | ast.ClassDef) and not child.name.startswith("_"):
            name = f"{prefix}.{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from _public_functions(child, name)
            else:
                yield child, name


def _summary(node: _FunctionNode) -> str:
    """The first paragraph of the docstring, on one line."""
    docstring = (ast.get_docstring(node) or "").strip()
    paragraph: list[str] = []
    for line in docstring.split("\n"):
        if not line.strip():
            break
        paragraph.append(line)
    return " ".join(" ".join(paragraph).split())


def _without_docstring(node: _FunctionNode, lines: list[str]) -> str | None:
    """Signature and body as written, less the docstring; None where the body is not of reasonable size."""
    if ast.get_docstring(node, clean=False) is None or len(node.body) == 1:
        return None
    docstring = node.body[0]
    assert docstring.end_lineno is not None  # ast.parse fills in every position
    if node.lineno == docstring.lineno or docstring.end_lineno >= node.body[1].lineno:
        return None
    body = lines[docstring.end_lineno : node.end_lineno]
    if sum(1 for line in body if line.strip()) not in BODY_LINES:
        return None
    signature = lines[node.lineno - 1 : docstring.lineno - 1]
    source = "\n".join(_outdented(line, node.col_offset) for line in [*signature, *body])
    return source if len(source) <= LONGEST_SOURCE else None


def _outdented(line: str, columns: int) -> str:
    """The line as it would be in column 0; strings and comments may have begun further left than the code."""
    return line[columns:] if not line[:columns].strip() else line.lstrip()
