"""Sizes and names that keep the code readable: long files, long functions, many parameters, words that say nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from statistics import median

import pytest

FILE_LINES, FUNCTION_LINES, MEDIAN_FUNCTION_LINES, PARAMETERS = 500, 60, 10, 7
EMPTY_WORDS = {"abstract", "base", "common", "core", "helper", "helpers", "manager", "misc", "util", "utils"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    described = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - described


def parameters_of(function: Function) -> int:
    """Parameters a caller can give, `self` and `cls` aside."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    extra = (given.vararg is not None) + (given.kwarg is not None)
    return len([name for name in names if name not in ("self", "cls")]) + extra


def compiled(path: str, function: Function) -> bool:
    """Whether it is compiled, with pointers and sizes for parameters, and called by its driver alone."""
    jit = any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)
    return jit or path.startswith("kernels/cpu/programs/")


def typed(function: Function) -> bool:
    """Whether it declares a command, whose parameters are options that a person types one by one."""
    calls = (each.func for each in function.decorator_list if isinstance(each, ast.Call))
    return any(isinstance(call, ast.Attribute) and call.attr == "command" for call in calls)


def excesses(path: str, tree: ast.Module) -> list[str]:
    """Functions that are too long, or ask for too much."""
    found: list[str] = []
    for function in functions(tree):
        place = f"{path}:{function.lineno} {function.name}"
        if lines_of(function) > FUNCTION_LINES and not path.startswith("kernels/"):
            found.append(f"{place}: {lines_of(function)} lines")
        called_in_python = not (function.name.startswith("_") or compiled(path, function) or typed(function))
        if parameters_of(function) > PARAMETERS and called_in_python:
            found.append(f"{place}: {parameters_of(function)} parameters")
    return found


def says_nothing(path: str) -> bool:
    """Whether a folder or module is named by a word that fits anything."""
    return any(part in EMPTY_WORDS for part in PurePosixPath(path).with_suffix("").parts)


def test_no_file_is_longer_than_the_limit(root: Path) -> None:
    places = [root / "src", root / "tests", root / "tools", root / "benchmarks"]
    files = [path for place in places for path in place.rglob("*.py")]
    lengths = {str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 30
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES} == {}


def test_no_function_is_too_long_or_asks_for_too_much(modules: dict[str, ast.Module]) -> None:
    assert [each for path, tree in modules.items() for each in excesses(path, tree)] == []


def test_half_of_the_functions_fit_ten_lines(modules: dict[str, ast.Module]) -> None:
    lengths = [lines_of(function) for tree in modules.values() for function in functions(tree)]
    assert median(lengths) <= MEDIAN_FUNCTION_LINES


def test_no_module_has_a_name_that_fits_anything(modules: dict[str, ast.Module]) -> None:
    assert [path for path in modules if says_nothing(path)] == []


def test_a_long_function_and_a_long_list_of_parameters_are_seen() -> None:
    long = "def f(self):\n" + "    x = 1\n" * 60
    wide = "def g(a, b, c, d, *, e, f, g, h): ...\n"
    assert excesses("domain/m.py", ast.parse(long + wide)) == [
        "domain/m.py:1 f: 61 lines",
        "domain/m.py:62 g: 8 parameters",
    ]
    assert excesses("kernels/m.py", ast.parse(long)) == []


def test_a_docstring_makes_no_function_long() -> None:
    described = 'def f():\n    """' + "A.\n" * 100 + '    """\n    return 1\n'
    assert lines_of(next(functions(ast.parse(described)))) == 2


@pytest.mark.parametrize(
    ("path", "empty"),
    [("domain/utils.py", True), ("utils/text.py", True), ("adapters/base.py", True), ("domain/text.py", False)],
)
def test_a_name_that_fits_anything_is_seen(path: str, empty: bool) -> None:
    assert says_nothing(path) is empty
