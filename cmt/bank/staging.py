"""New memories for a bank's texts, gathered in a file beside it and then taken over at once.

The file is a bank itself, of the new weights, whose documents have the numbers they have in the
first. Only texts and memories count in it: the other fields stay the first bank's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from cmt.bank import write
from cmt.bank.preparing import prepared
from cmt.bank.store import Bank
from cmt.errors import BankError, FingerprintMismatchError
from cmt.records import EncodedPiece, Fingerprint, StoredDocument

_VERSIONS = "SELECT number, content_hash FROM {}documents"
_MEMORY = "start_char, end_char, tokens, dtype, shape, memory_bytes, checksum, key, vectors"


def staging_path(bank: Bank) -> Path:
    """The file beside the bank's; it holds texts, so it must not outlive its use."""
    return bank.path.with_name(f"{bank.path.name}.reindex")


class Staging:
    """New memories on their way into a bank.

    Attributes:
        path: The file beside the bank's.
    """

    def __init__(self, bank: Bank, fingerprint: Fingerprint) -> None:
        """Begin, or go on where an earlier run stopped.

        Raises:
            FingerprintMismatchError: The file beside the bank was begun with other weights.
            BankError: It can't be opened or made.
        """
        self._bank = bank
        self.path = staging_path(bank)
        try:
            self._staged = Bank.open(self.path, fingerprint, tier=bank.tier)
        except FingerprintMismatchError as error:
            raise FingerprintMismatchError(
                f"expected {self.path} to be begun with {fingerprint}, got one of other weights: "
                "go on with those, or delete it to begin again"
            ) from error

    def close(self) -> None:
        """Close the file; what is staged stays."""
        self._staged.close()

    def missing(self) -> list[int]:
        """Numbers of the bank's versions that aren't staged; staged ones that are gone go too."""
        with self._bank.reading() as sqlite:
            wanted = dict(sqlite.execute(_VERSIONS.format("")).fetchall())
        with self._staged.writing() as sqlite:
            there = dict(sqlite.execute(_VERSIONS.format("")).fetchall())
            for number, content_hash in there.items():
                if wanted.get(number) != content_hash:
                    write.remove_version(sqlite, number)
        return [number for number, text in wanted.items() if there.get(number) != text]

    def put(self, entries: Sequence[tuple[int, StoredDocument, Iterable[EncodedPiece]]]) -> None:
        """Stage new memories of versions, by their numbers in the bank; durable on return.

        Pieces that are no sequence are drawn as by `Bank.add`.
        """
        documents = ((document.document(), own) for _, document, own in entries)
        with (
            prepared(documents, self._bank.tier, self.path.parent) as ready,
            self._staged.writing() as sqlite,
        ):
            write.check_layout(sqlite, ready)
            for entry, (number, *_) in zip(ready, entries, strict=True):
                write.stage(sqlite, entry, number)

    def take_over(self) -> bool:
        """Give the bank the staged memories for its own, in one transaction.

        False, with nothing changed, when the bank holds a version that isn't staged.
        """
        with self._bank.attached(self.path, "staged") as sqlite:
            there = sqlite.execute(_VERSIONS.format("staged.")).fetchall()
            if sorted(there) != sorted(sqlite.execute(_VERSIONS.format("")).fetchall()):
                return False
            _take_over(sqlite)
        return True

    def remove(self) -> None:
        """Delete the file, closed before."""
        try:
            for end in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        except OSError as error:
            raise BankError(f"expected to delete {self.path}, but: {error}") from error


def _take_over(sqlite: sqlite3.Connection) -> None:
    (last,) = sqlite.execute("SELECT last_change FROM bank").fetchone()
    old = sqlite.execute("SELECT memory_id FROM memories ORDER BY memory_id").fetchall()
    sqlite.executemany(
        "INSERT INTO removals (change, memory_id) VALUES (?, ?)",
        [(last + place, memory_id) for place, (memory_id,) in enumerate(old, start=1)],
    )
    after = last + len(old)
    sqlite.execute("DELETE FROM memories")
    sqlite.execute(
        f"INSERT INTO memories (memory_id, document, {_MEMORY}) "  # noqa: S608
        f"SELECT memory_id + ?, document, {_MEMORY} FROM staged.memories ORDER BY memory_id",
        (after,),
    )
    sqlite.execute(
        "INSERT INTO tensors SELECT memory_id + ?, data FROM staged.tensors ORDER BY memory_id",
        (after,),
    )
    base_model, compressor, changes, layout = sqlite.execute(
        "SELECT base_model, compressor, last_change, layout FROM staged.bank"
    ).fetchone()
    sqlite.execute(
        "UPDATE bank SET base_model = ?, compressor = ?, last_change = ?, layout = ?",
        (base_model, compressor, after + changes, layout),
    )
