"""The statements that change a bank; each function runs inside a write transaction."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Sequence
from typing import NamedTuple

from cmt.bank.entries import DocumentEntry, Layout
from cmt.bank.read import find_numbers
from cmt.bank.records import Outcome
from cmt.bank.rows import SELECT_DOCUMENT, corrupt, document_checksum, document_damage
from cmt.dates import ends, now, span
from cmt.errors import InputError, UnknownIdError
from cmt.records import StoredDocument

_DERIVED_ID_CHARS = 16
_FIELDS = (
    "title, date, source, metadata, added_at, namespace, tags, expires_at, superseded_at, "
    "content_hash, checksum, text, touched, id"
)
_INSERT = f"INSERT INTO documents ({_FIELDS}, number) VALUES ({', '.join('?' * 15)})"  # noqa: S608
_UPDATE = f"UPDATE documents SET ({_FIELDS}) = ({', '.join('?' * 14)}) WHERE number = ?"  # noqa: S608
_IN_FORCE = "SELECT number, id, content_hash FROM documents WHERE superseded_at IS NULL"
_BY_ID = _IN_FORCE + " AND id = ? AND namespace = ?"
_BY_TEXT = _IN_FORCE + " AND content_hash = ? AND namespace = ? ORDER BY number LIMIT 1"


class Known(NamedTuple):
    """The document in force that an entry meets in the bank."""

    number: int
    id: str
    content_hash: str


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
        _end(sqlite, known, entry)
        _insert(sqlite, known.id, entry)
    else:
        _remove_memories(sqlite, known.number)
        sqlite.execute(_UPDATE, (*_row(known.id, entry, now(), None, 0), known.number))
        _insert_memories(sqlite, known.number, entry)
    return Outcome(known.id, "updated", len(entry.memories), entry.memory_bytes)


def find(sqlite: sqlite3.Connection, entry: DocumentEntry) -> Known | None:
    """The document in force that an entry would meet in the bank.

    That is the one with its id, or, for an entry without id, the oldest one with its text; in
    its namespace.
    """
    if entry.id is not None:
        row = sqlite.execute(_BY_ID, (entry.id, entry.namespace)).fetchone()
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
    *stored, expires_at, added_at = sqlite.execute(
        "SELECT title, date, source, metadata, tags, expires_at, added_at FROM documents "
        "WHERE number = ?",
        (known.number,),
    ).fetchone()
    if entry.id is None and ends(expires_at) > time.time():
        return
    given = [entry.title, entry.date, entry.source, entry.metadata, entry.tags, entry.expires_at]
    if [*stored, expires_at] != given:
        touched = _next_changes(sqlite, 1)[0]
        row = _row(known.id, entry, added_at, None, touched)
        sqlite.execute(_UPDATE, (*row, known.number))


def _end(sqlite: sqlite3.Connection, known: Known, successor: DocumentEntry) -> None:
    """Make a version history: it held until its successor began to."""
    row = sqlite.execute(f"{SELECT_DOCUMENT} WHERE number = ?", (known.number,)).fetchone()
    damage = document_damage(row)
    if damage is not None:
        raise corrupt(known.id, None, damage)
    began = successor.date if successor.date is not None and span(successor.date) else now()
    guard = document_checksum((*row[:9], began), known.content_hash)
    touched = _next_changes(sqlite, 1)[0]
    sqlite.execute(
        "UPDATE documents SET superseded_at = ?, checksum = ?, touched = ? WHERE number = ?",
        (began, guard, touched, known.number),
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
