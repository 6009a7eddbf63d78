"""The records of a damaged file that can still be reached.

Each list is read from the table and from an index, which lie on different pages of the file:
where one is damaged the other still names the records.
"""

from __future__ import annotations

import sqlite3
from typing import Any

_DOCUMENTS = (
    "SELECT number, id FROM documents INDEXED BY documents_by_id",
    "SELECT number, id FROM documents NOT INDEXED",
)
_MEMORIES = (
    "SELECT memory_id, document FROM memories INDEXED BY memories_by_document",
    "SELECT memory_id, document FROM memories NOT INDEXED",
)

Listing = tuple[dict[int, Any], list[sqlite3.DatabaseError]]


def documents(sqlite: sqlite3.Connection) -> Listing:
    """Number -> id of the versions of documents, and what was met on the way."""
    return _listing(sqlite, _DOCUMENTS)


def memories(sqlite: sqlite3.Connection) -> Listing:
    """Memory id -> number of its document, and what was met on the way."""
    return _listing(sqlite, _MEMORIES)


def _listing(sqlite: sqlite3.Connection, queries: tuple[str, ...]) -> Listing:
    """Record number -> owner, from every row that any of the queries still reaches."""
    found: dict[int, Any] = {}
    errors = []
    for query in queries:
        try:
            for number, owner in sqlite.execute(query):
                found.setdefault(number, owner)
        except sqlite3.DatabaseError as error:
            errors.append(error)
    return found, errors
