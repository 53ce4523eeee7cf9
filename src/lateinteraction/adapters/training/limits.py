"""Validators of options: what is out of range is refused by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from lateinteraction.domain.errors import InvalidOption, shown

Validator = Any
"""As attrs calls them: with an instance, an attribute and a value."""


def number(least: float, *, above: bool = False, most: float = math.inf) -> Validator:
    """Finite numbers from `least` on, or above it, to `most`."""
    bound = f"above {least:g}" if above else f"of at least {least:g}"
    expected = f"a number {bound}" + ("" if most == math.inf else f" and at most {most:g}")

    def check(_: object, attribute: Any, value: object) -> None:
        if not _is_number(value) or not least <= value <= most or (above and value == least):
            _refuse(attribute.name, value, expected)

    return check


def whole(least: int) -> Validator:
    """Whole numbers from `least` on."""

    def check(_: object, attribute: Any, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            _refuse(attribute.name, value, f"a whole number of at least {least}")

    return check


def one_of(*known: str) -> Validator:
    """One of these words."""

    def check(_: object, attribute: Any, value: object) -> None:
        if value not in known:
            _refuse(attribute.name, value, " or ".join(map(repr, known)))

    return check


def by_name(_: object, attribute: Any, value: Mapping[str, object]) -> None:
    """Finite numbers of at least 0, each with a name."""
    for name, each in value.items():
        if not _is_number(each) or each < 0:
            _refuse(f"{attribute.name}[{name!r}]", each, "a number of at least 0")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(name: str, value: object, expected: str) -> None:
    raise InvalidOption(f"{name} = {shown(value)}", expected, "Leave it out for the default.")
