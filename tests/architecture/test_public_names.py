"""What is public is listed, loads, and is described."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import lateinteraction


def unlisted(listed: list[str], shown: list[str], typed: set[str]) -> set[str]:
    """Names on which `__all__`, `dir()` and the imports for type checkers disagree; `__version__` has no import."""
    return (set(listed) ^ set(shown)) | ((set(listed) - {"__version__"}) ^ typed)


def names_for_type_checkers(tree: ast.Module) -> set[str]:
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def undescribed(path: str, tree: ast.Module) -> list[str]:
    """The module, and its public classes and functions, that have no docstring."""
    definitions = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]
    missing = [] if ast.get_docstring(tree) else [path]
    return missing + [f"{path}:{node.lineno} {node.name}" for node in definitions if not ast.get_docstring(node)]


def test_all_dir_and_the_imports_for_type_checkers_name_the_same(modules: dict[str, ast.Module]) -> None:
    typed = names_for_type_checkers(modules["__init__.py"])
    assert unlisted(lateinteraction.__all__, dir(lateinteraction), typed) == set()


def test_a_name_that_is_missing_from_one_of_them_is_seen() -> None:
    assert unlisted(["a", "b"], ["a"], {"a", "b"}) == {"b"}
    assert unlisted(["a"], ["a", "b"], {"a"}) == {"b"}
    assert unlisted(["a"], ["a"], {"a", "b"}) == {"b"}
    assert unlisted(["a", "__version__"], ["__version__", "a"], {"a"}) == set()


@pytest.mark.parametrize("name", lateinteraction.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(lateinteraction, name) is not None


def test_a_star_import_brings_exactly_the_listed_names() -> None:
    namespace: dict[str, object] = {}
    exec("from lateinteraction import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(lateinteraction.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        lateinteraction.no_such_name  # noqa: B018


def test_submodules_are_reached_by_importing_them() -> None:
    done = subprocess.run([sys.executable, "-c", "import lateinteraction.domain.text"], check=False)
    assert done.returncode == 0


def test_every_module_class_and_function_in_public_is_described(modules: dict[str, ast.Module]) -> None:
    assert [each for path, tree in modules.items() for each in undescribed(path, tree)] == []


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("import os", ["m.py"]),
        ('"""M."""\ndef f(): ...', ["m.py:2 f"]),
        ('"""M."""\nclass C:\n    x = 1', ["m.py:2 C"]),
        ('"""M."""\nasync def f(): ...', ["m.py:2 f"]),
        ('"""M."""\ndef _f(): ...\ndef g():\n    """G."""', []),
    ],
)
def test_a_missing_docstring_is_seen(source: str, missing: list[str]) -> None:
    assert undescribed("m.py", ast.parse(source)) == missing
