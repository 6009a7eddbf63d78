"""Pieces that come one at a time, and wait as bytes in a file until all of them are there."""

from __future__ import annotations

import gc

import pytest
import torch

from cmt.bank import Bank, Counts, preparing
from cmt.bank.entries import MemoryEntry
from cmt.bank.preparing import prepared
from cmt.errors import BankError, InputError
from cmt.records import Document, EncodedPiece
from tests.unit.bank_pieces import FINGERPRINT, make_piece, make_vectors

TEXT = "sand and silt and clay " * 3


@pytest.fixture(params=[1, preparing.IN_MEMORY], ids=["on disk", "in memory"])
def in_memory(request, monkeypatch):
    monkeypatch.setattr(preparing, "IN_MEMORY", request.param)


def pieces(count: int = 5, seed: int = 0, **options: object) -> list[EncodedPiece]:
    return [make_piece(TEXT, seed + n, start=n, **options) for n in range(count)]


def contents(bank: Bank) -> list[tuple[object, ...]]:
    return [
        (document.id, [(p.start, p.end, p.key.tolist(), p.memory.tolist()) for p in own])
        for document, own in bank.entries()
    ]


@pytest.mark.parametrize("tier", ["bf16", "int8", "int4"])
@pytest.mark.usefixtures("in_memory")
def test_pieces_that_come_one_at_a_time_are_stored_as_a_list_is(tmp_path, tier):
    documents = [Document(text=TEXT, id="a"), Document(text=TEXT, id="b")]
    with (
        Bank.open(tmp_path / "one.sqlite", FINGERPRINT, tier=tier) as one,
        Bank.open(tmp_path / "two.sqlite", FINGERPRINT, tier=tier) as two,
    ):
        listed = one.add([(d, pieces(seed=n)) for n, d in enumerate(documents)])
        drawn = two.add([(d, iter(pieces(seed=n))) for n, d in enumerate(documents)])
        assert drawn == listed
        assert contents(one) == contents(two)
        assert two.verify() == []
        for outcomes in (listed, drawn):
            assert [outcome.memories for outcome in outcomes] == [5, 5]
            written = sum(outcome.memory_bytes for outcome in outcomes)
            assert written == two.stats().memory_bytes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.sqlite", "two.sqlite"]


@pytest.mark.usefixtures("in_memory")
def test_vectors_come_along(bank):
    made = [make_piece(TEXT, n, vectors=make_vectors(n)) for n in range(3)]
    bank.add([(Document(text=TEXT), iter(made))])
    ids = bank.key_changes(0).added_ids
    for vectors, piece in zip(bank.vectors(ids), made, strict=True):
        assert torch.equal(vectors, piece.vectors)


def test_what_is_in_memory_does_not_grow_with_the_pieces(bank, monkeypatch):
    monkeypatch.setattr(preparing, "IN_MEMORY", 1)
    counts = []

    def drawn(count: int):
        for n in range(count):
            counts.append(held())
            yield make_piece(TEXT, n)

    gc.collect()
    others = held()
    bank.add([(Document(text=TEXT), drawn(20))])
    assert max(counts) <= others + 3
    assert bank.count().memories == 20


def held() -> int:
    """How many pieces and memories with their bytes there are in this process."""
    return sum(
        type(one) is EncodedPiece or (type(one) is MemoryEntry and bool(one.data))
        for one in gc.get_objects()
    )


def test_memories_are_read_back_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "IN_MEMORY", 1)
    gc.collect()
    others = held()
    entries = [(Document(text=TEXT), iter(pieces(12)))]
    with prepared(entries, "bf16", tmp_path) as (entry,):
        assert len(entry.memories) == 12
        for place, memory in enumerate(entry.memories):
            assert memory.start == place
            assert held() <= others + 2


def test_nothing_is_stored_of_pieces_that_end_in_an_error(bank):
    def failing():
        yield from pieces(3)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        bank.add([(Document(text=TEXT), failing())])
    with pytest.raises(InputError, match=r"expected memories of \(L=2"):
        bank.add(
            [(Document(text=TEXT), iter([*pieces(1), make_piece(TEXT, shape=(3, 2, 1, 3, 4))]))]
        )
    with pytest.raises(InputError, match="at least one compressed piece, got none"):
        bank.add([(Document(text=TEXT), iter(()))])
    assert bank.count() == Counts(0, 0)
    assert bank.verify() == []


def test_no_room_for_the_file_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "IN_MEMORY", 1)
    entries = [(Document(text=TEXT), iter(pieces()))]
    with pytest.raises(BankError, match=r"expected room in .*none for the memories of a long"):
        with prepared(entries, "bf16", tmp_path / "none"):
            pass
