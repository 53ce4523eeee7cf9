"""ProcessEncoder: an `Encoder` whose work is done by worker processes, one for each device.

Workers are started as commands, not forked and not by `multiprocessing`: a program that uses them needs no
`if __name__ == "__main__":`, and its threads and devices are none of theirs.
"""

from __future__ import annotations

import os
import subprocess
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast, final

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from lateinteraction.adapters.encoding.encoder import (
    DOCUMENTS_PER_PIECE,
    EncodedDocuments,
    EncodingReport,
    check_piece,
    sum_of,
    warn_of_truncation,
)
from lateinteraction.adapters.processes.frames import Frame, read_frame, write_frame
from lateinteraction.domain import errors
from lateinteraction.domain.embeddings import TokenEmbeddings, TokenTrace, offsets_of
from lateinteraction.domain.errors import InvalidOption, LateInteractionError, WorkerFailed
from lateinteraction.domain.ports import Progress
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query

if TYPE_CHECKING:
    from lateinteraction.adapters.encoding.encoder import WorkingEncoder

PIECES_PER_WORKER = 4
"""A list is cut into this many pieces for each worker, so that none waits long for the slowest."""
SECONDS_TO_END = 5.0

Embeddings = TokenEmbeddings[NDArray[np.float32]]
Item = TypeVar("Item", Query, Document)


@frozen(kw_only=True)
class Job:
    """What one worker loads.

    Args:
        settings: told to the worker's `load` as JSON.
        threads: of its CPU libraries; None leaves it to them.
    """

    settings: Mapping[str, Any]
    threads: int | None = None


@final
class ProcessEncoder:
    """An `Encoder` and `TokenTracer` that keeps order and boundaries whatever its workers do. Ends them when closed.

    Args:
        command: starts a worker, which speaks `frames` on its standard input and output.
        jobs: what each worker loads; all of the same model and recipe.
        progress: told how many documents of a call are done, after each piece.

    Raises:
        InvalidOption: no jobs.
        WorkerFailed: a worker that ends before it is ready.
        LateInteractionError: what loading raises in a worker.
    """

    def __init__(self, command: Sequence[str], jobs: Sequence[Job], *, progress: Progress | None = None) -> None:
        if not jobs:
            raise InvalidOption("no device", "at least one", "Use device='cpu', or ['cuda:0', 'cuda:1'].")
        self._progress = progress
        self._workers = [_start(command, job) for job in jobs]
        self.close = weakref.finalize(self, _end_all, self._workers)
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        try:
            ready = [self._judged(worker, worker.receive()) for worker in self._workers]
        except LateInteractionError:
            self.close()
            raise
        self._recipe = EncodingRecipe().merge(ready[0].message["recipe"])
        for worker in self._workers:
            self._idle.put(worker)

    @property
    def recipe(self) -> EncodingRecipe:
        return self._recipe

    def __enter__(self) -> ProcessEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode_queries(self, queries: Sequence[Query]) -> Embeddings:
        """Embeddings of the kept tokens; warns once when queries were cut."""
        embeddings, report = self.encode_queries_with_report(queries)
        warn_of_truncation(len(report.truncated), report.texts, "query", report.length)
        return embeddings

    def encode_documents(self, documents: Sequence[Document]) -> Embeddings:
        """Embeddings of the kept tokens; warns once when documents were cut."""
        embeddings, report = self.encode_documents_with_report(documents)
        warn_of_truncation(len(report.truncated), report.texts, "document", report.length)
        return embeddings

    def encode_queries_with_report(self, queries: Sequence[Query]) -> tuple[Embeddings, EncodingReport]:
        """The same embeddings, and what became of the texts instead of a warning."""
        return self._gathered("encode queries", queries, None)

    def encode_documents_with_report(self, documents: Sequence[Document]) -> tuple[Embeddings, EncodingReport]:
        """The same embeddings, and what became of the texts instead of a warning."""
        return self._gathered("encode documents", documents, self._progress)

    def stream_documents(
        self, documents: Iterable[Document], *, documents_per_piece: int = DOCUMENTS_PER_PIECE
    ) -> Iterator[EncodedDocuments[NDArray[np.float32]]]:
        """Encode a stream that need not fit in memory, piece by piece, in order; two pieces wait for each worker."""
        check_piece(documents_per_piece)
        return self._stream(documents, documents_per_piece)

    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace:
        """Ids and characters of the tokens that `encode_queries` embeds."""
        return TokenTrace(**self._ask("trace queries", [query.text for query in queries]).arrays)

    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace:
        """Ids and characters of the tokens that `encode_documents` embeds."""
        return TokenTrace(**self._ask("trace documents", [document.text for document in documents]).arrays)

    def _gathered(
        self, what: str, items: Sequence[Item], progress: Progress | None
    ) -> tuple[Embeddings, EncodingReport]:
        """A list, cut into pieces for all workers, and put together again."""
        size = -(-len(items) // (PIECES_PER_WORKER * len(self._workers)))
        size = min(max(size, 1), DOCUMENTS_PER_PIECE)
        pieces = (items[first : first + size] for first in range(0, max(1, len(items)), size))
        parts: list[NDArray[np.float32]] = []
        lengths: list[NDArray[np.int64]] = []
        reports: list[EncodingReport] = []
        done = 0
        for piece, (embeddings, report) in self._in_order(what, pieces):
            parts.append(embeddings.tokens)
            lengths.append(embeddings.lengths)
            reports.append(evolve(report, truncated=report.truncated + done, split=report.split + done))
            done += len(piece)
            if progress is not None:
                progress(done, len(items))
        return TokenEmbeddings(np.concatenate(parts), offsets_of(np.concatenate(lengths))), sum_of(reports)

    def _stream(self, documents: Iterable[Document], size: int) -> Iterator[EncodedDocuments[NDArray[np.float32]]]:
        source = iter(documents)
        done = cut = 0
        pieces = iter(lambda: list(islice(source, size)), [])
        for piece, (embeddings, report) in self._in_order("encode documents", pieces):
            done, cut = done + len(piece), cut + len(report.truncated)
            if self._progress is not None:
                self._progress(done, None)
            yield EncodedDocuments(piece, embeddings, report)
        warn_of_truncation(cut, done, "document", self._recipe.document_length)

    def _in_order(
        self, what: str, pieces: Iterable[Sequence[Item]]
    ) -> Iterator[tuple[Sequence[Item], tuple[Embeddings, EncodingReport]]]:
        """Every piece with what a worker made of it, in order; the caller's thread draws the pieces."""
        waiting: deque[tuple[Sequence[Item], Future[tuple[Embeddings, EncodingReport]]]] = deque()
        with ThreadPoolExecutor(max_workers=len(self._workers), thread_name_prefix="worker") as threads:
            try:
                for piece in pieces:
                    waiting.append((piece, threads.submit(self._encode, what, piece)))
                    if len(waiting) > 2 * len(self._workers):
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _encode(self, what: str, piece: Sequence[Query | Document]) -> tuple[Embeddings, EncodingReport]:
        return _read(self._ask(what, [item.text for item in piece]))

    def _ask(self, what: str, texts: Sequence[str]) -> Frame:
        """An idle worker's answer."""
        worker = self._idle.get()
        answered = False
        try:
            if not self.close.alive:
                raise WorkerFailed("workers that have ended", "living ones", "Load the model again.")
            worker.send(Frame({"do": what, "texts": list(texts)}))
            answer = worker.receive()
            answered = True
        finally:
            if not answered:  # an interrupt: what it still says would be taken for the answer to the next request
                self.close()
            self._idle.put(worker)
        return self._judged(worker, answer)

    def _judged(self, worker: _Worker, answer: Frame | None) -> Frame:
        """What the worker says; where it refuses or has ended, the error of it."""
        if answer is None:
            self.close()
            raise WorkerFailed(
                f"a worker that ended with status {worker.process.returncode}",
                "an answer",
                "Its standard error says why; a device out of memory needs smaller batches.",
            )
        if "error" in answer.message:
            kind = getattr(errors, answer.message["error"], LateInteractionError)
            raise cast("type[LateInteractionError]", kind)(*answer.message["parts"])
        return answer


class _Worker:
    """One process and its two pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._requests, self._answers = process.stdin, process.stdout

    def send(self, frame: Frame) -> None:
        try:
            write_frame(cast("Any", self._requests), frame)
        except OSError:  # it has ended; what it answers says so
            return

    def receive(self) -> Frame | None:
        return read_frame(cast("Any", self._answers))

    def hang_up(self) -> None:
        """No more requests: it finishes the one it has."""
        with suppress(OSError):  # what was not read by one that has ended
            self._requests.close()

    def end(self, deadline: float) -> None:
        """Wait for its end; after the deadline it is killed."""
        try:
            self.process.wait(max(0.0, deadline - monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._answers.close()


def _start(command: Sequence[str], job: Job) -> _Worker:
    limits = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")  # of arithmetic, and of tokenizers
    threads = {} if job.threads is None else dict.fromkeys(limits, str(job.threads))
    # In a session of its own: an interrupt from the terminal is for the program, which then ends its workers.
    process = subprocess.Popen(  # noqa: S603 — the command is wiring's own
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "true"},
        start_new_session=True,
    )
    worker = _Worker(process)
    worker.send(Frame({**job.settings, "threads": job.threads}))
    return worker


def _end_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.hang_up()
    deadline = monotonic() + SECONDS_TO_END
    for worker in workers:
        worker.end(deadline)


def _read(answer: Frame) -> tuple[Embeddings, EncodingReport]:
    arrays: dict[str, Any] = dict(answer.arrays)
    embeddings = TokenEmbeddings(arrays.pop("rows"), arrays.pop("offsets"))
    return embeddings, EncodingReport(**answer.message["report"], **arrays)


if TYPE_CHECKING:
    _: type[WorkingEncoder[NDArray[np.float32]]] = ProcessEncoder
