"""What eight bits cost on real queries: vaswani and wikiqa, encoded once per run with the default model.

Tokens have the 384 dimensions of that model, queries the 5 to 30 tokens they have. For every query, the best ten by
eight bits alone are compared with the best ten of float32 as sets, and the best twenty of eight bits, scored again in
float32, as lists. The time is that of single queries of each collection, against all its documents, in one thread:
float32, and eight bits with everything that rescoring takes, the quantisation of the query included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from attrs import frozen
from torch import Tensor

import lateinteraction as li
from benchmarks.cases.kernels.inputs import Sizes, packed, quantised, threads
from benchmarks.collections import read_collection
from benchmarks.harness import Bench, Figure, clocked
from lateinteraction import kernels
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import TruncatedTextWarning
from lateinteraction.domain.evaluation import EvaluationSet
from lateinteraction.kernels.operands import Tokens

COLLECTIONS = {"vaswani": ("test",), "wikiqa": ("dev", "train")}
BEST, RESCORED = 10, 20
QUERIES_AT_ONCE = 64
TIMED_QUERIES, REPEATS = 5, 5

FIGURES = (
    *(Figure(f"int8, {name}: top-10 overlap", "", ">=", 0.99) for name in COLLECTIONS),
    *(Figure(f"int8, {name}: same top 10 after rescoring 20", "% of queries", ">=", 99.5) for name in COLLECTIONS),
    *(Figure(f"int8, {name}: rescored, against fp32", "×", ">=", 3.0) for name in COLLECTIONS),
)


@frozen
class Collection:
    """Queries and documents of one collection, in float32 and in eight bits."""

    queries: Tokens
    documents: Tokens
    small_queries: Tokens
    small_documents: Tokens

    @classmethod
    def of(cls, queries: Tokens, documents: Tokens) -> Collection:
        """Quantise both."""
        return cls(queries, documents, quantised(queries), quantised(documents))

    def exact(self) -> Tensor:
        """The best ten places (Q, 10) by float32."""
        return best_places(self.queries, self.documents, BEST)

    def approximate(self) -> Tensor:
        """The best twenty places (Q, 20) by eight bits."""
        return best_places(self.small_queries, self.small_documents, RESCORED)


def measure(bench: Bench, sizes: Sizes) -> None:
    """Encode, compare the rankings, then time single queries."""
    model = li.load_model(device="cpu")
    for name, splits in COLLECTIONS.items():
        collection, note = encoded(model, name, splits, sizes)
        exact, approximate = collection.exact(), collection.approximate()
        rescored = torch.cat([_of_query(collection, row, approximate) for row in range(len(exact))])
        bench.report(f"int8, {name}: top-10 overlap", overlap(exact, approximate[:, :BEST]), note)
        same = 100 * (exact == rescored).all(dim=1).double().mean()
        bench.report(f"int8, {name}: same top 10 after rescoring 20", float(same), note)
        with threads(1):
            _measure_time(bench, sizes, name, collection, note)


def encoded(model: li.Model, name: str, splits: Sequence[str], sizes: Sizes) -> tuple[Collection, str]:
    """One collection, and what it holds in words: all documents, or in a trial the first ones."""
    parts = [read_collection(name, split) for split in splits]
    documents = [each.text for each in parts[0].documents]
    documents = documents[: sizes.reduced(len(documents), RESCORED)]
    queries = _queries(parts)[: sizes.reduced(sum(len(part.queries) for part in parts), 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)  # how long documents may be is the model's affair
        both = [_tokens(model.encode_queries(queries)), _tokens(model.encode_documents(documents))]
    collection = Collection.of(*both)
    words = f"{len(queries)} queries, {len(documents):,} documents, {len(both[1].values):,} tokens"
    return collection, words


def _queries(parts: Sequence[EvaluationSet]) -> list[str]:
    return list({query.id: query.text for part in parts for query in part.queries}.values())


def _tokens(embeddings: TokenEmbeddings[Tensor]) -> Tokens:
    """Items without a token are left out: every ranking would end with them."""
    return packed(embeddings.tokens.float(), embeddings.lengths[embeddings.lengths > 0])


def best_places(queries: Tokens, documents: Tokens, k: int) -> Tensor:
    """Places (Q, k) of the best documents, some queries at a time."""
    groups = [queries._replace(spans=each) for each in queries.spans.split(QUERIES_AT_ONCE)]
    return torch.cat([kernels.maxsim_top_k(group, documents, k)[1] for group in groups])


def overlap(exact: Tensor, other: Tensor) -> float:
    """How much of the best ten the other best ten hold, on average."""
    shared = [len(set(one) & set(two)) for one, two in zip(exact.tolist(), other.tolist(), strict=True)]
    return sum(shared) / exact.numel()


def rescore(query: Tokens, documents: Tokens, places: Tensor) -> Tensor:
    """The best ten (1, 10) of these places (1, k) by float32; ties go to the lowest place."""
    return kernels.maxsim_rerank(query, documents, places, BEST)[1]


def _of_query(collection: Collection, row: int, approximate: Tensor) -> Tensor:
    return rescore(alone(collection.queries, row), collection.documents, approximate[row : row + 1])


def alone(queries: Tokens, row: int) -> Tokens:
    """One query, with its own rows and no others."""
    start, end = queries.spans[row].tolist()
    return packed(queries.values[start:end].clone(), [end - start])


def _measure_time(bench: Bench, sizes: Sizes, name: str, collection: Collection, note: str) -> None:
    step = max(1, len(collection.queries.spans) // TIMED_QUERIES)
    queries = [alone(collection.queries, row) for row in range(0, len(collection.queries.spans), step)][:TIMED_QUERIES]

    def by_int8(query: Tokens) -> Tensor:
        small = quantised(query)
        places = kernels.maxsim_top_k(small, collection.small_documents, RESCORED)[1]
        return rescore(query, collection.documents, places)

    calls: dict[str, Callable[[], object]] = {
        f"{name}: fp32": lambda: [kernels.maxsim_top_k(query, collection.documents, BEST) for query in queries],
        f"{name}: int8, rescored": lambda: [by_int8(query) for query in queries],
    }
    for call in calls.values():
        call()
    timings = bench.in_turn({name: clocked(call) for name, call in calls.items()}, min(REPEATS, sizes.repeats))
    exact, ours = (timing.cpu_p50 / len(queries) for timing in timings.values())
    beside = f"{ours * 1e3:.2f} and {exact * 1e3:.2f} ms a query; {note}"
    bench.report(f"int8, {name}: rescored, against fp32", exact / ours, beside)
