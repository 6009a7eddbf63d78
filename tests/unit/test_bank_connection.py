"""Opening a bank, what is refused and why; full disks, locks and threads."""

from __future__ import annotations

import os
import sqlite3
import threading

import pytest

from cmt.bank import Bank, Counts
from cmt.bank import migrations as bank_migrations
from cmt.errors import (
    BankError,
    FingerprintMismatchError,
)
from cmt.records import Document, Fingerprint
from tests.unit.bank_pieces import FINGERPRINT, add, make_piece


def test_another_fingerprint_is_refused_with_both_in_full(bank, path):
    other = Fingerprint(base_model="a" * 63 + "c", compressor="d" * 64)
    with pytest.raises(FingerprintMismatchError) as caught:
        Bank.open(path, other)
    for digest in ("a" * 64, "b" * 64, other.base_model, other.compressor):
        assert digest in str(caught.value)
    assert "Load the base model and checkpoint that made the bank" in str(caught.value)


def test_without_a_fingerprint_an_existing_bank_opens(bank, path):
    add(bank, "hello", id="d")
    with Bank.open(path, None) as other:
        assert other.fingerprint == FINGERPRINT
        with pytest.raises(BankError, match="opened without fingerprint: give one to add"):
            add(other, "memories of who knows which model")
        assert other.delete("d")


def test_without_a_fingerprint_none_is_created(path):
    with pytest.raises(BankError, match="there is no bank at"):
        Bank.open(path, None)
    assert not path.exists()


def test_an_empty_file_becomes_a_bank_only_for_a_writer_with_a_fingerprint(path):
    path.touch()
    for arguments in ({"fingerprint": None}, {"fingerprint": FINGERPRINT, "read_only": True}):
        with pytest.raises(BankError, match="expected a memory bank, got an empty file"):
            Bank.open(path, **arguments)
    assert path.stat().st_size == 0
    with Bank.open(path, FINGERPRINT) as bank:
        assert add(bank, "hello").status == "added"


def test_a_read_only_bank_reads_and_refuses_changes(bank, path):
    add(bank, "hello", id="d")
    with Bank.open(path, FINGERPRINT, read_only=True) as other:
        assert other.read_only
        assert other.get("d").text == "hello"
        add(bank, "later")
        assert other.count() == Counts(2, 2)
        changes = (lambda: add(other, "x"), lambda: other.delete("d"), other.vacuum)
        for change in changes:
            with pytest.raises(BankError, match="opened read-only: it can't be changed"):
                change()


def test_a_read_only_bank_must_exist(path):
    with pytest.raises(BankError, match="there is no bank at"):
        Bank.open(path, FINGERPRINT, read_only=True)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(BankError, match="expected a bank file, got a directory"):
        Bank.open(tmp_path, FINGERPRINT)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BankError, match="missing does not exist: create it"):
        Bank.open(tmp_path / "missing" / "bank.sqlite", FINGERPRINT)


def test_a_path_the_system_refuses_is_a_bank_error(tmp_path):
    with pytest.raises(BankError, match="can't reach the bank"):
        Bank.open(tmp_path / ("x" * 5000), FINGERPRINT)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused(path):
    os.mkfifo(path)
    with pytest.raises(BankError, match="got something that is not a plain file"):
        Bank.open(path, FINGERPRINT)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_that_is_not_sqlite_is_refused_and_left_alone(path, read_only):
    path.write_bytes(b"%PDF-1.7 not a bank at all")
    with pytest.raises(BankError, match=r"an SQLite file.*got something else"):
        Bank.open(path, FINGERPRINT, read_only=read_only)
    assert path.read_bytes() == b"%PDF-1.7 not a bank at all"


@pytest.mark.parametrize("read_only", [True, False])
def test_a_foreign_sqlite_file_is_refused_and_left_alone(path, read_only):
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE notes (text)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(BankError, match="an SQLite file but not a memory bank"):
        Bank.open(path, FINGERPRINT, read_only=read_only)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(path):
    Bank.open(path, FINGERPRINT).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(BankError, match="has schema 99, this version of cmt knows up to "):
        Bank.open(path, FINGERPRINT)


def test_an_older_schema_is_brought_up_to_date_by_a_writer_only(path, monkeypatch):
    with Bank.open(path, FINGERPRINT) as bank:
        add(bank, "hello", id="d")
    steps = (*bank_migrations.MIGRATIONS, ("ALTER TABLE documents ADD COLUMN extra TEXT",))
    monkeypatch.setattr("cmt.bank.migrations.MIGRATIONS", steps)
    monkeypatch.setattr("cmt.bank.connection.MIGRATIONS", steps)
    with pytest.raises(BankError, match=r"has schema \d, expected \d: open it once for writing"):
        Bank.open(path, FINGERPRINT, read_only=True)
    with Bank.open(path, FINGERPRINT) as bank:
        assert bank.get("d").text == "hello"
    Bank.open(path, FINGERPRINT, read_only=True).close()


def test_an_older_schema_that_is_read_as_it_is_needs_no_writer(path):
    """The fifth step changes no table: banks without it, and backups of them, are read."""
    with Bank.open(path, FINGERPRINT) as bank:
        add(bank, "hello", id="d")
    older = sqlite3.connect(path)
    older.execute("PRAGMA user_version = 4")
    older.close()
    with Bank.open(path, FINGERPRINT, read_only=True) as bank:
        assert bank.get("d").text == "hello"
        assert bank.verify() == []


def test_permissions_are_named(path, monkeypatch):
    Bank.open(path, FINGERPRINT).close()

    def refuse(refused: int):
        monkeypatch.setattr(os, "access", lambda _, asked: not asked & refused)

    refuse(os.W_OK)
    with pytest.raises(BankError, match=r"no permission to write the bank .* read_only=True"):
        Bank.open(path, FINGERPRINT)
    with pytest.raises(BankError, match=r"no permission to create .* folder is not writable"):
        Bank.open(path.with_name("new.sqlite"), FINGERPRINT)
    Bank.open(path, FINGERPRINT, read_only=True).close()
    refuse(os.R_OK)
    with pytest.raises(BankError, match="no permission to read the bank"):
        Bank.open(path, FINGERPRINT)


def test_odd_characters_in_the_path_are_no_problem(tmp_path):
    path = tmp_path / "a bank?mode=memory#ü%41.sqlite"
    with Bank.open(path, FINGERPRINT) as bank:
        add(bank, "hello")
    assert path.exists()
    with Bank.open(str(path), FINGERPRINT) as bank:
        assert bank.count() == Counts(1, 1)


def test_a_closed_bank_says_so(bank):
    bank.close()
    bank.close()
    for call in (
        bank.count,
        bank.stats,
        bank.verify,
        bank.vacuum,
        lambda: add(bank, "x"),
        lambda: bank.memories([1]),
    ):
        with pytest.raises(BankError, match="is closed: open it again"):
            call()


def test_the_file_is_set_up_for_durability(bank):
    with bank._writer.exclusive() as sqlite:
        found = [
            sqlite.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        ]
    assert found == ["wal", 2, 1, 1]


# --- full disks, locks, threads


def test_a_full_disk_undoes_the_batch_and_the_bank_stays_usable(bank):
    add(bank, "before", id="before")
    with bank._writer.exclusive() as sqlite:
        pages = sqlite.execute("PRAGMA page_count").fetchone()[0]
        sqlite.execute(f"PRAGMA max_page_count = {pages + 1}")
    big = [(Document(text=t), [make_piece(t, shape=(2, 2, 1, 5000, 4))]) for t in ("one", "two")]
    with pytest.raises(BankError, match=r"disk is full; nothing of this change was written"):
        bank.add(big)
    assert bank.count() == Counts(1, 1)
    assert add(bank, "small").status == "added"
    with bank._writer.exclusive() as sqlite:
        sqlite.execute("PRAGMA max_page_count = 1000000")
    assert [outcome.status for outcome in bank.add(big)] == ["added", "added"]
    assert bank.verify() == []


def test_a_bank_that_another_holds_locked_is_named_and_recovers(path):
    with Bank.open(path, FINGERPRINT, busy_seconds=0.05) as bank:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BankError, match=r"kept it locked for more than 0.05 seconds"):
            add(bank, "hello")
        assert bank.count() == Counts(0, 0)
        other.execute("ROLLBACK")
        other.close()
        assert add(bank, "hello").status == "added"


def test_reading_does_not_wait_for_a_writer_of_the_same_process(bank):
    add(bank, "hello", id="d")
    seen = []
    with bank._writer.writing() as sqlite:
        sqlite.execute("DELETE FROM documents")
        reader = threading.Thread(target=lambda: seen.append(bank.count()))
        reader.start()
        reader.join(timeout=20)
    assert seen == [Counts(1, 1)]


def test_threads_share_a_bank(bank):
    errors = []

    def work(worker: int) -> None:
        try:
            for n in range(5):
                name = f"{worker}-{n}"
                add(bank, name, n, id=name)
                assert bank.get(name).text == name
                assert bank.memories(bank.key_changes(0).added_ids[:1])
        except (BankError, AssertionError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert bank.count() == Counts(20, 20)
    assert bank.verify() == []
