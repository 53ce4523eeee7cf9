"""`once`: a property that is computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801 - it is used as a decorator
    """As `functools.cached_property`, without the lock that Python 3.11 gives that one.

    Of two threads that ask first, both compute and one result stays. A child that is forked while a thread computes has
    no lock to wait for, which that thread would never release in it.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        """The value, which from now on is found without this."""
        found = self._compute(instance)
        return instance.__dict__.setdefault(self._name, found)
