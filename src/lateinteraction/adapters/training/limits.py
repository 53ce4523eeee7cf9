"""Validators of options: what is out of range is refused by its name."""

from __future__ import annotations

import math
from typing import Any

from lateinteraction.domain.errors import InvalidOption, shown

Validator = Any
"""As attrs calls them: with an instance, an attribute and a value."""


def number(least: float, *, above: bool = False, most: float = math.inf) -> Validator:
    """Finite numbers from `least` on, or above it, to `most`."""
    bound = f"above {least:g}" if above else f"of at least {least:g}"
    expected = f"a number {bound}" + ("" if most == math.inf else f" and at most {most:g}")

    def check(_: object, attribute: Any, value: object) -> None:
        given = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if not least <= given <= most or given == math.inf or (above and given == least):
            _refuse(attribute, value, expected)

    return check


def whole(least: int) -> Validator:
    """Whole numbers from `least` on."""

    def check(_: object, attribute: Any, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            _refuse(attribute, value, f"a whole number of at least {least}")

    return check


def one_of(*known: str) -> Validator:
    """One of these words."""

    def check(_: object, attribute: Any, value: object) -> None:
        if value not in known:
            _refuse(attribute, value, " or ".join(map(repr, known)))

    return check


def _refuse(attribute: Any, value: object, expected: str) -> None:
    raise InvalidOption(f"{attribute.name} = {shown(value)}", expected, "Leave it out for the default.")
