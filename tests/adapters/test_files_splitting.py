"""The laws of every splitter, on generated and on real text, and what each splitter is for."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lateinteraction.adapters.files.splitting import (
    LONGEST,
    PROSE_TARGET,
    Piece,
    split_markdown,
    split_paragraphs,
    split_python,
    split_source,
)

Splitter = Callable[[str], list[Piece]]
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
