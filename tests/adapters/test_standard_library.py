"""The demo collection: what is in it, that it is the same everywhere, and what happens without sources."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lateinteraction.adapters.standard_library import (
    BODY_LINES,
    DOCSTRING_WORDS,
    FUNCTIONS_PER_MODULE,
    LONGEST_SOURCE,
    standard_library_functions,
)
from lateinteraction.domain.errors import InvalidOption, UnreadableFile
from lateinteraction.domain.evaluation import EvaluationSet

BODY = "\n".join(f"    value += {number}" for number in range(5))


@pytest.fixture(scope="module")
def collection() -> EvaluationSet:
    return standard_library_functions()


def package(folder: Path, **modules: str) -> Path:
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    return folder


def function(name: str, docstring: str, body: str = BODY) -> str:
    return f'def {name}(value):\n    """{docstring}"""\n{body}\n    return value, "{name}"\n'


def test_the_defaults_give_three_hundred_documents_and_a_hundred_queries(collection: EvaluationSet) -> None:
    assert (len(collection.documents), len(collection.queries)) == (300, 100)


def test_every_query_has_its_own_function_as_the_one_right_answer(collection: EvaluationSet) -> None:
    ids = {document.id for document in collection.documents}
    for query in collection.queries:
        assert query.id is not None
        assert dict(collection.judgments.grades_of(query.id)) == {query.id: 1}
        assert query.id in ids


def test_no_document_says_what_its_query_says(collection: EvaluationSet) -> None:
    documents = {document.id: document.text for document in collection.documents}
    for query in collection.queries:
        assert query.text not in " ".join(documents[query.id].split())  # type: ignore[index]


def test_every_document_is_one_function_without_a_docstring(collection: EvaluationSet) -> None:
    for document in collection.documents:
        (node,) = ast.parse(document.text).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert document.id.endswith(f".{node.name}")
        assert not node.name.startswith("_")


def test_documents_and_queries_are_of_reasonable_size(collection: EvaluationSet) -> None:
    for document in collection.documents:
        body = [line for line in document.text.split("\n") if line.strip()]
        assert len(body) - 1 >= BODY_LINES.start
        assert len(document.text) <= LONGEST_SOURCE
    for query in collection.queries:
        assert len(query.text.split()) in DOCSTRING_WORDS
        assert "\n" not in query.text


def test_no_two_documents_or_queries_say_the_same(collection: EvaluationSet) -> None:
    assert len({document.text for document in collection.documents}) == len(collection.documents)
    assert len({query.text.casefold() for query in collection.queries}) == len(collection.queries)


def test_each_place_is_where_the_function_is(collection: EvaluationSet) -> None:
    for document in collection.documents[::10]:
        path, line = document.metadata["path"], document.metadata["line"]
        assert isinstance(path, str)
        assert isinstance(line, int)
        source = Path(path).read_text(encoding="utf-8").split("\n")
        assert source[line - 1].strip() == document.text.split("\n")[0]
        assert document.id.startswith(f"{document.metadata['module']}.")


def test_documents_come_from_many_modules(collection: EvaluationSet) -> None:
    modules = {document.metadata["module"] for document in collection.documents}
    assert len(modules) >= len(collection.documents) / FUNCTIONS_PER_MODULE


def test_tests_and_private_modules_are_left_out(collection: EvaluationSet) -> None:
    for document in collection.documents:
        parts = str(document.metadata["module"]).split(".")
        assert not any(part.startswith("_") or part in {"test", "tests"} for part in parts)


def test_the_choice_does_not_depend_on_the_process(collection: EvaluationSet) -> None:
    program = (
        "from lateinteraction.adapters.standard_library import standard_library_functions as functions\n"
        "chosen = functions()\n"
        "print([document.id for document in chosen.documents], [query.id for query in chosen.queries])"
    )
    expected = f"{[document.id for document in collection.documents]} {[query.id for query in collection.queries]}"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert done.stdout.strip() == expected


def test_a_smaller_collection_is_the_beginning_of_a_larger_one(collection: EvaluationSet) -> None:
    smaller = standard_library_functions(documents=50, queries=10)
    assert smaller.documents == collection.documents[:50]


def test_few_documents_are_found_without_reading_the_whole_library() -> None:
    program = (
        "import sys\n"
        "from lateinteraction.adapters.standard_library import standard_library_functions\n"
        "opened = []\n"
        "def note(event, given):\n"
        "    if event == 'open' and str(given[0]).endswith('.py'): opened.append(given[0])\n"
        "sys.addaudithook(note)\n"
        "standard_library_functions(documents=20, queries=5)\n"
        "print(len(opened))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 60


def test_more_than_there_are_is_refused_with_the_number_there_are(tmp_path: Path) -> None:
    folder = package(tmp_path, one=function("first", "Add up the first five numbers."))
    with pytest.raises(InvalidOption, match="at most 1"):
        standard_library_functions(2, 1, folder=folder)


@pytest.mark.parametrize(("documents", "queries"), [(0, 0), (10, 0), (10, 11), (-1, 1)])
def test_counts_that_make_no_collection_are_refused(documents: int, queries: int) -> None:
    with pytest.raises(InvalidOption):
        standard_library_functions(documents, queries)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"PK")])
def test_a_library_without_sources_is_named(tmp_path: Path, make: object) -> None:
    folder = tmp_path / "python311.zip"
    make(folder)  # type: ignore[operator]
    with pytest.raises(UnreadableFile, match=r"python311\.zip"):
        standard_library_functions(1, 1, folder=folder)


def test_methods_are_functions_and_the_query_is_the_first_paragraph(tmp_path: Path) -> None:
    source = (
        'class Outer:\n    class Inner:\n        @property\n        def value(self):\n            """Give what was\n'
        '            put in before.\n\n            Much later.\n            """\n            a = self\n'
        "            b = a\n            return b\n"
    )
    chosen = standard_library_functions(1, 1, folder=package(tmp_path, mod=source))
    (document,), (query,) = chosen.documents, chosen.queries
    assert document.id == "mod.Outer.Inner.value"
    assert document.text == "def value(self):\n    a = self\n    b = a\n    return b"
    assert query.text == "Give what was put in before."
    assert document.metadata["line"] == 4


def test_a_package_is_called_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    package(tmp_path / "pack", __init__=function("here", "Say that it is here."))
    assert standard_library_functions(1, 1, folder=tmp_path).documents[0].id == "pack.here"


UNUSABLE = {
    "private": function("_hidden", "Say nothing to anybody at all."),
    "in_private_class": "class _Hidden:\n" + textwrap.indent(function("shown", "Say a word to everybody."), "    "),
    "short_docstring": function("brief", "Too few words."),
    "long_docstring": function("verbose", "word " * 60),
    "doctest": function("example", "Try it as in >>> example(1) now."),
    "short_body": 'def tiny(value):\n    """Give the value back again, unchanged."""\n    return value\n',
    "long_source": function("wide", "Add up a few very long numbers.", f"    value += {'1' * 900}\n" + BODY),
    "long_body": function("huge", "Add up a great many numbers.", "    value += 1\n" * 80),
    "only_docstring": 'def empty(value):\n    """Do nothing with the value given."""\n',
    "undocumented": f"def silent(value):\n{BODY}\n    return value\n",
    "no_python": "this is not python\n",
    "wrong_bytes": "",
}


def test_functions_that_make_no_good_document_are_left_out(tmp_path: Path) -> None:
    package(tmp_path, **UNUSABLE, good=function("good", "Add up the first five numbers."))
    (tmp_path / "wrong_bytes.py").write_bytes(b"\xff\xfe\x00def")
    assert standard_library_functions(1, 1, folder=tmp_path).documents[0].id == "good.good"
    with pytest.raises(InvalidOption, match="at most 1"):
        standard_library_functions(2, 1, folder=tmp_path)


@pytest.mark.parametrize(
    "again",
    [
        function("second", "add up THE first five numbers."),
        function("first", "Say the same source in other words."),
    ],
    ids=["docstring", "source"],
)
def test_the_same_docstring_or_source_is_taken_once(tmp_path: Path, again: str) -> None:
    package(tmp_path, a=function("first", "Add up the first five numbers."), b=again)
    with pytest.raises(InvalidOption, match="at most 1"):
        standard_library_functions(2, 1, folder=tmp_path)


def test_a_method_stays_python_when_its_strings_and_comments_begin_further_left(tmp_path: Path) -> None:
    source = (
        'class Outer:\n    def method(self):\n        """Give back some text of two lines."""\n'
        '        text = """one\ntwo\n  three"""\n# a comment\n        more = text\n        return more\n'
    )
    (document,) = standard_library_functions(1, 1, folder=package(tmp_path, mod=source)).documents
    assert isinstance(ast.parse(document.text).body[0], ast.FunctionDef)
    assert "# a comment" in document.text


def test_what_is_over_in_a_module_is_used_when_the_others_are_exhausted(tmp_path: Path) -> None:
    many = "\n".join(function(f"f{number}", f"Add up number {number} of them.") for number in range(20))
    package(tmp_path, many=many, single=function("alone", "Add up the first five numbers."))
    chosen = standard_library_functions(15, 1, folder=tmp_path)
    modules = [document.metadata["module"] for document in chosen.documents]
    assert modules.count("single") == 1
    assert modules.count("many") == 14


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    package(tmp_path, good=function("good", "Add up the first five numbers."))
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert standard_library_functions(1, 1, folder=tmp_path).documents[0].id.endswith("good.good")
