"""Reading a bank: documents, memories, sources, and what became of the keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cmt.bank import Bank, Counts
from cmt.bank.tensor_bytes import text_hash
from cmt.errors import (
    InputError,
    UnknownIdError,
)
from cmt.records import Document
from tests.unit.bank_pieces import FINGERPRINT, add, keys_of, make_entry, make_piece


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
    monkeypatch.setattr("cmt.bank.store._DOCUMENTS_AT_ONCE", 3)
    ids = [f"d{n}" for n in (5, 3, 9, 1, 7, 0, 2, 8)]
    bank.add([make_entry(i, id=i) for i in ids])
    assert [d.id for d in bank.documents()] == ids
    assert [d.id for d in bank.documents(limit=4)] == ids[:4]
    assert [d.id for d in bank.documents(limit=4, offset=3)] == ids[3:7]
    assert [d.id for d in bank.documents(offset=7)] == ids[7:]
    assert list(bank.documents(limit=0)) == []
    assert list(bank.documents(offset=2**80)) == []


def test_listing_goes_on_while_documents_come_and_go(bank, monkeypatch):
    monkeypatch.setattr("cmt.bank.store._DOCUMENTS_AT_ONCE", 2)
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


def test_stats_and_verify_keep_no_reader_waiting(bank):
    add(bank, "x")
    with ThreadPoolExecutor() as threads, bank.reading():
        assert threads.submit(bank.stats).result(timeout=10).documents == 1
        assert threads.submit(bank.verify).result(timeout=10) == []


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
