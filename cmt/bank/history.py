"""The versions of a document as they follow in time; inside a write transaction.

Each holds from its date, or without one from when it was added, until the next one begins.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from cmt.bank.entries import DocumentEntry
from cmt.bank.rows import SELECT_DOCUMENT, Row, corrupt, document_checksum, document_damage
from cmt.dates import ends, known_from, span

_VERSIONS = (
    "SELECT number, date, added_at, superseded_at FROM documents WHERE id = ? AND namespace = ?"
)


def line_up(
    sqlite: sqlite3.Connection, document_id: str, namespace: str, *, moved: Sequence[float] = ()
) -> None:
    """Let each version of a document hold until the next one begins, and the last without end.

    They follow by date, or without one by when they were added; of one moment, by number. One whose
    next was purged ends where that began, the last too, unless a version has `moved` from there.
    """
    rows = sqlite.execute(_VERSIONS, (document_id, namespace)).fetchall()
    changes: list[tuple[int, str | None]] = []
    until: str | None = None
    for row in sorted(rows, key=_place, reverse=True):
        number, date, added_at, superseded_at = row
        end = until
        if _place(row)[0] < ends(superseded_at) and ends(superseded_at) not in moved:
            end = min(until, superseded_at, key=ends)
        if superseded_at != end:
            changes.append((number, end))
        since = date if span(date) is not None else added_at
        until = min(since, until or since, key=ends)
    for number, superseded_at in reversed(changes):  # the last goes into force when none is
        _end(sqlite, number, superseded_at)


def give_way(
    sqlite: sqlite3.Connection, document_id: str, entry: DocumentEntry, *, until: float
) -> list[float]:
    """Where what held until a moment has no date, let an entry that is to follow it come after it.

    When it began is a guess: by an earlier date it ends before, and holds no more. Where the latest
    is what follows, so it is with what ends before it began, or, in an old bank, after the latest
    began: it is superseded all the same. Gives the moments that are left.
    """
    if entry.date is None or span(entry.date) is None:
        return []
    moved = []
    starts = known_from(entry.date, "")
    rows = sqlite.execute(_VERSIONS, (document_id, entry.namespace)).fetchall()
    for number, date, added_at, superseded_at in rows:
        begins, end = known_from(date, added_at), ends(superseded_at)
        place = min(begins, end)
        undated = span(date) is None and end == until
        odd = max(until, end) < float("inf") and (end < begins or until < end)
        if starts < place and (undated or odd):
            _end(sqlite, number, entry.date)
            moved.append(place)
    return moved


def _place(row: Row) -> tuple[float, bool, int]:
    """What a row of `_VERSIONS` is sorted by; one that gave way ends before it began."""
    number, date, added_at, superseded_at = row
    begins, end = known_from(date, added_at), ends(superseded_at)
    return min(begins, end), begins <= end, number


def _end(sqlite: sqlite3.Connection, number: int, superseded_at: str | None) -> None:
    """Say until when a version holds; None: without end."""
    row = sqlite.execute(f"{SELECT_DOCUMENT} WHERE number = ?", (number,)).fetchone()
    damage = document_damage(row)
    if damage is not None:
        raise corrupt(row[0], None, damage)
    guard = document_checksum((*row[:9], superseded_at), row[10])
    touched = next_changes(sqlite, 1)[0]
    sqlite.execute(
        "UPDATE documents SET superseded_at = ?, checksum = ?, touched = ? WHERE number = ?",
        (superseded_at, guard, touched, number),
    )


def next_changes(sqlite: sqlite3.Connection, how_many: int) -> range:
    """The next numbers of the one sequence that counts memories and removals."""
    last = int(sqlite.execute("SELECT last_change FROM bank").fetchone()[0])
    sqlite.execute("UPDATE bank SET last_change = ?", (last + how_many,))
    return range(last + 1, last + how_many + 1)
