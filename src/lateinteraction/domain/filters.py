"""Filter: which documents a search or a removal is about, by their metadata.

The wire form is Haystack's: `{"field", "operator", "value"}` compares, `{"operator", "conditions"}` combines.

- A key that a document lacks is null. `==` and `!=` know types: 1 is 1.0, but true is not 1 and "1" is neither.
- `>`, `>=`, `<`, `<=` compare numbers with numbers and strings with strings, by code point, so that ISO dates sort
  right; with anything else (null, a bool, a number beside a string) they are false.
- `in` asks for `==` with any of a list. `!=` and `not in` are the opposites of `==` and `in`, for null too.
- `AND`: all conditions hold. `OR`: at least one does. `NOT`: not all of them do.

Depth and size are bounded where a filter is made, so that whatever reads it later may recurse.
"""

from __future__ import annotations

import math
import operator as operators
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeAlias, TypeGuard, cast, final, get_args

import attrs

from lateinteraction.domain.errors import InvalidFilter
from lateinteraction.domain.text import JsonScalar, Metadata

ComparisonOperator = Literal["==", "!=", ">", ">=", "<", "<=", "in", "not in"]

MAX_DEPTH = 32
MAX_NODES = 10_000
"""Comparisons and combinations of one filter, each counted as often as it occurs. The values of a list are none."""

_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operators.gt,
    ">=": operators.ge,
    "<": operators.lt,
    "<=": operators.le,
}
_PREFIX = "meta."
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _values(given: Any) -> Any:
    return tuple(cast("list[Any]", given)) if isinstance(given, list) else given


def _identity(value: Any) -> tuple[Any, ...]:
    """What makes two values `==` to a filter. Python alone would take true for 1."""
    if isinstance(value, tuple):
        return tuple(map(_identity, cast("tuple[Any, ...]", value)))
    return isinstance(value, bool), value


@final
@attrs.frozen
class Comparison:
    """One metadata key beside a constant.

    Args:
        field: the key as documents have it, without the `meta.` that the wire form may put in front.
        operator: one of ==, !=, >, >=, <, <=, in, not in.
        value: a JSON scalar; for `in` and `not in` a list of them, kept as a tuple.

    Raises:
        InvalidFilter: an empty key, an unknown operator, or a value that the operator cannot take.
    """

    field: str
    operator: ComparisonOperator
    value: JsonScalar | tuple[JsonScalar, ...] = attrs.field(converter=_values, eq=_identity)
    _members: frozenset[object] = attrs.field(init=False, repr=False, eq=False)
    depth: ClassVar[int] = 1
    nodes: ClassVar[int] = 1

    def __attrs_post_init__(self) -> None:
        if not _is_text(self.field) or not self.field:
            raise InvalidFilter(f"field = {_shown(self.field)}", "a metadata key", "Name the key to compare.")
        if not isinstance(self.operator, str) or self.operator not in get_args(ComparisonOperator):
            raise _unknown_operator(self.operator, "a value", get_args(ComparisonOperator))
        object.__setattr__(self, "_members", frozenset(map(_identity, self._operands())))

    def _operands(self) -> tuple[JsonScalar, ...]:
        operands: tuple[Any, ...] = (self.value,)
        if self.operator in ("in", "not in"):
            if not isinstance(self.value, tuple):
                raise InvalidFilter(
                    f"{self.operator!r} with {_shown(self.value)}", "a list of scalars", "Put the value in a list."
                )
            operands = self.value
        for operand in operands:
            if not _is_scalar(operand):
                raise InvalidFilter(
                    f"{self.operator!r} with {_shown(operand)}",
                    "a string, a finite number, a bool or null",
                    "Use 'in' to compare with several values.",
                )
        return operands

    def holds(self, found: JsonScalar) -> bool:
        """Whether the comparison is true of a document that has this value under the key."""
        order = _ORDERS.get(self.operator)
        if order is not None:
            return _have_an_order(found, self.value) and order(found, self.value)
        return (_identity(found) in self._members) == (self.operator in ("==", "in"))


@attrs.frozen
class _Combination:
    conditions: tuple[Filter, ...] = attrs.field(converter=_values)
    depth: int = attrs.field(init=False, repr=False, eq=False)
    nodes: int = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.conditions, tuple) or not self.conditions:
            raise InvalidFilter(
                f"conditions = {_shown(self.conditions)}", "a list of at least one filter", "Leave the combination out."
            )
        for condition in self.conditions:
            if not isinstance(condition, Comparison | _Combination):
                raise _no_filter(condition)
        depth = 1 + max(condition.depth for condition in self.conditions)
        nodes = 1 + sum(condition.nodes for condition in self.conditions)
        if depth > MAX_DEPTH:
            raise _too_deep()
        if nodes > MAX_NODES:
            raise _too_large()
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "nodes", nodes)


@final
@attrs.frozen
class And(_Combination):
    """All of the conditions hold.

    Raises:
        InvalidFilter: no condition, something that is no filter, or more depth or nodes than a filter may have.
    """


@final
@attrs.frozen
class Or(_Combination):
    """At least one of the conditions holds.

    Raises:
        InvalidFilter: as for `And`.
    """


@final
@attrs.frozen
class Not(_Combination):
    """Not all of the conditions hold.

    Raises:
        InvalidFilter: as for `And`.
    """


Filter: TypeAlias = Comparison | And | Or | Not

_COMBINATIONS: Mapping[str, type[And | Or | Not]] = {"AND": And, "OR": Or, "NOT": Not}


def matches(where: Filter, metadata: Metadata) -> bool:
    """Whether a document with this metadata is meant."""
    match where:
        case Comparison():
            return where.holds(metadata.get(where.field))
        case And():
            return all(matches(condition, metadata) for condition in where.conditions)
        case Or():
            return any(matches(condition, metadata) for condition in where.conditions)
        case Not():
            return not all(matches(condition, metadata) for condition in where.conditions)
        case _:
            raise _no_filter(where)


def check_filter(where: object) -> None:
    """Raise `InvalidFilter` unless this is a filter, before anything is done with it."""
    if not isinstance(where, Filter):
        raise _no_filter(where)


def filter_from_json(given: Mapping[str, Any]) -> Filter:
    """The filter that this wire form stands for.

    Raises:
        InvalidFilter: a key, operator or value that is unknown, missing or not possible; more depth or nodes than a
            filter may have.
    """
    return _Reader().read(given, 1)


def filter_to_json(where: Filter) -> dict[str, Any]:
    """The wire form, of dictionaries, lists and JSON scalars; `filter_from_json` gives an equal filter back."""
    if isinstance(where, Comparison):
        # A key that itself begins with the prefix must not lose it when it is read.
        key = _PREFIX + where.field if where.field.startswith(_PREFIX) else where.field
        value = list(where.value) if isinstance(where.value, tuple) else where.value
        return {"field": key, "operator": where.operator, "value": value}
    names = {combination: name for name, combination in _COMBINATIONS.items()}
    if type(where) not in names:
        raise _no_filter(where)
    return {"operator": names[type(where)], "conditions": [filter_to_json(condition) for condition in where.conditions]}


def _have_an_order(left: object, right: object) -> bool:
    return (isinstance(left, str) and isinstance(right, str)) or (_is_number(left) and _is_number(right))


class _Reader:
    """Reads one wire form. Counts as it goes: shared mappings can stand for far more nodes than they take memory."""

    def __init__(self) -> None:
        self._nodes = 0

    def read(self, given: Any, level: int) -> Filter:
        if not isinstance(given, Mapping):
            raise InvalidFilter(_shown(given), "a mapping with a comparison or conditions", "Write a filter as JSON.")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _too_large()
        if level > MAX_DEPTH:
            raise _too_deep()
        parts = cast("Mapping[Any, Any]", given)
        return self._combination(parts, level) if "conditions" in parts else self._comparison(parts)

    def _combination(self, given: Mapping[Any, Any], level: int) -> Filter:
        _check_keys(given, ("operator", "conditions"))
        operator, conditions = given["operator"], _values(given["conditions"])
        if not isinstance(operator, str) or operator not in _COMBINATIONS:
            raise _unknown_operator(operator, "conditions", _COMBINATIONS)
        if not isinstance(conditions, tuple):
            raise InvalidFilter(
                f"conditions = {_shown(conditions)}", "a list of filters", "Put the conditions in a list."
            )
        listed = cast("tuple[Any, ...]", conditions)
        return _COMBINATIONS[operator](tuple(self.read(condition, level + 1) for condition in listed))

    def _comparison(self, given: Mapping[Any, Any]) -> Comparison:
        _check_keys(given, ("field", "operator", "value"))
        key = given["field"]
        return Comparison(key.removeprefix(_PREFIX) if isinstance(key, str) else key, given["operator"], given["value"])


def _check_keys(given: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    unknown = [key for key in given if key not in known]
    missing = [key for key in known if key not in given]
    if unknown or missing:
        fault = f"the unknown key {_shown(unknown[0])}" if unknown else f"no key {missing[0]!r}"
        raise InvalidFilter(
            f"a filter with {fault}",
            "the keys field, operator, value to compare, or operator, conditions to combine",
            "Check the spelling.",
        )


def _is_text(value: object) -> TypeGuard[str]:
    """Text that can be written as UTF-8: JSON can spell lone surrogates, documents cannot hold them."""
    return isinstance(value, str) and (value.isascii() or _LONE_SURROGATE.search(value) is None)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_scalar(value: object) -> TypeGuard[JsonScalar]:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, int) or _is_text(value)


def _shown(value: object) -> str:
    """A short name for a message. Never the whole value: what was sent may be deep enough to exhaust `repr`."""
    if isinstance(value, str):
        return repr(value[:60])
    if value is None or isinstance(value, float | bool):
        return repr(value)
    return "<list>" if isinstance(value, tuple) else f"<{type(value).__name__}>"  # lists are kept as tuples


def _no_filter(given: object) -> InvalidFilter:
    return InvalidFilter(f"{_shown(given)} as a filter", "a Filter", "Read JSON with `filter_from_json`.")


def _unknown_operator(operator: object, use: str, known: Iterable[str]) -> InvalidFilter:
    return InvalidFilter(f"operator {_shown(operator)} with {use}", f"one of {', '.join(known)}", "Check the spelling.")


def _too_deep() -> InvalidFilter:
    return InvalidFilter(
        f"a filter more than {MAX_DEPTH} deep", f"at most {MAX_DEPTH}", "Put conditions of one operator side by side."
    )


def _too_large() -> InvalidFilter:
    return InvalidFilter(
        f"a filter of more than {MAX_NODES:,} nodes", f"at most {MAX_NODES:,}", "Use 'in' with a list of values."
    )
