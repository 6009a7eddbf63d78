"""The statements that change a bank; each function runs inside a write transaction."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

from cmt.bank.entries import DocumentEntry, Layout
from cmt.bank.read import find_number
from cmt.bank.records import Outcome
from cmt.bank.rows import document_checksum
from cmt.errors import InputError

_DERIVED_ID_CHARS = 16
_INSERT = (
    "INSERT INTO documents "
    "(title, date, source, metadata, added_at, content_hash, checksum, text, id) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE = (
    "UPDATE documents SET title = ?, date = ?, source = ?, metadata = ?, added_at = ?, "
    "content_hash = ?, checksum = ?, text = ? WHERE id = ?"
)


def put(sqlite: sqlite3.Connection, entry: DocumentEntry) -> Outcome:
    """Store one document, replace what another text left under its id, or find it known."""
    known = find(sqlite, entry)
    if known is None:
        document_id = entry.id if entry.id is not None else _derived_id(sqlite, entry.content_hash)
        _require_memories(entry)
        _write_document(sqlite, _INSERT, document_id, entry, _now())
        _insert_memories(sqlite, document_id, entry)
        return Outcome(document_id, "added")
    number, document_id, content_hash = known
    if content_hash == entry.content_hash:
        if entry.id is not None:
            _refresh_fields(sqlite, document_id, entry)
        return Outcome(document_id, "unchanged")
    _require_memories(entry)
    _remove_memories(sqlite, number)
    _write_document(sqlite, _UPDATE, document_id, entry, _now())
    _insert_memories(sqlite, document_id, entry)
    return Outcome(document_id, "updated")


def find(sqlite: sqlite3.Connection, entry: DocumentEntry) -> tuple[int, str, str] | None:
    """The (number, id, content hash) of the document that an entry would meet in the bank.

    That is the one with its id, or, for an entry without id, the oldest one with its text.
    """
    columns = "SELECT number, id, content_hash FROM documents"
    if entry.id is not None:
        found = sqlite.execute(f"{columns} WHERE id = ?", (entry.id,))
    else:
        by_content = f"{columns} WHERE content_hash = ? ORDER BY number LIMIT 1"
        found = sqlite.execute(by_content, (entry.content_hash,))
    row: tuple[int, str, str] | None = found.fetchone()
    return row


def remove(sqlite: sqlite3.Connection, document_id: str) -> bool:
    """Delete a document with its memories; False when there is none with this id."""
    number = find_number(sqlite, document_id)
    if number is None:
        return False
    _remove_memories(sqlite, number)
    sqlite.execute("DELETE FROM documents WHERE number = ?", (number,))
    return True


def check_layout(sqlite: sqlite3.Connection, entries: Sequence[DocumentEntry]) -> None:
    """Refuse memories that differ from the bank's in more than K; a bank's first set the layout.

    Raises:
        InputError: Names the first such document, the layout expected and the one it has.
    """
    (stored,) = sqlite.execute("SELECT layout FROM bank").fetchone()
    expected = None if stored is None else Layout(*json.loads(stored))
    for entry in entries:
        for memory in entry.memories:
            if expected is None:
                expected = memory.layout
                sqlite.execute("UPDATE bank SET layout = ?", (json.dumps(expected),))
            if memory.layout != expected:
                raise InputError(
                    f"{entry.name}: expected memories of {expected}, as the others of this bank, "
                    f"got {memory.layout}"
                )


def _require_memories(entry: DocumentEntry) -> None:
    if not entry.memories:
        raise InputError(f"{entry.name}: expected at least one compressed piece, got none")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _derived_id(sqlite: sqlite3.Connection, content_hash: str) -> str:
    """An id made from the text; numbered where someone else took it by name."""
    prefix = content_hash[:_DERIVED_ID_CHARS]
    candidates = itertools.chain([prefix], (f"{prefix}-{n}" for n in itertools.count(2)))
    taken = "SELECT 1 FROM documents WHERE id = ?"
    return next(c for c in candidates if sqlite.execute(taken, (c,)).fetchone() is None)


def _write_document(
    sqlite: sqlite3.Connection, statement: str, document_id: str, entry: DocumentEntry, at: str
) -> None:
    fields = (entry.title, entry.date, entry.source, entry.metadata, at, entry.content_hash)
    guard = document_checksum(document_id, *fields)
    sqlite.execute(statement, (*fields, guard, entry.text, document_id))


def _refresh_fields(sqlite: sqlite3.Connection, document_id: str, entry: DocumentEntry) -> None:
    """Take over title, date, source and metadata where they differ; the memories stay."""
    *stored, added_at = sqlite.execute(
        "SELECT title, date, source, metadata, added_at FROM documents WHERE id = ?", (document_id,)
    ).fetchone()
    if stored != [entry.title, entry.date, entry.source, entry.metadata]:
        _write_document(sqlite, _UPDATE, document_id, entry, added_at)


def _insert_memories(sqlite: sqlite3.Connection, document_id: str, entry: DocumentEntry) -> None:
    (number,) = sqlite.execute(
        "SELECT number FROM documents WHERE id = ?", (document_id,)
    ).fetchone()
    memory_ids = _next_changes(sqlite, len(entry.memories))
    for memory_id, memory in zip(memory_ids, entry.memories, strict=True):
        sqlite.execute(
            "INSERT INTO memories (memory_id, document, start_char, end_char, tokens, dtype, "
            "shape, memory_bytes, checksum, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
