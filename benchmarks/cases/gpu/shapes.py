"""What is computed: every shape of which a floor or somebody's time is known, 128 dimensions, queries of 32 tokens.

The floor of a shape is the longer of two times: its bytes at the rate at which this device copies, its multiplications
and additions at the rate of its best matrix product of that precision. Both rates are measured in the run. Not in it:
the maxima, which take 4 operations a similarity where the winner is kept, and the launch.
"""

from __future__ import annotations

from typing import Literal, Protocol

from attrs import evolve, frozen

DIMENSION = 128
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
BEST = 100
CENTROIDS = 2**16
ROOM = 2 * 10**9
"""Bytes for making and checking a piece at a time."""

Operation = Literal["scores", "step", "pairs", "pairs step", "top"]


class Shape(Protocol):
    """What every kind of shape can tell."""

    @property
    def name(self) -> str: ...
    @property
    def target_ms(self) -> float | None: ...
    @property
    def saturates(self) -> bool: ...
    @property
    def dtype(self) -> str: ...
    @property
    def operations(self) -> float: ...
    @property
    def traffic(self) -> float: ...
    @property
    def needed(self) -> float: ...


@frozen(kw_only=True)
class Dense:
    """Exact MaxSim.

    Args:
        name: what the figure is called.
        operation: scores of all pairs, or of each query with documents of its own, with or without gradients, or the
            best 100 documents of each query.
        queries, documents: how many; of pairs, documents per query.
        document_length, query_length: tokens of each.
        dtype: of the tokens.
        target_ms: the longest it may take on an H100.
        saturates: whether it must reach 80 % of the rate of a copy: what memory bounds, where it lasts long enough.
    """

    name: str
    operation: Operation = "scores"
    queries: int = 1
    query_length: int = 32
    documents: int
    document_length: int
    dtype: str = "bfloat16"
    target_ms: float | None = None
    saturates: bool = False

    @property
    def own(self) -> bool:
        """Whether each query has documents of its own."""
        return self.operation.startswith("pairs")

    @property
    def learns(self) -> bool:
        """Whether gradients are wanted."""
        return self.operation.endswith("step")

    @property
    def all_documents(self) -> int:
        return self.documents * (self.queries if self.own else 1)

    @property
    def pairs(self) -> int:
        return self.queries * self.documents

    @property
    def elements(self) -> int:
        """Values of all document tokens."""
        return self.all_documents * self.document_length * DIMENSION

    @property
    def operations(self) -> float:
        """One product of every pair of tokens; gradients multiply winners alone, once for either side."""
        per_query_token = self.document_length + (2 if self.learns else 0)
        return 2.0 * DIMENSION * self.pairs * self.query_length * per_query_token

    @property
    def traffic(self) -> float:
        """Bytes that must move: tokens once and scores; with gradients tokens twice, and gradients and winners once."""
        values = (self.elements + self.queries * self.query_length * DIMENSION) * BYTES[self.dtype]
        scores = 4.0 * (self.queries * BEST if self.operation == "top" else self.pairs)
        winners = 2.0 * self.pairs * self.query_length
        return values * 3 + scores + winners if self.learns else values + scores

    @property
    def needed(self) -> float:
        """Bytes of memory that ours needs."""
        return self.traffic + ROOM

    def tiny(self) -> Dense:
        """The same operation on next to nothing."""
        return evolve(self, queries=min(self.queries, 2), documents=3, document_length=7, query_length=5)


@frozen(kw_only=True)
class Residual:
    """Residual MaxSim of one query with what the codec stores, K = 65,536, given the table of centroid scores."""

    name: str
    documents: int
    document_length: int
    bits: int
    target_ms: float | None = None
    saturates: bool = False
    queries: int = 1
    query_length: int = 32
    centroids: int = CENTROIDS
    dtype: str = "float16"

    @property
    def tokens(self) -> int:
        return self.documents * self.document_length

    @property
    def operations(self) -> float:
        return 2.0 * DIMENSION * self.query_length * self.tokens

    @property
    def traffic(self) -> float:
        """Codes of 4 bytes, residuals, inverse norms of 2 bytes; the table stays in a cache."""
        return self.tokens * (4.0 + DIMENSION * self.bits / 8 + 2) + 4.0 * self.documents

    @property
    def needed(self) -> float:
        return self.traffic + ROOM

    def tiny(self) -> Residual:
        """The same on next to nothing."""
        return evolve(self, documents=5, document_length=9, centroids=32)


@frozen(kw_only=True)
class Table:
    """The first stage of a search: the scores of all centroids, or their interaction with all documents."""

    name: str
    centroids: int = CENTROIDS
    queries: int = 1
    query_length: int = 32
    documents: int = 0
    document_length: int = 0
    dtype: str = "float32"
    target_ms: float | None = None
    saturates: bool = False

    @property
    def tokens(self) -> int:
        return self.documents * self.document_length

    @property
    def operations(self) -> float:
        return 0.0 if self.tokens else 2.0 * DIMENSION * self.centroids * self.queries * self.query_length

    @property
    def traffic(self) -> float:
        """Centroids read and scores written; or codes of 4 bytes read."""
        if self.tokens:
            return 4.0 * self.tokens + 4.0 * self.documents
        return 4.0 * self.centroids * (DIMENSION + self.queries * self.query_length)

    @property
    def needed(self) -> float:
        return self.traffic + ROOM

    def tiny(self) -> Table:
        """The same on next to nothing."""
        small = bool(self.tokens)
        return evolve(self, centroids=32, queries=1, documents=5 * small, document_length=9 * small)


def _in_batch(queries: int, documents: int, length: int, target_ms: float | None = None) -> Dense:
    name = f"in-batch {queries} × {documents} × {length}"
    return Dense(name=name, queries=queries, documents=documents, document_length=length, target_ms=target_ms)


def _step(queries: int, documents: int, length: int, target_ms: float | None = None) -> Dense:
    forward = _in_batch(queries, documents, length, target_ms)
    return evolve(forward, name=f"step {queries} × {documents} × {length}", operation="step")


# 26 µs of memory on an H100: starting and ending, some 5 to 10 µs whoever computes, decide; so no rate is promised.
RERANK = Dense(name="rerank 1 × 1,000 × 300", documents=1_000, document_length=300)
DENSE = (
    RERANK,
    Dense(name="rerank 1 × 1,000 × 1,024", documents=1_000, document_length=1_024, saturates=True),
    # Bound by products, which take four times as long as reading.
    Dense(
        name="rerank 1 × 1,000 × 1,024, 1,024 query tokens", documents=1_000, document_length=1_024, query_length=1_024
    ),
    Dense(name="rerank 1 × 10,000 × 300", documents=10_000, document_length=300, saturates=True),
    Dense(name="rerank 1 × 10,000 × 300, int8", documents=10_000, document_length=300, dtype="int8", saturates=True),
    _in_batch(32, 32, 300),
    _in_batch(128, 128, 300, 0.110),
    evolve(_in_batch(128, 128, 300), name="in-batch 128 × 128 × 300, float32", dtype="float32"),
    _in_batch(32, 64, 180),
    _in_batch(128, 128, 180),
    _in_batch(128, 256, 180),
    _in_batch(128, 1_024, 180),
    _in_batch(256, 256, 180),
    _in_batch(256, 512, 180),
    _in_batch(512, 512, 180, 1.3),
    _in_batch(512, 1_024, 180),
    _in_batch(512, 4_096, 180),
    _in_batch(512, 1_024, 512),
    Dense(name="long queries 64 × 64, 768 × 512", queries=64, documents=64, query_length=768, document_length=512),
    Dense(name="distillation 32 × 32 × 180", operation="pairs", queries=32, documents=32, document_length=180),
    _step(128, 128, 180),
    _step(128, 128, 1_030),
    _step(256, 256, 300, 1.2),
    _step(512, 1_024, 180),
    Dense(
        name="distillation step 256 × 16 × 300", operation="pairs step", queries=256, documents=16, document_length=300
    ),
)
SCANS = (
    Dense(
        name="scan 1M × 128, best 100",
        operation="top",
        documents=10**6,
        document_length=128,
        dtype="float16",
        saturates=True,
    ),
    # Bound by products: 16 queries of 32 tokens are twice what hides behind reading.
    Dense(
        name="scan 1M × 128, best 100, 16 queries",
        operation="top",
        queries=16,
        documents=10**6,
        document_length=128,
        dtype="float16",
    ),
)
RESIDUAL = (
    Residual(name="residual 10,000 × 300, 2 bits", documents=10_000, document_length=300, bits=2, target_ms=0.15),
    Residual(name="residual 10,000 × 512, 4 bits", documents=10_000, document_length=512, bits=4),
    Residual(name="residual 25,000 × 300, 2 bits", documents=25_000, document_length=300, bits=2),
    Residual(name="residual scan 1M × 128, 2 bits", documents=10**6, document_length=128, bits=2, target_ms=4.0),
    Residual(name="residual scan 1M × 128, 4 bits", documents=10**6, document_length=128, bits=4),
)
TABLES = (
    *(
        Table(name=f"centroid scores, K = 2^{power}, {queries} × 32", centroids=2**power, queries=queries)
        for power in (16, 17, 18)
        for queries in (1, 32)
    ),
    Table(name="centroid interaction 1M × 128", documents=10**6, document_length=128),
)
SHAPES: tuple[Dense | Residual | Table, ...] = (*DENSE, *RESIDUAL, *TABLES, *SCANS)
