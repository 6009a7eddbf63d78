"""Opening a bank's SQLite file, transactions on it, and SQLite's errors in plain words."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from cmt.bank.migrations import (
    APPLICATION_ID,
    MIGRATIONS,
    migrate,
    readable_schema,
    schema_version,
)
from cmt.dates import ends, known_from
from cmt.errors import BankError, FingerprintMismatchError
from cmt.records import Fingerprint

Mode = Literal["ro", "rw", "rwc"]

_PAGE_BYTES = 16384  # memories are hundreds of kilobytes: larger pages, shorter chains
_SQLITE_HEADER = b"SQLite format 3\0"


class Connection:
    """One SQLite connection and the lock that gives it to one thread at a time."""

    def __init__(self, path: Path, mode: Mode, busy_seconds: float) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        self._lock = threading.RLock()
        self._open = True
        try:
            self._sqlite = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=busy_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
            # A flipped bit may break UTF-8; the checksums report it, the decoder need not.
            self._sqlite.text_factory = lambda raw: raw.decode("utf-8", "replace")
            if mode == "ro":  # read what is left of a file that was cut: SQLite would refuse it all
                self._sqlite.execute("PRAGMA writable_schema = ON")
            for pragma in ("foreign_keys = ON", "synchronous = FULL", "secure_delete = ON"):
                self._sqlite.execute(f"PRAGMA {pragma}")
            self._sqlite.create_function("known_from", 2, known_from, deterministic=True)
            self._sqlite.create_function("ends", 1, ends, deterministic=True)
        except sqlite3.Error as error:
            raise self.explain(error) from error

    def close(self) -> None:
        """Close for good; harmless when closed already."""
        with self._lock:
            self._open = False
            self._sqlite.close()

    def check_open(self) -> None:
        """Refuse to go on when closed."""
        if not self._open:
            raise BankError(f"the bank {self.path} is closed: open it again")

    @contextmanager
    def exclusive(self) -> Iterator[sqlite3.Connection]:
        """The bare connection, for this thread alone; SQLite's errors become `BankError`s."""
        with self._lock:
            self.check_open()
            try:
                yield self._sqlite
            except sqlite3.Error as error:
                raise self.explain(error) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: everything read inside is of one moment.

        It ends in ROLLBACK, since after meeting a broken page SQLite refuses to COMMIT.
        """
        with self.exclusive() as sqlite, self._transaction("BEGIN", "ROLLBACK"):
            yield sqlite

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: on disk when the block ends, undone when it raises."""
        with self.exclusive() as sqlite, self._transaction("BEGIN IMMEDIATE", "COMMIT"):
            yield sqlite

    @contextmanager
    def _transaction(self, begin: str, end: str) -> Iterator[None]:
        try:
            self._sqlite.execute(begin)
            yield
            self._sqlite.execute(end)
        finally:
            if self._sqlite.in_transaction:
                self._sqlite.execute("ROLLBACK")

    def prepare(self, creator: Fingerprint | None, tier: str = "bf16") -> None:
        """Make sure that this is a bank we know, in WAL mode, with the newest schema.

        A file that holds nothing yet becomes the creator's bank; without a creator it is refused.

        Raises:
            BankError: The file is something else, or made by a newer version.
        """
        with self.exclusive() as sqlite:
            is_new = self._recognise(sqlite)
            if is_new and creator is None:
                raise self._empty_file()
            if is_new:
                sqlite.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            self._use_wal(sqlite)
            is_old = schema_version(sqlite) < len(MIGRATIONS)
        if is_new or is_old:
            with self._without_foreign_keys(), self.writing() as sqlite:
                migrate(sqlite)
                if creator is not None:
                    sqlite.execute(
                        "INSERT INTO bank (base_model, compressor, last_change, layout, tier) "
                        "SELECT ?, ?, 0, NULL, ? WHERE NOT EXISTS (SELECT * FROM bank)",
                        (creator.base_model, creator.compressor, tier),
                    )

    @contextmanager
    def _without_foreign_keys(self) -> Iterator[None]:
        """Tables may be rebuilt without their dependants going too; no effect in a transaction."""
        with self.exclusive() as sqlite:
            sqlite.execute("PRAGMA foreign_keys = OFF")
            try:
                yield
            finally:
                sqlite.execute("PRAGMA foreign_keys = ON")

    def recognise(self) -> None:
        """What `prepare` makes sure of, for a bank that must not be written: change nothing."""
        with self.exclusive() as sqlite:
            is_new = self._recognise(sqlite)
            found = schema_version(sqlite)
        if is_new:
            raise self._empty_file()
        if found < readable_schema():
            raise BankError(
                f"the bank {self.path} has schema {found}, expected {readable_schema()}: "
                "open it once for writing, which brings it up to date"
            )

    def check_fingerprint(self, expected: Fingerprint | None) -> Fingerprint:
        """The fingerprint of what made the bank's memories; None expects any.

        Raises:
            FingerprintMismatchError: It is not the expected one.
            BankError: The bank has none.
        """
        with self.reading() as sqlite:
            row = sqlite.execute("SELECT base_model, compressor FROM bank").fetchone()
        if row is None:
            raise BankError(f"the bank {self.path} doesn't say what made it: it is damaged")
        found = Fingerprint(base_model=row[0], compressor=row[1])
        if expected is not None and expected != found:
            raise FingerprintMismatchError(
                f"the memories in the bank {self.path} were made with other weights.\n"
                f"  expected, by the bank: base model {found.base_model}, "
                f"compressor {found.compressor}\n"
                f"  got, in use now:       base model {expected.base_model}, "
                f"compressor {expected.compressor}\n"
                "Load the base model and checkpoint that made the bank, or use another bank file."
            )
        return found

    def _recognise(self, sqlite: sqlite3.Connection) -> bool:
        """True for a file that holds nothing yet; raises for what is not ours."""
        with self._transaction("BEGIN", "ROLLBACK"):
            application = sqlite.execute("PRAGMA application_id").fetchone()[0]
            found = schema_version(sqlite)
            tables = sqlite.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application == 0 and found == 0 and tables == 0:
            return True
        if application != APPLICATION_ID:
            raise BankError(f"{self.path} is an SQLite file but not a memory bank of cmt")
        if found > len(MIGRATIONS):
            raise BankError(
                f"the bank {self.path} has schema {found}, this version of cmt knows up to "
                f"{len(MIGRATIONS)}: upgrade cmt to open it"
            )
        return False

    def _empty_file(self) -> BankError:
        return BankError(f"expected a memory bank, got an empty file: {self.path}")

    def _use_wal(self, sqlite: sqlite3.Connection) -> None:
        """Switch to write-ahead logging; the switch itself does not wait for others, so retry."""
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                mode = sqlite.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                break
        if mode != "wal":
            raise BankError(
                f"the bank {self.path} needs write-ahead logging (WAL), got journal mode {mode!r}: "
                "keep it on a local disk, not on a network file system"
            )

    def explain(self, error: sqlite3.Error) -> BankError:
        """The error to raise in place of SQLite's own."""
        reason = {
            sqlite3.SQLITE_FULL: "the disk is full; nothing of this change was written",
            sqlite3.SQLITE_BUSY: "another process kept it locked for more than "
            f"{self._busy_seconds:g} seconds; nothing was changed",
            sqlite3.SQLITE_READONLY: "it can't be written, only read",
            sqlite3.SQLITE_CANTOPEN: "the file or its -wal and -shm companions can't be opened; "
            "its folder must be writable, even for reading",
            sqlite3.SQLITE_NOTADB: "it is not an SQLite file",
            sqlite3.SQLITE_CORRUPT: "the file is damaged, or was copied without its -wal file; "
            "restore a copy, or save what is left: open it read-only, or `cmt export`",
            sqlite3.SQLITE_IOERR: "the disk could not be read or written (input/output error); "
            "nothing of this change was written",
        }.get(_code(error), "SQLite failed")
        return BankError(f"bank {self.path}: {reason} (SQLite says: {error})")


def check_still(sqlite: sqlite3.Connection, path: Path, opened: Fingerprint) -> None:
    """Refuse to go on with a bank that was reindexed with other weights since it was opened."""
    row = sqlite.execute("SELECT base_model, compressor FROM bank").fetchone()
    if row is not None and row != (opened.base_model, opened.compressor):
        raise FingerprintMismatchError(
            f"the bank {path} was reindexed meanwhile: expected memories made by {opened}, got "
            f"{Fingerprint(base_model=row[0], compressor=row[1])}: open it again with these weights"
        )


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 for errors of Python's own module."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite met a page that makes no sense."""
    return _code(error) == sqlite3.SQLITE_CORRUPT


def check_path(path: Path, *, must_exist: bool, read_only: bool) -> None:
    """Refuse a path that can't be a bank, before SQLite touches it.

    Raises:
        BankError: Missing folder, a directory, no permission, not an SQLite file.
    """
    try:
        _check_path(path, must_exist, read_only)
    except OSError as error:
        raise BankError(f"can't reach the bank {path}: {error}") from error


def _check_path(path: Path, must_exist: bool, read_only: bool) -> None:
    if path.is_dir():
        raise BankError(f"expected a bank file, got a directory: {path}")
    if not path.parent.is_dir():
        raise BankError(f"the folder {path.parent} does not exist: create it, then open {path}")
    if not path.exists():
        if must_exist:
            raise BankError(f"there is no bank at {path}")
        if not os.access(path.parent, os.W_OK):
            raise BankError(f"no permission to create {path}: its folder is not writable")
        return
    if not path.is_file():
        raise BankError(f"expected a bank file, got something that is not a plain file: {path}")
    if not os.access(path, os.R_OK):
        raise BankError(f"no permission to read the bank {path}")
    if not read_only and not os.access(path, os.W_OK):
        raise BankError(f"no permission to write the bank {path}: open it with read_only=True")
    with path.open("rb") as file:
        header = file.read(len(_SQLITE_HEADER))
    if header and header != _SQLITE_HEADER:
        raise BankError(f"expected a bank (an SQLite file), got something else: {path}")
