"""MicroBatch: examples as a model reads them, made on the host before any device is touched.

Texts become tokens, tokens become rectangles of like lengths, and where each kept row belongs is known: embeddings are
put in order by one permutation. Which examples are together is the plan's to say; what becomes of them, a strategy's.

Shapes: Q queries, N documents; K kept tokens of all queries, or of all documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.adapters.encoding.batches import Batch, make_batch, plan_batches
from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser, TokenisedTexts
from lateinteraction.domain.embeddings import Offsets, offsets_of
from lateinteraction.domain.errors import InvalidExample
from lateinteraction.domain.training import TrainingExample


@frozen(eq=False)
class Rectangles:
    """The queries, or the documents, of a micro-batch.

    Args:
        batches: as they are given to the model, one after the other; none for texts that all have no token.
        order: int64 (K,), row order[i] of what the model gives is token i of the items in order.
        offsets: int64 (N+1,), the kept tokens of each item.
        tokens: that the model sees, padding left out.
        computed: that it computes, padding included.
        truncated: how many texts were cut to the recipe's length.
    """

    batches: tuple[Batch, ...]
    order: NDArray[np.int64]
    offsets: Offsets
    tokens: int
    computed: int
    truncated: int


@frozen(eq=False, kw_only=True)
class MicroBatch:
    """Examples that a loss sees together on one process.

    Args:
        queries: Q of them.
        documents: N of them, query by query, the positive of each first.
        groups: int64 (Q+1,), the documents of each query.
        teacher: float64 (N,), or None.
        rows: int64 (Q,), of the source.
        source: its name.
        query_keys, document_keys: int64 (Q,) and (N,), equal where ids are.
    """

    queries: Rectangles
    documents: Rectangles
    groups: Offsets
    teacher: NDArray[np.float64] | None
    rows: NDArray[np.int64]
    source: str
    query_keys: NDArray[np.int64]
    document_keys: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return self.queries.tokens + self.documents.tokens

    @property
    def computed(self) -> int:
        return self.queries.computed + self.documents.computed


def micro_batch_of(
    examples: Sequence[TrainingExample],
    tokeniser: RecipeTokeniser,
    *,
    rows: NDArray[np.int64],
    source: str,
    tokens_per_rectangle: int,
) -> MicroBatch:
    """Examples, tokenised and cut into rectangles.

    Args:
        examples: at least one.
        tokeniser: follows the model's recipe.
        rows: of the examples in their source, for messages.
        source: its name.
        tokens_per_rectangle: most tokens of a rectangle, padding included, unless one text alone has more.

    Raises:
        InvalidExample: a query or a positive that keeps no token, or teacher scores for some of the examples only.
    """
    documents = [document for example in examples for document in example.documents]
    groups = offsets_of([len(example.documents) for example in examples])
    queries = _rectangles(tokeniser.queries([each.query.text for each in examples]), tokeniser, tokens_per_rectangle)
    answers = _rectangles(tokeniser.documents([each.text for each in documents]), tokeniser, tokens_per_rectangle)
    _check_kept("query", queries.offsets, np.arange(len(examples)), rows, source)
    _check_kept("positive", answers.offsets, groups[:-1], rows, source)
    return MicroBatch(
        queries=queries,
        documents=answers,
        groups=groups,
        teacher=_teacher(examples, rows, source),
        rows=rows,
        source=source,
        query_keys=keys_of([_identity(each.query.id, each.query.text) for each in examples]),
        document_keys=keys_of([_identity(each.id, each.text) for each in documents]),
    )


def keys_of(ids: Sequence[str]) -> NDArray[np.int64]:
    """A number for each id, equal where ids are: 64 bits of BLAKE2b, the same on every machine."""
    digests = b"".join(hashlib.blake2b(each.encode(), digest_size=8).digest() for each in ids)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def _identity(identifier: str | None, text: str) -> str:
    """What tells texts apart: their ids, or, where they have none, what they say."""
    return f"text:{text}" if identifier is None else f"id:{identifier}"


def _rectangles(texts: TokenisedTexts, tokeniser: RecipeTokeniser, budget: int) -> Rectangles:
    places = np.cumsum(texts.kept) - 1
    lengths = np.diff(texts.offsets)
    batches = tuple(make_batch(texts, places, rows, tokeniser.padding_id) for rows in plan_batches(lengths, budget))
    destinations = [batch.sheet[len(batch.sheet) - batch.parts[3] :] for batch in batches]
    order = np.empty(sum(map(len, destinations)), np.int64)
    if len(order):
        order[np.concatenate(destinations)] = np.arange(len(order))
    return Rectangles(
        batches=batches,
        order=order,
        offsets=texts.kept_offsets,
        tokens=len(texts.token_ids),
        computed=sum(batch.sequences * batch.width for batch in batches),
        truncated=len(texts.long),
    )


def _check_kept(what: str, offsets: Offsets, places: NDArray[np.int64], rows: NDArray[np.int64], source: str) -> None:
    empty = np.flatnonzero(np.diff(offsets)[places] == 0)
    if len(empty):
        raise InvalidExample(
            f"row {rows[empty[0]]} of {source!r}, whose {what} keeps no token",
            f"a {what} with at least one",
            "Mend or drop the row; what the recipe's skiplist drops does not count.",
        )


def _teacher(examples: Sequence[TrainingExample], rows: NDArray[np.int64], source: str) -> NDArray[np.float64] | None:
    scored = [example.teacher is not None for example in examples]
    if not any(scored):
        return None
    if not all(scored):
        raise InvalidExample(
            f"row {rows[scored.index(False)]} of {source!r} without teacher scores, and others with them",
            "scores in all rows of a source or in none",
            "Label all of them, or make two sources.",
        )
    return np.array([score for example in examples for score in example.teacher or ()], np.float64)
