"""A selection in SQL; `known_from` and `ends` are functions of the bank's connections."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cmt.selection import FOREVER, Selection

# Spares most rows the parsing of their date: of a text that sorts before the day of a week ago, no
# zone and no writing of the week makes a moment to come. One that is no date leaves `added_at`,
# which the bank writes, always alike.
_SURELY_BEGUN = "ifnull(date, '') < ? AND added_at <= ?"
_WEEK = 7 * 24 * 3600.0
_FIRST = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def condition(selection: Selection | None) -> tuple[str, list[Any]]:
    """What `Selection.takes` says, and its values; None: the latest versions."""
    if selection is None:
        return "superseded_at IS NULL", []
    parts: list[str] = []
    values: list[Any] = []
    if selection.namespace is not None:
        parts.append("namespace = ?")
        values.append(selection.namespace)
    at, day = selection.moments()
    parts.append("(superseded_at IS NULL OR ends(superseded_at) > ?)")
    parts.append("(expires_at IS NULL OR ends(expires_at) > ?)")
    parts.append(f"({_SURELY_BEGUN} OR known_from(date, added_at) <= ?)")
    values += [at, at, *_texts_before(at), at]
    if day > at:  # what begins that day has begun
        parts[-1] = f"({parts[-1]} OR known_from(date, added_at) = ?)"
        parts.append("(superseded_at IS NULL OR ends(superseded_at) <> ?)")
        values += [day, day]
    for tag in selection.tags:
        parts.append("json_valid(tags) AND EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)")
        values.append(tag)
    if selection.since > -FOREVER:
        parts.append("known_from(date, added_at) >= ?")
        values.append(selection.since)
    if selection.until < FOREVER:
        parts.append("known_from(date, added_at) <= ?")
        values.append(selection.until)
    return " AND ".join(parts), values


def _texts_before(at: float) -> tuple[str, str]:
    """The values of `_SURELY_BEGUN` for a moment."""
    week, itself = (
        datetime.fromtimestamp(min(max(moment, _FIRST), _LAST), UTC) for moment in (at - _WEEK, at)
    )
    return week.date().isoformat(), itself.isoformat(timespec="seconds")
