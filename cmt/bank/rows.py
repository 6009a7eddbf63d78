"""Rows of the bank read back into records, and the test of their checksums."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from cmt.bank.tensor_bytes import (
    TIERS,
    checksum,
    fast_checksum,
    is_checksum,
    memory_from_bytes,
    tensor_from_bytes,
    text_hash,
)
from cmt.errors import CorruptRecordError
from cmt.records import DEFAULT_NAMESPACE, EncodedPiece, StoredDocument, StoredMemory

Row = tuple[Any, ...]

SELECT_DOCUMENT = """
SELECT id, title, date, source, metadata, added_at, namespace, tags, expires_at, superseded_at,
    content_hash, checksum, text,
    (SELECT count(*) FROM memories WHERE document = number),
    (SELECT coalesce(sum(memory_bytes), 0) FROM memories WHERE document = number),
    number
FROM documents
"""

SELECT_MEMORY = """
SELECT documents.id, memory_id, start_char, end_char, tokens, dtype, shape, memories.checksum,
    documents.content_hash, key, data, vectors
FROM memories
LEFT JOIN documents ON number = document
LEFT JOIN tensors USING (memory_id)
WHERE memory_id = ?
"""


_LATER_DEFAULTS = (DEFAULT_NAMESPACE, "[]", None, None)


def document_checksum(fields: Sequence[str | None], content_hash: str) -> bytes:
    """Guards the content hash, which guards the text, and the fields of `SELECT_DOCUMENT`.

    That is id, title, date, source, metadata, added_at, and then those that schema 2 added:
    namespace, tags, expires_at, superseded_at. These count only where one is not at its default,
    so that the checksums of schema 1 still hold.
    """
    first, later = tuple(fields[:6]), tuple(fields[6:])
    return checksum((*first, content_hash, *(later if later != _LATER_DEFAULTS else ())))


def memory_checksum(
    start: int,
    end: int,
    tokens: int,
    dtype: str,
    shape: str,
    content_hash: str,
    *data: bytes | None,
) -> bytes:
    """Guards a memory: `data` is the bytes of its key, its tensor and, if it has any, its vectors.

    The hash binds it to a text.
    """
    return fast_checksum((start, end, tokens, dtype, shape, content_hash), *_there(data))


def _there(data: Sequence[bytes | None]) -> list[bytes]:
    return [part for part in data if part is not None]  # without vectors as in schema 1


def document_damage(row: Row) -> str | None:
    """What is wrong with a row of `SELECT_DOCUMENT`, None when it is as it was written."""
    *fields, content_hash, stored, text = row[:13]
    if document_checksum(fields, content_hash) != stored:
        return "its fields don't match their checksum"
    if not isinstance(text, str) or text_hash(text) != content_hash:
        return "its text doesn't match its checksum"
    return None


def stored_document(row: Row) -> StoredDocument:
    """The document of a row of `SELECT_DOCUMENT`.

    Raises:
        CorruptRecordError: The row is not as it was written.
    """
    damage = document_damage(row)
    if damage is not None:
        raise corrupt(row[0], None, damage)
    return StoredDocument(
        id=row[0],
        title=row[1],
        date=row[2],
        source=row[3],
        metadata=json.loads(row[4]),
        added_at=row[5],
        namespace=row[6],
        tags=tuple(json.loads(row[7])),
        expires_at=row[8],
        superseded_at=row[9],
        text=row[12],
        memories=row[13],
        memory_bytes=row[14],
    )


def memory_damage(row: Row) -> str | None:
    """What is wrong with a row of `SELECT_MEMORY`, None when it is as it was written."""
    _, _, start, end, tokens, dtype, shape, stored, content_hash, key, data, vectors = row
    if content_hash is None:
        return "its document is gone"
    if not isinstance(key, bytes) or not isinstance(data, bytes):
        return "its key or its tensor is gone"
    fields = (start, end, tokens, dtype, shape, content_hash)
    if not is_checksum(stored, fields, *_there((key, data, vectors))):
        return "its bytes don't match their checksum"
    return None


def stored_memory(row: Row) -> StoredMemory:
    """The memory of a row of `SELECT_MEMORY`.

    Raises:
        CorruptRecordError: The row is not as it was written.
    """
    damage = memory_damage(row)
    if damage is not None:
        raise corrupt(row[0], row[1], damage)
    return StoredMemory(
        document_id=row[0],
        memory_id=row[1],
        start=row[2],
        end=row[3],
        tokens=row[4],
        memory=memory_from_bytes(row[10], shape_from_text(row[6]), row[5]),
    )


def encoded_piece(row: Row) -> EncodedPiece:
    """The memory of a row of `SELECT_MEMORY` with its key, as it was added; raises as above."""
    memory = stored_memory(row)
    return EncodedPiece(
        start=memory.start,
        end=memory.end,
        tokens=memory.tokens,
        key=tensor_from_bytes(row[9], [len(row[9]) // 4], "float32"),
        memory=memory.memory,
        stored=(row[5], row[10]) if row[5] in TIERS else None,
        vectors=None if row[11] is None else vectors_from_bytes(row[11], shape_from_text(row[6])),
    )


@lru_cache(maxsize=64)  # a bank has a few, read a hundred times a question
def shape_from_text(shape: str) -> tuple[int, ...]:
    """A tensor's shape as it is stored, a JSON list.

    Raises:
        ValueError: It is none.
    """
    return tuple(json.loads(shape))


def vectors_from_bytes(data: bytes, memory_shape: Sequence[int]) -> torch.Tensor:
    """The vectors (K, V) of a memory of shape (L, 2, G, K, E).

    Raises:
        ValueError: They are not of one length.
    """
    size, rest = divmod(len(data), 2 * memory_shape[3])
    if rest or not size:
        raise ValueError(f"expected {memory_shape[3]} vectors, got {len(data)} bytes")
    return tensor_from_bytes(data, (memory_shape[3], size), "bfloat16")


def corrupt(document_id: str | None, memory_id: int | None, reason: str) -> CorruptRecordError:
    """The error that names a damaged record and says what to do about it."""
    name = "an unknown document" if document_id is None else f"document {document_id!r}"
    if memory_id is not None:
        name += f", memory {memory_id}"
    error = CorruptRecordError(
        f"{name}: {reason}; delete the document and add it again, or restore a copy of the bank"
    )
    error.document_id, error.memory_id = document_id, memory_id
    return error
