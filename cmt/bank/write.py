"""The statements that change a bank; each function runs inside a write transaction."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from cmt.bank.entries import DocumentEntry, Layout
from cmt.bank.read import find_numbers
from cmt.bank.records import Outcome
from cmt.bank.rows import SELECT_DOCUMENT, corrupt, document_checksum, document_damage
from cmt.dates import ends, known_from, now, span
from cmt.errors import InputError, UnknownIdError
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
_EARLIER = (
    _KNOWN + "id = ? AND namespace = ? AND content_hash = ? AND date = ? "
    "AND ends(superseded_at) >= known_from(date, added_at) LIMIT 1"
)


class Known(NamedTuple):
    """The version that an entry meets in the bank."""

    number: int
    id: str
    content_hash: str


class Version(NamedTuple):
    """When a version of a document holds; moments in seconds since 1970.

    Attributes:
        dated: Whether it has a date; without, it holds from when it was added.
        since: When it begins to hold, as text.
        starts: The same as a moment.
        ends: When the next one begins; infinity for the latest.
    """

    number: int
    dated: bool
    since: str
    starts: float
    ends: float


def put(sqlite: sqlite3.Connection, entry: DocumentEntry, *, known_only: bool = False) -> Outcome:
    """Store one document, replace or supersede another text under its id, or find it known.

    Raises:
        UnknownIdError: Nothing is known of it, and it is to be changed, not added.
    """
    known = find(sqlite, entry)
    if known is None and known_only:
        raise UnknownIdError(f"{entry.name}: expected it in the bank, but it was forgotten")
    if known is None:
        document_id = entry.id if entry.id is not None else _derived_id(sqlite, entry)
        _require_memories(entry)
        _insert(sqlite, document_id, entry)
        return Outcome(document_id, "added", len(entry.memories), entry.memory_bytes)
    if known.content_hash == entry.content_hash:
        _refresh_fields(sqlite, known, entry)
        return Outcome(known.id, "unchanged")
    _require_memories(entry)
    if entry.supersede:
        _supersede(sqlite, known, entry)
    else:
        with _in_line(sqlite, known, entry.namespace):
            _remove_memories(sqlite, known.number)
            sqlite.execute(_UPDATE, (*_row(known.id, entry, now(), None, 0), known.number))
            _insert_memories(sqlite, known.number, entry)
    return Outcome(known.id, "updated", len(entry.memories), entry.memory_bytes)


def find(sqlite: sqlite3.Connection, entry: DocumentEntry) -> Known | None:
    """The version that an entry would meet in the bank.

    That is the latest one with its id, or, for an entry without id, the oldest one with its text;
    in its namespace. An entry that supersedes may be a version with its id, text and date, too.
    """
    if entry.id is not None:
        row = sqlite.execute(_BY_ID, (entry.id, entry.namespace)).fetchone()
        if entry.supersede and row is not None and row[2] != entry.content_hash:
            same = (entry.id, entry.namespace, entry.content_hash, entry.date)
            row = sqlite.execute(_EARLIER, same).fetchone() or row
    else:
        row = sqlite.execute(_BY_TEXT, (entry.content_hash, entry.namespace)).fetchone()
    return None if row is None else Known(*row)


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


def restore(sqlite: sqlite3.Connection, entry: DocumentEntry, stored: StoredDocument) -> Outcome:
    """Store a version as it was in another bank; "unchanged" where this bank has it.

    Raises:
        InputError: Another text is in force under its id.
    """
    versions = sqlite.execute(
        "SELECT content_hash, added_at FROM documents WHERE id = ? AND namespace = ?",
        (entry.id, entry.namespace),
    ).fetchall()
    known = find(sqlite, entry) if stored.superseded_at is None else None
    if (entry.content_hash, stored.added_at) in versions or (
        known is not None and known.content_hash == entry.content_hash
    ):
        return Outcome(stored.id, "unchanged")
    if known is not None:
        raise InputError(
            f"{entry.name}: expected an id that the bank doesn't hold, or the same text under it, "
            "got another text: forget the one in the bank first"
        )
    _require_memories(entry)
    _insert(sqlite, stored.id, entry, stored.added_at, stored.superseded_at)
    return Outcome(stored.id, "added", len(entry.memories), entry.memory_bytes)


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

    An entry without id only met a text: then nothing changes, unless that text has expired.
    """
    *stored, expires_at, added_at, superseded_at = sqlite.execute(
        "SELECT title, date, source, metadata, tags, expires_at, added_at, superseded_at "
        "FROM documents WHERE number = ?",
        (known.number,),
    ).fetchone()
    if entry.id is None and ends(expires_at) > time.time():
        return
    given = [entry.title, entry.date, entry.source, entry.metadata, entry.tags, entry.expires_at]
    if [*stored, expires_at] != given:
        touched = _next_changes(sqlite, 1)[0]
        row = _row(known.id, entry, added_at, superseded_at, touched)
        with _in_line(sqlite, known, entry.namespace):
            sqlite.execute(_UPDATE, (*row, known.number))


def _supersede(sqlite: sqlite3.Connection, known: Known, entry: DocumentEntry) -> None:
    """Store a version in its place in time: from its date until the next one's.

    It is the latest, unless the latest so far is dated later. Where that has no date, when it
    began to hold is a guess, and it gives way.
    """
    added_at = now()
    starts = known_from(entry.date, added_at)
    versions = _versions(sqlite, known.id, entry.namespace)
    later = [one for one in versions if starts < one.starts < one.ends]
    if not any(one.dated for one in later) or known.number not in {one.number for one in later}:
        later = []
    for one in versions:
        if one not in later and one.ends > starts:
            _end(sqlite, one.number, entry.date or added_at)
    until = min(later, key=lambda one: one.starts).since if later else None
    _insert(sqlite, known.id, entry, added_at, until)


@contextmanager
def _in_line(sqlite: sqlite3.Connection, known: Known, namespace: str) -> Iterator[None]:
    """While a version changes in place: the one before it goes on to hold until it begins."""
    before = {one.number: one for one in _versions(sqlite, known.id, namespace)}
    yield
    after = {one.number: one for one in _versions(sqlite, known.id, namespace)}
    old, new = before[known.number], after[known.number]
    for one in after.values():
        if one.ends == old.starts != new.starts:
            _end(sqlite, one.number, new.since)


def _versions(sqlite: sqlite3.Connection, document_id: str, namespace: str) -> list[Version]:
    rows = sqlite.execute(
        "SELECT number, date, added_at, superseded_at FROM documents "
        "WHERE id = ? AND namespace = ?",
        (document_id, namespace),
    )
    return [
        Version(
            number=number,
            dated=span(date) is not None,
            since=date if span(date) is not None else added_at,
            starts=known_from(date, added_at),
            ends=ends(superseded_at),
        )
        for number, date, added_at, superseded_at in rows.fetchall()
    ]


def _end(sqlite: sqlite3.Connection, number: int, superseded_at: str) -> None:
    """Say until when a version holds."""
    row = sqlite.execute(f"{SELECT_DOCUMENT} WHERE number = ?", (number,)).fetchone()
    damage = document_damage(row)
    if damage is not None:
        raise corrupt(row[0], None, damage)
    guard = document_checksum((*row[:9], superseded_at), row[10])
    touched = _next_changes(sqlite, 1)[0]
    sqlite.execute(
        "UPDATE documents SET superseded_at = ?, checksum = ?, touched = ? WHERE number = ?",
        (superseded_at, guard, touched, number),
    )


def _insert_memories(sqlite: sqlite3.Connection, number: int, entry: DocumentEntry) -> None:
    memory_ids = _next_changes(sqlite, len(entry.memories))
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
    changes = _next_changes(sqlite, len(rows))
    sqlite.executemany(
        "INSERT INTO removals (change, memory_id) VALUES (?, ?)",
        [(change, memory_id) for change, (memory_id,) in zip(changes, rows, strict=True)],
    )
    sqlite.execute("DELETE FROM memories WHERE document = ?", (number,))


def _next_changes(sqlite: sqlite3.Connection, how_many: int) -> range:
    """The next numbers of the one sequence that counts memories and removals."""
    last = int(sqlite.execute("SELECT last_change FROM bank").fetchone()[0])
    sqlite.execute("UPDATE bank SET last_change = ?", (last + how_many,))
    return range(last + 1, last + how_many + 1)
