"""Text to pieces: where one document of a file ends and the next begins.

Pure functions of the text. Every splitter puts every non-blank character into exactly one piece, in order; a piece
is a run of whole lines, or a part of one line that is longer than the limit. Lines are counted from 0 and end at
"\\n" alone: the reader has translated the other line ends.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby

from attrs import evolve, frozen

LONGEST = 800
"""Most characters of a piece, so that few need more than the 256 tokens an encoder reads: of the standard library's
`email` and `asyncio` 0.1 % do (at 1,000 characters 1.5 %), of Markdown dense with figures 14 % (35 %)."""
PROSE_TARGET = 500
"""Neighbouring paragraphs are joined while they stay within this many characters."""
SOURCE_TARGET = 200
"""The same for blocks of source: less, because each is a thing of its own."""

_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})\s*$")
_FENCE = re.compile(r"\s*(?P<mark>`{3,}|~{3,})(?P<rest>.*)$")
_SENTENCE_END = re.compile(r"""(?:[.!?…]["')\]]*\s|[。！？])""")
_ENDS_SENTENCE = re.compile(r"""(?:[.!?:;…]["')\]]*|[。！？}\]])\s*$""")


@frozen
class Piece:
    """Lines first … last of a text, or the characters `part` = (start, end) of its one line first = last.

    Args:
        name: the dotted name of the definition that the piece belongs to, where there is one.
    """

    first: int
    last: int
    name: str | None = None
    part: tuple[int, int] | None = None

    def text_in(self, lines: Sequence[str]) -> str:
        """The characters of this piece."""
        if self.part is not None:
            return lines[self.first][slice(*self.part)]
        return "\n".join(lines[self.first : self.last + 1])


@frozen
class _Block:
    """Lines that stay together when pieces are joined; a heading opens a piece and keeps the block after it."""

    first: int
    last: int
    heading: bool = False


def split_paragraphs(text: str) -> list[Piece]:
    """Plain text at blank lines, short paragraphs joined."""
    lines = text.split("\n")
    return _sized(lines, _joined(lines, _paragraphs(lines, 0, len(lines) - 1), PROSE_TARGET))


def split_markdown(text: str) -> list[Piece]:
    """Markdown at headings and blank lines.

    A heading stays with what follows it. Fenced code is not cut at its blank lines, unless it is longer than a piece.
    """
    lines = text.split("\n")
    return _sized(lines, _joined(lines, _markdown_blocks(lines), PROSE_TARGET))


def split_source(text: str) -> list[Piece]:
    """Source of any language, at blank lines that are followed by a line starting in column 0."""
    lines = text.split("\n")
    blocks = _blocks(lines, 0, len(lines) - 1, lambda line: not line[0].isspace() and line[0] not in ")]}")
    return _sized(lines, _joined(lines, blocks, SOURCE_TARGET))


def split_python(text: str) -> list[Piece]:
    """Python source at its functions, methods and classes; the module docstring and the code between are pieces too.

    Decorators and the comment lines right above a definition belong to it, functions inside a function to the outer.

    Raises:
        SyntaxError: the text is not Python of this interpreter's version.
    """
    lines = text.split("\n")
    pieces: list[Piece] = []
    for owner, (first, last) in _owned_runs(lines, _parsed(text)):
        if owner.whole:
            pieces.append(Piece(*_trimmed(lines, first, last), name=owner.name))
        else:
            joined = _joined(lines, _paragraphs(lines, first, last), PROSE_TARGET)
            pieces.extend(evolve(piece, name=owner.name) for piece in joined)
    return _sized(lines, pieces)


def _paragraphs(lines: Sequence[str], first: int, last: int) -> list[_Block]:
    return _blocks(lines, first, last, lambda line: True)


def _blocks(lines: Sequence[str], first: int, last: int, may_open: Callable[[str], bool]) -> list[_Block]:
    """Runs of lines; a new one begins after a blank line, at a line that may open it."""
    blocks: list[_Block] = []
    for number in range(first, last + 1):
        if not lines[number].strip():
            continue
        follows_blank = number == first or not lines[number - 1].strip()
        if not blocks or (follows_blank and may_open(lines[number])):
            blocks.append(_Block(number, number))
        else:
            blocks[-1] = evolve(blocks[-1], last=number)
    return blocks


def _markdown_blocks(lines: Sequence[str]) -> list[_Block]:
    blocks: list[_Block] = []
    open_paragraph = False
    number = 0
    while number < len(lines):
        line = lines[number]
        last = _fence_end(lines, number)
        if last is not None:
            blocks.append(_Block(number, last))
            open_paragraph, number = False, last + 1
            continue
        if not line.strip():
            open_paragraph = False
        elif _HEADING.match(line):
            blocks.append(_Block(number, number, heading=True))
            open_paragraph = False
        elif open_paragraph:
            underlined = _UNDERLINE.match(line) is not None
            blocks[-1] = evolve(blocks[-1], last=number, heading=underlined)
            open_paragraph = not underlined
        else:
            blocks.append(_Block(number, number))
            open_paragraph = True
        number += 1
    return blocks


def _fence_end(lines: Sequence[str], number: int) -> int | None:
    """The last non-blank line of the fenced code that opens on this line; None where none does."""
    fence = _FENCE.match(lines[number])
    if fence is None or (fence["mark"][0] == "`" and "`" in fence["rest"]):
        return None
    closing = re.compile(rf"\s*{re.escape(fence['mark'][0])}{{{len(fence['mark'])},}}\s*$")
    for last in range(number + 1, len(lines)):
        if closing.match(lines[last]):
            return last
    return _trimmed(lines, number, len(lines) - 1)[1]


def _joined(lines: Sequence[str], blocks: Sequence[_Block], target: int) -> list[Piece]:
    """Neighbouring blocks as one piece, while it stays within `target` characters and no heading comes between."""
    pieces: list[Piece] = []
    after_heading = False
    for block in blocks:
        if after_heading or (pieces and not block.heading and _size(lines, pieces[-1].first, block.last) <= target):
            pieces[-1] = evolve(pieces[-1], last=block.last)
        else:
            pieces.append(Piece(block.first, block.last))
        after_heading = block.heading
    return pieces


def _size(lines: Sequence[str], first: int, last: int) -> int:
    return sum(len(line) + 1 for line in lines[first : last + 1])


def _trimmed(lines: Sequence[str], first: int, last: int) -> tuple[int, int]:
    """The same lines without blank ones at either end; at least one must not be blank."""
    while not lines[first].strip():
        first += 1
    while not lines[last].strip():
        last -= 1
    return first, last


def _sized(lines: Sequence[str], pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, those longer than the limit cut at line ends and lines longer than the limit at sentence ends."""
    return [small for piece in pieces for small in _cut(lines, piece)]


def _cut(lines: Sequence[str], piece: Piece) -> Iterator[Piece]:
    if _size(lines, piece.first, piece.last) <= LONGEST:
        yield piece
        return
    numbers = range(piece.first, piece.last + 1)
    for too_long, group in groupby(numbers, key=lambda number: len(lines[number]) >= LONGEST):
        run = list(group)
        if too_long:
            for number in run:
                yield from (Piece(number, number, piece.name, part) for part in _parts(lines[number]))
        else:
            for first, last in _cut_lines(lines[run[0] : run[-1] + 1]):
                yield Piece(run[0] + first, run[0] + last, piece.name)


def _cut_lines(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of these lines of nearly equal size within the limit, cut where a reader would pause."""
    ends = list(accumulate(len(line) + 1 for line in lines))
    first = 0
    while first < len(lines):
        last = _last_before_cut(lines, ends, first)
        if any(line.strip() for line in lines[first : last + 1]):
            yield _trimmed(lines, first, last)
        first = last + 1


def _last_before_cut(lines: Sequence[str], ends: Sequence[int], first: int) -> int:
    start = ends[first - 1] if first else 0
    fitting = bisect_right(ends, start + LONGEST, first)  # the first line that goes beyond the limit
    if fitting == len(lines):
        return fitting - 1
    remaining = ends[-1] - start
    aim = remaining / -(-remaining // LONGEST)  # so that the last run is no small rest
    enough = [last for last in range(first, fitting) if ends[last] - start >= aim / 2]
    return max(enough or [fitting - 1], key=lambda last: (_pause_after(lines, last), -abs(ends[last] - start - aim)))


def _pause_after(lines: Sequence[str], last: int) -> int:
    """How good a place it is to cut after this line: 2 before a blank line, 1 at the end of a sentence or block."""
    if last + 1 < len(lines) and not lines[last + 1].strip():
        return 2
    return 1 if _ENDS_SENTENCE.search(lines[last]) else 0


def _parts(line: str) -> Iterator[tuple[int, int]]:
    """Character ranges of one long line, cut after sentences, else between words, else at the limit."""
    start = 0
    while start < len(line):
        end = min(start + LONGEST, len(line))
        if end < len(line):
            least = start + LONGEST // 2
            sentences = [match.end() for match in _SENTENCE_END.finditer(line, least, end)]
            blanks = [match.end() for match in re.finditer(r"\s", line[least:end])]
            end = sentences[-1] if sentences else least + blanks[-1] if blanks else end
        kept = line[start:end]
        if kept.strip():
            yield start + len(kept) - len(kept.lstrip()), start + len(kept.rstrip())
        start = end


@frozen
class _Owner:
    """What a line of Python belongs to; `whole` things are one piece, the others are split at blank lines."""

    order: int
    name: str | None
    whole: bool


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(f"it cannot be parsed ({type(error).__name__})") from error


def _owned_runs(lines: Sequence[str], module: ast.Module) -> Iterator[tuple[_Owner, tuple[int, int]]]:
    """Maximal runs of lines with one owner, without the runs that are blank."""
    owners = [_Owner(0, None, whole=False)] * len(lines)
    if ast.get_docstring(module, clean=False) is not None:
        _paint(owners, module.body[0].lineno - 1, module.body[0].end_lineno, _Owner(1, None, whole=True))
    for order, (node, name) in enumerate(_definitions(module), start=2):
        first = min(line.lineno for line in (node, *node.decorator_list)) - 1
        while first > 0 and lines[first - 1].lstrip().startswith("#") and not owners[first - 1].whole:
            first -= 1
        _paint(owners, first, node.end_lineno, _Owner(order, name, whole=not isinstance(node, ast.ClassDef)))
    for owner, group in groupby(range(len(lines)), key=lambda number: owners[number]):
        run = list(group)
        if any(lines[number].strip() for number in run):
            yield owner, (run[0], run[-1])


def _paint(owners: list[_Owner], first: int, end: int | None, owner: _Owner) -> None:
    assert end is not None  # ast.parse fills in every position
    owners[first:end] = [owner] * (end - first)


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(module: ast.Module) -> Iterator[tuple[_Definition, str]]:
    """Definitions with their dotted names, outer before inner; those inside a function are the function's own."""
    waiting: list[tuple[ast.AST, str]] = [(module, "")]  # no recursion: a chain of `elif` nests as deep as it is long
    while waiting:
        parent, prefix = waiting.pop()
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, _Definition):
                yield child, prefix + child.name
                if isinstance(child, ast.ClassDef):
                    waiting.append((child, f"{prefix}{child.name}."))
            elif isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
                waiting.append((child, prefix))
