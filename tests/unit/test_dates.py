"""Dates as moments."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from cmt import dates
from cmt.errors import InputError

DAY = 24 * 3600.0


def at(*parts: int) -> float:
    return datetime(*parts, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "first", "next_one"),
    [
        ("2026", at(2026, 1, 1), at(2027, 1, 1)),
        ("2026-12", at(2026, 12, 1), at(2027, 1, 1)),
        ("2024-02", at(2024, 2, 1), at(2024, 3, 1)),
        ("2026-01-31", at(2026, 1, 31), at(2026, 2, 1)),
        ("9999-12-31", at(9999, 12, 31), at(9999, 12, 31) + DAY),
    ],
)
def test_a_span_ends_just_before_the_next_begins(text, first, next_one):
    start, end = dates.span(text)
    assert start == first
    assert next_one - 0.01 < end < next_one


@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00", "2026-01-31T12:00:00Z", "2026-01-31T14:00:00+02:00"]
)
def test_a_date_time_is_one_moment_in_utc_unless_it_says_otherwise(text):
    assert dates.span(text) == (at(2026, 1, 31, 12), at(2026, 1, 31, 12))


@pytest.mark.parametrize("text", ["", "soon", "2026-13", "2026-02-30", "0000", "9999"])
def test_what_is_no_date_has_no_span(text):
    assert dates.span(text) is None
    message = rf"expected as_of as in 2026-01-31 .* got '{text}'"
    with pytest.raises(InputError, match=message):
        dates.checked_span(text, "as_of")


@pytest.mark.parametrize("value", [None, 2026, b"2026", 1.5])
def test_a_damaged_date_is_none(value):
    assert dates.span(value) is None
    assert dates.ends(value) == float("inf")


def test_what_is_no_text_is_no_date_either():
    for value in (2026, [2026]):
        with pytest.raises(InputError, match=r"expected since as in .* got \[?2026"):
            dates.checked_span(value, "since")


def test_a_document_holds_from_its_date_or_from_when_it_was_added():
    added = "2026-03-01T10:00:00+00:00"
    assert dates.known_from("2026-01-31", added) == at(2026, 1, 31)
    for date in (None, "", "last week"):
        assert dates.known_from(date, added) == at(2026, 3, 1, 10)
    assert dates.known_from(None, "damaged") == -float("inf")
    assert dates.ends(None) == float("inf")
    assert dates.ends("2026-01-31") == at(2026, 1, 31)


def test_today_is_the_day_that_the_clock_here_shows(monkeypatch):
    for hours in (14, -11):
        monkeypatch.setenv("TZ", f"XXX{-hours}")  # POSIX counts the other way
        time.tzset()
        here = datetime.now(timezone(timedelta(hours=hours)))
        assert dates.today() == at(here.year, here.month, here.day)
    monkeypatch.undo()
    time.tzset()


def test_a_time_to_live_lies_ahead():
    ahead = dates.span(dates.after(timedelta(days=2)))[0] - dates.span(dates.now())[0]
    assert abs(ahead - 2 * DAY) < 5
    with pytest.raises(InputError, match="expected a time to live longer than 0"):
        dates.after(timedelta())
    with pytest.raises(InputError, match="ends before 10000"):
        dates.after(timedelta(days=4_000_000))


@pytest.mark.parametrize(
    ("text", "length"),
    [("90s", 90), ("15m", 900), ("12h", 12 * 3600), ("30d", 30 * DAY), (" 2 W ", 14 * DAY)],
)
def test_lengths_of_time(text, length):
    assert dates.parse_length(text).total_seconds() == length


@pytest.mark.parametrize("text", ["", "3", "3y", "-1d", "1.5h", "9" * 12 + "w"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(InputError, match="expected a length of time"):
        dates.parse_length(text)
