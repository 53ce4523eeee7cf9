"""What `torture.py` holds indexes against: calls drawn from a seed, the documents they leave, the answers these give.

Answers are computed here from the documents alone, with NumPy and by definition, not by the index.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from random import Random
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from lateinteraction.adapters.index.analysis import Analyser
from lateinteraction.adapters.index.bm25 import K1, B
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import LateInteractionError
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.text import Document, DocumentId

WIDTH = 8
POOL = 48
"""Ids that calls draw from: few, so that documents are replaced, removed, and come back."""
GROUPS = 4
TOPICS = ("apple orchards", "boat builders", "cloud atlases", "drum lessons", "engine rooms", "fishing villages", "")
TEXTS = ("boat", "cloud drum", "record seven of the engine")
"""What is searched for."""

Kind = Literal["add", "replace", "update", "remove", "forget", "compact"]
KINDS: tuple[Kind, ...] = ("add", "replace", "update", "remove", "forget", "compact")
_OFTEN = (10, 5, 4, 4, 1, 1)
Scores: TypeAlias = list[tuple[str, float]]


class Entry(NamedTuple):
    """A document: the numbers that its text and tokens, and its metadata, are drawn from. No two calls share any."""

    made: int
    described: int

    @property
    def group(self) -> int:
        """What calls that forget a group go by."""
        return self.described % GROUPS


State: TypeAlias = Mapping[str, Entry]
"""All documents, by id."""


class Call(NamedTuple):
    """A call that writes: of documents, ids, or a group."""

    kind: Kind
    entries: Mapping[str, Entry]
    ids: tuple[str, ...] = ()
    group: int = 0


def seeded(*numbers: int) -> Random:
    """What is drawn from these numbers, the same each time."""
    return Random(repr(numbers))  # noqa: S311


def planned(draw: Random, state: State, number: int, kind: Kind | None = None) -> Call:
    """The call of this number; of a kind that the documents allow.

    Args:
        draw: what it is drawn from.
        state: the documents there are.
        number: 1 and up, different for each call.
        kind: which one; drawn where none is given.
    """
    kind = kind or draw.choices(KINDS, _OFTEN)[0]
    there = sorted(state)
    free = [each for each in map("document {}".format, range(POOL)) if each not in state]
    if not there or (kind == "add" and not free):
        kind = "replace" if there else "add"
    new = Entry(number, number)
    if kind == "add":
        return Call(kind, dict.fromkeys(draw.sample(free, min(draw.choice((1, 1, 3, 6)), len(free))), new))
    chosen = draw.sample(there, min(draw.choice((1, 2, 4)), len(there)))
    if kind == "replace":
        return Call(kind, dict.fromkeys([*chosen, *free[:1]], new))
    if kind == "update":
        return Call(kind, {each: state[each]._replace(described=number) for each in chosen})
    return Call(kind, {}, tuple(chosen) if kind == "remove" else (), draw.randrange(GROUPS))


def after(state: State, call: Call) -> State:
    """The documents once a call has taken place."""
    kept = {
        identifier: entry
        for identifier, entry in state.items()
        if identifier not in call.ids and not (call.kind == "forget" and entry.group == call.group)
    }
    return {**kept, **call.entries}


def perform(index: StoredIndex, call: Call) -> None:
    """Do it."""
    if call.kind in ("add", "replace"):
        add(index, call.entries, replace=call.kind == "replace")
    elif call.kind == "update":
        index.update({document(*each).id: document(*each).metadata for each in call.entries.items()})
    elif call.kind == "compact":
        index.compact()
    else:
        index.remove(_in_group(call.group) if call.kind == "forget" else list(map(DocumentId, call.ids)))


def repeat(index: StoredIndex, call: Call) -> None:
    """Do it again, as somebody does who was not told whether it took place."""
    if call.kind == "add":
        documents = list(map(document, call.entries, call.entries.values()))
        index.add(documents, embeddings(call.entries.items()), on_duplicate="skip")
    elif call.kind == "remove":
        index.remove([DocumentId(each) for each in call.ids if each in index])
    else:
        perform(index, call)


def add(index: StoredIndex, entries: State, *, replace: bool = False) -> None:
    """Add these documents."""
    documents = list(map(document, entries, entries.values()))
    index.add(documents, embeddings(entries.items()), on_duplicate="replace" if replace else "error")


@cache
def document(identifier: str, entry: Entry) -> Document:
    """The document of an entry."""
    topic = TOPICS[entry.made % len(TOPICS)]
    metadata = {"version": entry.described, "group": entry.group, f"only{entry.described % 3}": "a name"}
    return Document(DocumentId(identifier), f"{identifier}, record {entry.made} {topic}".strip(), metadata)


@cache
def tokens_of(identifier: str, entry: Entry) -> NDArray[np.float32]:
    """Its tokens (t, WIDTH) as float16 holds them, in float32; of every fifth there are none."""
    number = int(identifier.split()[-1])
    drawn = np.random.default_rng([number, entry.made]).standard_normal(((number + entry.made) % 5, WIDTH))
    return drawn.astype(np.float16).astype(np.float32)


def embeddings(entries: Iterable[tuple[str, Entry]]) -> TokenEmbeddings[torch.Tensor]:
    """Those of some documents."""
    items = [tokens_of(*each) for each in entries]
    tokens = np.concatenate([np.empty((0, WIDTH), np.float32), *items])
    return TokenEmbeddings(torch.from_numpy(tokens), offsets_of(list(map(len, items))))


QUERY = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
_QUERIES = TokenEmbeddings(torch.from_numpy(QUERY), offsets_of([len(QUERY)]))


def _in_group(group: int) -> Comparison:
    return Comparison("group", "==", group)


# What is asked of an index, and what its documents alone give for an answer.


def _ids(index: StoredIndex, _: State) -> object:
    return sorted(index.ids())


def _documents(index: StoredIndex, state: State) -> object:
    return index.get(list(map(DocumentId, sorted(state))))


def _embeddings(index: StoredIndex, state: State) -> object:
    found = index.fetch(list(map(DocumentId, sorted(state))))
    return found.tokens.numpy().tobytes(), list(map(int, found.lengths))


def _nearest(index: StoredIndex, _: State) -> object:
    return _told(index.search(_QUERIES, 5))


def _filtered(index: StoredIndex, _: State) -> object:
    return _told(index.search(_QUERIES, POOL, where=_in_group(1)))


def _words(index: StoredIndex, _: State) -> object:
    return _told(index.snapshot().search_text(TEXTS, 6))


def _filtered_words(index: StoredIndex, _: State) -> object:
    return _told(index.snapshot().search_text(TEXTS, POOL, where=_in_group(1)))


QUESTIONS: Mapping[str, Callable[[StoredIndex, State], object]] = {
    "ids": _ids,
    "texts and metadata": _documents,
    "embeddings": _embeddings,
    "nearest": _nearest,
    "filtered": _filtered,
    "words": _words,
    "filtered words": _filtered_words,
}
"""What is asked of an index, given the documents that are thought to be in it."""


def expected(state: State) -> dict[str, object]:
    """The answers to all questions."""
    return _expected(tuple(sorted(state.items())))


@lru_cache(256)
def _expected(there: tuple[tuple[str, Entry], ...]) -> dict[str, object]:
    scored = [(identifier, _maxsim(tokens_of(identifier, entry))) for identifier, entry in there]
    group = {identifier for identifier, entry in there if entry.group == 1}
    by_words = [_bm25(dict(there), text) for text in TEXTS]
    return {
        "ids": [identifier for identifier, _ in there],
        "texts and metadata": list(map(document, *zip(*there, strict=True))) if there else [],
        "embeddings": (
            b"".join(tokens_of(*each).tobytes() for each in there),
            [len(tokens_of(*each)) for each in there],
        ),
        "nearest": [_best(scored, 5)],
        "filtered": [_best([each for each in scored if each[0] in group], POOL)],
        "words": [_best(scores, 6) for scores in by_words],
        "filtered words": [_best([each for each in scores if each[0] in group], POOL) for scores in by_words],
    }


def wrong(index: StoredIndex, state: State) -> list[str]:
    """The questions that an index of these documents answers otherwise."""
    right, found = expected(state), []
    for name, ask in QUESTIONS.items():
        try:
            if not same(ask(index, state), right[name]):
                found.append(name)
        except LateInteractionError as error:
            found.append(f"{name} ({type(error).__name__}: {error})")
    return found


def same(one: object, other: object) -> bool:
    """Whether two answers are the same; scores up to what the order of summation changes."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def _told(rankings: Sequence[Any]) -> list[Scores]:
    return [list(zip(each.documents, map(float, each.scores), strict=True)) for each in rankings]


def _best(scored: Iterable[tuple[str, float]], k: int) -> Scores:
    return sorted(scored, key=lambda each: (-each[1], each[0]))[:k]


def _maxsim(tokens: NDArray[np.float32]) -> float:
    return float((QUERY @ tokens.T).max(axis=1).sum()) if len(tokens) else -math.inf


@cache
def _terms(text: str) -> Counter[str]:
    return Counter(Analyser("english").terms(text))


def _bm25(state: State, text: str) -> Scores:
    """Σ_t qₜ · idfₜ · fₜ / (fₜ + k1 · (1 − b + b · |d| / average)) of the documents that share a term."""
    held = {identifier: _terms(document(identifier, entry).text) for identifier, entry in state.items()}
    average = sum(each.total() for each in held.values()) / max(len(held), 1)
    scores: dict[str, float] = {}
    for term, times in _terms(text).items():
        having = [identifier for identifier, terms in held.items() if term in terms]
        weight = times * math.log1p((len(held) - len(having) + 0.5) / (len(having) + 0.5))
        for identifier in having:
            count = held[identifier][term]
            share = count / (count + K1 * (1 - B + B * held[identifier].total() / average))
            scores[identifier] = scores.get(identifier, 0.0) + weight * share
    return list(scores.items())
