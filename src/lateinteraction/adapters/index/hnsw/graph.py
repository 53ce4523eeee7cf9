"""TokenGraph: Voyager's graph (Malkov and Yashunin, TPAMI 2020) over tokens, and which document each of them is of.

It compares by inner product, so that vectors need not have length 1. Voyager numbers tokens and forgets none: what is
removed is marked, is not found any more, and takes its room until the graph is built anew.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from attrs import field, frozen, validators
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings
from lateinteraction.domain.errors import CorruptIndex, InvalidOption, MissingExtra
from lateinteraction.domain.text import DocumentId

Floats = NDArray[np.float32]

EXACT_BELOW = 1 << 18
"""Tokens up to which every one is compared. 32 query tokens with 150,000 of 128 dimensions in float16, on one thread:
all of them 13 ms, the graph 22 and scoring what it proposes 4 to 16 more."""


def _at_least(least: int) -> Any:
    def check(_: object, attribute: Any, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidOption(
                f"{attribute.name} = {value!r}", f"a whole number of at least {least}", "Leave it out for the default."
            )

    return check


@frozen
class GraphOptions:
    """How a graph is made and asked.

    Args:
        links: of each token to others; Voyager's M.
        effort: tokens that are looked at to link a new one.
        depth: tokens that are looked at for each query token, at least; more find more.
        neighbours: document tokens that each query token proposes documents by. Recall of the ten best of 2,500
            clustered documents of 60 tokens: 32 .79, 64 .93, 128 1.00.
        exact_below: how many tokens are compared one by one before they are put into the graph.
        threads: that Voyager uses. With one thread, the same calls give the same graph.
        seed: of the levels that tokens are put on.

    Raises:
        InvalidOption: a number that is too small.
    """

    links: int = field(default=16, validator=_at_least(2))
    effort: int = field(default=200, validator=_at_least(1))
    depth: int = field(default=128, validator=_at_least(1))
    neighbours: int = field(default=64, validator=_at_least(1))
    exact_below: int = field(default=EXACT_BELOW, validator=_at_least(0))
    threads: int = field(default=1, validator=_at_least(1))
    seed: int = field(default=1, validator=[_at_least(0), validators.lt(2**63)])


class Neighbours(NamedTuple):
    """For S query tokens the nearest n document tokens: slots of documents (S, n), and similarities (S, n), falling."""

    slots: NDArray[np.int64]
    similarities: Floats


@final
class TokenGraph:
    """A graph, and its documents in slots in the order they came; a slot whose document was removed stays empty.

    Not safe to change while it is asked.

    Args:
        dimension: of the tokens.
        options: how it is made.

    Raises:
        MissingExtra: Voyager is not installed.
    """

    def __init__(self, dimension: int, options: GraphOptions, stored: bytes | None = None) -> None:
        voyager = _voyager()
        self.dimension, self.options = dimension, options
        if stored is None:
            self._graph = voyager.Index(
                voyager.Space.InnerProduct, dimension, options.links, options.effort, options.seed
            )
        else:
            self._graph = _loaded(voyager, stored, dimension)
        self._ids: list[DocumentId | None] = []
        self._ends: list[int] = []
        self._slots: dict[DocumentId, int] = {}
        self.tokens = 0

    def __len__(self) -> int:
        """How many documents it has."""
        return len(self._slots)

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._slots

    @property
    def elements(self) -> int:
        """Tokens that Voyager has, removed ones among them."""
        return int(self._graph.num_elements)

    @property
    def removed(self) -> int:
        """Tokens whose room is not free yet."""
        return (self._ends[-1] if self._ends else 0) - self.tokens

    def length(self, identifier: DocumentId) -> int | None:
        """How many tokens a document has; None where it is not there."""
        slot = self._slots.get(identifier)
        return None if slot is None else self._ends[slot] - (self._ends[slot - 1] if slot else 0)

    def documents(self) -> list[tuple[DocumentId | None, int]]:
        """The id of each slot, None where it was removed, and how many tokens it has room for."""
        return list(zip(self._ids, map(int, np.diff([0, *self._ends])), strict=True))

    def add(self, ids: Sequence[DocumentId], embeddings: TokenEmbeddings[Floats]) -> None:
        """Put in the tokens of documents that are not there."""
        first = self._ends[-1] if self._ends else 0
        count = len(embeddings.tokens)
        if count:
            labels = list(range(first, first + count))
            self._graph.add_items(np.ascontiguousarray(embeddings.tokens), labels, num_threads=self.options.threads)
        self.restore(ids, embeddings.lengths)

    def restore(self, ids: Sequence[DocumentId | None], lengths: Offsets) -> None:
        """Say which documents the next tokens are of that the graph has already; None: of one that was removed."""
        for identifier, length in zip(ids, map(int, lengths), strict=True):
            if identifier is not None:
                self._slots[identifier] = len(self._ids)
                self.tokens += length
            self._ids.append(identifier)
            self._ends.append((self._ends[-1] if self._ends else 0) + length)

    def remove(self, identifier: DocumentId) -> None:
        """Find the tokens of a document no more; nothing where it is not there."""
        slot = self._slots.pop(identifier, None)
        if slot is None:
            return
        self._ids[slot] = None
        first, last = self._ends[slot - 1] if slot else 0, self._ends[slot]
        for label in range(first, last):
            self._graph.mark_deleted(label)
        self.tokens -= last - first

    def owners(self, slots: NDArray[np.int64]) -> list[DocumentId | None]:
        """The documents of slots."""
        return [self._ids[slot] for slot in map(int, slots)]

    def nearest(self, vectors: Floats, k: int) -> Neighbours:
        """The nearest k tokens of each vector, or as many as there are, or as the graph reaches.

        Args:
            vectors: float32 (S, D).
            k: at least 1.
        """
        k = min(k, self.tokens)
        while k and len(vectors):
            try:
                labels, distances = self._graph.query(
                    np.ascontiguousarray(vectors),
                    k,
                    num_threads=self.options.threads,
                    query_ef=max(k, self.options.depth),
                )
            except RuntimeError:  # some tokens cannot be reached from others, which Voyager tells when they are missed
                k //= 2
                continue
            slots = np.searchsorted(np.array(self._ends), labels.astype(np.int64), side="right")
            return Neighbours(slots, 1 - distances)
        return Neighbours(np.empty((len(vectors), 0), np.int64), np.empty((len(vectors), 0), np.float32))

    def stored(self) -> bytes:
        """The graph without its documents, for the constructor."""
        return self._graph.as_bytes()


def sketches(embeddings: TokenEmbeddings[Floats]) -> NDArray[np.float16]:
    """The mean token of each document (N, D): tells another document under the same id, whatever codec it went through.

    Zero for a document without tokens.
    """
    sums = np.zeros((len(embeddings), embeddings.dimension), np.float64)
    owners = np.repeat(np.arange(len(embeddings)), embeddings.lengths)
    np.add.at(sums, owners, embeddings.tokens)
    means = sums / np.maximum(embeddings.lengths, 1)[:, None]
    return np.clip(means, -65_000, 65_000).astype(np.float16)


def alike(first: NDArray[np.float16], second: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Which of two sketches (N, D) each are of the same tokens, but for how these were rounded."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    distances = np.linalg.norm(one - other, axis=1)
    return distances <= _TOLERANCE * np.maximum(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))


_TOLERANCE = 0.2
"""Of the length of a mean token: what rounding may move it by. A document whose mean moved farther is put in anew."""


@frozen(eq=False)
class SavedGraph:
    """A graph, and a sketch of each document in it."""

    graph: TokenGraph
    sketches: Mapping[DocumentId, NDArray[np.float16]]


def check_available() -> None:
    """Raise `MissingExtra` where Voyager is not installed."""
    _voyager()


def _voyager() -> Any:
    try:
        import voyager
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "an HNSW index without voyager", "voyager to be installed", 'pip install "lateinteraction[hnsw]"'
        ) from error
    return voyager


def _loaded(voyager: Any, stored: bytes, dimension: int) -> Any:
    try:
        graph = voyager.Index.load(io.BytesIO(stored))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise CorruptIndex(f"a graph that Voyager does not read ({error})", "its own", "Build it anew.") from error
    if graph.num_dimensions != dimension or graph.space != voyager.Space.InnerProduct:
        raise CorruptIndex("a graph of another kind", f"{dimension} dimensions, inner product", "Build it anew.")
    return graph
