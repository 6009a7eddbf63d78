"""Reading keys, what they are selected by, and what became of them; inside a read transaction."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from cmt.bank import reachable
from cmt.bank.connection import is_damage
from cmt.bank.entries import Layout
from cmt.bank.records import KeyChanges
from cmt.bank.rows import Row
from cmt.dates import ends, known_from
from cmt.errors import InputError
from cmt.selection import Fields

_FIELDS = "number, namespace, tags, date, added_at, superseded_at, expires_at"
_KEYS = f"SELECT memory_id, key, {_FIELDS} FROM memories LEFT JOIN documents ON number = document"  # noqa: S608
_TOUCHED = (
    f"SELECT memory_id, {_FIELDS} FROM documents JOIN memories ON number = document "  # noqa: S608
    "WHERE touched > ? AND touched <= ? ORDER BY touched"
)

_logger = logging.getLogger(__name__)


def read_key_changes(sqlite: sqlite3.Connection, cursor: int, limit: int | None) -> KeyChanges:
    """What became of the keys since the cursor; see `Bank.key_changes`."""
    last, layout = sqlite.execute("SELECT last_change, layout FROM bank").fetchone()
    if not 0 <= cursor <= last:
        raise InputError(f"expected a cursor of this bank, from 0 to {last}, got {cursor}")
    ids: list[int] = []
    keys: list[bytes] = []
    fields: list[Fields] = []
    key_bytes = 4 * Layout.parse(layout).key_size if layout is not None else 0
    seen, upto = 0, cursor
    for memory_id, key, *own in _rows(sqlite, cursor, limit) if cursor < last else ():
        seen += 1
        if cursor < memory_id <= last:
            upto = memory_id
        if upto != memory_id or not isinstance(key, bytes) or len(key) != key_bytes:
            _warn(memory_id)
            continue
        ids.append(memory_id)
        keys.append(key)
        fields.append(_fields(own))
    complete = limit is None or seen < limit
    upto = last if complete else upto
    removed: list[Row] = []
    changed: list[Row] = []
    if 0 < cursor < upto:  # from the start, nothing was known to be removed or changed
        removed = sqlite.execute(
            "SELECT memory_id FROM removals WHERE change > ? AND change <= ? ORDER BY change",
            (cursor, upto),
        ).fetchall()
        changed = sqlite.execute(_TOUCHED, (cursor, upto)).fetchall()
    return KeyChanges(
        cursor=upto,
        added_ids=ids,
        added_keys=_matrix(keys),
        added_fields=fields,
        changed=[(memory_id, _fields(own)) for memory_id, *own in changed],
        removed_ids=[memory_id for (memory_id,) in removed],
        complete=complete,
    )


def _rows(sqlite: sqlite3.Connection, cursor: int, limit: int | None) -> Iterator[Row]:
    """Rows of `_KEYS` with ids above the cursor; past broken pages, one by one."""
    most = -1 if limit is None else limit
    given = 0
    try:
        query = f"{_KEYS} WHERE memory_id > ? ORDER BY memory_id LIMIT ?"
        for row in sqlite.execute(query, (cursor, most)):
            yield row
            cursor, given = row[0], given + 1
        return
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
    listed, _ = reachable.memories(sqlite)
    for memory_id in sorted(number for number in listed if number > cursor):
        if given == most:
            return
        row = _row(sqlite, memory_id)
        if row is not None:
            yield row
            given += 1


def _row(sqlite: sqlite3.Connection, memory_id: int) -> Row | None:
    """A row of `_KEYS`, None where its page, or its document's, makes no sense."""
    try:
        row: Row | None = sqlite.execute(f"{_KEYS} WHERE memory_id = ?", (memory_id,)).fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        row = None
    if row is None:
        _warn(memory_id)
    return row


def _warn(memory_id: int) -> None:
    _logger.warning(
        "memory %d can't be read, it can't be matched: Bank.verify() names its document", memory_id
    )


def _fields(row: Sequence[Any]) -> Fields:
    """What a row's columns `_FIELDS` say; a memory whose document is damaged is selected never."""
    number, namespace, labels, date, added_at, superseded_at, expires_at = row
    try:
        tags = _tags(labels)
        hash((number, namespace, tags))
    except (TypeError, ValueError):  # no JSON list of texts
        number = None
    if number is None:
        return Fields(0, "", (), 0.0, 0.0, 0.0)
    return Fields(
        document=number,
        namespace=namespace,
        tags=tags,
        starts=known_from(date, added_at),
        superseded=ends(superseded_at),
        expires=ends(expires_at),
    )


@lru_cache(maxsize=1 << 14)
def _tags(labels: str) -> tuple[str, ...]:
    """A document's tags, from their JSON; many documents have the same."""
    return tuple(json.loads(labels))


def _matrix(keys: list[bytes]) -> np.ndarray:
    """Keys of one length as rows, float32."""
    if not keys:
        return np.empty((0, 0), np.float32)
    return np.frombuffer(b"".join(keys), dtype=np.float32).reshape(len(keys), -1)
