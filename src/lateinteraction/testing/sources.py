"""ListedExamples: an `ExampleSource` of examples in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.domain.training import TrainingExample

if TYPE_CHECKING:
    from lateinteraction.domain.ports import ExampleSource


@final
class ListedExamples:
    """Examples by their place in a list.

    Args:
        name: of the source.
        examples: in order.
    """

    def __init__(self, name: str, examples: Sequence[TrainingExample]) -> None:
        self._name, self._examples = name, tuple(examples)

    @property
    def name(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, row: int) -> TrainingExample:
        return self._examples[row]

    def positives(self) -> NDArray[np.int64]:
        """64 bits of a hash of each positive's id."""
        return np.array([_key(example.documents[0].id) for example in self._examples], np.int64)

    def lengths(self) -> NDArray[np.int64]:
        """Characters of all texts of a row."""
        sizes = [
            len(example.query.text) + sum(len(document.text) for document in example.documents)
            for example in self._examples
        ]
        return np.array(sizes, np.int64)


def _key(identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "little", signed=True)


if TYPE_CHECKING:
    _: type[ExampleSource] = ListedExamples
