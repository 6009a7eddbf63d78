"""A damaged file: the damage is named, the rest stays readable."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

from cmt.bank import Bank
from cmt.bank.tensor_bytes import checksum
from cmt.errors import BankError, CorruptRecordError
from cmt.records import Document
from tests.unit.bank_pieces import FINGERPRINT, add, make_entry, make_piece


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.sqlite"


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


@pytest.mark.parametrize("document", [1, 2])
def test_a_cut_key_is_passed_over_and_logged(path, caplog, document):
    closed_bank(path)
    change_rows(path, "UPDATE memories SET key = x'00' WHERE document = " + str(document))  # noqa: S608
    with Bank.open(path, FINGERPRINT) as bank:
        everything = bank.key_changes(0)
        assert len(everything.added_ids) == bank.count().memories - 1
        assert f"memory {document} can't be read, it can't be matched" in caplog.text
        in_parts, cursor = [], 0
        while True:
            part = bank.key_changes(cursor, limit=1)
            in_parts += part.added_ids
            if part.complete:
                break
            assert part.cursor > cursor
            cursor = part.cursor
        assert in_parts == everything.added_ids
        assert bank.verify()


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


def test_a_search_for_damage_can_be_ended(path):
    closed_bank(path)
    records = []

    def on_record() -> None:
        records.append(1)
        if len(records) == 4:
            raise RuntimeError("enough")

    with Bank.open(path, FINGERPRINT) as bank:
        with pytest.raises(RuntimeError, match="enough"):
            bank.verify(on_record)
        assert bank.verify(lambda: records.append(1)) == []
    assert len(records) == 4 + 6  # three documents, a memory each


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


def test_memories_of_banks_of_before_are_guarded_by_their_own_checksum(bank):
    """Until the fifth step of the schema it was BLAKE2b's, of 16 bytes."""
    text = "sand and silt"
    add(bank, text)
    (memory_id,) = bank.key_changes(0).added_ids
    with closing(sqlite3.connect(bank.path)) as file, file:
        *fields, content_hash, key, data, vectors = file.execute(
            "SELECT start_char, end_char, tokens, dtype, shape, content_hash, key, data, vectors "
            "FROM memories JOIN documents ON number = document JOIN tensors USING (memory_id)"
        ).fetchone()
        old = checksum((*fields, content_hash), key, data)
        assert vectors is None and len(old) == 16
        file.execute("UPDATE memories SET checksum = ?", (old,))
    assert bank.verify() == []
    assert bank.memories([memory_id])[0].memory_id == memory_id
    with closing(sqlite3.connect(bank.path)) as file, file:
        file.execute("UPDATE tensors SET data = ?", (flip(data),))
    with pytest.raises(CorruptRecordError, match="checksum"):
        bank.memories([memory_id])
    with closing(sqlite3.connect(bank.path)) as file, file:
        file.execute("UPDATE memories SET checksum = 'gone'")
    with pytest.raises(CorruptRecordError, match="checksum"):
        bank.memories([memory_id])
