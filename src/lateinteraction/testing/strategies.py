"""Hypothesis strategies for the domain: texts, metadata, filters, ragged embeddings, rankings and judgments.

The hard cases are there by construction: empty items, one token, repeated tokens, exact ties, similarities that are all
negative, odd sizes, values of every precision. Where ties matter, values are multiples of 1/8 between −1 and 1: their
products and sums are exact in float32 in any order, so two right implementations agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import MissingExtra
from lateinteraction.domain.evaluation import RelevanceJudgments
from lateinteraction.domain.filters import And, Comparison, ComparisonOperator, Filter, Not, Or
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId, JsonScalar, Metadata, Query, QueryId
from lateinteraction.domain.training import TrainingExample

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as arrays
    from hypothesis.strategies import DrawFn, SearchStrategy
except ModuleNotFoundError as error:
    raise MissingExtra(
        "the strategies without hypothesis", "hypothesis to be installed", 'pip install "lateinteraction[testing]"'
    ) from error

Precision = Literal["float32", "float16", "bfloat16"]
Values = Literal["dyadic", "repeated", "unit"]
PairValues = Literal["dyadic", "repeated", "unit", "opposed"]
Floats = NDArray[np.floating]
Embeddings = TokenEmbeddings[Floats]

DIMENSIONS = (1, 2, 3, 4, 7, 8, 16, 33)
"""Narrow, odd and power-of-two widths, and one beyond a vector register."""

_AWKWARD_TEXTS = (
    "",
    " ",
    "\x00",
    "NUL\x00inside",
    "\ufeffbyte order mark",
    "e\u0301 combining",
    "\N{LATIN SMALL LIGATURE FI}ne ligature",
    "İstanbul grows in lower case",
    "👩‍👩‍👧‍👦 🏳️‍🌈",
    "שלום עולם",
    "مرحبا بالعالم",
    "日本語の文章",
    "line\u2028separator\r\nand\ttab",
    "...,,,!!!",
    "a" * 120,
)
_WORDS = ("late", "interaction", "search", "Search", "token", "naïve", "42", ".", ",", "λ")
_VALUES: Mapping[str, tuple[JsonScalar, ...]] = {
    "year": (1999, 2024, 2024.0, "2024"),
    "language": ("en", "de", ""),
    "rating": (-1, 0.5, 1, 1.0, "1"),
    "open": (True, False, None, 1, 0, "true"),
}
"""Keys that documents have and filters ask about; values that are equal, or nearly, across types."""


def _characters() -> SearchStrategy[str]:
    return st.characters(exclude_categories=["Cs"])  # lone surrogates are no text


def texts() -> SearchStrategy[str]:
    """Text that UTF-8 can write: words, awkward cases (NUL, emoji, right to left, only spaces), and anything at all."""
    words = st.lists(st.sampled_from(_WORDS), max_size=8).map(" ".join)
    return words | st.sampled_from(_AWKWARD_TEXTS) | st.text(_characters(), max_size=20)


def document_ids() -> SearchStrategy[DocumentId]:
    """Ids that often meet each other, and sometimes any text that is not empty."""
    return st.builds(DocumentId, st.sampled_from("abcdefgh") | st.text(_characters(), min_size=1, max_size=4))


def query_ids() -> SearchStrategy[QueryId]:
    """Ids that often meet each other."""
    return st.builds(QueryId, st.sampled_from(("q1", "q2", "q3", "q4", "q5")))


def queries() -> SearchStrategy[Query]:
    """Queries with and without an id."""
    return st.builds(Query, texts(), st.none() | query_ids())


def documents() -> SearchStrategy[Document]:
    """Documents with metadata. Two of them may have one id; `corpora` keeps ids apart."""
    return st.builds(Document, document_ids(), texts(), metadata())


def scalars() -> SearchStrategy[JsonScalar]:
    """JSON scalars: those that look alike across types (1, 1.0, true, "1"), and finite ones at large."""
    alike = st.sampled_from([value for values in _VALUES.values() for value in values])
    return alike | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts()


def metadata() -> SearchStrategy[Metadata]:
    """Mappings of JSON scalars: some of a few keys that `filters` ask about, and sometimes any other."""
    known = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in _VALUES.items()})
    others = st.dictionaries(st.text(_characters(), max_size=3), scalars(), max_size=1)
    return st.builds(lambda first, second: {**first, **second}, known, others)


@st.composite
def _comparisons(draw: DrawFn) -> Comparison:
    key = draw(st.sampled_from([*_VALUES, "absent"]))
    operator = draw(st.sampled_from(get_args(ComparisonOperator)))
    # Mostly values that documents have: `|` would put all branches of `scalars` beside them.
    value = scalars() if draw(st.integers(0, 4)) == 0 else st.sampled_from(_VALUES.get(key, (None, 1)))
    return Comparison(key, operator, tuple(draw(st.lists(value, max_size=3))) if "in" in operator else draw(value))


def filters() -> SearchStrategy[Filter]:
    """Filters of every operator, a few levels deep, that `metadata` often matches and often does not."""

    def combined(inner: SearchStrategy[Filter]) -> SearchStrategy[Filter]:
        conditions = st.lists(inner, min_size=1, max_size=3)
        return st.builds(And, conditions) | st.builds(Or, conditions) | st.builds(Not, conditions)

    # `recursive` alone gives combinations nineteen times in twenty.
    return _comparisons() | st.recursive(_comparisons(), combined, max_leaves=5)


def in_bfloat16(values: Floats) -> NDArray[np.float32]:
    """The nearest numbers that bfloat16 can hold, as float32: NumPy has no bfloat16. Ties go to the even mantissa."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def tokens(
    count: int, dimension: int, *, values: Values | None = None, precision: Precision = "float32"
) -> SearchStrategy[Floats]:
    """Token embeddings of shape (count, dimension).

    Args:
        count: tokens.
        dimension: of each.
        values: `dyadic` are multiples of 1/8 in [−1, 1]; `repeated` are those, with few distinct tokens, so that many
            tokens and similarities are equal; `unit` are directions of length 1. One of the three unless given.
        precision: float16 changes the dtype; bfloat16 gives float32 that bfloat16 can hold exactly.
    """
    if values is None:
        return st.sampled_from(get_args(Values)).flatmap(
            lambda kind: tokens(count, dimension, values=kind, precision=precision)
        )
    drawn = {"dyadic": _dyadic, "repeated": _repeated, "unit": _unit}[values](count, dimension)
    return drawn.map(lambda array: _rounded(array, precision))


def _dyadic(count: int, dimension: int) -> SearchStrategy[Floats]:
    eighths = arrays.arrays(np.int8, (count, dimension), elements=st.integers(-8, 8))
    return eighths.map(lambda array: array.astype(np.float32) / 8)


def _repeated(count: int, dimension: int) -> SearchStrategy[Floats]:
    rows = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    return st.builds(lambda pool, chosen: pool[np.array(chosen, np.int64)], _dyadic(3, dimension), rows)


def _unit(count: int, dimension: int) -> SearchStrategy[Floats]:
    return st.integers(0, 2**32 - 1).map(lambda seed: _directions(np.random.default_rng(seed), count, dimension))


def _directions(generator: np.random.Generator, count: int, dimension: int) -> Floats:
    drawn = generator.standard_normal((count, dimension)) + 1e-9
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def _rounded(array: Floats, precision: Precision) -> Floats:
    if precision == "bfloat16":
        return in_bfloat16(array)
    return array.astype(np.float16 if precision == "float16" else np.float32)


def lengths(*, items: tuple[int, int] = (0, 6), each: tuple[int, int] = (0, 7)) -> SearchStrategy[list[int]]:
    """Tokens per item, 0 and 1 often among them.

    Args:
        items: the fewest and the most items.
        each: the fewest and the most tokens of an item.
    """
    least, most = each
    one = st.sampled_from([least, min(least + 1, most)]) | st.integers(least, most)
    return st.lists(one, min_size=items[0], max_size=items[1])


@st.composite
def token_embeddings(
    draw: DrawFn,
    *,
    dimension: int | None = None,
    items: tuple[int, int] = (0, 6),
    each: tuple[int, int] = (0, 7),
    values: Values | None = None,
    precision: Precision = "float32",
) -> Embeddings:
    """A ragged batch, items without and with one token among them.

    `items` bounds how many items there are and `each` how many tokens one has. The dimension is one of `DIMENSIONS`
    unless given; `values` and `precision` are as for `tokens`.
    """
    width = draw(st.sampled_from(DIMENSIONS)) if dimension is None else dimension
    counts = draw(lengths(items=items, each=each))
    return TokenEmbeddings(draw(tokens(sum(counts), width, values=values, precision=precision)), offsets_of(counts))


@st.composite
def query_document_embeddings(
    draw: DrawFn,
    *,
    queries: tuple[int, int] = (0, 4),
    documents: tuple[int, int] = (0, 6),
    each: tuple[int, int] = (0, 7),
    values: PairValues | None = None,
    precision: Precision = "float32",
) -> tuple[Embeddings, Embeddings]:
    """Queries and documents of one dimension.

    `queries` and `documents` bound how many there are, `each` how many tokens one has. `values` and `precision` are as
    for `tokens`, on both sides; or the values are `opposed`: every similarity is negative.
    """
    kind = draw(st.sampled_from(get_args(PairValues))) if values is None else values
    width = draw(st.sampled_from(DIMENSIONS))
    own: Values = "dyadic" if kind == "opposed" else kind
    left, right = (
        draw(token_embeddings(dimension=width, items=items, each=each, values=own, precision=precision))
        for items in (queries, documents)
    )
    if kind == "opposed":
        return _signed(left, 1), _signed(right, -1)
    return left, right


def _signed(embeddings: Embeddings, sign: int) -> Embeddings:
    away_from_zero = np.maximum(np.abs(embeddings.tokens), embeddings.tokens.dtype.type(0.125))
    return TokenEmbeddings(sign * away_from_zero, embeddings.offsets)


def groups(queries: int, *, least: int = 0, most: int = 4) -> SearchStrategy[Offsets]:
    """Offsets (Q+1,) that give each query from `least` to `most` documents of its own."""
    return st.lists(st.integers(least, most), min_size=queries, max_size=queries).map(offsets_of)


@st.composite
def grouped_embeddings(
    draw: DrawFn,
    *,
    queries: tuple[int, int] = (0, 4),
    group: tuple[int, int] = (0, 3),
    each: tuple[int, int] = (0, 7),
    values: Values | None = None,
    precision: Precision = "float32",
) -> tuple[Embeddings, Embeddings, Offsets]:
    """Queries, documents, and the offsets that say whose documents they are.

    `queries` bounds how many queries there are, `group` how many documents each has (at least 1 where they shall make
    `Targets`), `each` how many tokens a query or document has; `values` and `precision` are as for `tokens`.
    """
    width = draw(st.sampled_from(DIMENSIONS))
    left = draw(token_embeddings(dimension=width, items=queries, each=each, values=values, precision=precision))
    own = draw(groups(len(left), least=group[0], most=group[1]))
    count = int(own[-1])
    right = draw(token_embeddings(dimension=width, items=(count, count), each=each, values=values, precision=precision))
    return left, right, own


def keep_masks(embeddings: Embeddings) -> SearchStrategy[NDArray[np.bool_]]:
    """Masks (T,) of tokens to keep: any of them, not only the first of each item."""
    return arrays.arrays(np.bool_, len(embeddings.tokens))


@st.composite
def corpora(
    draw: DrawFn,
    *,
    items: tuple[int, int] = (0, 6),
    dimension: int = 3,
    each: tuple[int, int] = (0, 4),
    values: Values | None = None,
    precision: Precision = "float32",
) -> tuple[list[Document], Embeddings]:
    """Documents with distinct ids and plain texts and metadata, and embeddings for them (unrelated to their texts)."""
    ids = draw(st.lists(document_ids(), min_size=items[0], max_size=items[1], unique=True))
    years = draw(st.lists(st.sampled_from((None, 1999, 2024)), min_size=len(ids), max_size=len(ids)))
    embeddings = token_embeddings(
        dimension=dimension, items=(len(ids), len(ids)), each=each, values=values, precision=precision
    )
    own = [
        Document(identifier, f"the text of {identifier}", {} if year is None else {"year": year})
        for identifier, year in zip(ids, years, strict=True)
    ]
    return own, draw(embeddings)


def scores() -> SearchStrategy[float]:
    """Scores that often tie, −∞ among them, and float32 numbers at large."""
    eighths = st.integers(-24, 24).map(lambda count: count / 8)
    return eighths | st.just(-np.inf) | st.floats(width=32, allow_nan=False, allow_infinity=False)


def score_dicts(*, most: int = 8) -> SearchStrategy[dict[DocumentId, float]]:
    """Scores by document, in no order."""
    return st.dictionaries(document_ids(), scores(), max_size=most)


def rankings(*, most: int = 8) -> SearchStrategy[Ranking]:
    """Rankings, some of them empty, many with ties."""
    return score_dicts(most=most).map(lambda scored: Ranking.from_scores(list(scored), list(scored.values())))


def judgments() -> SearchStrategy[RelevanceJudgments]:
    """Graded judgments, negative and zero grades among them, of documents that `rankings` often hold."""
    grades = st.dictionaries(document_ids(), st.integers(-2, 3), max_size=6)
    return st.dictionaries(query_ids(), grades, max_size=4).map(RelevanceJudgments)


@st.composite
def training_examples(draw: DrawFn, *, teacher: bool | None = None) -> TrainingExample:
    """A query with its positive and some negatives, with a teacher's scores or without unless `teacher` says which."""
    own = draw(st.lists(documents(), min_size=1, max_size=3))
    scored = draw(st.booleans()) if teacher is None else teacher
    eighths = st.integers(-8, 8).map(lambda count: count / 8)
    given = draw(st.lists(eighths, min_size=len(own), max_size=len(own))) if scored else None
    return TrainingExample(draw(queries()), own, given)
