"""ISO 8601 dates as moments: seconds since 1970 in UTC, so that they can be compared.

A text without a zone is UTC. A text that names a span (a day, a month, a year) begins at its
first moment and ends at its last.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cmt.errors import InputError

_DAY = 24 * 3600.0
_JUST_BEFORE = 0.001  # the last moment of a span, before the next begins
_MONTH = re.compile(r"(\d{4})(?:-(\d{2}))?")
_LENGTH = re.compile(r"(\d+)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@lru_cache(maxsize=1 << 16)
def span(text: object) -> tuple[float, float] | None:
    """The first and the last moment of a year, month, day or date-time; None for anything else."""
    if not isinstance(text, str):  # a damaged bank gives what it likes
        return None
    try:
        if month := _MONTH.fullmatch(text):
            year, number = int(month[1]), int(month[2] or 1)
            start = datetime(year, number, 1, tzinfo=UTC)
            months = year * 12 + number - 1 + (1 if month[2] else 12)
            end = datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)
        else:
            start = datetime.fromisoformat(text)
            if start.tzinfo is None:
                start = start.replace(tzinfo=UTC)
            first = start.timestamp()
            if len(text) > len("2024-05-31"):  # a date-time names one moment
                return first, first
            return first, first + _DAY - _JUST_BEFORE  # of 9999-12-31 too, without a next day
    except (ValueError, OverflowError):
        return None
    return start.timestamp(), end.timestamp() - _JUST_BEFORE


def checked_span(text: str, name: str) -> tuple[float, float]:
    """`span` of what a user gave under a name.

    Raises:
        InputError: It is no date.
    """
    found = span(text) if isinstance(text, str) else None
    if found is None:
        raise InputError(
            f"expected {name} as in 2026-01-31 or 2026-01-31T12:00 (ISO 8601), got {text!r}"
        )
    return found


def known_from(date: str | None, added_at: str) -> float:
    """When a document began to hold: its date's first moment, else when it was added."""
    found = span(date) if date is not None else None
    if found is None:
        found = span(added_at)
    return -float("inf") if found is None else found[0]


def ends(text: str | None) -> float:
    """The moment of an expiry or of being superseded; infinity where there is none."""
    found = span(text) if text is not None else None
    return float("inf") if found is None else found[0]


def now() -> str:
    """This second, as documents are stamped."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def today() -> float:
    """The first moment (UTC) of the day that this machine's clock shows.

    East of Greenwich that may lie ahead: a document dated today holds all the same.
    """
    return checked_span(time.strftime("%Y-%m-%d"), "today")[0]


def after(lifetime: timedelta) -> str:
    """The moment that lies a time to live ahead.

    Raises:
        InputError: The time to live is not longer than nothing, or beyond the year 9999.
    """
    if lifetime <= timedelta():
        raise InputError(f"expected a time to live longer than 0, got {lifetime}")
    try:
        return (datetime.now(UTC) + lifetime).isoformat(timespec="seconds")
    except OverflowError as error:
        raise InputError(
            f"expected a time to live that ends before 10000, got {lifetime}"
        ) from error


def parse_length(text: str) -> timedelta:
    """A time to live such as 90s, 15m, 12h, 30d or 2w.

    Raises:
        InputError: It is none.
    """
    match = _LENGTH.fullmatch(text.strip().lower())
    if match is None:
        raise InputError(f"expected a length of time such as 90s, 15m, 12h, 30d, 2w, got {text!r}")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError as error:
        raise InputError(f"expected a length of time below 10^9 days, got {text!r}") from error
