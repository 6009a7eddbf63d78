"""The bank's promises one by one: what it stores, what it refuses and in which words."""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt import bank_migrations
from cmt.bank import Bank, Counts, Outcome
from cmt.errors import (
    BankError,
    CorruptRecordError,
    DocumentError,
    FingerprintMismatchError,
    InputError,
    UnknownIdError,
)
from cmt.records import Document, Fingerprint
from cmt.tensor_bytes import tensor_from_bytes, text_hash
from tests.unit.bank_pieces import FINGERPRINT, make_entry, make_key, make_piece


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.sqlite"


@pytest.fixture
def bank(path):
    with Bank.open(path, FINGERPRINT) as opened:
        yield opened


def add(bank: Bank, text: str, seed: int = 0, **fields: object) -> Outcome:
    return bank.add([make_entry(text, seed, **fields)])[0]


def keys_of(bank: Bank) -> dict[int, np.ndarray]:
    changes = bank.key_changes(0)
    return dict(zip(changes.added_ids, changes.added_keys, strict=True))


# --- adding and reading back


def test_what_was_added_is_read_back_bit_for_bit_after_reopening(path):
    text = "First half. Second half."
    pieces = [
        make_piece(text, 1, end=11, tokens=3),
        make_piece(text, 2, start=12, shape=(2, 2, 1, 7, 4), dtype=torch.float16),
    ]
    document = Document(
        text=text, id="d", title="T", date="2024-05-01", source="a.txt", metadata={"n": [1, None]}
    )
    with Bank.open(path, FINGERPRINT) as bank:
        assert bank.add([(document, pieces)]) == [Outcome("d", "added")]
    with Bank.open(path, FINGERPRINT) as bank:
        stored = bank.get("d")
        assert (stored.text, stored.title, stored.date) == (text, "T", "2024-05-01")
        assert (stored.source, stored.metadata) == ("a.txt", {"n": [1, None]})
        assert (stored.memories, stored.memory_bytes) == (2, 2 * (48 + 112))
        age = datetime.now(UTC) - datetime.fromisoformat(stored.added_at)
        assert timedelta(0) <= age < timedelta(minutes=10)
        changes = bank.key_changes(0)
        for piece, key, memory in zip(
            pieces, changes.added_keys, bank.memories(changes.added_ids), strict=True
        ):
            assert memory.document_id == "d"
            assert (memory.start, memory.end, memory.tokens) == (
                piece.start,
                piece.end,
                piece.tokens,
            )
            assert memory.memory.dtype == piece.memory.dtype
            assert torch.equal(memory.memory, piece.memory)
            assert np.array_equal(key, piece.key.numpy())


def test_a_document_without_id_gets_one_from_its_text(bank):
    assert add(bank, "hello") == Outcome(text_hash("hello")[:16], "added")
    assert add(bank, "hello", title="again") == Outcome(text_hash("hello")[:16], "unchanged")
    assert bank.get(text_hash("hello")[:16]).title == ""
    assert bank.count() == Counts(1, 1)


def test_a_text_known_under_an_explicit_id_is_found_without_id(bank):
    add(bank, "hello", id="greeting", title="kept")
    assert bank.add([(Document(text="hello"), [])]) == [Outcome("greeting", "unchanged")]
    assert bank.get("greeting").title == "kept"


def test_a_derived_id_that_someone_took_by_name_is_numbered(bank):
    taken = text_hash("hello")[:16]
    add(bank, "something else", id=taken)
    assert add(bank, "hello") == Outcome(f"{taken}-2", "added")
    assert bank.get(taken).text == "something else"


def test_the_same_text_under_two_ids_is_two_documents(bank):
    assert [add(bank, "hello", id=i).status for i in ("a", "b")] == ["added", "added"]
    assert bank.count() == Counts(2, 2)


def test_the_same_id_and_text_change_nothing(bank):
    add(bank, "hello", 1, id="d", metadata={"a": 1})
    before = bank.get("d"), bank.key_changes(0).cursor
    assert add(bank, "hello", 2, id="d", metadata={"a": 1}).status == "unchanged"
    assert (bank.get("d"), bank.key_changes(0).cursor) == before


def test_new_fields_for_the_same_text_are_taken_over_without_new_memories(bank):
    add(bank, "hello", id="d")
    cursor = bank.key_changes(0).cursor
    document = Document(text="hello", id="d", title="T", date="2020", source="s", metadata={"a": 1})
    assert bank.add([(document, [])]) == [Outcome("d", "unchanged")]
    stored = bank.get("d")
    assert (stored.title, stored.date, stored.source) == ("T", "2020", "s")
    assert (stored.metadata, stored.memories) == ({"a": 1}, 1)
    assert bank.key_changes(cursor).added_ids == []
    assert bank.verify() == []


def test_another_text_under_the_same_id_replaces_text_and_memories(bank):
    add(bank, "old", 1, id="d")
    changes = bank.key_changes(0)
    assert add(bank, "new text", 2, id="d") == Outcome("d", "updated")
    assert bank.get("d").text == "new text"
    assert bank.count() == Counts(1, 1)
    with pytest.raises(UnknownIdError):
        bank.memories(changes.added_ids)
    (memory_id,) = keys_of(bank)
    assert torch.equal(bank.memories([memory_id])[0].memory, make_piece("new text", 2).memory)


def test_one_batch_may_name_the_same_document_twice(bank):
    entries = [make_entry("one", 1, id="d"), make_entry("two", 2, id="d"), make_entry("two", 3)]
    statuses = [outcome.status for outcome in bank.add(entries)]
    assert statuses == ["added", "updated", "unchanged"]
    assert bank.get("d").text == "two"


def test_an_empty_batch_is_fine(bank):
    assert bank.add([]) == []


def test_status_of_says_what_needs_compressing(bank):
    add(bank, "hello", id="d")
    assert bank.status_of(Document(text="hello", id="d", title="other")) == "unchanged"
    assert bank.status_of(Document(text="other", id="d")) == "changed"
    assert bank.status_of(Document(text="hello", id="e")) == "new"
    assert bank.status_of(Document(text="hello")) == "unchanged"
    assert bank.status_of(Document(text="other")) == "new"


def test_the_number_of_memory_tokens_may_differ_within_a_bank(bank):
    for slots in (1, 5):
        text = f"{slots} slots"
        bank.add([(Document(text=text), [make_piece(text, shape=(2, 2, 1, slots, 4))])])
    memories = bank.memories(list(keys_of(bank)))
    assert [memory.memory.shape[3] for memory in memories] == [1, 5]


# --- what add refuses, and that it then writes nothing

TEXT = "hello"
NAN_KEY = make_key(0) * torch.tensor([float("nan")] + [1.0] * 7)
INF_MEMORY = torch.full((2, 2, 1, 3, 4), float("inf"), dtype=torch.bfloat16)
PIECE = make_piece(TEXT)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (replace(PIECE, start=-1), r"expected 0 <= start < end <= 5 \(the text's length\)"),
        (replace(PIECE, start=5), r"piece \[5:5\]: expected 0 <= start < end"),
        (replace(PIECE, end=6), "expected 0 <= start < end"),
        (replace(PIECE, tokens=0), "expected at least 1 token, got 0"),
        (replace(PIECE, key=make_key(0)[None]), r"a float32 key of shape \(C,\), got .*\(1, 8\)"),
        (replace(PIECE, key=make_key(0).double()), "expected a float32 key .* got torch.float64"),
        (replace(PIECE, key=torch.empty(0)), r"expected a float32 key of shape \(C,\), got"),
        (replace(PIECE, key=make_key(0) * 2), "expected a key of length 1, got length 2"),
        (replace(PIECE, key=NAN_KEY), "expected finite numbers, got NaN or infinity in its key"),
        (replace(PIECE, memory=INF_MEMORY), "got NaN or infinity in its memory"),
        (replace(PIECE, memory=PIECE.memory[0]), r"of shape \(L, 2, G, K, E\), got \(2, 1, 3, 4\)"),
        (replace(PIECE, memory=PIECE.memory[:, :1]), r"\(L, 2, G, K, E\), got \(2, 1, 1, 3, 4\)"),
        (replace(PIECE, memory=PIECE.memory[:, :, :, :0]), r"got \(2, 2, 1, 0, 4\)"),
        (replace(PIECE, memory=PIECE.memory.double()), "bfloat16, float16, float32, got .*float64"),
    ],
)
def test_a_piece_that_cannot_be_stored_stops_the_whole_batch(bank, piece, message):
    with pytest.raises(InputError, match=message):
        bank.add([make_entry("good"), (Document(text=TEXT, id="bad"), [piece])])
    assert bank.count() == Counts(0, 0)


@pytest.mark.parametrize(
    "memory_shape", [(3, 2, 1, 3, 4), (2, 2, 2, 3, 4), (2, 2, 1, 3, 8)], ids=["L", "G", "E"]
)
@pytest.mark.parametrize("in_one_batch", [True, False])
def test_memories_of_another_layout_are_refused(bank, memory_shape, in_one_batch):
    good = make_entry("good")
    bad = (Document(text=TEXT, id="bad"), [make_piece(TEXT, shape=memory_shape)])
    message = r"'bad': expected memories of \(L=2, 2, G=1, K, E=4\) with keys of 8.*got \(L="
    if not in_one_batch:
        bank.add([good])
    with pytest.raises(InputError, match=message):
        bank.add([good, bad])
    assert bank.count().documents == (0 if in_one_batch else 1)


def test_keys_of_another_size_are_refused(bank):
    add(bank, "good")
    with pytest.raises(InputError, match=r"with keys of 8.*with keys of 9"):
        bank.add([(Document(text=TEXT), [make_piece(TEXT, key=make_key(0, 9))])])


def test_a_refused_batch_leaves_the_layout_open(bank):
    with pytest.raises(InputError):
        bank.add([make_entry("good"), (Document(text="no pieces", id="bad"), [])])
    bank.add([(Document(text=TEXT), [make_piece(TEXT, shape=(3, 2, 2, 1, 2))])])
    assert bank.count() == Counts(1, 1)


@pytest.mark.parametrize("known_text", [None, "old"])
def test_a_new_text_needs_pieces(bank, known_text):
    if known_text is not None:
        add(bank, known_text, id="d")
    with pytest.raises(InputError, match="'d': expected at least one compressed piece, got none"):
        bank.add([(Document(text="new", id="d"), [])])
    if known_text is not None:
        assert (bank.get("d").text, bank.get("d").memories) == (known_text, 1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document(text=" \n"), "expected text to hold more than spaces"),
        (Document(text="x", id=" "), "expected id to hold more than spaces, got ' '"),
        (Document(text="x", title=None), "expected title to be a str, got None"),
        (Document(text="x", date=2020), "expected date to be a str, got 2020"),
        (Document(text=b"x"), "expected text to be a str, got b'x'"),
        (Document(text="x\ud800"), "text is not valid Unicode"),
        (Document(text="x", id="\ud800"), "id is not valid Unicode"),
        (Document(text="x", metadata=[1]), r"expected metadata to be a mapping, got \[1\]"),
        (Document(text="x", metadata={"a": {1}}), "metadata can't be written as JSON"),
        (Document(text="x", metadata={"a": float("nan")}), "metadata can't be written as JSON"),
        (Document(text="x", metadata={1: 2}), "use str as keys"),
        (Document(text="x", metadata={"a": (1,)}), "lists instead of tuples"),
    ],
)
def test_a_document_that_cannot_be_stored_is_refused(bank, document, message):
    with pytest.raises(DocumentError, match=message):
        bank.add([make_entry("good"), (document, [make_piece("x")])])
    with pytest.raises(DocumentError, match=message):
        bank.status_of(document)
    assert bank.count() == Counts(0, 0)


# --- reading, listing, deleting


def test_unknown_ids_are_named(bank):
    with pytest.raises(UnknownIdError, match="no document with id 'nope'"):
        bank.get("nope")
    with pytest.raises(UnknownIdError, match="no document with id"):
        bank.get("\ud800")
    for memory_id in (7, 0, -1, 2**70):
        with pytest.raises(UnknownIdError, match=f"no memory with id {memory_id}"):
            bank.memories([memory_id])
        with pytest.raises(UnknownIdError, match=f"no memory with id {memory_id}"):
            bank.sources([memory_id])


def test_delete_forgets_the_document_and_its_memories(bank):
    add(bank, "hello", 1, id="d")
    add(bank, "other", 2, id="e")
    first, second = keys_of(bank)
    assert bank.delete("d") is True
    assert bank.delete("d") is False
    assert bank.delete("\ud800") is False
    assert bank.count() == Counts(1, 1)
    with pytest.raises(UnknownIdError):
        bank.get("d")
    with pytest.raises(UnknownIdError):
        bank.memories([first])
    assert bank.memories([second])[0].document_id == "e"
    assert add(bank, "hello", 1, id="d").status == "added"
    assert first not in keys_of(bank)


def test_documents_come_in_the_order_they_were_added(bank, monkeypatch):
    monkeypatch.setattr("cmt.bank._DOCUMENTS_AT_ONCE", 3)
    ids = [f"d{n}" for n in (5, 3, 9, 1, 7, 0, 2, 8)]
    bank.add([make_entry(i, id=i) for i in ids])
    assert [d.id for d in bank.documents()] == ids
    assert [d.id for d in bank.documents(limit=4)] == ids[:4]
    assert [d.id for d in bank.documents(limit=4, offset=3)] == ids[3:7]
    assert [d.id for d in bank.documents(offset=7)] == ids[7:]
    assert list(bank.documents(limit=0)) == []
    assert list(bank.documents(offset=2**80)) == []


def test_listing_goes_on_while_documents_come_and_go(bank, monkeypatch):
    monkeypatch.setattr("cmt.bank._DOCUMENTS_AT_ONCE", 2)
    bank.add([make_entry(i, id=i) for i in "abcd"])
    listing = bank.documents()
    assert next(listing).id == "a"
    bank.delete("c")
    add(bank, "e", id="e")
    assert [d.id for d in listing] == ["b", "d", "e"]


@pytest.mark.parametrize("arguments", [{"limit": -1}, {"offset": -1}])
def test_a_negative_limit_or_offset_is_refused_at_the_call(bank, arguments):
    with pytest.raises(InputError, match="expected limit and offset >= 0, got"):
        bank.documents(**arguments)


def test_memories_come_in_the_asked_order_and_may_repeat(bank):
    bank.add([make_entry(i, n, id=i) for n, i in enumerate("abc")])
    a, b, c = keys_of(bank)
    asked = [c, a, c, b]
    assert [m.memory_id for m in bank.memories(asked)] == asked
    assert [m.document_id for m in bank.memories(asked)] == ["c", "a", "c", "b"]
    assert bank.memories([]) == []


def test_sources_give_the_excerpt_of_each_memory(bank):
    text = "Zürich 🏔\0 liegt am See."
    pieces = [make_piece(text, 1, end=8), make_piece(text, 2, start=10, end=15)]
    bank.add([(Document(text=text, id="d", title="T", date="2020", source="s"), pieces)])
    first, second = keys_of(bank)
    sources = bank.sources([second, first, second])
    assert [source.excerpt for source in sources] == ["liegt", "Zürich 🏔", "liegt"]
    assert [source.memory_id for source in sources] == [second, first, second]
    one = sources[0]
    assert (one.document_id, one.title, one.date, one.source) == ("d", "T", "2020", "s")
    assert (one.start, one.end) == (10, 15)


def test_stats_count_bytes(bank):
    bank.add([make_entry("héllo", 1), make_entry("x", 2)])
    stats = bank.stats()
    assert (stats.documents, stats.memories) == (2, 2)
    assert (stats.memory_bytes, stats.key_bytes, stats.text_bytes) == (2 * 96, 2 * 32, 7)
    assert stats.file_bytes > 0
    assert bank.get(text_hash("x")[:16]).memory_bytes == 96


def test_an_empty_bank_counts_nothing(bank):
    assert bank.count() == Counts(0, 0)
    assert bank.stats().memory_bytes == 0
    assert list(bank.documents()) == []
    assert bank.key_changes(0).added_keys.shape == (0, 0)
    assert bank.verify() == []


# --- following the keys


def test_key_changes_report_what_is_new_since_the_cursor(bank):
    bank.add([make_entry(i, n, id=i) for n, i in enumerate("abc")])
    first = bank.key_changes(0)
    assert (len(first.added_ids), first.removed_ids, first.complete) == (3, [], True)
    assert first.added_keys.shape == (3, 8)
    assert first.added_keys.dtype == np.float32
    nothing = bank.key_changes(first.cursor)
    assert (nothing.cursor, nothing.added_ids, nothing.removed_ids) == (first.cursor, [], [])
    bank.delete("b")
    add(bank, "d", id="d")
    second = bank.key_changes(first.cursor)
    assert second.removed_ids == [first.added_ids[1]]
    assert len(second.added_ids) == 1
    assert second.added_ids[0] > max(first.added_ids)


def test_key_changes_in_small_steps_reach_the_same_keys(bank):
    bank.add([make_entry(f"{n}", n, id=f"{n}") for n in range(7)])
    bank.delete("2")
    cursor, ids, complete = 0, [], False
    while not complete:
        changes = bank.key_changes(cursor, limit=2)
        assert len(changes.added_ids) <= 2
        ids += changes.added_ids
        cursor, complete = changes.cursor, changes.complete
    assert ids == list(keys_of(bank))
    assert bank.key_changes(cursor).added_ids == []


def test_key_changes_follow_another_connection(bank, path):
    cursor = bank.key_changes(0).cursor
    with Bank.open(path, FINGERPRINT) as other:
        add(other, "hello")
    assert len(bank.key_changes(cursor).added_ids) == 1


@pytest.mark.parametrize("cursor", [-1, 1])
def test_a_cursor_of_another_bank_is_refused(bank, cursor):
    with pytest.raises(InputError, match=f"a cursor of this bank, from 0 to 0, got {cursor}"):
        bank.key_changes(cursor)


def test_a_limit_below_one_is_refused(bank):
    with pytest.raises(InputError, match="expected limit >= 1, got 0"):
        bank.key_changes(0, limit=0)


# --- opening


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
    with pytest.raises(BankError, match="has schema 99, this version of cmt knows up to 1"):
        Bank.open(path, FINGERPRINT)


def test_an_older_schema_is_brought_up_to_date_by_a_writer_only(path, monkeypatch):
    with Bank.open(path, FINGERPRINT) as bank:
        add(bank, "hello", id="d")
    steps = (*bank_migrations.MIGRATIONS, ("ALTER TABLE documents ADD COLUMN extra TEXT",))
    monkeypatch.setattr("cmt.bank_migrations.MIGRATIONS", steps)
    monkeypatch.setattr("cmt.bank_connection.MIGRATIONS", steps)
    with pytest.raises(BankError, match="has schema 1, expected 2: open it once for writing"):
        Bank.open(path, FINGERPRINT, read_only=True)
    with Bank.open(path, FINGERPRINT) as bank:
        assert bank.get("d").text == "hello"
    Bank.open(path, FINGERPRINT, read_only=True).close()


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
    for call in (bank.count, bank.vacuum, lambda: add(bank, "x"), lambda: bank.memories([1])):
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


# --- damage


def damage(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def closed_bank(path: Path) -> None:
    with Bank.open(path, FINGERPRINT) as bank:
        bank.add([make_entry(f"the text of {i}", n, id=i) for n, i in enumerate("abc")])


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def test_a_flipped_bit_in_a_tensor_is_named_and_the_rest_is_readable(path):
    closed_bank(path)
    raw = make_piece("", 1, end=1).memory.view(torch.uint8).numpy().tobytes()
    damage(path, raw, flip(raw))
    with Bank.open(path, FINGERPRINT) as bank:
        a, b, c = bank.key_changes(0).added_ids
        with pytest.raises(CorruptRecordError, match=rf"document 'b', memory {b}: .*checksum"):
            bank.memories([a, b, c])
        assert [m.document_id for m in bank.memories([a, c])] == ["a", "c"]
        (problem,) = bank.verify()
        assert (problem.document_id, problem.memory_id) == ("b", b)
        assert str(problem).startswith(f"document 'b', memory {b}: ")
        assert bank.delete("b")
        assert bank.verify() == []


def test_a_flipped_bit_in_a_text_is_named(path):
    closed_bank(path)
    damage(path, b"the text of b", b"the test of b")
    with Bank.open(path, FINGERPRINT) as bank:
        _, b, _ = bank.key_changes(0).added_ids
        for call in (
            lambda: bank.get("b"),
            lambda: bank.sources([b]),
            lambda: list(bank.documents()),
        ):
            with pytest.raises(CorruptRecordError, match="document 'b': its text doesn't match"):
                call()
        assert bank.get("a").text == "the text of a"
        assert [(p.document_id, p.memory_id) for p in bank.verify()] == [("b", None)]


def test_bytes_that_are_no_longer_utf8_are_named(path):
    closed_bank(path)
    damage(path, b"the text of b", b"the te\xfft of b")
    with Bank.open(path, FINGERPRINT) as bank:
        with pytest.raises(CorruptRecordError, match="document 'b'"):
            bank.get("b")


def change_rows(path: Path, *statements: str) -> None:
    sqlite = sqlite3.connect(path)
    for statement in statements:
        sqlite.execute(statement)
    sqlite.commit()
    sqlite.close()


@pytest.mark.parametrize(
    ("statement", "memory_named", "reason"),
    [
        ("UPDATE memories SET start_char = 1 WHERE document = 2", True, "checksum"),
        ("UPDATE memories SET key = NULL WHERE document = 2", True, "its key"),
        ("UPDATE memories SET key = x'00' WHERE document = 2", True, "checksum"),
        ("UPDATE memories SET dtype = 'float16' WHERE document = 2", True, "checksum"),
        ("DELETE FROM tensors WHERE memory_id = 2", True, "its tensor is gone"),
        ("UPDATE documents SET title = 'x' WHERE number = 2", False, "its fields"),
    ],
)
def test_any_changed_field_is_found(path, statement, memory_named, reason):
    closed_bank(path)
    if "NULL" in statement:
        schema = "UPDATE sqlite_master SET sql = replace(sql, 'key BLOB NOT NULL', 'key BLOB')"
        change_rows(path, "PRAGMA writable_schema = ON", schema)
    change_rows(path, statement)
    with Bank.open(path, FINGERPRINT) as bank:
        (problem,) = bank.verify()
        assert problem.document_id == "b"
        assert problem.memory_id == (2 if memory_named else None)
        assert reason in problem.reason
        with pytest.raises(CorruptRecordError, match="'b'"):
            bank.memories([2]) if memory_named else bank.get("b")


def test_a_memory_without_its_document_is_found(path):
    closed_bank(path)
    change_rows(path, "DELETE FROM documents WHERE number = 2")  # foreign keys are off here
    with Bank.open(path, FINGERPRINT) as bank:
        (problem,) = bank.verify()
        assert (problem.document_id, problem.memory_id) == (None, 2)
        for call in (bank.memories, bank.sources):
            with pytest.raises(CorruptRecordError, match="unknown document, memory 2"):
                call([2])


def test_a_cut_key_stops_key_changes_with_its_name(path):
    closed_bank(path)
    change_rows(path, "UPDATE memories SET key = x'00' WHERE document = 2")
    with Bank.open(path, FINGERPRINT) as bank:
        with pytest.raises(CorruptRecordError, match="document 'b', memory 2: its key is cut"):
            bank.key_changes(0)


def test_a_broken_page_is_reported_and_the_rest_is_readable(path):
    with Bank.open(path, FINGERPRINT) as bank:
        for n, name in enumerate("abc"):
            piece = make_piece(name, n, shape=(2, 2, 1, 8000, 4))  # on pages of its own
            bank.add([(Document(text=name, id=name), [piece])])
    raw = make_piece("b", 1, shape=(2, 2, 1, 8000, 4)).memory.view(torch.uint8).numpy().tobytes()
    content = bytearray(path.read_bytes())
    page = content.index(raw[100_000:100_100]) // 16384 * 16384
    content[page : page + 4] = b"\x7f\xff\xff\xff"  # the link to the next page of the tensor
    path.write_bytes(content)
    with Bank.open(path, FINGERPRINT) as bank:
        with pytest.raises(CorruptRecordError, match="document 'b', memory 2: it can't be read"):
            bank.memories([2])
        assert len(bank.memories([1, 3])) == 2
        problems = bank.verify()
        assert ("b", 2) in [(p.document_id, p.memory_id) for p in problems]
        assert {p.document_id for p in problems} <= {"b", None}
        assert any(str(p).startswith("file: ") for p in problems)


def test_a_truncated_file_is_refused_in_plain_words(path):
    closed_bank(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BankError, match="the file is damaged"):
        with Bank.open(path, FINGERPRINT) as bank:
            bank.get("b")


def test_a_bank_that_lost_its_fingerprint_is_refused(path):
    closed_bank(path)
    change_rows(path, "DELETE FROM bank")
    with pytest.raises(BankError, match="doesn't say what made it"):
        Bank.open(path, FINGERPRINT)


def test_bytes_that_do_not_fill_a_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected 8 bytes for float32 \[2\], got 7"):
        tensor_from_bytes(b"1234567", [2], "float32")
    with pytest.raises(ValueError, match=r"expected a dtype of .*, got 'int8'"):
        tensor_from_bytes(b"", [0], "int8")


# --- forgetting for good


def stored_bytes(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def test_deleted_bytes_are_gone_after_vacuum(bank, path):
    private = "the secret that was to be forgotten"
    tensor = make_piece(private, 7).memory.view(torch.uint8).numpy().tobytes()
    key = make_key(7).numpy().tobytes()
    add(bank, private, 7, id="secret-id")
    add(bank, "another", 8, id="other")
    kept = bank.memories(bank.key_changes(0).added_ids[1:])[0]
    for part in (private.encode(), tensor, key, b"secret-id"):
        assert part in stored_bytes(path)
    bank.delete("secret-id")
    bank.vacuum()
    for part in (private.encode(), tensor, key, b"secret-id"):
        assert part not in stored_bytes(path)
    assert torch.equal(bank.memories([kept.memory_id])[0].memory, kept.memory)
    assert bank.verify() == []


def test_vacuum_gives_back_the_room(bank):
    text = "large"
    bank.add([(Document(text=text, id="d"), [make_piece(text, shape=(2, 2, 1, 20000, 4))])])
    bank.vacuum()
    large = bank.stats().file_bytes
    bank.delete("d")
    bank.vacuum()
    assert bank.stats().file_bytes < large / 2


def test_vacuum_says_when_a_reader_keeps_the_log(path):
    with (
        Bank.open(path, FINGERPRINT, busy_seconds=0.05) as bank,
        Bank.open(path, FINGERPRINT, read_only=True) as other,
    ):
        add(bank, "hello")
        with other._reader.reading() as sqlite:
            sqlite.execute("SELECT count(*) FROM documents").fetchone()
            add(bank, "hello again")
            with pytest.raises(BankError, match=r"someone is still reading it|kept it locked"):
                bank.vacuum()
        bank.vacuum()
        assert bank.count() == Counts(2, 2)
