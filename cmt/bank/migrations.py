"""The bank's schema, as the list of steps that made it.

Append only: a step that was released never changes, because banks on users' disks have
already taken it. `PRAGMA user_version` counts the steps a file has taken.
"""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x636D7462  # "cmtb": tells a bank from other SQLite files

_FIRST = (
    # One row. `last_change` numbers every memory and every removal, so that one cursor
    # follows both and a memory id is never used twice. `layout`: what all memories share,
    # as a JSON list, from the first memory on.
    """
    CREATE TABLE bank (
        base_model TEXT NOT NULL,
        compressor TEXT NOT NULL,
        last_change INTEGER NOT NULL,
        layout TEXT
    )
    """,
    """
    CREATE TABLE documents (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        date TEXT,
        source TEXT NOT NULL,
        metadata TEXT NOT NULL,
        added_at TEXT NOT NULL,
        content_hash TEXT NOT NULL,
        checksum BLOB NOT NULL,
        text TEXT NOT NULL
    )
    """,
    "CREATE INDEX documents_by_content ON documents (content_hash)",
    # shape: the tensor's (L, 2, G, K, E) as a JSON list.
    """
    CREATE TABLE memories (
        memory_id INTEGER PRIMARY KEY AUTOINCREMENT,
        document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
        start_char INTEGER NOT NULL,
        end_char INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        dtype TEXT NOT NULL DEFAULT 'bfloat16',
        shape TEXT NOT NULL,
        memory_bytes INTEGER NOT NULL,
        checksum BLOB NOT NULL,
        key BLOB NOT NULL
    )
    """,
    "CREATE INDEX memories_by_document ON memories (document, memory_bytes)",
    # Apart from `memories`, so that scanning keys does not step over the big tensors.
    """
    CREATE TABLE tensors (
        memory_id INTEGER PRIMARY KEY REFERENCES memories (memory_id) ON DELETE CASCADE,
        data BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE removals (
        change INTEGER PRIMARY KEY,
        memory_id INTEGER NOT NULL
    )
    """,
)

# Namespaces, tags, expiry and history: an id is unique among the versions in force of a namespace.
# SQLite can't drop a UNIQUE from a table, so documents move to a new one; `migrate` is called
# with foreign keys off, lest dropping the old one takes the memories along.
# `touched` is the change that last altered a document's fields, in the sequence of `last_change`.
_LIFE_CYCLE = (
    """
    CREATE TABLE moved_documents (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        namespace TEXT NOT NULL DEFAULT 'default',
        title TEXT NOT NULL,
        date TEXT,
        source TEXT NOT NULL,
        metadata TEXT NOT NULL,
        tags TEXT NOT NULL DEFAULT '[]',
        added_at TEXT NOT NULL,
        expires_at TEXT,
        superseded_at TEXT,
        touched INTEGER NOT NULL DEFAULT 0,
        content_hash TEXT NOT NULL,
        checksum BLOB NOT NULL,
        text TEXT NOT NULL
    )
    """,
    """
    INSERT INTO moved_documents
        (number, id, title, date, source, metadata, added_at, content_hash, checksum, text)
    SELECT number, id, title, date, source, metadata, added_at, content_hash, checksum, text
    FROM documents ORDER BY number
    """,
    "DROP TABLE documents",
    "ALTER TABLE moved_documents RENAME TO documents",
    "CREATE INDEX documents_by_id ON documents (id, namespace)",
    "CREATE UNIQUE INDEX documents_in_force ON documents (id, namespace) "
    "WHERE superseded_at IS NULL",
    "CREATE INDEX documents_by_content ON documents (content_hash)",
    "CREATE INDEX documents_by_change ON documents (touched)",
)

# How memories are stored: "bf16" (as they come) or "int8".
_TIER = ("ALTER TABLE bank ADD COLUMN tier TEXT NOT NULL DEFAULT 'bf16'",)

# Vectors of the memory tokens for late interaction, bfloat16; NULL for a compressor without. The
# last column, so that scanning keys does not step over it.
_VECTORS = ("ALTER TABLE memories ADD COLUMN vectors BLOB",)

# New memories have another checksum (`fast_checksum`), which earlier software takes for damage.
_XXH3: tuple[str, ...] = ()

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _LIFE_CYCLE, _TIER, _VECTORS, _XXH3)


def schema_version(connection: sqlite3.Connection) -> int:
    """How many migrations the file has taken."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def readable_schema() -> int:
    """The oldest schema that is read as it is: no step from there on changes a table."""
    readable = len(MIGRATIONS)
    while readable and not MIGRATIONS[readable - 1]:
        readable -= 1
    return readable


def migrate(connection: sqlite3.Connection) -> None:
    """Take the steps the file lacks; call it inside a write transaction, foreign keys off."""
    for step in MIGRATIONS[schema_version(connection) :]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
