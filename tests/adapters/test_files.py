"""Files to documents: the laws of every splitter, the places, records, folders, and input that means harm."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lateinteraction.adapters.files import documents_of_lines, read_passages
from lateinteraction.adapters.files.reading import LARGEST_FILE, LARGEST_IN_FOLDER
from lateinteraction.adapters.files.splitting import (
    LONGEST,
    PROSE_TARGET,
    Piece,
    split_markdown,
    split_paragraphs,
    split_python,
    split_source,
)
from lateinteraction.domain.errors import UnreadableFile
from lateinteraction.domain.text import Document

Splitter = Callable[[str], list[Piece]]
SPLITTERS: dict[str, Splitter] = {
    ".txt": split_paragraphs,
    ".md": split_markdown,
    ".go": split_source,
    ".py": split_python,
}

line_texts = st.one_of(
    st.sampled_from(
        [
            "",
            "",
            " ",
            "\t",
            "# Title",
            "## Part",
            "=====",
            "---",
            "```",
            "```python",
            "~~~",
            "````",
            "a `b` c",
            "}",
            ")",
        ]
    ),
    st.sampled_from(["word " * 40, "A sentence. " * 30, "x" * 300, "x" * (LONGEST + 50), "日本語。" * 400, "end."]),
    st.sampled_from(
        ["func main() {", "    indented", "\tvalue = 1", "# comment", '"""', "\x0cpage", "1. item", "\u2028"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=40),
)
texts = st.lists(line_texts, max_size=40).map("\n".join)


@st.composite
def python_texts(draw: st.DrawFn, depth: int = 0) -> str:
    """Python that parses: definitions within definitions and conditions, comments, strings, decorators, blanks."""
    indent = "    " * depth
    statements = [f"{indent}value = {draw(st.integers(0, 9))}"]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["def", "async def", "class", "if", "try", "value", "text", "comment", "blank"]))
        if kind in ("def", "async def", "class") and depth < 3:
            statements.append(draw(st.sampled_from(["", f"{indent}# about it\n", f"{indent}@decorated(\n{indent})\n"])))
            arguments = "" if kind == "class" else "()"
            name = f"name{draw(st.integers(0, 99))}"
            statements[-1] += f"{indent}{kind} {name}{arguments}:\n" + draw(python_texts(depth + 1))
        elif kind == "if" and depth < 3:
            body = draw(python_texts(depth + 1))
            statements.append(f"{indent}if value:\n{body}\n{indent}else:\n{draw(python_texts(depth + 1))}")
        elif kind == "try" and depth < 3:
            body = draw(python_texts(depth + 1))
            statements.append(f"{indent}try:\n{body}\n{indent}except E:\n{draw(python_texts(depth + 1))}")
        elif kind == "text":
            statements.append(f'{indent}value = """one\n\n# two\n{"word " * draw(st.integers(0, 400))}"""')
        elif kind == "comment":
            statements.append(f"{indent}# a comment")
        elif kind == "blank":
            statements.append("\n\n")
        else:
            statements.append(f"{indent}value = [\n{indent}    1,\n{indent}]")
    return "\n".join(statements)


def check_pieces(text: str, pieces: list[Piece]) -> None:
    """The laws of a splitter, on one text."""
    lines = text.split("\n")
    characters = [[0] * len(line) for line in lines]
    for piece in pieces:
        content = piece.text_in(lines)
        assert content.strip(), "no piece is blank"
        assert len(content) <= LONGEST, "no piece is longer than the limit"
        if piece.part is None:
            assert content == "\n".join(lines[piece.first : piece.last + 1])
            for number in range(piece.first, piece.last + 1):
                characters[number] = [count + 1 for count in characters[number]]
        else:
            assert piece.first == piece.last
            assert len(lines[piece.first]) >= LONGEST, "only a line that is too long is cut"
            start, end = piece.part
            characters[piece.first][start:end] = [count + 1 for count in characters[piece.first][start:end]]
    for line, counts in zip(lines, characters, strict=True):
        for character, count in zip(line, counts, strict=True):
            assert count <= 1, "nothing is in two pieces"
            assert count == 1 or character.isspace(), f"{character!r} is in no piece"
    assert pieces == sorted(pieces, key=lambda piece: (piece.first, piece.part or (0, 0))), "pieces are in order"


@pytest.mark.parametrize("splitter", [split_paragraphs, split_markdown, split_source])
@given(text=texts)
@example(text="")
@example(text="\n\n \n")
@example(text="```\nnever closed\n\n\n")
@example(text="x" * LONGEST)
@example(text="x" * (LONGEST - 1) + "\ny")
@example(text=("y" * 600 + "\n") * 5)
@example(text="short\n" + ("y" * 790 + "\n") * 3)
@example(text="# A\n" * 500)
@example(text=" " * 3000 + "x" + " " * 3000)
def test_every_character_is_in_exactly_one_piece(splitter: Splitter, text: str) -> None:
    check_pieces(text, splitter(text))


@given(text=python_texts())
def test_every_character_of_python_is_in_exactly_one_piece(text: str) -> None:
    check_pieces(text, split_python(text))


@pytest.mark.parametrize("module", ["ast", "enum", "typing", "email._header_value_parser", "sqlite3", "inspect"])
def test_real_python_is_covered_and_its_definitions_are_named(module: str) -> None:
    path = Path(__import__(module, fromlist=["x"]).__file__)
    text = path.read_text(encoding="utf-8")
    pieces = split_python(text)
    check_pieces(text, pieces)
    methods = {
        f"{owner.name}.{node.name}"
        for owner in ast.parse(text).body
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
    }
    assert methods <= {piece.name for piece in pieces}


@given(text=python_texts())
def test_each_definition_of_python_begins_a_piece_that_has_its_name(text: str) -> None:
    named = [(piece.name, piece.first) for piece in split_python(text)]
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min(each.lineno for each in (node, *node.decorator_list)) - 1
            above = next(start for name, start in reversed(named) if name == node.name and start <= first)
            assert all(line.lstrip().startswith("#") for line in text.split("\n")[above:first])


@given(text=texts)
def test_a_piece_of_markdown_has_headings_only_at_its_beginning(text: str) -> None:
    unfenced = text.replace("`", "'").replace("~", "'").replace("=", "'").replace("-", "'")
    lines = unfenced.split("\n")
    for piece in split_markdown(unfenced):
        own = [line for line in lines[piece.first : piece.last + 1] if line.strip()]
        headings = [re.match(r" {0,3}#{1,6}(\s|$)", line) is not None for line in own]
        assert headings == sorted(headings, reverse=True), "after other text a heading opens a new piece"


def pieces_of(splitter: Splitter, text: str) -> list[str]:
    text = textwrap.dedent(text).strip("\n")
    return [piece.text_in(text.split("\n")) for piece in splitter(text)]


PARAGRAPH = "A paragraph of some length, so that two of them are more than the target. " * 5


def test_short_paragraphs_are_joined_and_long_ones_stay_alone() -> None:
    assert pieces_of(split_paragraphs, f"one\n\ntwo\n\n{PARAGRAPH}\n\n{PARAGRAPH}\n\nthree") == [
        f"one\n\ntwo\n\n{PARAGRAPH}",
        f"{PARAGRAPH}\n\nthree",
    ]


def test_joining_stops_at_the_target() -> None:
    half = "x" * (PROSE_TARGET // 2)
    assert pieces_of(split_paragraphs, f"{half}\n\n{half}") == [half, half]


def test_a_long_paragraph_is_cut_at_the_ends_of_sentences_into_pieces_of_like_size() -> None:
    lines = [f"Line {number} begins here and\ngoes on to its end, number {number}." for number in range(30)]
    pieces = pieces_of(split_paragraphs, "\n".join(lines))
    assert all(piece.endswith(".") for piece in pieces)
    sizes = [len(piece) for piece in pieces]
    assert min(sizes) > max(sizes) / 2


def test_a_line_that_is_too_long_is_cut_between_sentences_else_between_words() -> None:
    sentences = "This is one sentence of many. " * 60
    assert all(piece.endswith("many.") for piece in pieces_of(split_paragraphs, sentences))
    assert all(piece.endswith("word") for piece in pieces_of(split_paragraphs, "word " * 400))


def test_a_heading_begins_a_piece_and_stays_with_what_follows_it() -> None:
    text = f"""
# Title

## Part

First paragraph.

Second paragraph.
## Next
{PARAGRAPH}{PARAGRAPH}

Underlined
----------

Last.

#hashtag is no heading
"""
    assert pieces_of(split_markdown, text) == [
        "# Title\n\n## Part\n\nFirst paragraph.\n\nSecond paragraph.",
        f"## Next\n{PARAGRAPH}{PARAGRAPH}",
        "Underlined\n----------\n\nLast.\n\n#hashtag is no heading",
    ]


@pytest.mark.parametrize("fence", ["```", "~~~", "`````"])
def test_fenced_code_is_not_cut_at_its_blank_lines_or_at_its_comments(fence: str) -> None:
    code = f"{fence}python\n# no heading\n\n{'value = 1  # long' * 20}\n\n# no heading either\n{fence}"
    paragraph = PARAGRAPH.strip()
    assert pieces_of(split_markdown, f"{paragraph}\n{code}\n{paragraph}") == [paragraph, code, paragraph]


def test_a_shorter_fence_inside_a_fence_does_not_close_it() -> None:
    code = "````\n```\n\n# text\n```\n\n# more\n````"
    assert pieces_of(split_markdown, f"# Title\n{code}\n# Next") == [f"# Title\n{code}", "# Next"]


def test_blocks_of_source_keep_their_indented_blank_lines() -> None:
    first = "func first() {\n" + "    statement()\n" * 10 + "\n" + "    return\n" * 10 + "\n}"
    second = "func second() {\n" + "    statement()\n" * 20 + "}"
    assert pieces_of(split_source, f"{first}\n\n{second}\n") == [first, second]


def test_python_is_split_at_its_definitions() -> None:
    text = '''
"""What the module is."""

import os

LIMIT = 1


# About it.
@decorated
def function():
    def inner():
        pass

    return inner


class Outer:
    """What the class is."""

    field = 1

    def method(self):
        return 1

    other = 2

    class Inner:
        async def method(self):
            return 2


if os:

    def conditional():
        pass


main()
'''.lstrip("\n")
    lines = text.split("\n")
    found = [(piece.name, piece.text_in(lines)) for piece in split_python(text)]
    assert found == [
        (None, '"""What the module is."""'),
        (None, "import os\n\nLIMIT = 1"),
        ("function", "# About it.\n@decorated\ndef function():\n    def inner():\n        pass\n\n    return inner"),
        ("Outer", 'class Outer:\n    """What the class is."""\n\n    field = 1'),
        ("Outer.method", "    def method(self):\n        return 1"),
        ("Outer", "    other = 2"),
        ("Outer.Inner", "    class Inner:"),
        ("Outer.Inner.method", "        async def method(self):\n            return 2"),
        (None, "if os:"),
        ("conditional", "    def conditional():\n        pass"),
        (None, "main()"),
    ]


def test_a_function_that_is_too_long_is_cut_at_its_blank_lines_and_each_part_has_its_name() -> None:
    block = "    value = call(value)\n" * 15
    text = f"def long(value):\n{block}\n{block}\n{block}    return value"
    pieces = split_python(text)
    assert len(pieces) == 2
    assert {piece.name for piece in pieces} == {"long"}
    assert text.split("\n")[pieces[0].last + 1] == ""


def test_a_chain_of_conditions_as_long_as_generated_code_has_is_split() -> None:
    text = "if x == 0:\n    pass\n" + "".join(f"elif x == {number}:\n    pass\n" for number in range(300))
    check_pieces(text, split_python(text))


@pytest.mark.parametrize(
    "text", ["def (", "(" * 5000, "x = 1\n\ty = 2", "print 'two'", "\udcff = 1", "-" * 100_000 + "1"]
)
def test_what_is_no_python_is_a_syntax_error_whatever_the_parser_makes_of_it(text: str) -> None:
    with pytest.raises(SyntaxError):
        split_python(text)


def only_document(path: Path) -> Document:
    (document,) = read_passages([path]).documents
    return document


def check_places(path: Path, documents: tuple[Document, ...]) -> None:
    """Path, lines and column lead back to the document's own characters."""
    lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for document in documents:
        place = document.metadata
        first, last = place["line"], place["last_line"]
        assert isinstance(first, int)
        assert isinstance(last, int)
        assert place["path"] == str(path)
        if "column" in place:
            column = place["column"]
            assert isinstance(column, int)
            assert first == last
            assert lines[first - 1][column - 1 :].startswith(document.text)
            assert document.id == f"{path}:{first}:{column}"
        else:
            assert document.text == "\n".join(lines[first - 1 : last])
            assert document.id == f"{path}:{first}"


@pytest.mark.parametrize("suffix", [".txt", ".md", ".go", ""])
@given(text=texts, ends=st.sampled_from(["\n", "\r\n", "\r"]), mark=st.booleans())
def test_places_are_true_and_ids_are_unique(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, text: str, ends: str, mark: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"places{suffix}"
    path.write_bytes((("\ufeff" if mark else "") + text.replace("\n", ends)).encode())
    passages = read_passages([path])
    check_places(path, passages.documents)
    assert len({document.id for document in passages.documents}) == len(passages.documents)
    assert passages.files == bool(passages.documents)
    assert bool(passages.documents) == bool(text.strip())


@given(text=python_texts())
def test_places_in_python_are_true(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "places.py"
    path.write_text(text, encoding="utf-8")
    passages = read_passages([path])
    check_places(path, passages.documents)
    assert len({document.id for document in passages.documents}) == len(passages.documents)


def test_a_definition_is_named_in_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text("class A:\n    def b(self): pass\n")
    names = [document.metadata.get("name") for document in read_passages([path]).documents]
    assert names == ["A", "A.b"]


def test_the_suffix_decides_how_a_file_is_split_whatever_its_case(tmp_path: Path) -> None:
    for name in ("code.py", "CODE2.PY"):
        (tmp_path / name).write_text("def a():\n    pass\ndef b():\n    pass\n")
    (tmp_path / "page.md").write_text("# A\ntext\n# B\ntext\n")
    (tmp_path / "note.txt").write_text("# A\ntext\n# B\ntext\n")
    (tmp_path / "LICENSE").write_text("a\n\nb\n")
    found = [
        (Path(str(one.metadata["path"])).name, one.metadata["line"]) for one in read_passages([tmp_path]).documents
    ]
    assert found == [
        ("CODE2.PY", 1),
        ("CODE2.PY", 3),
        ("LICENSE", 1),
        ("code.py", 1),
        ("code.py", 3),
        ("note.txt", 1),
        ("page.md", 1),
        ("page.md", 3),
    ]


# ── JSON lines ──


def records(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_records_keep_their_id_text_and_scalar_fields(tmp_path: Path) -> None:
    path = records(
        tmp_path / "docs.jsonl",
        {"id": "a", "text": "one", "year": 2001, "open": True, "none": None, "score": 0.5, "tags": ["x"], "more": {}},
        "",
        {"_id": 7, "title": "Two", "text": "two", "path": "its own"},
        {"contents": "three", "title": ""},
        {"id": None, "text": "", "title": "Only title"},
    )
    first, second, third, fourth = read_passages([path]).documents
    place = {"path": str(path)}
    assert (first.id, first.text) == ("a", "one")
    assert dict(first.metadata) == place | {
        "line": 1, "last_line": 1, "year": 2001, "open": True, "none": None, "score": 0.5
    }  # fmt: skip
    assert (second.id, second.text) == ("7", "Two\ntwo")
    assert dict(second.metadata) == place | {"line": 3, "last_line": 3}
    assert (third.id, third.text) == (f"{path}:4", "three")
    assert (fourth.id, fourth.text) == (f"{path}:5", "Only title")


BAD_LINES = {
    "no JSON": "not json",
    "cut off": '{"text": "x"',
    "an array": '["text"]',
    "a string": '"text"',
    "no text": '{"id": "1", "body": "x"}',
    "a number as text": '{"text": 3}',
    "null as text": '{"text": null}',
    "a list as title": '{"title": [], "text": "x"}',
    "an empty id": '{"id": "", "text": "x"}',
    "a bool as id": '{"id": true, "text": "x"}',
    "a fraction as id": '{"id": 1.5, "text": "x"}',
    "NaN": '{"text": "x", "value": NaN}',
    "infinity": '{"text": "x", "value": -Infinity}',
    "a lone surrogate": '{"text": "\\ud800"}',
    "a lone surrogate in a field": '{"text": "x", "field": "\\udfff"}',
    "a lone surrogate in an id": '{"text": "x", "id": "\\udfff"}',
    "endless nesting": "[" * 200_000,
    "a number beyond reading": '{"text": "x", "value": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, bad: str) -> None:
    path = records(tmp_path / "docs.jsonl", {"text": "fine"}, "", bad)
    with pytest.raises(UnreadableFile) as caught:
        read_passages([path])
    assert f"{path}:3 " in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_with_a_bad_record_is_skipped_in_a_folder_and_counted(tmp_path: Path) -> None:
    records(tmp_path / "bad.jsonl", {"text": "fine"}, "not json")
    records(tmp_path / "good.jsonl", {"text": "fine"})
    passages = read_passages([tmp_path])
    assert [document.metadata["path"] for document in passages.documents] == [str(tmp_path / "good.jsonl")]
    assert passages.skipped_by_reason == {"JSON lines with a bad line": 1}


def test_an_id_that_was_met_before_is_refused_and_nothing_of_its_file_is_taken(tmp_path: Path) -> None:
    one = records(tmp_path / "1.jsonl", {"id": "a", "text": "one"})
    two = records(tmp_path / "2.jsonl", {"id": "b", "text": "new"}, {"id": "a", "text": "two"})
    with pytest.raises(UnreadableFile, match=r"2\.jsonl.*repeats an id"):
        read_passages([one, two])
    passages = read_passages([tmp_path])
    assert [document.text for document in passages.documents] == ["one"]
    assert passages.skipped_by_reason == {"repeats an id": 1}


def test_an_id_that_is_twice_in_one_file_is_refused(tmp_path: Path) -> None:
    path = records(tmp_path / "1.jsonl", {"id": "a", "text": "one"}, {"id": "a", "text": "two"})
    with pytest.raises(UnreadableFile, match="'a'"):
        read_passages([path])


def test_a_number_too_large_for_a_float_is_left_out_like_any_value_that_is_no_json_scalar(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": "x", "value": 1e999}')
    assert "value" not in only_document(path).metadata


# ── lists of texts ──


def test_a_plain_list_is_one_document_a_line() -> None:
    documents = documents_of_lines("first\n\n  second  \nthird\n", "list")
    assert [(document.id, document.text) for document in documents] == [("1", "first"), ("3", "second"), ("4", "third")]


def test_a_list_of_objects_is_read_as_records() -> None:
    documents = documents_of_lines('\n{"id": "a", "text": "one"}\n{"text": "two"}', "list")
    assert [(document.id, document.text) for document in documents] == [("a", "one"), ("3", "two")]


@pytest.mark.parametrize(
    "text", ['{"text": "one"}\nplain', '{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}', "{x}"]
)
def test_a_list_that_is_half_records_or_repeats_an_id_is_refused(text: str) -> None:
    with pytest.raises(UnreadableFile, match="standard input"):
        documents_of_lines(text, "standard input")


# ── folders ──


def test_folders_are_walked_in_order_and_what_is_skipped_is_counted(tmp_path: Path) -> None:
    for name in ("b/two.txt", "a/one.txt", "c.txt", ".git/config", "b/__pycache__/x.py", "node_modules/x.js", ".env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "env").mkdir()
    (tmp_path / "env/pyvenv.cfg").write_text("home = x")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "large.txt").write_bytes(b"x" * (LARGEST_IN_FOLDER + 1))
    passages = read_passages([tmp_path])
    found = [str(Path(str(one.metadata["path"])).relative_to(tmp_path)) for one in passages.documents]
    assert found == ["c.txt", "a/one.txt", "b/two.txt"]
    assert passages.files == 3
    assert passages.skipped_by_reason == {
        "hidden": 2,
        "virtual environment": 1,
        "node_modules folder": 1,
        "binary": 1,
        "no text": 1,
        "larger than 1 MB": 1,
        "not UTF-8": 1,
        "__pycache__ folder": 1,
    }
    assert {one.path for one in passages.skipped if one.reason == "hidden"} == {
        str(tmp_path / ".git"),
        str(tmp_path / ".env"),
    }


def test_what_a_person_names_is_read_even_where_a_walk_would_skip_it(tmp_path: Path) -> None:
    hidden = tmp_path / ".notes" / ".private.txt"
    hidden.parent.mkdir()
    hidden.write_text("text")
    assert read_passages([hidden]).files == 1
    (hidden.parent / "open.txt").write_text("text")
    assert read_passages([hidden.parent]).files == 1
    large = tmp_path / "large.txt"
    large.write_bytes(b"word " * (LARGEST_IN_FOLDER // 5 + 1))
    assert read_passages([large]).files == 1


def test_a_file_is_read_once_however_many_ways_lead_to_it(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("text")
    (tmp_path / "link.txt").symlink_to(path)
    passages = read_passages([path, tmp_path, str(path)])
    assert len(passages.documents) == 1
    assert passages.skipped_by_reason == {"read already": 3}


def test_links_to_folders_are_not_followed_so_that_circles_end(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/one.txt").write_text("text")
    (tmp_path / "sub/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self", target_is_directory=True)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    passages = read_passages([tmp_path])
    assert len(passages.documents) == 1
    assert sum(passages.skipped_by_reason.values()) == 3
    assert passages.skipped_by_reason["link to a folder"] == 1
    through_link = tmp_path / "entry"
    through_link.symlink_to(tmp_path / "sub", target_is_directory=True)
    assert len(read_passages([through_link]).documents) == 1


def test_walking_twice_gives_the_same(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    assert read_passages([tmp_path]) == read_passages([tmp_path])


def test_folders_nested_deeper_than_python_recurses_are_walked(tmp_path: Path) -> None:
    folders = [f"{tmp_path}{'/d' * depth}" for depth in range(1, sys.getrecursionlimit() + 100)]
    for folder in folders:
        os.mkdir(folder)
    file = Path(f"{folders[-1]}/one.txt")
    file.write_text("text")
    try:
        assert len(read_passages([tmp_path]).documents) == 1
    finally:  # what clears temporary folders may recurse
        file.unlink()
        for folder in reversed(folders):
            os.rmdir(folder)


def test_a_folder_that_cannot_be_listed_is_counted_or_refused_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut/one.txt").write_text("text")
    (tmp_path / "shut").chmod(0)
    permitted = os.access(tmp_path / "shut", os.R_OK | os.X_OK)  # the superuser may list anything
    try:
        assert read_passages([tmp_path]).skipped_by_reason == ({} if permitted else {"permission denied": 1})
        if not permitted:
            with pytest.raises(UnreadableFile, match="permission denied"):
                read_passages([tmp_path / "shut"])
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_a_folder_without_text_gives_no_documents_and_no_error(tmp_path: Path) -> None:
    assert read_passages([tmp_path]).documents == ()


def test_no_paths_give_no_documents() -> None:
    assert read_passages([]).documents == ()


# ── input that means harm ──


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a\0b", "binary"),
        ("text".encode("utf-16"), "binary|not UTF-8"),
        (b"\xff\xfe", "not UTF-8"),
        (b"ab\xc3", "byte 2"),
    ],
)
def test_a_named_file_that_is_no_text_is_refused_and_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"file\.txt.*(?:{what})"):
        read_passages([path])


def test_a_named_file_that_is_too_large_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE * 1000)  # sparse: 50 GB that take no room
    started = time.monotonic()
    with pytest.raises(UnreadableFile, match="larger than 50 MB"):
        read_passages([path])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("given_path", ["", "a\0b", "/nowhere/at/all.txt", "x" * 5000])
def test_a_path_that_leads_nowhere_is_refused(given_path: str) -> None:
    with pytest.raises(UnreadableFile):
        read_passages([given_path])


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnreadableFile, match="gone"):
        read_passages([tmp_path / "gone"])


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the name of a socket may not be long
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        assert read_passages([tmp_path]).skipped_by_reason == {"not a regular file": 2}
        with pytest.raises(UnreadableFile, match="not a regular file"):
            read_passages([tmp_path / "pipe"])


def test_a_file_is_read_exactly_if_the_system_permits_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("text")
    path.chmod(0)
    permitted = os.access(path, os.R_OK)  # the superuser may read anything
    passages = read_passages([tmp_path])
    assert (passages.files, passages.skipped_by_reason) == ((1, {}) if permitted else (0, {"permission denied": 1}))
    if not permitted:
        with pytest.raises(UnreadableFile, match="permission denied"):
            read_passages([path])


def test_a_line_of_a_megabyte_is_cut_in_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"A few words, then more. " * 42_000)
    started = time.monotonic()
    documents = read_passages([path]).documents
    assert time.monotonic() - started < 5
    check_places(path, documents)
    assert len(documents) > 1000


@pytest.mark.parametrize("suffix", SPLITTERS)
def test_a_hundred_thousand_lines_are_split_in_a_moment(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_text("value = 1\n" * 100_000)
    started = time.monotonic()
    assert len(read_passages([path]).documents) > 1000
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("suffix", SPLITTERS)
@given(content=st.binary(max_size=200))
@example(content=b"\x1a\n")
@example(content=b"\x0cdef f(): pass\r\rdef g(): pass")
@example(content=b"# -*- coding: latin-1 -*-\nx = 1\n")
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python that does not parse, which has its own test
        try:
            documents = read_passages([path]).documents
        except UnreadableFile as error:
            refusal = str(error)
        else:
            check_places(path, documents)
            return
    assert str(path) in refusal


def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(name)).write_text("text")
    document = read_passages([tmp_path]).documents[0]
    assert document.id == f"{tmp_path}/caf\\xe9.txt:1"


def test_python_that_does_not_parse_is_split_at_blank_lines_with_one_warning_for_all(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("def broken(:\n    pass\n")
    with pytest.warns(UserWarning, match=r"2 Python file.*a\.py:1") as caught:
        passages = read_passages([tmp_path])
    assert len(caught) == 1
    assert [document.text for document in passages.documents] == ["def broken(:\n    pass"] * 2


def test_doubtful_python_is_read_without_passing_on_its_warnings(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("x = '\\d'\nassert (x, 'always true')\nif x is 'y': pass\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_passages([path]).documents) == 1
