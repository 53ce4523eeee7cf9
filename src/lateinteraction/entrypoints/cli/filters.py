"""Filters as a person types them."""

from __future__ import annotations

import json

from lateinteraction.domain.errors import InvalidFilter
from lateinteraction.domain.filters import Filter, filter_from_json


def filter_of(text: str) -> Filter:
    """The filter that a text in JSON stands for.

    Raises:
        InvalidFilter: it stands for none.
    """
    try:
        return filter_from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidFilter):
            raise
        raise InvalidFilter(
            f"--where {text!r:.80}, which is no JSON ({error})",
            'a filter such as {"field": "line", "operator": "<", "value": 100}',
            "Quote it so that the shell leaves it as it is.",
        ) from error
