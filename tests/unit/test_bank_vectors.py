"""Vectors for late interaction in the bank: kept to the bit, checked, guarded, exported."""

from __future__ import annotations

import sqlite3

import pytest
import torch

from cmt import transfer
from cmt.bank import Bank
from cmt.errors import CorruptRecordError, InputError, UnknownIdError
from cmt.records import Document
from tests.unit.bank_pieces import FINGERPRINT, add, make_piece, make_vectors

TEXT = "sand and silt"


def add_with_vectors(bank: Bank, seed: int, text: str = TEXT) -> torch.Tensor:
    vectors = make_vectors(seed)
    bank.add([(Document(text=text, id=f"{seed}"), [make_piece(text, seed, vectors=vectors)])])
    return vectors


def test_vectors_come_back_in_the_order_asked_for(bank):
    first, second = add_with_vectors(bank, 1), add_with_vectors(bank, 2)
    ids = bank.key_changes(0).added_ids
    found = bank.vectors([ids[1], ids[0]])
    assert [torch.equal(a, b) for a, b in zip(found, (second, first), strict=True)] == [True, True]
    assert found[0].dtype == torch.bfloat16
    assert bank.verify() == []
    assert bank.stats().key_bytes == 2 * (8 * 4 + 3 * 6 * 2)


def test_a_memory_that_is_not_there_is_named(bank):
    with pytest.raises(UnknownIdError, match="no memory with id 7"):
        bank.vectors([7])


def test_memories_without_vectors_say_so(bank):
    add(bank, TEXT)
    with pytest.raises(CorruptRecordError, match="its vectors are cut or gone"):
        bank.vectors(bank.key_changes(0).added_ids)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (make_vectors(0, tokens=2), r"expected bfloat16 vectors of shape \(3, V\).*\(2, 6\)"),
        (make_vectors(0).float(), r"expected bfloat16 vectors of shape \(3, V\).*float32"),
        (make_vectors(0)[0], r"expected bfloat16 vectors of shape \(3, V\).*\(6,\)"),
        (make_vectors(0) * torch.nan, "expected finite numbers, got NaN .* in its vectors"),
    ],
)
def test_vectors_of_another_form_are_refused(bank, vectors, message):
    with pytest.raises(InputError, match=message):
        bank.add([(Document(text=TEXT), [make_piece(TEXT, vectors=vectors)])])
    assert bank.count().memories == 0


def test_a_bank_holds_vectors_of_one_size(bank):
    add_with_vectors(bank, 1)
    with pytest.raises(InputError, match="with keys of 8 and vectors of 6"):
        add(bank, "other", 3)
    other = make_piece("other", vectors=make_vectors(1, size=5))
    with pytest.raises(InputError, match="and vectors of 5"):
        bank.add([(Document(text="other"), [other])])


def test_a_flipped_bit_in_the_vectors_is_found(bank):
    add_with_vectors(bank, 1)
    with sqlite3.connect(bank.path) as direct:
        (data,) = direct.execute("SELECT vectors FROM memories").fetchone()
        direct.execute("UPDATE memories SET vectors = ?", (bytes([data[0] ^ 1]) + data[1:],))
    [problem] = bank.verify()
    assert problem.document_id == "1"
    assert "don't match their checksum" in problem.reason


def test_an_export_carries_them(bank, tmp_path):
    vectors = [add_with_vectors(bank, seed, f"text {seed}") for seed in (1, 2)]
    transfer.export_bank(bank, tmp_path / "export")
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        transfer.import_bank(copy, tmp_path / "export")
        found = copy.vectors(copy.key_changes(0).added_ids)
        assert all(torch.equal(a, b) for a, b in zip(found, vectors, strict=True))
        assert copy.verify() == []
