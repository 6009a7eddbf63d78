"""The statements that read a bank; each function runs inside a read transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np

from cmt.bank.connection import is_damage
from cmt.bank.records import KeyChanges, MemorySource
from cmt.bank.rows import (
    SELECT_DOCUMENT,
    SELECT_MEMORY,
    Row,
    corrupt,
    stored_document,
    stored_memory,
)
from cmt.errors import InputError, UnknownIdError
from cmt.records import StoredDocument, StoredMemory

_KEYS_AT_ONCE = 1024
_LARGEST_ID = 2**63 - 1  # SQLite's integers


def find_number(sqlite: sqlite3.Connection, document_id: str) -> int | None:
    """The number of the document with this id, None when there is none."""
    try:
        document_id.encode()
    except UnicodeEncodeError:  # SQLite can't hold it, so no document has it
        return None
    row = sqlite.execute("SELECT number FROM documents WHERE id = ?", (document_id,)).fetchone()
    return None if row is None else int(row[0])


def read_document(sqlite: sqlite3.Connection, document_id: str) -> StoredDocument:
    """The document with this id.

    Raises:
        UnknownIdError: There is none.
        CorruptRecordError: It is not as it was written.
    """
    number = find_number(sqlite, document_id)
    if number is None:
        raise UnknownIdError(f"no document with id {document_id!r} is in the bank")
    row = _row(sqlite, f"{SELECT_DOCUMENT} WHERE number = ?", number, document_id, None)
    if row is None:
        raise corrupt(document_id, None, "its record is gone")
    return stored_document(row)


def read_memory(sqlite: sqlite3.Connection, memory_id: int) -> StoredMemory:
    """One memory with its tensor, checksum verified.

    Raises:
        UnknownIdError: There is none with this id.
        CorruptRecordError: It is not as it was written.
    """
    _check_id(memory_id)
    row = _row(sqlite, SELECT_MEMORY, memory_id, None, memory_id)
    if row is None:
        raise _no_memory(memory_id)
    return stored_memory(row)


def _row(
    sqlite: sqlite3.Connection,
    query: str,
    value: int,
    document_id: str | None,
    memory_id: int | None,
) -> Row | None:
    """The one row of a query; a broken page becomes an error that names the record it hit."""
    try:
        row: Row | None = sqlite.execute(query, (value,)).fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        if memory_id is not None:
            document_id = _owner(sqlite, memory_id)
        raise corrupt(document_id, memory_id, f"it can't be read ({error})") from error
    return row


def _owner(sqlite: sqlite3.Connection, memory_id: int) -> str | None:
    """The id of the document of a memory whose tensor is unreadable, if that can be told."""
    query = "SELECT id FROM documents, memories WHERE number = document AND memory_id = ?"
    try:
        row = sqlite.execute(query, (memory_id,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    return None if row is None else str(row[0])


def read_sources(sqlite: sqlite3.Connection, memory_ids: Sequence[int]) -> list[MemorySource]:
    """Document and excerpt of each memory, tensors left alone.

    Raises:
        UnknownIdError: There is no memory with one of the ids.
        CorruptRecordError: A document is not as it was written.
    """
    documents: dict[int, StoredDocument] = {}
    sources = []
    for memory_id in memory_ids:
        _check_id(memory_id)
        place = sqlite.execute(
            "SELECT document, start_char, end_char FROM memories WHERE memory_id = ?", (memory_id,)
        ).fetchone()
        if place is None:
            raise _no_memory(memory_id)
        number, start, end = place
        if number not in documents:
            row = sqlite.execute(f"{SELECT_DOCUMENT} WHERE number = ?", (number,)).fetchone()
            if row is None:
                raise corrupt(None, memory_id, "its document is gone")
            documents[number] = stored_document(row)
        document = documents[number]
        sources.append(
            MemorySource(
                memory_id=memory_id,
                document_id=document.id,
                title=document.title,
                date=document.date,
                source=document.source,
                start=start,
                end=end,
                excerpt=document.text[start:end],
            )
        )
    return sources


def read_document_rows(
    sqlite: sqlite3.Connection, after: int, how_many: int, offset: int
) -> list[Row]:
    """Rows of `SELECT_DOCUMENT` in insertion order, the document's number last."""
    query = f"{SELECT_DOCUMENT} WHERE number > ? ORDER BY number LIMIT ? OFFSET ?"
    return sqlite.execute(query, (after, how_many, min(offset, _LARGEST_ID))).fetchall()


def read_key_changes(sqlite: sqlite3.Connection, cursor: int, limit: int | None) -> KeyChanges:
    """What became of the keys since the cursor; see `Bank.key_changes`."""
    last = int(sqlite.execute("SELECT last_change FROM bank").fetchone()[0])
    if not 0 <= cursor <= last:
        raise InputError(f"expected a cursor of this bank, from 0 to {last}, got {cursor}")
    ids: list[int] = []
    keys: list[np.ndarray] = []
    rows = sqlite.execute(
        "SELECT memory_id, key FROM memories WHERE memory_id > ? ORDER BY memory_id LIMIT ?",
        (cursor, -1 if limit is None else limit),
    )
    while cursor < last and (batch := rows.fetchmany(_KEYS_AT_ONCE)):
        size = keys[0].shape[1] if keys else len(batch[0][1]) // 4
        for memory_id, key in batch:
            if not isinstance(key, bytes) or len(key) != 4 * size:
                raise corrupt(_owner(sqlite, memory_id), memory_id, "its key is cut or gone")
        ids.extend(memory_id for memory_id, _ in batch)
        raw = b"".join(key for _, key in batch)
        keys.append(np.frombuffer(raw, dtype=np.float32).reshape(len(batch), size))
    complete = limit is None or len(ids) < limit
    upto = last if complete else ids[-1]
    removed = sqlite.execute(
        "SELECT memory_id FROM removals WHERE change > ? AND change <= ? ORDER BY change",
        (cursor, upto if cursor > 0 else 0),  # from the start, nothing was known to be removed
    ).fetchall()
    return KeyChanges(
        cursor=upto,
        added_ids=ids,
        added_keys=np.concatenate(keys) if keys else np.empty((0, 0), np.float32),
        removed_ids=[memory_id for (memory_id,) in removed],
        complete=complete,
    )


def _check_id(memory_id: int) -> None:
    if not 0 < memory_id <= _LARGEST_ID:
        raise _no_memory(memory_id)


def _no_memory(memory_id: int) -> UnknownIdError:
    return UnknownIdError(f"no memory with id {memory_id} is in the bank")
