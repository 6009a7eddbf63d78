"""The statements that read a bank; each function runs inside a read transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import torch

from cmt.bank import reachable
from cmt.bank.condition import condition
from cmt.bank.connection import is_damage
from cmt.bank.records import MemorySource
from cmt.bank.rows import (
    SELECT_DOCUMENT,
    SELECT_MEMORY,
    Row,
    corrupt,
    encoded_piece,
    shape_from_text,
    stored_document,
    stored_memory,
    vectors_from_bytes,
)
from cmt.errors import CorruptRecordError, UnknownIdError
from cmt.records import DEFAULT_NAMESPACE, EncodedPiece, StoredDocument, StoredMemory
from cmt.selection import Selection

Entry = tuple[StoredDocument, list[EncodedPiece]]

_LARGEST_ID = 2**63 - 1  # SQLite's integers


def find_numbers(sqlite: sqlite3.Connection, document_id: str, namespace: str) -> list[int]:
    """The numbers of the versions of a document as they follow in time, the latest last."""
    try:
        f"{document_id}{namespace}".encode()
    except UnicodeEncodeError:  # SQLite can't hold it, so no document has it
        return []
    rows = sqlite.execute(
        "SELECT number FROM documents WHERE id = ? AND namespace = ? "
        "ORDER BY superseded_at IS NULL, ends(superseded_at), "
        "min(known_from(date, added_at), ends(superseded_at)), number",
        (document_id, namespace),
    )
    return [number for (number,) in rows.fetchall()]


def read_versions(
    sqlite: sqlite3.Connection, document_id: str, namespace: str
) -> list[StoredDocument]:
    """Every version of the document with this id, the latest last.

    Raises:
        UnknownIdError: There is none.
        CorruptRecordError: One is not as it was written.
    """
    numbers = find_numbers(sqlite, document_id, namespace)
    if not numbers:
        where = "" if namespace == DEFAULT_NAMESPACE else f" in namespace {namespace!r}"
        raise UnknownIdError(f"no document with id {document_id!r} is in the bank{where}")
    return [_version(sqlite, document_id, number) for number in numbers]


def read_document(sqlite: sqlite3.Connection, document_id: str, namespace: str) -> StoredDocument:
    """The document with this id; raises as `read_versions`."""
    return read_versions(sqlite, document_id, namespace)[-1]


def _version(sqlite: sqlite3.Connection, document_id: str, number: int) -> StoredDocument:
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


def read_vectors(sqlite: sqlite3.Connection, memory_ids: Sequence[int]) -> list[torch.Tensor]:
    """Vectors (K, V) of each memory for late interaction, tensors left alone.

    Raises:
        UnknownIdError: There is no memory with one of the ids.
        CorruptRecordError: One's vectors are cut or gone.
    """
    found = []
    for memory_id in memory_ids:
        _check_id(memory_id)
        query = "SELECT vectors, shape FROM memories WHERE memory_id = ?"
        row = _row(sqlite, query, memory_id, None, memory_id)
        if row is None:
            raise _no_memory(memory_id)
        try:
            found.append(vectors_from_bytes(row[0] or b"", shape_from_text(row[1])))
        except (TypeError, ValueError, IndexError) as error:
            raise corrupt(
                _owner(sqlite, memory_id), memory_id, "its vectors are cut or gone"
            ) from error
    return found


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
        query = "SELECT document, start_char, end_char FROM memories WHERE memory_id = ?"
        place = _row(sqlite, query, memory_id, None, memory_id)
        if place is None:
            raise _no_memory(memory_id)
        number, start, end = place
        if number not in documents:
            documents[number] = _document_of(sqlite, memory_id, number)
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
                namespace=document.namespace,
            )
        )
    return sources


def read_version(sqlite: sqlite3.Connection, number: int) -> StoredDocument | None:
    """The version with this number, None when it is gone; raises as `read_entry`."""
    row = _row(sqlite, f"{SELECT_DOCUMENT} WHERE number = ?", number, None, None)
    return None if row is None else stored_document(row)


def read_numbers(sqlite: sqlite3.Connection) -> list[int]:
    """The numbers of all versions, in insertion order; those that can be reached."""
    return sorted(reachable.documents(sqlite)[0])


def read_entry(sqlite: sqlite3.Connection, number: int) -> Entry | None:
    """A version with its pieces, as they were added; None when it is gone.

    Raises:
        CorruptRecordError: Something of it is not as it was written.
    """
    document = read_version(sqlite, number)
    if document is None:
        return None
    ids = sqlite.execute(
        "SELECT memory_id FROM memories INDEXED BY memories_by_document WHERE document = ?",
        (number,),
    ).fetchall()
    pieces = []
    for (memory_id,) in sorted(ids):
        own = _row(sqlite, SELECT_MEMORY, memory_id, document.id, memory_id)
        if own is None:
            raise corrupt(document.id, memory_id, "its record is gone")
        pieces.append(encoded_piece(own))
    return document, pieces


def _document_of(sqlite: sqlite3.Connection, memory_id: int, number: int) -> StoredDocument:
    row = _row(sqlite, f"{SELECT_DOCUMENT} WHERE number = ?", number, None, memory_id)
    if row is None:
        raise corrupt(None, memory_id, "its document is gone")
    try:
        return stored_document(row)
    except CorruptRecordError as error:
        error.memory_id = memory_id
        raise


def count_by_size(sqlite: sqlite3.Connection, number: int | None = None) -> dict[int, int]:
    """How many memories, of one version or of all, there are of each number of tokens K.

    A damaged shape counts for none.
    """
    where, values = ("", ()) if number is None else ("WHERE document = ?", (number,))
    size = "CASE WHEN json_valid(shape) THEN json_extract(shape, '$[3]') END"
    query = f"SELECT {size}, count(*) FROM memories {where} GROUP BY 1 ORDER BY 1"  # noqa: S608
    rows = sqlite.execute(query, values)
    return {K: count for K, count in rows.fetchall() if isinstance(K, int)}


def read_document_rows(
    sqlite: sqlite3.Connection, selection: Selection | None, after: int, how_many: int, offset: int
) -> list[Row]:
    """Rows of `SELECT_DOCUMENT` in insertion order, the document's number last.

    Without a selection: the latest version of each, expired or still to come too.
    """
    where, values = condition(selection)
    query = f"{SELECT_DOCUMENT} WHERE {where} AND number > ? ORDER BY number LIMIT ? OFFSET ?"
    rows = (*values, after, how_many, min(offset, _LARGEST_ID))
    return sqlite.execute(query, rows).fetchall()


def count_documents(sqlite: sqlite3.Connection, selection: Selection | None) -> int:
    """How many versions `read_document_rows` would give in all."""
    where, values = condition(selection)
    query = f"SELECT count(*) FROM documents WHERE {where}"  # noqa: S608
    return int(sqlite.execute(query, values).fetchone()[0])


def _check_id(memory_id: int) -> None:
    if not 0 < memory_id <= _LARGEST_ID:
        raise _no_memory(memory_id)


def _no_memory(memory_id: int) -> UnknownIdError:
    return UnknownIdError(f"no memory with id {memory_id} is in the bank")
