"""TextEncoder: the loop of every encoder. Texts are read in windows, windows run in batches, rows go to their places.

The model is an `Engine`: PyTorch's or ONNX Runtime's, each in an adapter of its own. While one window is with the
engine, a thread tokenises the next. Nothing comes back from a device.

Shapes: N texts, T tokens in all, K kept tokens, D dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from lateinteraction.adapters.encoding.batches import Batch, by_falling_length, count_of_next, make_batch
from lateinteraction.adapters.encoding.tokenisation import OnTooLong, RecipeTokeniser, TokenisedTexts
from lateinteraction.domain.embeddings import A, TokenEmbeddings, TokenTrace, offsets_of
from lateinteraction.domain.errors import InvalidOption, InvalidRecipe, OutOfMemory, TruncatedTextWarning
from lateinteraction.domain.ports import Progress
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling
from lateinteraction.domain.text import Document, Query

Role = Literal["query", "document"]
Item = TypeVar("Item")
Texts = TypeVar("Texts", contravariant=True)

TEXTS_PER_WINDOW = 4_096
"""Texts tokenised while those before them are with the model. Batches are formed within a window, so it is large
enough to find texts of like length."""
DOCUMENTS_PER_PIECE = 512
"""Documents of one piece of a stream: 120 MB of embeddings at 150 tokens of 384 dimensions, of which two are alive."""


@frozen(kw_only=True)
class EncodingOptions:
    """How an encoder works through texts; none of it changes an embedding but `on_too_long`.

    Args:
        tokens_per_batch: most tokens of a batch, padding included; None suits the engine and the recipe.
        on_too_long: what becomes of a text beyond the recipe's length. `truncate` cuts it, and warns. `split` reads
            it in several sequences of that length, whose tokens together are the text's embedding. `error` raises
            before anything of its window is encoded.
        progress: told how many documents of a call are done, after each batch; not told of queries.

    Raises:
        InvalidOption: a value that is none of these.
    """

    tokens_per_batch: int | None = None
    on_too_long: OnTooLong = "truncate"
    progress: Progress | None = None

    def __attrs_post_init__(self) -> None:
        if self.on_too_long not in ("truncate", "split", "error"):
            raise InvalidOption(
                f"on_too_long = {self.on_too_long!r}", "'truncate', 'split' or 'error'", "Choose one of the three."
            )


@frozen(eq=False)
class EncodingReport:
    """What one call did.

    Args:
        texts: how many were given.
        tokens: how many the model saw.
        padding: how many it computed on top, to make batches rectangular.
        kept: how many kept an embedding, before pooling.
        truncated: int64, positions of the texts that were longer than `length` tokens and were cut.
        lost: int64, how many tokens were cut from each of those.
        split: int64, positions of the texts that were longer and were read in several sequences.
        length: the recipe's limit, in tokens.
    """

    texts: int
    tokens: int
    padding: int
    kept: int
    truncated: NDArray[np.int64]
    lost: NDArray[np.int64]
    split: NDArray[np.int64]
    length: int

    @property
    def padding_share(self) -> float:
        """Padding of all that the model computed, between 0 and 1."""
        return self.padding / max(1, self.tokens + self.padding)


@frozen(eq=False)
class EncodedDocuments(Generic[A]):
    """One piece of a stream: documents, their embeddings in the same order, and what was done."""

    documents: Sequence[Document]
    embeddings: TokenEmbeddings[A]
    report: EncodingReport


class WorkingEncoder(Protocol[A]):
    """An `Encoder` and `TokenTracer` that also reports and streams, wherever it runs."""

    @property
    def recipe(self) -> EncodingRecipe: ...
    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[A]: ...
    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[A]: ...
    def encode_queries_with_report(self, queries: Sequence[Query]) -> tuple[TokenEmbeddings[A], EncodingReport]: ...
    def encode_documents_with_report(
        self, documents: Sequence[Document]
    ) -> tuple[TokenEmbeddings[A], EncodingReport]: ...
    def stream_documents(
        self, documents: Iterable[Document], *, documents_per_piece: int = DOCUMENTS_PER_PIECE
    ) -> Iterator[EncodedDocuments[A]]: ...
    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace: ...
    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace: ...


class Engine(Protocol[A]):
    """Runs the model. Rows are what the recipe makes of them: cut to its dimension, normalised where it says so."""

    @property
    def tokens_per_batch(self) -> int:
        """Most tokens of a batch where nobody says otherwise."""
        ...

    def allocate(self, rows: int) -> A:
        """Memory (rows, D) for embeddings."""
        ...

    def fill(self, embeddings: A, batch: Batch) -> None:
        """Write the kept rows of a batch to their places."""
        ...

    def joined(self, parts: list[A]) -> A:
        """The parts one after the other; empties the list, so that each can be freed."""
        ...

    def pool(self, embeddings: TokenEmbeddings[A], pooling: TokenPooling) -> TokenEmbeddings[A]:
        """Hierarchical pooling of each item."""
        ...

    def ran_out_of_memory(self, error: Exception) -> bool:
        """Whether a smaller batch may succeed where this was raised."""
        ...

    def free(self) -> None:
        """Give back what is held and not used."""
        ...


@frozen(eq=False)
class _Window(Generic[A]):
    """What became of one window of texts."""

    embeddings: TokenEmbeddings[A]
    report: EncodingReport


class TextEncoder(Generic[A]):
    """An `Encoder[A]` and `TokenTracer` over an engine. Several threads may call it at once.

    Args:
        engine: the model.
        tokeniser: follows the same recipe, and treats long texts as the options say.
        recipe: how text becomes tokens.
        options: how texts are worked through.

    Raises:
        InvalidOption: a batch that could not hold one text of the recipe's length.
    """

    def __init__(
        self, engine: Engine[A], tokeniser: RecipeTokeniser, recipe: EncodingRecipe, options: EncodingOptions
    ) -> None:
        self._engine = engine
        self._tokeniser = tokeniser
        self._recipe = recipe
        self._options = options
        self._budget = _budget_of(options.tokens_per_batch, engine, max(recipe.query_length, recipe.document_length))

    @property
    def recipe(self) -> EncodingRecipe:
        return self._recipe

    @property
    def options(self) -> EncodingOptions:
        return self._options

    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[A]:
        """Embeddings of the kept tokens; warns once when queries were cut."""
        embeddings, report = self.encode_queries_with_report(queries)
        warn_of_truncation(len(report.truncated), report.texts, "query", report.length)
        return embeddings

    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[A]:
        """Embeddings of the kept tokens; warns once when documents were cut."""
        embeddings, report = self.encode_documents_with_report(documents)
        warn_of_truncation(len(report.truncated), report.texts, "document", report.length)
        return embeddings

    def encode_queries_with_report(self, queries: Sequence[Query]) -> tuple[TokenEmbeddings[A], EncodingReport]:
        """The same embeddings, and what became of the texts instead of a warning."""
        return self._encode([query.text for query in queries], "query")

    def encode_documents_with_report(self, documents: Sequence[Document]) -> tuple[TokenEmbeddings[A], EncodingReport]:
        """The same embeddings, and what became of the texts instead of a warning."""
        return self._encode([document.text for document in documents], "document")

    def stream_documents(
        self, documents: Iterable[Document], *, documents_per_piece: int = DOCUMENTS_PER_PIECE
    ) -> Iterator[EncodedDocuments[A]]:
        """Encode a stream that need not fit in memory, piece by piece, in its order.

        Memory holds the piece in your hands, the one in work, and the documents of one more. Warns once, at the end,
        when documents were cut.

        Raises:
            InvalidOption: documents_per_piece below 1.
        """
        check_piece(documents_per_piece)
        return self._stream(documents, documents_per_piece)

    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace:
        """Ids and characters of the tokens that `encode_queries` embeds."""
        return self._tokeniser.trace_queries([query.text for query in queries])

    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace:
        """Ids and characters of the tokens that `encode_documents` embeds.

        Raises:
            InvalidRecipe: the recipe pools, so that an embedding stands for tokens of several places.
        """
        if self._recipe.pooling is not None and not self._recipe.pooling.changes_nothing:
            raise InvalidRecipe(
                "a trace of pooled documents", "one token for each embedding", "Use a recipe with pooling=None."
            )
        return self._tokeniser.trace_documents([document.text for document in documents])

    def _stream(self, documents: Iterable[Document], size: int) -> Iterator[EncodedDocuments[A]]:
        source = iter(documents)
        pieces = iter(lambda: list(islice(source, size)), [])
        done = cut = 0
        for piece, tokenised in _one_ahead(pieces, partial(self._tokenise, role="document")):
            window = self._run(tokenised, "document", done, None)
            done, cut = done + len(piece), cut + len(window.report.truncated)
            yield EncodedDocuments(piece, window.embeddings, window.report)
            del window
        warn_of_truncation(cut, done, "document", self._recipe.document_length)

    def _tokenise(self, items: Sequence[Document] | Sequence[str], role: Role) -> TokenisedTexts:
        texts = [item.text if isinstance(item, Document) else item for item in items]
        return self._tokeniser.documents(texts) if role == "document" else self._tokeniser.queries(texts)

    def _encode(self, texts: Sequence[str], role: Role) -> tuple[TokenEmbeddings[A], EncodingReport]:
        if len(texts) <= TEXTS_PER_WINDOW:
            window = self._run(self._tokenise(texts, role), role, 0, len(texts))
            return window.embeddings, window.report
        starts = range(0, len(texts), TEXTS_PER_WINDOW)
        slices = (texts[first : first + TEXTS_PER_WINDOW] for first in starts)
        parts: list[A] = []
        lengths: list[NDArray[np.int64]] = []
        reports: list[EncodingReport] = []
        for first, (_, tokenised) in zip(starts, _one_ahead(slices, partial(self._tokenise, role=role)), strict=True):
            window = self._run(tokenised, role, first, len(texts))
            parts.append(window.embeddings.tokens)
            lengths.append(window.embeddings.lengths)
            reports.append(_shifted(window.report, first))
            del window
        offsets = offsets_of(np.concatenate(lengths))
        with self._room_for(int(offsets[-1])):
            return TokenEmbeddings(self._engine.joined(parts), offsets), sum_of(reports)

    def _run(self, tokenised: TokenisedTexts, role: Role, done: int, total: int | None) -> _Window[A]:
        """The embeddings of one window, of which `done` texts were before it."""
        offsets = tokenised.kept_offsets
        with self._room_for(int(offsets[-1])):
            embeddings = self._engine.allocate(int(offsets[-1]))
        progress = self._options.progress if role == "document" else None
        computed = self._fill(embeddings, tokenised, partial(_tell, progress, done, total) if progress else None)
        tokens = len(tokenised.token_ids)
        packed = TokenEmbeddings(embeddings, offsets)
        pooling = self._recipe.pooling
        if role == "document" and pooling is not None and not pooling.changes_nothing:
            with self._room_for(int(offsets[-1])):
                packed = self._engine.pool(packed, pooling)
        nothing = tokenised.long[:0]
        was_split = self._options.on_too_long == "split"
        report = EncodingReport(
            texts=len(tokenised),
            tokens=tokens,
            padding=computed - tokens,
            kept=int(offsets[-1]),
            truncated=nothing if was_split else tokenised.long,
            lost=nothing if was_split else tokenised.lost,
            split=tokenised.long if was_split else nothing,
            length=self._recipe.document_length if role == "document" else self._recipe.query_length,
        )
        return _Window(packed, report)

    def _fill(self, embeddings: A, tokenised: TokenisedTexts, tell: _Tell | None) -> int:
        """Run the batches of a window; how many tokens that cost, padding included."""
        lengths = np.diff(tokenised.offsets)
        order = by_falling_length(lengths)
        places = np.cumsum(tokenised.kept) - 1
        waiting = np.diff(tokenised.items)  # sequences of each text that are still to come
        owner = np.repeat(np.arange(len(tokenised)), waiting)
        np.subtract.at(waiting, owner[lengths == 0], 1)
        first = computed = 0
        if tell is not None and np.any(waiting == 0):
            tell(int(np.count_nonzero(waiting == 0)))
        while first < len(order):
            rows = order[first : first + count_of_next(lengths, order, first, self._budget)]
            batch = make_batch(tokenised, places, rows, self._tokeniser.padding_id)
            if not self._fits(embeddings, batch):
                continue
            first += len(rows)
            computed += batch.sequences * batch.width
            if tell is not None:
                np.subtract.at(waiting, owner[rows], 1)
                tell(int(np.count_nonzero(waiting == 0)))
        return computed

    def _fits(self, embeddings: A, batch: Batch) -> bool:
        """Whether a batch went through; where memory ran out, batches are smaller from now on."""
        try:
            self._engine.fill(embeddings, batch)
            return True
        except (RuntimeError, MemoryError) as error:
            if not self._engine.ran_out_of_memory(error):
                raise
            if batch.sequences == 1:
                raise OutOfMemory(
                    f"a text of {batch.width} tokens, alone in its batch", "memory for it", "Use a smaller length."
                ) from error
        self._engine.free()  # not above, where the error still holds what the batch had made
        self._budget = max(1, batch.sequences // 2) * batch.width
        return False

    @contextmanager
    def _room_for(self, rows: int) -> Iterator[None]:
        """What cannot be had in smaller parts: the embeddings themselves."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not self._engine.ran_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"{rows} embeddings in one piece", "memory for them", "Use stream_documents, which gives them in parts."
            ) from error


class _Tell(Protocol):
    def __call__(self, finished: int) -> None: ...


def _tell(progress: Progress, done: int, total: int | None, finished: int) -> None:
    progress(done + finished, total)


def _one_ahead(pieces: Iterator[Item], tokenise: _Tokenise[Item]) -> Iterator[tuple[Item, TokenisedTexts]]:
    """Each piece with its tokens, which a thread makes while the caller works on the piece before.

    Pieces are drawn in the caller's thread, for an iterator need not bear another.
    """
    first = next(pieces, None)
    if first is None:
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenise") as thread:
        current, waiting = first, thread.submit(tokenise, first)
        for following in pieces:
            ready, upcoming = waiting.result(), thread.submit(tokenise, following)
            yield current, ready
            current, waiting = following, upcoming
        yield current, waiting.result()


class _Tokenise(Protocol[Texts]):
    def __call__(self, texts: Texts, /) -> TokenisedTexts: ...


def _budget_of(tokens_per_batch: int | None, engine: Engine[A], longest: int) -> int:
    if tokens_per_batch is None:
        return max(longest, engine.tokens_per_batch)
    if not isinstance(tokens_per_batch, int) or tokens_per_batch < longest:
        raise InvalidOption(
            f"tokens_per_batch = {tokens_per_batch!r}", f"{longest} or more, the recipe's length", "Raise it."
        )
    return tokens_per_batch


def _shifted(report: EncodingReport, first: int) -> EncodingReport:
    return evolve(report, truncated=report.truncated + first, split=report.split + first)


def check_piece(documents_per_piece: int) -> None:
    """Raise unless a piece of a stream holds something."""
    if not isinstance(documents_per_piece, int) or documents_per_piece < 1:
        raise InvalidOption(
            f"documents_per_piece = {documents_per_piece!r}", "at least 1", f"{DOCUMENTS_PER_PIECE} is the default."
        )


def sum_of(reports: Sequence[EncodingReport]) -> EncodingReport:
    """What several calls, one after the other, did together; positions count from the first call's first text."""
    return EncodingReport(
        texts=sum(report.texts for report in reports),
        tokens=sum(report.tokens for report in reports),
        padding=sum(report.padding for report in reports),
        kept=sum(report.kept for report in reports),
        truncated=np.concatenate([report.truncated for report in reports]),
        lost=np.concatenate([report.lost for report in reports]),
        split=np.concatenate([report.split for report in reports]),
        length=reports[0].length,
    )


def warn_of_truncation(cut: int, texts: int, role: Role, length: int) -> None:
    """Warn the caller's caller when texts were cut."""
    if cut:
        warnings.warn(
            f"{cut} of {texts} {'queries' if role == 'query' else 'documents'} were cut to {role}_length = {length} "
            f"tokens. Raise it, or read them with on_too_long='split'.",
            TruncatedTextWarning,
            stacklevel=3,
        )
