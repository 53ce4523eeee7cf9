"""What is shown of a hit: characters that steer nothing, the lines that matter, the tokens that matched."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from lateinteraction.domain.explanation import Explanation, TokenMatch
from lateinteraction.domain.ranking import Score
from lateinteraction.domain.text import Document, DocumentId, Query
from lateinteraction.entrypoints.cli.display import (
    EXCERPT_LINES,
    STYLES,
    counted,
    excerpt,
    json_score,
    matched_document,
    show_hit,
    visible,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.lists(
    st.sampled_from(["", "    indented", "\tcode", "word word", "\x1b[2J", "\r", "\x0b", "日本"]), max_size=12
).map("\n".join)


@st.composite
def explanations(draw: st.DrawFn) -> Explanation:
    text = draw(texts)
    matches = []
    for token in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, len(text)))
        share = draw(st.integers(-8, 8)) / 8
        matches.append(TokenMatch(token, 0, (0, 0), (start, end), share))
    total = sum(match.contribution for match in matches)
    return Explanation(Query("query"), Document(DocumentId("1"), text), Score(total), matches)


def explanation(text: str, *spans: tuple[str, float]) -> Explanation:
    """Each of these words is matched with this contribution."""
    matches = [
        TokenMatch(token, token, (0, 0), (text.index(word), text.index(word) + len(word)), share)
        for token, (word, share) in enumerate(spans)
    ]
    return Explanation(Query("q"), Document(DocumentId("1"), text), Score(sum(share for _, share in spans)), matches)


@given(text=texts)
@example(text="\x00\x1b\x7f\x85\x9b\r\x08\u202e\u2066\u2069")
def test_visible_text_steers_no_terminal_and_keeps_its_length(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        assert after in (before, "\ufffd")
        assert unicodedata.category(after) != "Cc" or after in "\n\t"
        assert unicodedata.bidirectional(after) not in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize("text", ["plain", "größer\n\tindented", "日本語 👩‍🚀 é", "עברית"])
def test_ordinary_text_of_any_language_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(given=explanations())
def test_an_excerpt_is_some_consecutive_lines_of_the_document_less_their_common_margin(given: Explanation) -> None:
    lines = visible(given.document.text).split("\n")
    rows = [row.plain for row in excerpt(given)]
    assert len(rows) == min(len(lines), EXCERPT_LINES)
    windows = (lines[first : first + len(rows)] for first in range(len(lines) - len(rows) + 1))
    assert any(
        all(
            line.endswith(row) and not line[: len(line) - len(row)].strip()
            for line, row in zip(window, rows, strict=True)
        )
        for window in windows
    )


@given(given=explanations())
def test_colours_stay_within_the_text(given: Explanation) -> None:
    coloured = matched_document(given)
    assert coloured.plain == visible(given.document.text)
    for span in coloured.spans:
        assert 0 <= span.start <= span.end <= len(coloured.plain)
        assert span.style in STYLES


def test_an_excerpt_shows_the_lines_that_gave_most() -> None:
    text = "\n".join(f"        line{number:02} here" for number in range(40))
    rows = [row.plain for row in excerpt(explanation(text, ("line31", 1.0), ("line05", 0.5), ("line33", 1.0)))]
    assert {"line31 here", "line33 here"} <= set(rows)
    assert "line05 here" not in rows


def test_stronger_matches_are_painted_over_weaker_ones_and_weak_ones_not_at_all() -> None:
    coloured = matched_document(explanation("alpha beta gamma", ("alpha beta", 0.6), ("alpha", 1.0), ("gamma", 0.1)))
    assert [(span.start, span.end, span.style) for span in coloured.spans] == [(0, 10, STYLES[1]), (0, 5, STYLES[0])]


def test_nothing_is_coloured_where_nothing_matched() -> None:
    assert matched_document(explanation("alpha", ("alpha", -0.5))).spans == []
    assert matched_document(explanation("")).plain == ""


def test_a_hit_is_wrapped_with_its_margin_on_a_terminal_and_left_long_elsewhere() -> None:
    row = matched_document(explanation("word " * 40))
    for terminal, lines in ((True, 5), (False, 2)):
        stream = io.StringIO()
        console = Console(file=stream, width=80, force_terminal=terminal, soft_wrap=not terminal, color_system=None)
        show_hit(console, 1, 12.5, "place\x1b", [row])
        shown = stream.getvalue().splitlines()
        assert shown[0].split() == ["1", "12.500", "place\ufffd"]
        assert len(shown) >= lines if terminal else len(shown) == lines
        assert all(line.startswith(" " * 14 + "word") for line in shown[1:])


def test_json_has_no_infinity() -> None:
    assert json_score(float("-inf")) is None
    assert json_score(1.5) == 1.5


@pytest.mark.parametrize(("number", "expected"), [(0, "0 files"), (1, "1 file"), (2000, "2,000 files")])
def test_a_noun_agrees_with_its_number(number: int, expected: str) -> None:
    assert counted(number, "file") == expected
