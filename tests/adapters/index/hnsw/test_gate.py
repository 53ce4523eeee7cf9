"""Readers pass together, a writer alone, and a writer that waits is not kept waiting by readers that come later."""

from __future__ import annotations

import threading

from lateinteraction.adapters.index.hnsw.gate import Gate

SECONDS = 20


def test_readers_pass_together() -> None:
    gate, together = Gate(), threading.Barrier(3)

    def read() -> None:
        with gate.reading():
            together.wait(SECONDS)  # which fails unless all three are within

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not together.broken


def test_a_writer_passes_alone_and_before_readers_that_came_later() -> None:
    gate, order = Gate(), list[str]()
    waiting, reading = threading.Event(), threading.Event()

    def write() -> None:
        waiting.set()
        with gate.writing():
            order.append("writer")

    def read() -> None:
        reading.set()
        with gate.reading():
            order.append("reader")

    with gate.reading():
        writer = threading.Thread(target=write)
        writer.start()
        waiting.wait(SECONDS)
        while not gate._waiting:
            pass
        reader = threading.Thread(target=read)
        reader.start()
        reading.wait(SECONDS)
        assert order == []
    writer.join(SECONDS)
    reader.join(SECONDS)
    assert order == ["writer", "reader"]


def test_an_error_opens_the_gate_again() -> None:
    gate = Gate()
    for enter in (gate.reading, gate.writing, gate.reading, gate.writing):
        try:
            with enter():
                raise KeyError
        except KeyError:
            continue
    with gate.writing():
        pass
