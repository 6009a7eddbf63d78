"""What the bank stores, replaces and forgets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt.bank import Bank, Counts, Outcome
from cmt.bank.tensor_bytes import text_hash
from cmt.errors import (
    BankError,
    UnknownIdError,
)
from cmt.records import Document
from tests.unit.bank_pieces import FINGERPRINT, add, keys_of, make_entry, make_key, make_piece


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
