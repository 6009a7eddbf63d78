"""The statements that change a bank; each function runs inside a write transaction."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from cmt.bank.entries import DocumentEntry, Layout
from cmt.bank.history import give_way, line_up, next_changes
from cmt.bank.read import find_numbers
from cmt.bank.records import Outcome
from cmt.bank.rows import Row, document_checksum
from cmt.dates import checked_span, ends, known_from, now, span, today
from cmt.errors import DocumentError, InputError, UnknownIdError
from cmt.records import StoredDocument

_DERIVED_ID_CHARS = 16
_FIELDS = (
    "title, date, source, metadata, added_at, namespace, tags, expires_at, superseded_at, "
    "content_hash, checksum, text, touched, id"
)
_INSERT = f"INSERT INTO documents ({_FIELDS}, number) VALUES ({', '.join('?' * 15)})"  # noqa: S608
_UPDATE = f"UPDATE documents SET ({_FIELDS}) = ({', '.join('?' * 14)}) WHERE number = ?"  # noqa: S608
_KNOWN = "SELECT number, id, content_hash FROM documents WHERE "
_LATEST = _KNOWN + "superseded_at IS NULL"
_BY_ID = _LATEST + " AND id = ? AND namespace = ?"
_BY_TEXT = _LATEST + " AND content_hash = ? AND namespace = ? ORDER BY number LIMIT 1"
_DATED = (
    _KNOWN + "id = ? AND namespace = ? AND content_hash = ? AND date = ? "
    "AND ends(superseded_at) >= known_from(date, added_at) LIMIT 1"
)
_HOLDING = (  # at a moment ?3, on a day that begins at ?4: as `Selection.takes`
    "SELECT number, id, content_hash, date, added_at FROM documents WHERE id = ?1 "
    "AND namespace = ?2 AND ends(superseded_at) > ?3 AND ends(superseded_at) <> ?4 "
    "AND (known_from(date, added_at) <= ?3 OR known_from(date, added_at) = ?4) "
    "ORDER BY known_from(date, added_at) DESC LIMIT 1"
)
_FOLLOWING = (
    "SELECT 1 FROM documents WHERE id = ? AND namespace = ? AND number <> ? "
    "AND min(known_from(date, added_at), ends(superseded_at)) >= ? LIMIT 1"
)


class Known(NamedTuple):
    """The version that an entry meets in the bank; `unchanged` where it is the entry's own."""

    number: int
    id: str
    unchanged: bool


def put(sqlite: sqlite3.Connection, entry: DocumentEntry, *, known_only: bool = False) -> Outcome:
    """Store one document, replace or supersede another text under its id, or find it known.

    Raises:
        UnknownIdError: Nothing is known of it, and it is to be changed, not added.
    """
    check_date(sqlite, entry)
    known = find(sqlite, entry)
    if known is None and known_only:
        older = entry.id is not None and find_numbers(sqlite, entry.id, entry.namespace)
        gone = "its latest version was purged: add one" if older else "it was forgotten"
        raise UnknownIdError(f"{entry.name}: expected it in the bank, but {gone}")
    if known is not None and known.unchanged:
        _refresh_fields(sqlite, known, entry)
        return Outcome(known.id, "unchanged")
    _require_memories(entry)
    if known is None:
        document_id = entry.id if entry.id is not None else _derived_id(sqlite, entry)
        _insert(sqlite, document_id, entry)
        line_up(sqlite, document_id, entry.namespace)
        return Outcome(document_id, "added", len(entry.memories), entry.memory_bytes)
    if entry.supersede:
        _supersede(sqlite, known, entry)
    else:
        _replace(sqlite, known, entry)
    return Outcome(known.id, "updated", len(entry.memories), entry.memory_bytes)


def check_date(sqlite: sqlite3.Connection, entry: DocumentEntry) -> None:
    """Refuse a date that is none, unless it is a stored one: banks took them once.

    Raises:
        DocumentError: It is refused.
    """
    if entry.date is None or span(entry.date) is not None:
        return
    stored = "SELECT 1 FROM documents WHERE id = ? AND namespace = ? AND date = ?"
    if sqlite.execute(stored, (entry.id, entry.namespace, entry.date)).fetchone() is None:
        try:
            checked_span(entry.date, "date")
        except InputError as error:
            raise DocumentError(f"{entry.name}: {error}") from error


def find(sqlite: sqlite3.Connection, entry: DocumentEntry) -> Known | None:
    """The version that an entry would meet in the bank.

    That is the latest one with its id, or, for an entry without id, the oldest one with its text;
    in its namespace. To an entry that supersedes only a version with its text and date is the
    same, or, where it has no date of its own, the one that holds now, if that has its text.
    """
    if entry.id is None:
        row = sqlite.execute(_BY_TEXT, (entry.content_hash, entry.namespace)).fetchone()
    else:
        row = _same(sqlite, entry) if entry.supersede else None
        if row is None:
            row = sqlite.execute(_BY_ID, (entry.id, entry.namespace)).fetchone()
            if row is not None and entry.supersede:
                return Known(row[0], row[1], unchanged=False)
    return None if row is None else Known(row[0], row[1], row[2] == entry.content_hash)


def _same(sqlite: sqlite3.Connection, entry: DocumentEntry) -> Row | None:
    """The version that an entry with id, which supersedes, would write again."""
    if entry.date is not None and not entry.stamped:
        same = (entry.id, entry.namespace, entry.content_hash, entry.date)
        row: Row | None = sqlite.execute(_DATED, same).fetchone()
        return row
    row = _holding(sqlite, entry.id, entry.namespace)
    return row if row is not None and row[2] == entry.content_hash else None


def _holding(sqlite: sqlite3.Connection, document_id: str | None, namespace: str) -> Row | None:
    """The row of the version that holds now, if any does."""
    own = (document_id, namespace, time.time(), today())
    row: Row | None = sqlite.execute(_HOLDING, own).fetchone()
    return row


def remove(sqlite: sqlite3.Connection, document_id: str, namespace: str) -> bool:
    """Delete a document with its history and memories; False when there is none with this id."""
    numbers = find_numbers(sqlite, document_id, namespace)
    for number in numbers:
        remove_version(sqlite, number)
    return bool(numbers)


def remove_version(sqlite: sqlite3.Connection, number: int) -> None:
    """Delete one version of a document."""
    _remove_memories(sqlite, number)
    sqlite.execute("DELETE FROM documents WHERE number = ?", (number,))


def check_layout(sqlite: sqlite3.Connection, entries: Sequence[DocumentEntry]) -> None:
    """Refuse memories that differ from the bank's in more than K; a bank's first set the layout.

    Raises:
        InputError: Names the first such document, the layout expected and the one it has.
    """
    (stored,) = sqlite.execute("SELECT layout FROM bank").fetchone()
    expected = None if stored is None else Layout.parse(stored)
    for entry in entries:
        for layout in entry.layouts:
            if expected is None:
                expected = layout
                sqlite.execute("UPDATE bank SET layout = ?", (json.dumps(expected),))
            if layout != expected:
                raise InputError(
                    f"{entry.name}: expected memories of {expected}, as the others of this bank, "
                    f"got {layout}"
                )


def _require_memories(entry: DocumentEntry) -> None:
    if not len(entry.memories):
        raise InputError(f"{entry.name}: expected at least one compressed piece, got none")


def _derived_id(sqlite: sqlite3.Connection, entry: DocumentEntry) -> str:
    """An id made from the text; numbered where someone else took it by name."""
    prefix = entry.content_hash[:_DERIVED_ID_CHARS]
    candidates = itertools.chain([prefix], (f"{prefix}-{n}" for n in itertools.count(2)))
    return next(c for c in candidates if not find_numbers(sqlite, c, entry.namespace))


def restore(
    sqlite: sqlite3.Connection, entry: DocumentEntry, stored: StoredDocument, *, before: int
) -> Outcome:
    """Store a version as it was in another bank; "unchanged" where this bank has it.

    So it is where the latest has its text and date; or its text, and either is the only version or
    the one restored has no date.

    Args:
        sqlite: The bank's connection.
        entry, stored: The version.
        before: The bank's last number before this import: versions up to it may not hold at the
            same time. (Those of one export may: banks allowed that once.)

    Raises:
        InputError: Another version holds at its time, or is the latest as it is.
    """
    own = (entry.content_hash, entry.date, stored.added_at, stored.superseded_at)
    versions = sqlite.execute(
        "SELECT content_hash, date, added_at, superseded_at, number FROM documents "
        "WHERE id = ? AND namespace = ?",
        (entry.id, entry.namespace),
    ).fetchall()
    if _identity(*own) in {_identity(*version[:4]) for version in versions}:
        return Outcome(stored.id, "unchanged")
    latest = [row for row in versions if stored.superseded_at is None and row[3] is None]
    for content_hash, date, *_ in latest:
        alike = entry.date in (date, None) or len(versions) == 1
        if content_hash == entry.content_hash and alike:
            return Outcome(stored.id, "unchanged")
    began, end = known_from(entry.date, stored.added_at), ends(stored.superseded_at)
    if latest or any(
        number <= before and max(began, known_from(date, added)) < min(end, ends(superseded))
        for _, date, added, superseded, number in versions
    ):
        raise InputError(
            f"{entry.name}: expected an id that the bank doesn't hold, or the same versions under "
            "it, got another that holds at the same time: forget the one in the bank first"
        )
    _require_memories(entry)
    _insert(sqlite, stored.id, entry, stored.added_at, stored.superseded_at)
    return Outcome(stored.id, "added", len(entry.memories), entry.memory_bytes)


def _identity(
    content_hash: str, date: str | None, added_at: str, superseded_at: str | None
) -> tuple[str | None, ...]:
    """What tells a version from others of its id.

    Of those with one text, date and second, all but the last are superseded before they hold: so
    they differ in that, while the last may have been superseded since it was exported.
    """
    holds = ends(superseded_at) > known_from(date, added_at)
    return content_hash, date, added_at, None if holds else superseded_at


def stage(sqlite: sqlite3.Connection, entry: DocumentEntry, number: int) -> None:
    """Store a version under the number it has in another bank, and that for its id."""
    _require_memories(entry)
    _insert(sqlite, f"{number}", entry, number=number)


def _insert(
    sqlite: sqlite3.Connection,
    document_id: str,
    entry: DocumentEntry,
    added_at: str | None = None,
    superseded_at: str | None = None,
    number: int | None = None,
) -> None:
    """A new version, with the next number unless one is given."""
    row = _row(document_id, entry, added_at or now(), superseded_at, 0)
    sqlite.execute(_INSERT, (*row, number))
    if number is None:
        (number,) = sqlite.execute("SELECT last_insert_rowid()").fetchone()
    _insert_memories(sqlite, number, entry)


def _row(
    document_id: str,
    entry: DocumentEntry,
    added_at: str,
    superseded_at: str | None,
    touched: int,
) -> tuple[object, ...]:
    """The values of `_FIELDS`; `touched` is 0 where new memories tell of the row anyway."""
    fields = (entry.title, entry.date, entry.source, entry.metadata, added_at)
    life = (entry.namespace, entry.tags, entry.expires_at, superseded_at)
    guard = document_checksum((document_id, *fields, *life), entry.content_hash)
    return (*fields, *life, entry.content_hash, guard, entry.text, touched, document_id)


def _refresh_fields(sqlite: sqlite3.Connection, known: Known, entry: DocumentEntry) -> None:
    """Take over title, date, source and the like where they differ; the memories stay.

    An entry without id only met a text: then nothing changes, unless that text has expired. One
    that supersedes leaves a version its date, and so does a file's time stamp by which it would no
    longer be the latest.
    """
    date, *stored, expires_at, added_at, superseded_at = sqlite.execute(
        "SELECT date, title, source, metadata, tags, expires_at, added_at, superseded_at "
        "FROM documents WHERE number = ?",
        (known.number,),
    ).fetchone()
    if entry.id is None and ends(expires_at) > time.time():
        return
    if entry.supersede or _stamped_too_early(sqlite, known, entry):
        entry = replace(entry, date=date)
    given = [entry.date, entry.title, entry.source, entry.metadata, entry.tags, entry.expires_at]
    began = known_from(date, added_at)
    moved = [began]
    if entry.date != date:
        moved += give_way(sqlite, known.id, entry, until=began)
    if [date, *stored, expires_at] != given:
        touched = next_changes(sqlite, 1)[0]
        row = _row(known.id, entry, added_at, superseded_at, touched)
        sqlite.execute(_UPDATE, (*row, known.number))
    if entry.date != date:
        line_up(sqlite, known.id, entry.namespace, moved=moved)


def _replace(sqlite: sqlite3.Connection, known: Known, entry: DocumentEntry) -> None:
    """Put another text in the place of the latest.

    It keeps the date held where by its own, a file's time stamp, it would not be the latest.
    """
    held = sqlite.execute(
        "SELECT date, added_at FROM documents WHERE number = ?", (known.number,)
    ).fetchone()
    began = known_from(*held)
    if _stamped_too_early(sqlite, known, entry):
        entry = replace(entry, date=held[0])
    added_at = now()
    moved = [began, *give_way(sqlite, known.id, entry, until=began)]
    _remove_memories(sqlite, known.number)
    sqlite.execute(_UPDATE, (*_row(known.id, entry, added_at, None, 0), known.number))
    _insert_memories(sqlite, known.number, entry)
    if known_from(entry.date, added_at) != began:
        line_up(sqlite, known.id, entry.namespace, moved=moved)


def _stamped_too_early(sqlite: sqlite3.Connection, known: Known, entry: DocumentEntry) -> bool:
    """Whether a file's time stamp would put the latest before another version, or beside it."""
    if not entry.stamped or entry.date is None:
        return False
    others = (known.id, entry.namespace, known.number, known_from(entry.date, ""))
    return sqlite.execute(_FOLLOWING, others).fetchone() is not None


def _supersede(sqlite: sqlite3.Connection, known: Known, entry: DocumentEntry) -> None:
    """Store a version beside those of its id.

    Without a date it holds from now on; so it does where its date is a file's time stamp no later
    than the version that holds. Where that is dated today and began ahead of now (`today`), it
    holds from there on.
    """
    added_at = now()
    if entry.date is None or entry.stamped:
        held = _holding(sqlite, known.id, entry.namespace)
        began = "" if held is None else held[3] if span(held[3]) is not None else held[4]
        if entry.date is None or known_from(entry.date, "") <= known_from(began, ""):
            entry = replace(entry, date=max(added_at, began, key=lambda text: known_from(text, "")))
    moved = give_way(sqlite, known.id, entry, until=float("inf"))
    _insert(sqlite, known.id, entry, added_at, superseded_at=entry.date)  # until lined up
    line_up(sqlite, known.id, entry.namespace, moved=moved)


def _insert_memories(sqlite: sqlite3.Connection, number: int, entry: DocumentEntry) -> None:
    memory_ids = next_changes(sqlite, len(entry.memories))
    for memory_id, memory in zip(memory_ids, entry.memories, strict=True):
        sqlite.execute(
            "INSERT INTO memories (memory_id, document, start_char, end_char, tokens, dtype, "
            "shape, memory_bytes, checksum, key, vectors) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                memory_id,
                number,
                memory.start,
                memory.end,
                memory.tokens,
                memory.dtype,
                memory.shape,
                len(memory.data),
                memory.checksum,
                memory.key,
                memory.vectors,
            ),
        )
        sqlite.execute("INSERT INTO tensors VALUES (?, ?)", (memory_id, memory.data))


def _remove_memories(sqlite: sqlite3.Connection, number: int) -> None:
    rows = sqlite.execute("SELECT memory_id FROM memories WHERE document = ?", (number,)).fetchall()
    changes = next_changes(sqlite, len(rows))
    sqlite.executemany(
        "INSERT INTO removals (change, memory_id) VALUES (?, ?)",
        [(change, memory_id) for change, (memory_id,) in zip(changes, rows, strict=True)],
    )
    sqlite.execute("DELETE FROM memories WHERE document = ?", (number,))
