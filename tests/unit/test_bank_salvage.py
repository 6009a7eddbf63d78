"""What is left of a bank whose file was cut or broken is still read, listed, matched, exported."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
from pathlib import Path

import pytest
import torch

from cmt import transfer
from cmt.bank import Bank, Problem
from cmt.errors import BankError, CorruptRecordError, UnknownIdError
from cmt.matching import KeyIndex
from cmt.records import Document
from cmt.selection import select
from tests.unit.bank_pieces import FINGERPRINT, make_key, make_piece

LARGE = (4, 2, 4, 16, 64)  # a memory lies on pages of its own


@pytest.fixture
def closed(path):
    """A bank of 30 documents, packed into its file."""
    with Bank.open(path, FINGERPRINT) as bank:
        for n in range(30):
            text = f"text {n}"
            bank.add([(Document(text=text, id=f"{n}"), [make_piece(text, n, shape=LARGE)])])
        bank.wipe_log()
    return path


def intact(bank: Bank) -> int:
    """How many documents are read; each must be as it was written."""
    count = 0
    for entry in bank.entries():
        if not isinstance(entry, Problem):
            document, (piece,) = entry
            assert torch.equal(piece.memory, make_piece("", int(document.id), shape=LARGE).memory)
            count += 1
    return count


def test_a_truncated_bank_is_read_as_far_as_it_goes(closed, tmp_path):
    os.truncate(closed, closed.stat().st_size * 2 // 3)
    with pytest.raises(BankError, match=r"is damaged, or .* `cmt export`"):
        Bank.open(closed, FINGERPRINT)
    with Bank.open(closed, FINGERPRINT, read_only=True) as bank:
        left = intact(bank)
        assert 10 < left < 30
        named = {problem.document_id for problem in bank.verify() if problem.document_id}
        assert len(named) >= 30 - left
        (hits,) = KeyIndex(bank).search(make_key(0)[None], 3)
        assert bank.memories([hits[0].memory_id])
        report = transfer.export_bank(bank, tmp_path / "out")
        assert (report.documents, len(report.damaged)) == (left, 30 - left)
    with Bank.open(tmp_path / "saved.sqlite", FINGERPRINT) as saved:
        transfer.import_bank(saved, tmp_path / "out")
        assert (intact(saved), saved.verify()) == (left, [])


def test_broken_pages_of_the_memories_are_searched_past(closed, caplog):
    """One leaf of the table of memories, one of its index: the other still names what there is."""
    content = bytearray(closed.read_bytes())
    key = make_key(7).numpy().tobytes()
    page = content.index(key) // 16384 * 16384
    content[page : page + 16384] = bytes(16384)
    closed.write_bytes(content)
    with Bank.open(closed, FINGERPRINT, read_only=True) as bank:
        with caplog.at_level(logging.WARNING):
            index = KeyIndex(bank)
            index.refresh()
        assert "can't be read, it can't be matched" in caplog.text or len(index) == 30
        assert any("memories" in str(problem) for problem in bank.verify())


@pytest.mark.parametrize("layout", ["no json", "[1]", '[1, 2, 3, "x"]', "7"])
def test_a_damaged_layout_is_named(closed, layout):
    outside = sqlite3.connect(closed)
    outside.execute("UPDATE bank SET layout = ?", (layout,))
    outside.commit()
    outside.close()
    with Bank.open(closed, FINGERPRINT) as bank:
        with pytest.raises(CorruptRecordError, match="expected the sizes of the bank's memories"):
            bank.key_changes(0)


def look_everywhere(path: Path) -> None:
    """Every way to read a bank."""
    with Bank.open(path, FINGERPRINT, read_only=True) as bank:
        bank.verify()
        list(bank.entries())
        bank.stats()
        for filters in ({"tags": ["a"]}, {"since": "2020", "namespace": None}, {"as_of": "2030"}):
            list(bank.documents(selection=select(**filters)))
        bank.by_source("", namespace="default")
        bank.history("3")
        (hits,) = KeyIndex(bank).search(make_key(0)[None], 3)
        for hit in hits:
            bank.sources([hit.memory_id])
            bank.memories([hit.memory_id])


def test_whatever_bits_are_flipped_only_named_errors_come_out(path):
    with Bank.open(path, FINGERPRINT) as bank:
        for n in range(12):
            for version in range(2):
                text = f"text {n}.{version}"
                document = Document(
                    text=text,
                    id=f"{n}",
                    tags=["a", "b"],
                    date="2024-05-31",
                    source="s",
                    metadata={"n": n},
                    expires_at="2999-01-01",
                    supersede=True,
                )
                bank.add([(document, [make_piece(text, n)])])
        bank.vacuum()
    sound = path.read_bytes()
    used = [place for place, byte in enumerate(sound) if byte]
    draw = random.Random(0)
    for _ in range(250):
        content = bytearray(sound)
        for place in draw.sample(used, 3):
            content[place] ^= 1 << draw.randrange(8)
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        path.write_bytes(content)
        with contextlib.suppress(BankError, UnknownIdError):
            look_everywhere(path)
