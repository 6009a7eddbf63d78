"""The search for damage in a bank's file: every checksum, and past each damage to the next."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from cmt.bank import reachable
from cmt.bank.records import Problem
from cmt.bank.rows import SELECT_DOCUMENT, SELECT_MEMORY, document_damage, memory_damage

_MOST_FILE_PROBLEMS = 20


def find_problems(sqlite: sqlite3.Connection, on_record: Callable[[], object]) -> list[Problem]:
    """Every damage in the file, with the document and memory it hit where that can be told.

    Call it inside a read transaction, so that the lists and the records are of one moment. What
    `on_record` raises, called before each record is read, ends it.
    """
    problems: list[Problem] = []
    _check_file(sqlite, problems)
    documents = _listed(reachable.documents(sqlite), "documents", problems)
    for number, document_id in documents.items():
        on_record()
        reason = _document_problem(sqlite, number)
        if reason is not None:
            problems.append(Problem(document_id, None, reason))
    memories = _listed(reachable.memories(sqlite), "memories", problems)
    for memory_id, number in memories.items():
        on_record()
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


def _listed(listing: reachable.Listing, what: str, problems: list[Problem]) -> dict[int, Any]:
    found, errors = listing
    problems.extend(
        Problem(None, None, f"the list of {what} is damaged: {error}") for error in errors
    )
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
