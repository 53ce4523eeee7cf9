"""Metadata: a dictionary column per key, so that a filter is a few bisections and a comparison of numbers.

The distinct values of a key stand as JSON in the order that filters know: null, false, true, numbers, strings. They are
distinct by their JSON: 1, 1.0, true and "1" are four. Each document has the number of its value, its code, or −1. A key
that fewer than half of the documents have lists the rows that do.
"""

from __future__ import annotations

import json
from array import array as numbers
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial, reduce
from typing import Any, assert_never, cast, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lateinteraction.adapters.index import texts
from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import Entry, Rows, checked_rows, damaged, found_in, vector, vector_of
from lateinteraction.adapters.index.texts import Texts
from lateinteraction.domain.errors import InvalidText
from lateinteraction.domain.filters import And, Comparison, Filter, Not, Or, check_filter
from lateinteraction.domain.text import JsonScalar, Metadata

MOST_BITS = 14_000
"""Of a whole number. Python reads 4,300 decimal digits unless it is told otherwise, and these are 4,215 at most."""

COLUMN = "metadata"
ABSENT = -1
_NULL, _BOOL, _NUMBER, _STRING = range(4)
_WITH_ORDER = (_NUMBER, _STRING)
_VALUES_AT_A_TIME = 4096
_KNOWN_ORDERS = 1024
"""Values of a key that stay read. Every bisection begins with the same few, and to read one takes 8 µs."""

Codes = NDArray[np.int32]
Order = tuple[Any, ...]
Span = tuple[int, int]
"""First code and the one after the last; `ABSENT` counts as a code."""

_ENCODER = json.JSONEncoder(ensure_ascii=False)


def build(metadata: Iterable[Metadata], column: str = COLUMN) -> dict[str, NDArray[Any]]:
    """The arrays for the metadata of documents, in the order of their rows.

    Args:
        metadata: of each document.
        column: the prefix of the arrays' names.

    Raises:
        InvalidText: a whole number of more than some 4,200 digits.
    """
    documents = 0
    found: defaultdict[str, _Found] = defaultdict(_Found)
    for row, each in enumerate(metadata):
        documents = row + 1
        for key, value in each.items():
            found[key].add(row, _json_of(key, value), value)
    arrays = keys_array(sorted(found), column)
    for number, key in enumerate(sorted(found)):
        values, codes = found[key].sorted(documents)
        arrays |= texts.build(values, f"{column}.{number}") | codes_arrays(codes, f"{column}.{number}")
    return arrays


class _Found:
    """The values of one key, numbered as they come."""

    def __init__(self) -> None:
        self._rows = numbers("I")
        self._numbers = numbers("I")
        self._known: dict[str, int] = {}
        self._orders: list[Order] = []

    def add(self, row: int, text: str, value: JsonScalar) -> None:
        number = self._known.setdefault(text, len(self._known))
        if number == len(self._orders):
            self._orders.append((*order_of(value), text))
        self._rows.append(row)
        self._numbers.append(number)

    def sorted(self, documents: int) -> tuple[list[str], Codes]:
        """The distinct values in order, as JSON, and the code of each document."""
        order = sorted(range(len(self._orders)), key=self._orders.__getitem__)
        code_of = np.empty(len(order), np.int32)
        code_of[order] = np.arange(len(order))
        codes = np.full(documents, ABSENT, np.int32)
        codes[self._rows] = code_of[self._numbers]
        return [self._orders[number][-1] for number in order], codes


def _json_of(key: str, value: JsonScalar) -> str:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise InvalidText(
            f"metadata {key!r} is a whole number of {value.bit_length():,} bits",
            f"at most {MOST_BITS:,}",
            "Store it as a string.",
        )
    return _ENCODER.encode(value)


def keys_array(keys: Sequence[str], column: str = COLUMN) -> dict[str, NDArray[Any]]:
    """The array that names the keys."""
    return {f"{column}.keys": np.frombuffer(_ENCODER.encode(list(keys)).encode(), np.uint8)}


def codes_arrays(codes: Codes, key: str) -> dict[str, NDArray[Any]]:
    """The arrays that give each document its value: for all of them, or for those that have one where they are few."""
    rows = np.flatnonzero(codes != ABSENT)
    if 2 * len(rows) >= len(codes):
        return {f"{key}.indices": codes}
    return {f"{key}.rows": rows.astype(np.uint32), f"{key}.indices": codes[rows]}


def order_of(value: JsonScalar) -> Order:
    """What the values of a key are sorted by. Two have the same where `==` holds between them in a filter."""
    if value is None:
        return _NULL, 0
    if isinstance(value, bool):
        return _BOOL, value
    return (_STRING if isinstance(value, str) else _NUMBER), value


@final
class ValueColumn:
    """The values of one key."""

    def __init__(self, arrays: Arrays, key: str, documents: int) -> None:
        self._arrays = arrays
        self._name = f"{key}.indices"
        self._documents = documents
        self._verified: Codes | None = None
        self._orders: dict[int, Order] = {}
        self.values = Texts(arrays, key)
        rows = f"{key}.rows"
        self._rows = vector(arrays, rows, np.uint32) if rows in arrays else None
        if self._rows is not None and not rising(self._rows, documents):
            raise damaged(rows, "rows out of order", f"rows that rise within {documents}")
        self._length = documents if self._rows is None else len(self._rows)
        self._indices: Codes = vector_of(arrays, self._name, np.int32, self._length, lazily=True)

    def codes(self) -> Codes:
        """The code of every document."""
        indices = self._whole_indices()
        if self._rows is None:
            return indices
        codes = np.full(self._documents, ABSENT, np.int32)
        codes[self._rows] = indices
        return codes

    def codes_at(self, rows: Rows) -> Codes:
        """The codes of some documents."""
        items, places = (np.arange(len(rows)), rows) if self._rows is None else found_in(self._rows, rows)
        self._arrays.check(self._name, places, places + 1)
        codes = np.full(len(rows), ABSENT, np.int32)
        codes[items] = self._indices[places]
        return self._checked(codes)

    def decoded(self, codes: ArrayLike) -> list[JsonScalar]:
        """The values of these codes."""
        return [self._value(text) for text in self.values.at(codes)]

    def order(self, code: int) -> Order:
        """What the value of this code is sorted by."""
        known = self._orders.get(code)
        if known is None:
            known = order_of(self._value(self.values.one(code)))
            if len(self._orders) < _KNOWN_ORDERS:
                self._orders[code] = known
        return known

    def sorted_by(self, code: int) -> Order:
        """What a value is sorted by in its dictionary: its order, then its JSON, as 1 and 1.0 are of one order."""
        text = self.values.one(code)
        return (*order_of(self._value(text)), text)

    def entries(self, codes: Codes) -> Iterator[Entry]:
        """Order, JSON and code of each of these codes."""
        for first in range(0, len(codes), _VALUES_AT_A_TIME):
            block = codes[first : first + _VALUES_AT_A_TIME]
            for value, content, code in zip(self.decoded(block), self.values.encoded(block), block, strict=True):
                yield order_of(value), content, int(code)

    def matching(self, where: Comparison) -> NDArray[np.bool_]:
        """For which documents the comparison holds."""
        indices = self._whole_indices()
        spans = _spans(where, self)
        chosen = _within(indices, spans, len(self.values))
        if self._rows is not None:
            present, chosen = chosen, np.full(self._documents, any(first == ABSENT for first, _ in spans))
            chosen[self._rows] = present
        return ~chosen if where.operator in ("!=", "not in") else chosen

    def _value(self, text: str) -> JsonScalar:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise damaged(self._name, "a value that is no JSON", "JSON scalars") from error
        if isinstance(value, (list, dict)):
            raise damaged(self._name, "a value that is no scalar", "JSON scalars")
        return value

    def _whole_indices(self) -> Codes:
        if self._verified is None:  # two threads may both do it, to the same end
            self._verified = self._checked(self._arrays.whole(self._name))
        return self._verified

    def _checked(self, codes: Codes) -> Codes:
        if len(codes) and not ABSENT <= int(codes.min()) <= int(codes.max()) < len(self.values):
            raise damaged(self._name, "the number of a value that is not there", f"−1 to {len(self.values) - 1}")
        return codes


def rising(rows: NDArray[np.uint32], count: int) -> bool:
    """Whether these are distinct rows of `count`, in order."""
    return not len(rows) or (bool((rows[1:] > rows[:-1]).all()) and int(rows[-1]) < count)


def _spans(where: Comparison, column: ValueColumn) -> list[Span]:
    """The codes for which the comparison holds; for `!=` and `not in`, those for which its opposite does."""
    codes, order = range(len(column.values)), cache(column.order)  # each value is read once, whatever is looked for
    before, after = partial(bisect_left, codes, key=order), partial(bisect_right, codes, key=order)

    def equal(value: JsonScalar) -> Span:
        target = order_of(value)
        first = last = before(target)
        while last < len(codes) and order(last) == target:  # 1 and 1.0
            last += 1
        return ABSENT if value is None else first, last

    if isinstance(where.value, tuple):
        return [equal(value) for value in where.value]
    target = order_of(where.value)
    kind = target[0]
    match where.operator:
        case "==" | "!=":
            return [equal(where.value)]
        case ">" if kind in _WITH_ORDER:
            return [(after(target), before((kind + 1,)))]
        case ">=" if kind in _WITH_ORDER:
            return [(before(target), before((kind + 1,)))]
        case "<" if kind in _WITH_ORDER:
            return [(before((kind,)), before(target))]
        case "<=" if kind in _WITH_ORDER:
            return [(before((kind,)), after(target))]
        case _:
            return []  # null and bools have no order


def _within(codes: Codes, spans: Sequence[Span], values: int) -> NDArray[np.bool_]:
    """Which of the codes lie in one of the spans."""
    if len(spans) == 1:
        first, last = spans[0]
        return (codes >= first) & (codes < last)
    chosen = np.zeros(values + 1, np.bool_)
    for first, last in spans:
        chosen[first + 1 : last + 1] = True
    return chosen[codes + 1]


@final
class MetadataColumns:
    """The stored metadata of N documents.

    Args:
        arrays: "metadata.keys" u1, a JSON list; for the key number n the distinct values, "metadata.<n>.bytes" u1 and
            "metadata.<n>.offsets" i8; "metadata.<n>.indices" i4, the codes of all documents, or of "metadata.<n>.rows"
            u4 where that is there.
        documents: N.
        column: what the names begin with instead of "metadata".

    Raises:
        CorruptIndex: arrays that are missing, damaged or do not fit; of a key, when it is first asked for.
    """

    def __init__(self, arrays: Arrays, documents: int, column: str = COLUMN) -> None:
        self._arrays = arrays
        self._documents = documents
        self._name = column
        self.keys = _keys_of(arrays, f"{column}.keys")
        self._numbers = {key: number for number, key in enumerate(self.keys)}
        self._columns: dict[str, ValueColumn] = {}

    def __len__(self) -> int:
        return self._documents

    def column(self, key: str) -> ValueColumn | None:
        """The values under a key; None where no document has it."""
        if key not in self._numbers:
            return None
        if key not in self._columns:
            self._columns[key] = ValueColumn(self._arrays, f"{self._name}.{self._numbers[key]}", self._documents)
        return self._columns[key]

    def at(self, rows: ArrayLike) -> list[dict[str, JsonScalar]]:
        """The metadata of these rows, keys in order of code points.

        Raises:
            IndexError: a row that is not there.
        """
        chosen = checked_rows(rows, self._documents)
        found: list[dict[str, JsonScalar]] = [{} for _ in chosen]
        for key in self.keys:
            column = self.column(key)
            assert column is not None
            codes = column.codes_at(chosen)
            used, places = np.unique(codes[codes != ABSENT], return_inverse=True)
            values = column.decoded(used)
            for item, place in zip(np.flatnonzero(codes != ABSENT), places, strict=True):
                found[item][key] = values[place]
        return found

    def matching(self, where: Filter) -> NDArray[np.bool_]:
        """Which documents the filter means, bool (N,): what `domain.filters.matches` says of each.

        Raises:
            InvalidFilter: something that is no filter.
        """
        match where:
            case Comparison():
                column = self.column(where.field)
                return np.full(self._documents, where.holds(None)) if column is None else column.matching(where)
            case And():
                return reduce(np.logical_and, map(self.matching, where.conditions))
            case Or():
                return reduce(np.logical_or, map(self.matching, where.conditions))
            case Not():
                return ~reduce(np.logical_and, map(self.matching, where.conditions))
            case _:
                check_filter(where)
                assert_never(where)


def _keys_of(arrays: Arrays, name: str) -> tuple[str, ...]:
    try:
        keys = json.loads(bytes(vector(arrays, name, np.uint8)))
    except (ValueError, RecursionError) as error:
        raise damaged(name, "what is no JSON", "a list of keys") from error
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in cast("list[object]", keys)):
        raise damaged(name, "what is no list of strings", "a list of keys")
    return tuple(cast("list[str]", keys))
