from __future__ import annotations

import sys
from io import StringIO

import pytest

from lateinteraction.application.progress import BuildLine, StreamProgress, most_memory


def test_a_line_says_the_stage_the_pace_and_the_memory() -> None:
    written, seconds = StringIO(), iter([0.0, 0.0, 2.0, 4.0])
    line = BuildLine(written, lambda: next(seconds), lambda: 1_500_000_000)
    line("encoding", 0, 40)
    line("writing", 0, 40)
    line("encoding", 20, 40)
    line("writing", 40, 40)
    assert [shown.removesuffix("\x1b[K") for shown in written.getvalue().split("\r")[1:]] == [
        "encoding · 0 of 40 · 1.5 GB",
        "writing · 0 of 40 · 1.5 GB",
        "encoding · 20 of 40 · 10.0/s · 0:00:02 left · 1.5 GB",
        "writing · 40 of 40 · 10.0/s · 0:00:00 left · 1.5 GB\x1b[K\n",
    ]


def test_where_the_system_does_not_tell_memory_the_line_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert most_memory() is None
    written = StringIO()
    BuildLine(written, lambda: 0.0)("encoding", 3, None)
    assert written.getvalue() == "\rencoding · 3\x1b[K"


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage there")
def test_memory_is_what_this_process_has_held() -> None:
    before = most_memory()
    block = b"x" * 50_000_000
    after = most_memory()
    assert before is not None
    assert after is not None
    assert 1_000_000 < before <= after < 1_000_000_000_000
    assert after >= len(block)


def test_a_line_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    BuildLine(clock=lambda: 0.0, memory=lambda: None)("encoding", 1, 2)
    assert capsys.readouterr().err == "\rencoding · 1 of 2\x1b[K"


def test_of_a_call_within_a_stream_the_stage_is_told_and_the_documents_are_those_of_the_stream() -> None:
    told: list[tuple[str, int, int | None]] = []
    stream = StreamProgress(lambda *state: told.append(state))
    stream.of_call("training", 1, 90)
    stream("encoding", 0, None)
    stream.of_call("training", 2, 90)
    stream("writing", 2_048, 5_000)
    stream.of_call("training", 90, 90)
    stream.of_call("writing", 100, 100)
    assert told == [
        ("training", 0, None),
        ("encoding", 0, None),
        ("training", 0, None),
        ("writing", 2_048, 5_000),
        ("training", 2_048, 5_000),
        ("writing", 2_048, 5_000),
    ]


def test_training_within_a_stream_leaves_the_pace_of_its_documents_alone() -> None:
    written, seconds = StringIO(), iter([0.0, 10.0, 20.0])
    stream = StreamProgress(BuildLine(written, lambda: next(seconds), lambda: None))
    stream("encoding", 0, 40)
    stream("encoding", 20, 40)
    stream.of_call("training", 5, 5)
    assert written.getvalue().split("\r")[-1] == "training · 20 of 40 · 1.0/s · 0:00:20 left\x1b[K"
