"""Workers keep order and boundaries, their errors are the caller's, and none outlives its encoder."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lateinteraction.adapters.processes.encoder import Job, ProcessEncoder
from lateinteraction.domain.errors import (
    InvalidModel,
    InvalidOption,
    OutOfMemory,
    TruncatedTextWarning,
    WorkerFailed,
)
from lateinteraction.domain.text import Document, DocumentId, Query
from lateinteraction.testing.contracts import TracingEncoderContract
from lateinteraction.testing.fakes import HashEncoder

ECHO = [sys.executable, str(Path(__file__).with_name("echo.py"))]


def documents(*texts: str) -> list[Document]:
    return [Document(DocumentId(str(row)), text) for row, text in enumerate(texts)]


def started(workers: int = 2, **options: Any) -> ProcessEncoder:
    return ProcessEncoder(ECHO, [Job(settings={})] * workers, **options)


@pytest.fixture(scope="module")
def encoder() -> Iterator[ProcessEncoder]:
    with started() as encoder:
        yield encoder


class TestContract(TracingEncoderContract[NDArray[np.float32]]):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def start(cls) -> Iterator[None]:
        with started() as cls.encoder:
            yield

    def array(self, tensor: NDArray[np.float32]) -> NDArray[Any]:
        return tensor

    def make_encoder(self) -> ProcessEncoder:
        return self.encoder

    def tracer(self) -> ProcessEncoder:
        return self.encoder


@pytest.mark.parametrize("size", [0, 1, 7, 33])
def test_order_and_boundaries_are_kept(encoder: ProcessEncoder, size: int) -> None:
    given = documents(*(("slow" if row == 0 else "fox " * (row % 5)) for row in range(size)))
    expected = HashEncoder().encode_documents(given)
    embeddings = encoder.encode_documents(given)
    assert embeddings.offsets.tolist() == expected.offsets.tolist()
    assert np.array_equal(embeddings.tokens, expected.tokens)
    streamed = list(encoder.stream_documents(iter(given), documents_per_piece=3))
    assert [document for piece in streamed for document in piece.documents] == given
    rows = [row for piece in streamed for row in piece.embeddings]
    assert all(np.array_equal(row, item) for row, item in zip(rows, expected, strict=True))


def test_positions_in_the_report_are_those_of_the_whole_call(encoder: ProcessEncoder) -> None:
    given = documents(*(f"{'long' if row in (3, 20) else 'short'} {row}" for row in range(24)))
    _, report = encoder.encode_documents_with_report(given)
    assert report.truncated.tolist() == [3, 20]
    assert report.texts == 24
    with pytest.warns(TruncatedTextWarning, match="2 of 24 documents"):
        encoder.encode_documents(given)
    with pytest.warns(TruncatedTextWarning, match="1 of 1 queries"):
        encoder.encode_queries([Query("long")])
    with pytest.warns(TruncatedTextWarning, match="2 of 24 documents"):
        list(encoder.stream_documents(given))


def test_an_endless_stream_is_drawn_a_few_pieces_ahead(encoder: ProcessEncoder) -> None:
    drawn: list[int] = []

    def endless() -> Iterator[Document]:
        for number in count():
            drawn.append(number)
            yield Document(DocumentId(str(number)), f"fox {number}")

    stream = encoder.stream_documents(endless(), documents_per_piece=2)
    for finished in range(1, 6):
        assert next(stream).documents[0].text == f"fox {2 * (finished - 1)}"
        assert len(drawn) <= 2 * (finished + 5)
    stream.close()
    assert len(encoder.encode_documents(documents("fox"))) == 1


def test_progress_is_told_in_order() -> None:
    told: list[tuple[int, int | None]] = []
    with started(progress=lambda done, total: told.append((done, total))) as encoder:
        encoder.encode_documents(documents(*["fox"] * 20))
        assert told[-1] == (20, 20)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        list(encoder.stream_documents(documents(*["fox"] * 5), documents_per_piece=2))
    assert told[-1] == (5, None)


def test_an_error_in_a_worker_is_the_callers_and_ends_nothing(encoder: ProcessEncoder) -> None:
    with pytest.raises(OutOfMemory, match="a text; expected memory"):
        encoder.encode_documents(documents("fox", "too much", "fox"))
    assert len(encoder.encode_documents(documents("fox", "dog"))) == 2


def test_a_worker_that_dies_is_an_error_and_the_encoder_is_done() -> None:
    encoder = started()
    with pytest.raises(WorkerFailed, match="status 7"):
        encoder.encode_documents(documents("fox", "die", "dog"))
    with pytest.raises(WorkerFailed, match="ended"):
        encoder.encode_documents(documents("fox"))


def test_an_interrupted_request_leaves_no_answer_for_the_next(tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # a process of its own, where nobody else may catch the interrupt
    program.write_text(
        textwrap.dedent(f"""
        import os, signal, threading
        from lateinteraction.adapters.processes.encoder import Job, ProcessEncoder
        from lateinteraction.domain.errors import WorkerFailed
        from lateinteraction.domain.text import Document

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        with ProcessEncoder({ECHO!r}, [Job(settings={{}})]) as encoder:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                encoder.trace_documents([Document("0", "slow"), Document("1", "fox")])
            except KeyboardInterrupt:
                print("interrupted")
            try:
                encoder.trace_documents([Document("0", "fox")])
            except WorkerFailed as error:
                print("refused" if "ended" in str(error) else error)
        """)
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["interrupted", "refused"], done.stderr


def test_queries_are_shared_too(encoder: ProcessEncoder) -> None:
    queries = [Query(f"fox {number % 7}") for number in range(30)]
    expected = HashEncoder().encode_queries(queries)
    found = encoder.encode_queries(queries)
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert np.array_equal(found.tokens, expected.tokens)


def test_what_a_worker_cannot_load_is_said_as_it_says_it() -> None:
    with pytest.raises(InvalidModel, match="no folder"):
        ProcessEncoder(ECHO, [Job(settings={}), Job(settings={"source": "nowhere"})])
    with pytest.raises(WorkerFailed, match="status 3"):
        ProcessEncoder(ECHO, [Job(settings={"source": "crash"})])
    with pytest.raises(InvalidOption, match="no device"):
        ProcessEncoder(ECHO, [])


def test_workers_end_with_their_encoder() -> None:
    encoder = started()
    processes = [worker.process for worker in encoder._workers]
    assert [process.poll() for process in processes] == [None, None]
    encoder.close()
    encoder.close()
    assert [process.poll() for process in processes] == [0, 0]
    forgotten = started()
    processes = [worker.process for worker in forgotten._workers]
    del forgotten
    gc.collect()
    assert [process.poll() for process in processes] == [0, 0]


def test_threads_may_share_the_workers(encoder: ProcessEncoder) -> None:
    results: dict[int, NDArray[Any]] = {}

    def encode(number: int) -> None:
        results[number] = encoder.encode_documents(documents(*[f"fox {number}"] * 9)).tokens

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, tokens in results.items():
        expected = HashEncoder().encode_documents(documents(*[f"fox {number}"] * 9)).tokens
        assert np.array_equal(tokens, expected)


def test_threads_of_a_worker_are_what_the_job_says() -> None:
    program = "import os, sys; print(os.environ.get('OMP_NUM_THREADS'), file=sys.stderr); sys.exit(5)"
    with pytest.raises(WorkerFailed, match="status 5"):
        ProcessEncoder([sys.executable, "-c", program], [Job(settings={}, threads=3)])


@pytest.mark.parametrize("devices", ["'cpu'", "['cpu', 'cpu']"])
def test_a_program_needs_no_guard_around_its_main_part(tiny_model: Path, tmp_path: Path, devices: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import lateinteraction as li
        model = li.load_model({str(tiny_model)!r}, device={devices}, recipe={{"document_length": 64}})
        texts = ["the fox", "", "late interaction of many tokens"] * 5
        print(model.encode_documents(texts, output="numpy").lengths.tolist())
        print(float(model.encode_documents(texts).tokens.sum()))
        """)
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, env={**os.environ, "CI": "1"}
    )
    assert done.returncode == 0, done.stderr
    lengths, total = done.stdout.splitlines()
    assert lengths == str([4, 0, 8] * 5)
    assert np.isfinite(float(total))
