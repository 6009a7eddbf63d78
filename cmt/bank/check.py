"""The search for damage in a bank's file: every checksum, and past each damage to the next."""

from __future__ import annotations

import sqlite3
from typing import Any

from cmt.bank.records import Problem
from cmt.bank.rows import SELECT_DOCUMENT, SELECT_MEMORY, document_damage, memory_damage

# Each list is read from the table and from an index, which lie on different pages of the
# file: where one is damaged the other still names the records.
_DOCUMENTS = (
    "SELECT number, id FROM documents INDEXED BY documents_by_id",
    "SELECT number, id FROM documents NOT INDEXED",
)
_MEMORIES = (
    "SELECT memory_id, document FROM memories INDEXED BY memories_by_document",
    "SELECT memory_id, document FROM memories NOT INDEXED",
)
_MOST_FILE_PROBLEMS = 20


def find_problems(sqlite: sqlite3.Connection) -> list[Problem]:
    """Every damage in the file, with the document and memory it hit where that can be told.

    Call it inside a read transaction, so that the lists and the records are of one moment.
    """
    problems: list[Problem] = []
    _check_file(sqlite, problems)
    documents = _listing(sqlite, _DOCUMENTS, "documents", problems)
    for number, document_id in documents.items():
        reason = _document_problem(sqlite, number)
        if reason is not None:
            problems.append(Problem(document_id, None, reason))
    memories = _listing(sqlite, _MEMORIES, "memories", problems)
    for memory_id, number in memories.items():
        reason = _memory_problem(sqlite, memory_id)
        if reason is not None:
            problems.append(Problem(documents.get(number), memory_id, reason))
    return problems


def _check_file(sqlite: sqlite3.Connection, problems: list[Problem]) -> None:
    """SQLite's own check of pages and indexes."""
    try:
        found = sqlite.execute(f"PRAGMA integrity_check({_MOST_FILE_PROBLEMS})").fetchall()
    except sqlite3.DatabaseError as error:
        found = [(str(error),)]
    problems.extend(Problem(None, None, text) for (text,) in found if text != "ok")


def _listing(
    sqlite: sqlite3.Connection, queries: tuple[str, ...], what: str, problems: list[Problem]
) -> dict[int, Any]:
    """Record number -> owner, from every row that any of the queries still reaches."""
    found: dict[int, Any] = {}
    for query in queries:
        try:
            for number, owner in sqlite.execute(query):
                found.setdefault(number, owner)
        except sqlite3.DatabaseError as error:
            problems.append(Problem(None, None, f"the list of {what} is damaged: {error}"))
    return found


def _document_problem(sqlite: sqlite3.Connection, number: int) -> str | None:
    try:
        row = sqlite.execute(f"{SELECT_DOCUMENT} WHERE number = ?", (number,)).fetchone()
    except sqlite3.DatabaseError as error:
        return f"it can't be read: {error}"
    return "its record is gone" if row is None else document_damage(row)


def _memory_problem(sqlite: sqlite3.Connection, memory_id: int) -> str | None:
    try:
        row = sqlite.execute(SELECT_MEMORY, (memory_id,)).fetchone()
    except sqlite3.DatabaseError as error:
        return f"it can't be read: {error}"
    return "its record is gone" if row is None else memory_damage(row)
