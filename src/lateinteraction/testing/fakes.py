"""Working stand-ins for every port, in NumPy: small, deterministic, exact, and with every error of the contract.

They are no mocks: `HashEncoder` finds equal words, `ListIndex` ranks by the reference MaxSim. Speed is left to others.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, final, get_args

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, TokenTrace, offsets_of
from lateinteraction.domain.errors import (
    DuplicateDocument,
    InvalidEmbeddings,
    InvalidOption,
    InvalidRecipe,
    TruncatedTextWarning,
    UnknownDocument,
)
from lateinteraction.domain.evaluation import Report
from lateinteraction.domain.filters import Filter, matches
from lateinteraction.domain.ports import AddReport, Encoder, ExampleSource, Loss, OnDuplicate
from lateinteraction.domain.ranking import Ranking, check_cutoff
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.reference.losses import contrastive
from lateinteraction.domain.reference.maxsim import check_widths, maxsim_all_pairs, maxsim_grouped, similarities
from lateinteraction.domain.text import Document, DocumentId, Query, check_distinct
from lateinteraction.domain.training import Targets, TrainingExample, TrainingReport

if TYPE_CHECKING:
    from lateinteraction.domain.explanation import TokenTracer
    from lateinteraction.domain.ports import (
        CandidateSource,
        DocumentStore,
        EmbeddingStore,
        Index,
        Progress,
        Scorer,
        Trainer,
    )

Floats: TypeAlias = NDArray[np.floating]
Embeddings: TypeAlias = TokenEmbeddings[Floats]

_WORD = re.compile(r"\w+|[^\w\s]")
_MASK = "[MASK]"


@frozen
class _Token:
    """A word, and the characters of the text it covers; none for markers, prompts and expansion."""

    word: str
    start: int = 0
    end: int = 0


@final
@frozen
class HashEncoder:
    """An `Encoder` and `TokenTracer` of words: each is hashed to a direction, so equal words have similarity 1.

    Words are runs of word characters, or single other characters, without regard to case. There are no special tokens,
    so a text without words has no token embeddings, whatever marker, prompt or expansion there is. Different words are
    nearly orthogonal once `width` is 64 or more.

    Args:
        recipe: honoured throughout; a prefix is one token in front, expansion adds `[MASK]` tokens.
        width: dimensions of a hash, before the recipe's `dimension` cuts it.

    Raises:
        InvalidRecipe: the recipe keeps more dimensions than there are.
    """

    recipe: EncodingRecipe = field(factory=EncodingRecipe)
    width: int = 32

    def __attrs_post_init__(self) -> None:
        if self.recipe.dimension is not None and self.recipe.dimension > self.width:
            raise InvalidRecipe(
                f"dimension = {self.recipe.dimension}", f"at most the width {self.width}", "Widen the encoder."
            )

    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[NDArray[np.float32]]:
        """One item per query."""
        return self._embed(self._query_tokens(queries, warn=True))

    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[NDArray[np.float32]]:
        """One item per document."""
        return self._embed(self._document_tokens(documents, warn=True))

    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace:
        """Where the tokens of `encode_queries` come from."""
        return _trace(self._query_tokens(queries, warn=False))

    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace:
        """Where the tokens of `encode_documents` come from."""
        return _trace(self._document_tokens(documents, warn=False))

    def _query_tokens(self, queries: Sequence[Query], *, warn: bool) -> list[list[_Token]]:
        recipe = self.recipe
        items = [_tokens(query.text, recipe.query_prefix, recipe.query_prompt) for query in queries]
        items = _cut(items, recipe.query_length, "queries", warn=warn)
        if recipe.expansion == "fixed":
            items = [item + [_Token(_MASK)] * (recipe.query_length - len(item)) if item else [] for item in items]
        return items

    def _document_tokens(self, documents: Sequence[Document], *, warn: bool) -> list[list[_Token]]:
        recipe = self.recipe
        skipped = {word.casefold() for word in recipe.skiplist}
        items = [_tokens(document.text, recipe.document_prefix, recipe.document_prompt) for document in documents]
        items = _cut(items, recipe.document_length, "documents", warn=warn)
        return [[token for token in item if token.word not in skipped] for item in items]

    def _embed(self, items: list[list[_Token]]) -> TokenEmbeddings[NDArray[np.float32]]:
        words = [token.word for item in items for token in item]
        known = {word: _direction(word, self.width)[: self.recipe.dimension] for word in set(words)}
        tokens = np.array([known[word] for word in words]).reshape(len(words), self.recipe.dimension or self.width)
        if self.recipe.normalise:
            tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
        return TokenEmbeddings(tokens.astype(np.float32), offsets_of([len(item) for item in items]))


def _tokens(text: str, prefix: str | None, prompt: str) -> list[_Token]:
    marker = [] if prefix is None else [_Token(prefix)]
    before = [_Token(match.group().casefold()) for match in _WORD.finditer(prompt)]
    words = [_Token(match.group().casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]
    return marker + before + words if words else []


def _cut(items: list[list[_Token]], length: int, role: str, *, warn: bool) -> list[list[_Token]]:
    truncated = sum(len(item) > length for item in items)
    if truncated and warn:
        warnings.warn(
            f"{truncated} of {len(items)} {role} have more than {length} tokens and were cut",
            TruncatedTextWarning,
            stacklevel=4,
        )
    return [item[:length] for item in items]


def _digest(word: str, block: int) -> bytes:
    return blake2b(word.encode(), salt=block.to_bytes(8, "little")).digest()


def _direction(word: str, width: int) -> NDArray[np.float64]:
    """Numbers in (−1, 1), none of them 0, that depend on the word alone; 32 of them to each hash of 64 bytes."""
    drawn = b"".join(_digest(word, block) for block in range(-(-width // 32)))
    return (np.frombuffer(drawn, dtype="<u2")[:width] - 32767.5) / 32768


def _trace(items: list[list[_Token]]) -> TokenTrace:
    tokens = [token for item in items for token in item]
    return TokenTrace(
        np.array([int.from_bytes(_digest(token.word, 0)[:7], "little") for token in tokens], dtype=np.int64),
        np.array([token.start for token in tokens], dtype=np.int64),
        np.array([token.end for token in tokens], dtype=np.int64),
        offsets_of([len(item) for item in items]),
    )


@final
@frozen
class ReferenceScorer:
    """The reference MaxSim as a `Scorer`."""

    def matrix(self, queries: Embeddings, documents: Embeddings) -> NDArray[np.float32]:
        """Scores (Q, N) of every query with every document."""
        return maxsim_all_pairs(queries, documents)

    def grouped(
        self,
        queries: Embeddings,
        documents: Embeddings,
        groups: Offsets,
    ) -> NDArray[np.float32]:
        """Scores (N,): documents groups[i] … groups[i+1]−1 with query i."""
        return maxsim_grouped(queries, documents, groups)


@frozen(eq=False)
class _Entry:
    document: Document
    tokens: NDArray[np.float32]


@final
class ListIndex:
    """An `Index`, `EmbeddingStore` and `DocumentStore` in one dictionary: every document is scored for every query."""

    def __init__(self) -> None:
        self._entries: dict[DocumentId, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def held(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]:
        """Those of these ids that it has."""
        return frozenset(ids) & self._entries.keys()

    def add(
        self,
        documents: Sequence[Document],
        embeddings: Embeddings,
        *,
        on_duplicate: OnDuplicate = "error",
    ) -> AddReport:
        """Take documents with their embeddings, copied; they are found from the next call on."""
        if on_duplicate not in get_args(OnDuplicate):
            raise InvalidOption(
                f"on_duplicate = {on_duplicate!r}", f"one of {get_args(OnDuplicate)}", "Choose one of the three."
            )
        check_distinct(document.id for document in documents)
        self._check_addition(documents, embeddings)
        known = [document.id for document in documents if document.id in self._entries]
        if known and on_duplicate == "error":
            raise DuplicateDocument(
                f"{len(known)} documents that are already in the index, {known[0]!r} first",
                "new documents",
                "Pass on_duplicate='skip' to keep the old ones or 'replace' to take the new ones.",
            )
        skipped = set(known) if on_duplicate == "skip" else set[DocumentId]()
        taken = {
            document.id: _Entry(document, np.array(tokens, dtype=np.float32))
            for document, tokens in zip(documents, embeddings, strict=True)
            if document.id not in skipped
        }
        self._entries.update(taken)
        return AddReport(
            added=[identifier for identifier in taken if identifier not in known],
            skipped=[document.id for document in documents if document.id in skipped],
            replaced=[identifier for identifier in taken if identifier in known],
            empty=[identifier for identifier, entry in taken.items() if not len(entry.tokens)],
        )

    def remove(self, which: Sequence[DocumentId] | Filter) -> int:
        """Forget documents, by id or by filter; how many."""
        if isinstance(which, Filter):
            ids = [entry.document.id for entry in self._entries.values() if matches(which, entry.document.metadata)]
        else:
            if isinstance(which, str):
                raise InvalidOption(f"the str {which!r}", "a sequence of ids or a filter", f"Write [{which!r}].")
            check_distinct(which)
            ids = [entry.document.id for entry in self._look_up(which)]
        for identifier in ids:
            del self._entries[identifier]
        return len(ids)

    def search(
        self,
        queries: Embeddings,
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best for each query, among `candidates` where given, that match `where`."""
        check_cutoff(k)
        _check_values(queries, "query")
        entries = [
            self._entries[identifier]
            for identifier in (self._entries if candidates is None else dict.fromkeys(candidates))
            if identifier in self._entries
            and (where is None or matches(where, self._entries[identifier].document.metadata))
        ]
        self._check_width(queries)
        ids = [entry.document.id for entry in entries]
        scores = maxsim_all_pairs(queries, _pack(entries, queries.dimension))
        return [Ranking.from_scores(ids, row, k) for row in scores]

    def fetch(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[NDArray[np.float32]]:
        """Embeddings of these documents, in this order."""
        return _pack(self._look_up(ids), self._width or 0)

    def get(self, ids: Sequence[DocumentId]) -> list[Document]:
        """These documents, in this order."""
        return [entry.document for entry in self._look_up(ids)]

    @property
    def _width(self) -> int | None:
        return next((entry.tokens.shape[1] for entry in self._entries.values()), None)

    def _look_up(self, ids: Sequence[DocumentId]) -> list[_Entry]:
        unknown = [identifier for identifier in ids if identifier not in self._entries]
        if unknown:
            raise UnknownDocument(
                f"{len(unknown)} documents that are not in the index, {unknown[0]!r} first",
                f"some of its {len(self)} documents",
                "Add them first, or leave them out.",
            )
        return [self._entries[identifier] for identifier in ids]

    def _check_addition(self, documents: Sequence[Document], embeddings: Embeddings) -> None:
        if len(documents) != len(embeddings):
            raise InvalidEmbeddings(
                f"{len(documents)} documents and embeddings of {len(embeddings)}",
                "an item for each",
                "Encode the same documents.",
            )
        if len(documents):
            self._check_width(embeddings)
        _check_values(embeddings, "document")

    def _check_width(self, embeddings: Embeddings) -> None:
        if self._width not in (None, embeddings.dimension):
            raise InvalidEmbeddings(
                f"embeddings of {embeddings.dimension} dimensions",
                f"{self._width}, as in the index",
                "Encode with the model that the index was filled with.",
            )


def _check_values(embeddings: Embeddings, role: str) -> None:
    if not np.all(np.isfinite(embeddings.tokens)):
        raise InvalidEmbeddings(
            f"a {role} embedding of NaN or infinity", "finite values", "Check the model's weights and precision."
        )


def _pack(entries: Sequence[_Entry], width: int) -> TokenEmbeddings[NDArray[np.float32]]:
    tokens = [np.zeros((0, width), dtype=np.float32), *(entry.tokens for entry in entries)]
    return TokenEmbeddings(np.concatenate(tokens), offsets_of([len(entry.tokens) for entry in entries]))


@final
@frozen(eq=False)
class ListCandidateSource:
    """A `CandidateSource` that compares every query token with every document token.

    Among equal similarities the documents keep the order given.

    Args:
        ids: distinct, one for each item of the embeddings.
        embeddings: the documents' tokens, finite.

    Raises:
        DuplicateDocument: an id twice.
        InvalidEmbeddings: another count, NaN or infinity.
    """

    ids: tuple[DocumentId, ...] = field(converter=tuple)
    embeddings: Embeddings

    def __attrs_post_init__(self) -> None:
        check_distinct(self.ids)
        if len(self.ids) != len(self.embeddings):
            raise InvalidEmbeddings(
                f"{len(self.ids)} ids and embeddings of {len(self.embeddings)}", "an item for each", "Give both."
            )
        _check_values(self.embeddings, "document")

    def nearest(self, queries: Embeddings, k: int) -> TokenHits:
        """For each query token, up to k document tokens, most similar first."""
        check_cutoff(k)
        _check_values(queries, "query")
        check_widths(queries, self.embeddings)
        found = similarities(queries.tokens, self.embeddings.tokens)
        best = np.argsort(-found, axis=1, kind="stable")[:, :k]
        owners = np.repeat(np.arange(len(self.ids)), self.embeddings.lengths)
        return TokenHits(
            documents=[self.ids[owner] for owner in owners[best].reshape(-1)],
            similarities=np.take_along_axis(found, best, axis=1).reshape(-1),
            offsets=offsets_of([best.shape[1]] * len(best)),
            query_offsets=queries.offsets,
        )


@final
@frozen
class ReferenceLoss:
    """The contrastive `Loss` over reference MaxSim: every other document of the batch is a negative.

    Args:
        temperature: above 0.
    """

    temperature: float = 1.0

    def __call__(
        self,
        queries: Embeddings,
        documents: Embeddings,
        targets: Targets[Floats],
    ) -> NDArray[np.float32]:
        """The loss, of shape ()."""
        value, _ = contrastive(maxsim_all_pairs(queries, documents), targets, self.temperature)
        return np.array(value, dtype=np.float32)


@final
@define(eq=False)
class RecordingTrainer:
    """A `Trainer` that learns nothing: it encodes every batch, computes its loss, and keeps what it saw.

    Args:
        batch: examples of a step; their teachers' scores count where all of them have some.
        watch_every: steps between two calls of `watch`.

    Attributes:
        examples: those of all runs.
        reports: what `watch` returned.
    """

    batch: int = 8
    watch_every: int = 1
    examples: list[TrainingExample] = field(factory=list, init=False)
    reports: list[Report] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("watch_every", self.watch_every)):
            if value < 1:
                raise InvalidOption(f"{name} = {value!r}", "a whole number of at least 1", "Use 1 or more.")

    def fit(
        self,
        model: Encoder[Floats],
        loss: Loss[Floats],
        sources: Sequence[ExampleSource],
        watch: Callable[[Encoder[Floats]], Report] | None = None,
    ) -> TrainingReport:
        """Go through the sources once, in their order and that of their rows."""
        stream = (source.example(row) for source in sources for row in range(len(source)))
        seen, losses = 0, list[float]()
        while step := list(islice(stream, self.batch)):
            losses.append(_loss_of(model, loss, step))
            seen += len(step)
            self.examples += step
            if watch is not None and len(losses) % self.watch_every == 0:
                self.reports.append(watch(model))
        return TrainingReport(steps=len(losses), examples=seen, losses=losses)


def _loss_of(encoder: Encoder[Floats], loss: Loss[Floats], examples: Sequence[TrainingExample]) -> float:
    scored = [score for example in examples for score in example.teacher or ()]
    labelled = all(example.teacher is not None for example in examples)
    targets = Targets(
        offsets_of([len(example.documents) for example in examples]),
        np.array(scored, dtype=np.float32) if labelled else None,
    )
    queries = encoder.encode_queries([example.query for example in examples])
    documents = encoder.encode_documents([document for example in examples for document in example.documents])
    return float(loss(queries, documents, targets))


@final
@define(eq=False)
class RecordingProgress:
    """A `Progress` that keeps every call as (done, total)."""

    calls: list[tuple[int, int | None]] = field(factory=list, init=False)

    def __call__(self, done: int, total: int | None) -> None:
        self.calls.append((done, total))

    @property
    def finished(self) -> bool:
        """Whether the last call said that everything is done."""
        return bool(self.calls) and self.calls[-1][0] == self.calls[-1][1]


if TYPE_CHECKING:
    _encoder: type[Encoder[NDArray[np.float32]]] = HashEncoder
    _tracer: type[TokenTracer] = HashEncoder
    _scorer: type[Scorer[Floats]] = ReferenceScorer
    _index: type[Index[Floats]] = ListIndex
    _embeddings: type[EmbeddingStore[NDArray[np.float32]]] = ListIndex
    _documents: type[DocumentStore] = ListIndex
    _candidates: type[CandidateSource[Floats]] = ListCandidateSource
    _loss: type[Loss[Floats]] = ReferenceLoss
    _trainer: type[Trainer[Encoder[Floats], Loss[Floats], Floats]] = RecordingTrainer
    _progress: type[Progress] = RecordingProgress
