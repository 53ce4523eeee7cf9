"""What every suite shares: conversions between array kinds, laws that subclasses inherit, and a list of the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import A, TokenEmbeddings, offsets_of

Floats = NDArray[np.floating]
Embeddings = TokenEmbeddings[Floats]
Check = TypeVar("Check", bound=Callable[..., None])


class Conversions(Generic[A]):
    """Between NumPy and the arrays of the adapter. As they stand, these serve adapters of NumPy arrays."""

    def tensor(self, array: Floats) -> A:
        """The array in the adapter's kind, of the same dtype."""
        return cast("A", array)

    def array(self, tensor: A) -> Floats:
        """The values of the adapter's array in NumPy."""
        return cast("Floats", tensor)

    def given(self, embeddings: Embeddings) -> TokenEmbeddings[A]:
        """The same embeddings in the adapter's kind."""
        return TokenEmbeddings(self.tensor(embeddings.tokens), embeddings.offsets)

    def read(self, embeddings: TokenEmbeddings[A]) -> Embeddings:
        """The same embeddings in NumPy."""
        return TokenEmbeddings(self.array(embeddings.tokens), embeddings.offsets)


def holds_for(*drawn: SearchStrategy[Any], slow: bool = False) -> Callable[[Check], Check]:
    """`@given` for a method that subclasses inherit: each of them is an executor of its own, with its own fixtures.

    A law that is slow to check, since it runs a model, is checked on a fifth of the profile's examples (10 at least).
    """
    examples = settings().max_examples
    relaxed = settings(
        max_examples=min(examples, max(10, examples // 5)) if slow else examples,
        deadline=None,
        suppress_health_check=[
            *settings().suppress_health_check,
            HealthCheck.differing_executors,
            HealthCheck.function_scoped_fixture,
        ],
    )
    return lambda check: cast("Check", relaxed(given(*drawn)(check)))


def checks_of(contract: object) -> Iterator[tuple[str, Callable[[], None]]]:
    """The name and the bound method of every check of a suite, to run without pytest."""
    for name in sorted(dir(contract)):
        if name.startswith("test_"):
            yield name, getattr(contract, name)


def packed(items: list[list[list[float]]], width: int) -> Embeddings:
    """Embeddings written out: items of tokens of numbers."""
    tokens = np.array([token for item in items for token in item], dtype=np.float32).reshape(-1, width)
    return TokenEmbeddings(tokens, offsets_of([len(item) for item in items]))


def chosen(embeddings: Embeddings, items: list[int]) -> Embeddings:
    """These items, in this order."""
    parts = [np.zeros((0, embeddings.dimension), embeddings.tokens.dtype), *(embeddings[item] for item in items)]
    return TokenEmbeddings(np.concatenate(parts), offsets_of(embeddings.lengths[items]))


def is_close(found: Floats, expected: Floats, tolerance: float) -> bool:
    """Whether all values agree, relative to those of 1 and above and absolute below; infinities must be equal."""
    return found.shape == expected.shape and np.allclose(found, expected, rtol=tolerance, atol=tolerance)
