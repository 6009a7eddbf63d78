"""The small results that the memory bank hands out, beside those of `cmt.records`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cmt.records import DEFAULT_NAMESPACE
from cmt.selection import Fields

Status = Literal["added", "updated", "unchanged"]
Standing = Literal["new", "unchanged", "changed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `Bank.add` did with one document; `id` is its id in the bank.

    Attributes:
        memories, memory_bytes: What was written, in records and bytes of memory tensor as stored;
            they don't count in comparisons.
    """

    id: str
    status: Status
    memories: int = field(default=0, compare=False)
    memory_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a bank holds: documents, and memories, superseded versions' too."""

    documents: int
    memories: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """How much a bank holds, and where the bytes are.

    Attributes:
        memory_bytes, key_bytes: Bytes of memory tensors, and of keys with the vectors of late
            interaction.
        text_bytes: Bytes of the documents' texts in UTF-8.
        file_bytes: Size on disk of the bank's file and its write-ahead log.
        superseded: Versions before the latest; `documents` doesn't count them, the bytes do.
        expired: Documents that have expired, `Bank.purge` deletes them.
        namespaces: The collections that documents belong to, sorted.
        memory_tokens: How many memories there are of each number of tokens K, ascending.
    """

    documents: int
    memories: int
    memory_bytes: int
    key_bytes: int
    text_bytes: int
    file_bytes: int
    superseded: int = 0
    expired: int = 0
    namespaces: tuple[str, ...] = ()
    memory_tokens: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanges:
    """What became of a bank's keys since a cursor.

    Attributes:
        cursor: Pass it to the next `Bank.key_changes`.
        added_ids: Memory ids, n of them, ascending.
        added_keys: Their keys, float32, shape (n, C); (0, 0) when n is 0.
        added_fields: What each of them is selected by.
        changed: Memory ids whose document's fields may have changed, with those fields.
        removed_ids: Memory ids that are gone; some may never have been reported as added.
        complete: False when a limit cut the added ones short: ask again from `cursor`.
    """

    cursor: int
    added_ids: list[int]
    added_keys: np.ndarray
    added_fields: list[Fields]
    changed: list[tuple[int, Fields]]
    removed_ids: list[int]
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySource:
    """Where a memory came from; `excerpt` is the text between the offsets `start` and `end`."""

    memory_id: int
    document_id: str
    title: str
    date: str | None
    source: str
    start: int
    end: int
    excerpt: str
    namespace: str = DEFAULT_NAMESPACE


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage that `Bank.verify` found; the ids are None where it belongs to no record."""

    document_id: str | None
    memory_id: int | None
    reason: str

    def __str__(self) -> str:
        where = [] if self.document_id is None else [f"document {self.document_id!r}"]
        if self.memory_id is not None:
            where.append(f"memory {self.memory_id}")
        return f"{', '.join(where) or 'file'}: {self.reason}"
