"""A pace is counted from the first report; what is left follows from it."""

from __future__ import annotations

from lateinteraction.domain.pace import Pace


def test_nothing_is_known_before_two_reports() -> None:
    first = Pace().after(5, 100, 10.0)
    assert (Pace().per_second, first.per_second, first.seconds_left) == (None, None, None)
    assert str(first) == "5 of 100"
    assert first.after(6, 100, 10.0).per_second is None


def test_what_was_done_before_the_first_report_does_not_count() -> None:
    pace = Pace().after(10, 100, 3.0).after(30, 100, 7.0)
    assert pace.per_second == 5.0
    assert pace.seconds_left == 14.0
    assert str(pace) == "30 of 100 · 5.0/s · 0:00:14 left"


def test_a_stream_has_a_pace_and_no_end() -> None:
    pace = Pace().after(0, None, 0.0).after(5000, None, 2.0)
    assert pace.seconds_left is None
    assert str(pace) == "5,000 · 2,500.0/s"


def test_a_call_that_stands_still_has_no_end_in_sight() -> None:
    assert Pace().after(1, 9, 0.0).after(1, 9, 4.0).seconds_left is None


def test_another_call_begins_anew() -> None:
    pace = Pace().after(0, 50, 0.0).after(50, 50, 10.0).after(2, 8, 60.0).after(4, 8, 61.0)
    assert pace.per_second == 2.0
    assert str(Pace().after(0, 9_999, 0.0).after(1, 9_999, 1.0)) == "1 of 9,999 · 1.0/s · 2:46:38 left"


def test_a_call_after_the_end_or_of_another_total_begins_anew() -> None:
    done = Pace().after(0, 10, 0.0).after(10, 10, 1.0)
    assert done.after(10, 10, 3600.0).per_second is None
    longer = done.after(31, 10_000, 3600.0).after(62, 10_000, 3601.0)
    assert longer.per_second == 31.0
