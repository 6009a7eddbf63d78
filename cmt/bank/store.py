"""The durable memory bank: documents, their memories and keys, in one SQLite file.

What `Bank.add` has returned is on disk: it survives a crash of the process or of the machine.
One process writes at a time while others wait for it; any number read meanwhile. Threads may
share a `Bank`; a forked child must open its own. (Past 300 lines: one class, documented; what it
does is in the other files of the package.)
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import torch

from cmt.bank import check, keys, read, write
from cmt.bank.connection import Connection, Mode, check_path, check_still
from cmt.bank.entries import document_entry
from cmt.bank.preparing import prepared
from cmt.bank.records import (
    Counts,
    KeyChanges,
    MemorySource,
    Outcome,
    Problem,
    Standing,
    Stats,
)
from cmt.bank.rows import stored_document
from cmt.bank.tensor_bytes import TIERS, Tier
from cmt.errors import BankError, CorruptRecordError, InputError
from cmt.records import (
    DEFAULT_NAMESPACE,
    Document,
    EncodedPiece,
    Fingerprint,
    StoredDocument,
    StoredMemory,
)
from cmt.selection import Selection

_BUSY_SECONDS = 30.0
_DOCUMENTS_AT_ONCE = 256


class Bank:
    """An open memory bank; make one with `Bank.open`.

    Attributes:
        path: The file.
        fingerprint: The base model and compressor that made its memories.
        read_only: Whether `add`, `delete` and `vacuum` are refused.
        tier: How memories are stored: "bf16" (as they come), "int8" or "int4" (quantization.py).
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        reader: Connection,
        writer: Connection | None,
        *,
        may_add: bool,
        tier: Tier = "bf16",
        busy_seconds: float = _BUSY_SECONDS,
    ) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.read_only = writer is None
        # Two connections, so that readers do not wait while this process writes.
        self._reader = reader
        self._writer = writer
        self.tier = tier
        self._may_add = may_add
        self._busy_seconds = busy_seconds

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        fingerprint: Fingerprint | None,
        *,
        read_only: bool = False,
        tier: Tier | None = None,
        busy_seconds: float = _BUSY_SECONDS,
    ) -> Bank:
        """Open a bank, or create it where there is no file yet.

        Args:
            path: The bank's file; its folder must exist.
            fingerprint: What makes and reads the memories. None accepts an existing bank of
                any fingerprint, to list, delete and check without a model, but not to add.
            read_only: Change nothing; the bank must exist.
            tier: How a bank that is made stores its memories, "bf16" unless given; an existing
                bank must be of the tier given.
            busy_seconds: How long a write waits for another process that is writing.

        Raises:
            InputError: There is no such tier.
            FingerprintMismatchError: The bank's memories were made by other weights.
            BankError: It is of another tier; or the path, the file or its permissions don't
                allow it; says which.
        """
        path = Path(path)
        if tier is not None and tier not in TIERS:
            raise InputError(f"expected a tier out of {', '.join(TIERS)}, got {tier!r}")
        check_path(path, must_exist=read_only or fingerprint is None, read_only=read_only)
        with ExitStack() as undo:
            writer = None
            if not read_only:
                mode: Mode = "rw" if fingerprint is None else "rwc"
                writer = undo.enter_context(closing(Connection(path, mode, busy_seconds)))
                writer.prepare(fingerprint, tier or "bf16")
            reader = undo.enter_context(closing(Connection(path, "ro", busy_seconds)))
            reader.recognise()
            found = reader.check_fingerprint(fingerprint)
            with reader.reading() as sqlite:
                (stored,) = sqlite.execute("SELECT tier FROM bank").fetchone()
            if tier is not None and stored != tier:
                raise BankError(f"expected a bank of tier {tier!r}, got {path} of {stored!r}")
            undo.pop_all()
        return cls(
            path,
            found,
            reader,
            writer,
            may_add=fingerprint is not None,
            tier=stored,
            busy_seconds=busy_seconds,
        )

    def close(self) -> None:
        """Close the file; any later call but this one raises `BankError`."""
        self._reader.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        entries: Sequence[tuple[Document, Iterable[EncodedPiece]]],
        *,
        known_only: bool = False,
    ) -> list[Outcome]:
        """Store documents with their compressed pieces, all of them or none; durable on return.

        A document's content is its text alone. Where the bank meets a document

        - with an id it doesn't hold: "added";
        - with an id it holds with another text: the new text and memories replace the old
          in the same transaction, "updated";
        - with an id it holds with the same text: the memories stay and pieces are not needed;
          the other fields are taken over where they differ, "unchanged";
        - with an id it holds, and `supersede`: a version of it with the same text and date
          (without a date: the one that holds now, with the same text) is "unchanged" and keeps its
          date; else the document becomes one more version, "updated", dated now without a date;
        - without id, with a text it doesn't hold: "added" under an id derived from the text;
        - without id, with a text it holds: nothing is written, "unchanged"; `Outcome.id` is
          the id it is held under. (If it had expired, its fields are taken over.)

        What it holds is the latest version in the document's namespace, even one that is still to
        come. With `known_only` nothing is "added": a document that was forgotten meanwhile does not
        come back.

        Pieces that are no sequence are drawn one at a time, before anything is locked or written,
        and any number of them fits (preparing.py).

        Returns:
            One outcome for each entry, in order.

        Raises:
            InputError: A document or piece can't be stored (names it); nothing was written.
            UnknownIdError: With `known_only`, the bank doesn't hold a document.
            BankError: Full disk, locked, read-only; nothing was written, the bank stays usable.
        """
        self._require_fingerprint()
        with (
            prepared(entries, self.tier, self.path.parent) as ready,
            self.writing() as sqlite,
        ):
            write.check_layout(sqlite, ready)
            return [write.put(sqlite, entry, known_only=known_only) for entry in ready]

    def restore(
        self, entries: Sequence[tuple[StoredDocument, Iterable[EncodedPiece]]]
    ) -> list[Outcome]:
        """Store versions as another bank held them, history and dates kept; all or none.

        A version that this bank has already is "unchanged".

        Raises:
            InputError: One can't be stored, or another version under its id holds at its time.
            BankError: As `add`.
        """
        self._require_fingerprint()
        documents = ((own.document(), pieces) for own, pieces in entries)
        with (
            prepared(documents, self.tier, self.path.parent) as ready,
            self.writing() as sqlite,
        ):
            write.check_layout(sqlite, ready)
            (last,) = sqlite.execute("SELECT coalesce(max(number), 0) FROM documents").fetchone()
            return [
                write.restore(sqlite, entry, stored, before=last)
                for entry, (stored, _) in zip(ready, entries, strict=True)
            ]

    def entries(self) -> Iterator[tuple[StoredDocument, list[EncodedPiece]] | Problem]:
        """Every version with its pieces, as `restore` takes them, or the damage that hit it."""
        with self._reader.reading() as sqlite:
            numbers = read.read_numbers(sqlite)
        for number in numbers:
            try:
                with self._reader.reading() as sqlite:
                    entry = read.read_entry(sqlite, number)
            except CorruptRecordError as error:
                yield Problem(error.document_id, error.memory_id, str(error))
            else:
                if entry is not None:
                    yield entry

    def status_of(self, document: Document) -> Standing:
        """Whether `add` would need the document compressed: "new" and "changed" ones it does.

        Raises:
            InputError: The document can't be stored.
        """
        entry = document_entry(document)
        with self._reader.reading() as sqlite:
            write.check_date(sqlite, entry)
            known = write.find(sqlite, entry)
        if known is None:
            return "new"
        return "unchanged" if known.unchanged else "changed"

    def get(self, document_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> StoredDocument:
        """The document with this id, its latest version: maybe one that is still to come.

        Raises:
            UnknownIdError: There is none.
            CorruptRecordError: It is not as it was written.
        """
        with self._reader.reading() as sqlite:
            return read.read_document(sqlite, document_id, namespace)

    def history(
        self, document_id: str, *, namespace: str = DEFAULT_NAMESPACE
    ) -> list[StoredDocument]:
        """Every version of the document with this id as they follow in time, the latest last.

        Raises:
            UnknownIdError: There is none.
            CorruptRecordError: One is not as it was written.
        """
        with self._reader.reading() as sqlite:
            return read.read_versions(sqlite, document_id, namespace)

    def delete(self, document_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Forget a document, its history and memories; False when there is none with this id.

        The bytes are overwritten in the file; copies in its log are gone after `wipe_log`.
        """
        with self._writable().writing() as sqlite:
            return write.remove(sqlite, document_id, namespace)

    def purge(self, *, history: bool = False) -> list[str]:
        """Forget what has expired, and with `history` what was superseded; gives their ids.

        Where the latest version has expired, what it superseded goes with it. A version that holds
        until a later one's day is not history yet.
        """
        with self._writable().writing() as sqlite:
            rows = sqlite.execute(
                "SELECT number, id FROM documents "
                "WHERE ends(expires_at) <= ?1 OR (ends(superseded_at) <= ?1 AND (?2 OR "
                "(id, namespace) IN (SELECT id, namespace FROM documents "
                "WHERE superseded_at IS NULL AND ends(expires_at) <= ?1))) ORDER BY number",
                (time.time(), history),
            ).fetchall()
            for number, _ in rows:
                write.remove_version(sqlite, number)
        return [document_id for _, document_id in rows]

    def documents(
        self,
        *,
        limit: int | None = None,
        offset: int = 0,
        selection: Selection | None = None,
        on_damage: Callable[[CorruptRecordError], object] | None = None,
    ) -> Iterator[StoredDocument]:
        """The documents in the order they were added, skipping `offset`, at most `limit`.

        Args:
            limit: Most documents; None: all.
            offset: So many are passed over first.
            selection: Which ones; None: the latest version of each, expired ones and those still
                to come included.
            on_damage: Told of a document that is not as it was written, which is passed over, but
                counted in `limit`.

        Raises:
            InputError: A negative limit or offset.
            CorruptRecordError: Without `on_damage`, on the way, at a damaged document.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise InputError(f"expected limit and offset >= 0, got {limit} and {offset}")
        return self._documents(limit, offset, selection, on_damage)

    def _documents(
        self,
        limit: int | None,
        offset: int,
        selection: Selection | None,
        on_damage: Callable[[CorruptRecordError], object] | None,
    ) -> Iterator[StoredDocument]:
        after, left = 0, limit
        while left is None or left > 0:
            how_many = _DOCUMENTS_AT_ONCE if left is None else min(left, _DOCUMENTS_AT_ONCE)
            with self._reader.reading() as sqlite:
                rows = read.read_document_rows(sqlite, selection, after, how_many, offset)
            if not rows:
                return
            for row in rows:
                try:
                    document = stored_document(row)
                except CorruptRecordError as error:
                    if on_damage is None:
                        raise
                    on_damage(error)
                else:
                    yield document
            after, offset = rows[-1][-1], 0
            left = None if left is None else left - len(rows)

    def by_source(self, prefix: str, *, namespace: str) -> list[tuple[str, str, str]]:
        """(id, source, content hash) of latest versions whose source begins with a prefix."""
        with self._reader.reading() as sqlite:
            return sqlite.execute(
                "SELECT id, source, content_hash FROM documents WHERE superseded_at IS NULL "
                "AND namespace = ? AND substr(source, 1, ?) = ?",
                (namespace, len(prefix), prefix),
            ).fetchall()

    def count(self) -> Counts:
        """How many documents and memories the bank holds."""
        with self._reader.reading() as sqlite:
            return Counts(
                *sqlite.execute(
                    "SELECT (SELECT count(*) FROM documents WHERE superseded_at IS NULL), "
                    "(SELECT count(*) FROM memories)"
                ).fetchone()
            )

    def count_documents(self, selection: Selection | None = None) -> int:
        """How many documents are selected; None: all of them, as `documents` gives them."""
        with self._reader.reading() as sqlite:
            return read.count_documents(sqlite, selection)

    def stats(self) -> Stats:
        """How much the bank holds and how large it is; reads every text, not the tensors.

        On a connection of its own, so that others go on working.
        """
        with self._apart() as sqlite:
            versions, superseded, text_bytes = sqlite.execute(
                "SELECT count(*), count(superseded_at), "
                "coalesce(sum(length(CAST(text AS BLOB))), 0) FROM documents"
            ).fetchone()
            (expired,) = sqlite.execute(
                "SELECT count(*) FROM documents "
                "WHERE superseded_at IS NULL AND ends(expires_at) <= ?",
                (time.time(),),
            ).fetchone()
            namespaces = sqlite.execute(
                "SELECT DISTINCT namespace FROM documents WHERE superseded_at IS NULL ORDER BY 1"
            ).fetchall()
            memories, memory_bytes, key_bytes = sqlite.execute(
                "SELECT count(*), coalesce(sum(memory_bytes), 0), "
                "coalesce(sum(length(key) + coalesce(length(vectors), 0)), 0) FROM memories"
            ).fetchone()
            sizes = read.count_by_size(sqlite)
        files = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        return Stats(
            documents=versions - superseded,
            memories=memories,
            memory_bytes=memory_bytes,
            key_bytes=key_bytes,
            text_bytes=text_bytes,
            file_bytes=sum(file.stat().st_size for file in files if file.exists()),
            superseded=superseded,
            expired=expired,
            namespaces=tuple(namespace for (namespace,) in namespaces),
            memory_tokens=sizes,
        )

    def key_changes(self, cursor: int, *, limit: int | None = None) -> KeyChanges:
        """The keys added, removed and changed since a cursor, by this process or any other.

        Args:
            cursor: 0 for everything, else the cursor of an earlier `KeyChanges`.
            limit: Most keys to return at once; `KeyChanges.complete` tells whether more follow.

        Raises:
            InputError: The cursor is not of this bank, or limit < 1.
            FingerprintMismatchError: The bank was reindexed with other weights meanwhile.
        """
        if limit is not None and limit < 1:
            raise InputError(f"expected limit >= 1, got {limit}")
        with self._reader.reading() as sqlite:
            check_still(sqlite, self.path, self.fingerprint)
            return keys.read_key_changes(sqlite, cursor, limit)

    def memories(self, memory_ids: Sequence[int]) -> list[StoredMemory]:
        """The memories with these ids in this order, checksums verified; ids may repeat.

        Raises:
            UnknownIdError: One of them is not in the bank.
            CorruptRecordError: One is not as it was written; names its document and id.
        """
        with self._reader.reading() as sqlite:
            found = {i: read.read_memory(sqlite, i) for i in dict.fromkeys(memory_ids)}
        return [found[memory_id] for memory_id in memory_ids]

    def sources(self, memory_ids: Sequence[int]) -> list[MemorySource]:
        """Document and excerpt of each of these memories, in this order, without tensors.

        Raises:
            UnknownIdError: One of them is not in the bank.
            CorruptRecordError: A document is not as it was written.
        """
        with self._reader.reading() as sqlite:
            return read.read_sources(sqlite, memory_ids)

    def vectors(self, memory_ids: Sequence[int]) -> list[torch.Tensor]:
        """Vectors (K, V) of each of these memories for late interaction, bfloat16.

        Raises:
            UnknownIdError: One of them is not in the bank.
            CorruptRecordError: A memory has none.
        """
        with self._reader.reading() as sqlite:
            return read.read_vectors(sqlite, memory_ids)

    def verify(self, on_record: Callable[[], object] = lambda: None) -> list[Problem]:
        """Every damage in the file, document and memory named; empty for a sound bank.

        Reads all bytes, on a connection of its own, so that others go on working.

        Args:
            on_record: Called before each record is read; what it raises ends the search.
        """
        with self._apart() as sqlite:
            return check.find_problems(sqlite, on_record)

    def wipe_log(self) -> bool:
        """Move the log's pages into the file and empty it, so that deleted bytes are gone.

        False where someone is reading from the log still; nobody is waited for.
        """
        with self._writable().exclusive() as sqlite:
            sqlite.execute("PRAGMA busy_timeout = 0")
            try:
                busy = sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                sqlite.execute(f"PRAGMA busy_timeout = {round(1000 * self._busy_seconds)}")
        return not busy

    def vacuum(self) -> None:
        """Rewrite the file without the room that deleted records left, and empty its log.

        Needs free disk space of about twice the file for as long as it runs.

        Raises:
            BankError: Another process is using the bank; no room; read-only.
        """
        with self._writable().exclusive() as sqlite:
            sqlite.execute("VACUUM")
            busy = sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise BankError(
                f"the bank {self.path} is packed, but its log still holds deleted bytes, because "
                "someone is still reading it: call vacuum() again when they are done"
            )

    def version(self, number: int) -> StoredDocument | None:
        """A version by its number, for `Staging`; None when it is gone; raises as `get`."""
        with self._reader.reading() as sqlite:
            return read.read_version(sqlite, number)

    def memory_tokens(self, number: int) -> int | None:
        """K of a version's memories, the largest; None without any that says."""
        with self._reader.reading() as sqlite:
            return max(read.count_by_size(sqlite, number), default=None)

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """A read transaction, for the bank's own package."""
        return self._reader.reading()

    @contextmanager
    def _apart(self) -> Iterator[sqlite3.Connection]:
        """A read transaction on a connection of its own, for what takes long."""
        self._reader.check_open()
        with (
            closing(Connection(self.path, "ro", self._busy_seconds)) as connection,
            connection.reading() as sqlite,
        ):
            yield sqlite

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, for the bank's own package; refused after another reindexed."""
        with self._writable().writing() as sqlite:
            check_still(sqlite, self.path, self.fingerprint)
            yield sqlite

    @contextmanager
    def attached(self, path: Path, name: str) -> Iterator[sqlite3.Connection]:
        """A write transaction with another bank's file at hand, for the bank's own package."""
        with self._writable().exclusive() as sqlite:
            sqlite.execute(f"ATTACH ? AS {name}", (str(path.absolute()),))
            try:
                with self.writing():
                    yield sqlite
            finally:
                sqlite.execute(f"DETACH {name}")

    def _require_fingerprint(self) -> None:
        if not self._may_add:
            raise BankError(f"the bank {self.path} was opened without fingerprint: give one to add")

    def _writable(self) -> Connection:
        if self._writer is None:
            raise BankError(f"the bank {self.path} was opened read-only: it can't be changed")
        return self._writer
