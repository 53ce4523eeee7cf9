"""What every case shares: turns, clocks, rows, the closing table."""

from __future__ import annotations

import time

import pytest

from benchmarks.harness import COLUMNS, Bench, Figure, Seconds, Timing, clocked, end_trial

FIGURES = (Figure("fast", "×", ">=", 2.0), Figure("small", "MB", "<=", 5.0), Figure("told", "s"))


@pytest.fixture
def bench() -> Bench:
    return Bench("case", FIGURES)


def lines(bench: Bench) -> dict[str, str]:
    """The last word of the table's line of each figure."""
    table, _ = bench.closing_table()
    return {figure.name: line.split()[-1] for figure, line in zip(FIGURES, table.splitlines()[1:], strict=True)}


def test_a_figure_is_met_on_its_side_of_the_target(bench: Bench) -> None:
    bench.report("fast", 2.0)
    bench.report("small", 5.1)
    bench.report("told", 1e9)
    assert lines(bench) == {"fast": "ok", "small": "SHORT", "told": "ok"}
    assert not bench.closing_table()[1]


def test_a_missing_figure_is_short_and_a_skipped_one_is_not(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.report("told", 1.0)
    bench.skip("small", "no scales here")
    assert lines(bench) == {"fast": "SHORT", "small": "skipped", "told": "ok"}
    bench.report("fast", 3.0)
    table, met = bench.closing_table()
    assert met
    assert "not measured" in table
    assert "no scales here" in table
    assert capsys.readouterr().out == "skipped: small: no scales here\n"


def test_only_declared_figures_are_skipped(bench: Bench) -> None:
    with pytest.raises(AssertionError, match="another"):
        bench.skip("another", "why not")


def test_contestants_take_turns_and_their_own_seconds_count(bench: Bench) -> None:
    log = ""

    def contestant(name: str, seconds: float) -> Seconds:
        nonlocal log
        log += name
        return Seconds(seconds, 2 * seconds)

    timings = bench.in_turn({"a": lambda: contestant("a", 1.0), "b": lambda: contestant("b", 3.0)}, 3)
    assert log == "ababab"
    assert timings["a"] == Timing((1.0,) * 3, (2.0,) * 3)
    assert timings["b"].p50 == 3.0
    assert timings["b"].cpu_p50 == 6.0
    assert [row["cpu_p50_ms"] for row in bench.rows] == ["2000.000", "6000.000"]


def test_calls_are_warmed_up_once_before_their_turns(bench: Bench) -> None:
    log: list[str] = []
    bench.interleaved({name: lambda name=name: log.append(name) for name in "ab"}, 2)
    assert "".join(log) == "ababab"


def test_the_clock_tells_what_one_of_several_calls_takes() -> None:
    calls: list[int] = []
    taken = clocked(lambda: (calls.append(0), time.sleep(0.01)), 5)()
    assert len(calls) == 5
    assert 0.01 <= taken.wall < 0.05
    assert taken.cpu < 0.005  # sleeping is no work


def test_the_clock_of_the_processor_sees_less_than_a_tick() -> None:
    began = time.process_time()
    taken = clocked(lambda: sum(range(20_000)))()
    assert 0 < taken.cpu <= time.process_time() - began
    assert taken.cpu < 0.01  # what `os.times` counts in


def test_a_row_holds_the_columns_of_its_case_and_no_others() -> None:
    own = Bench("case", FIGURES, ("commit", "name", "floor_ms", "p50_ms"))
    own.row("x", timing=Timing((0.5,), (0.5,)), more={"floor_ms": "7", "weather": "fair"})
    assert own.rows == [{"commit": own.environment["commit"], "name": "x", "floor_ms": "7", "p50_ms": "500.000"}]
    usual = Bench("case", FIGURES)
    usual.row("x", value=1.0)
    assert set(usual.rows[0]) <= set(COLUMNS)
    assert usual.rows[0]["value"] == "1"


def test_a_trial_shows_its_table_and_ends_well(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        end_trial(bench, "COUNT")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert bench.closing_table()[0] in shown
    assert "with COUNT of its own: nothing is recorded" in shown
