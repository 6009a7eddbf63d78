"""Self-matching's search: exact, deterministic, and never behind the bank."""

from __future__ import annotations

import logging
import sqlite3
import threading

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cmt.bank import Bank
from cmt.errors import CMTError, EmptyBankError, InputError
from cmt.matching import KeyIndex
from cmt.records import Document
from tests.unit.bank_pieces import FINGERPRINT, make_key, make_piece


def add_keys(bank: Bank, keys: dict[str, torch.Tensor]) -> None:
    bank.add([(Document(text=i, id=i), [make_piece(i, key=key)]) for i, key in keys.items()])


def found(index: KeyIndex, bank: Bank, query: torch.Tensor, top_k: int) -> list[str]:
    (hits,) = index.search(query[None], top_k)
    return [source.document_id for source in bank.sources([hit.memory_id for hit in hits])]


def random_keys(names: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: make_key(seed + n) for n, name in enumerate(names)}


def test_the_best_memories_come_first_with_their_cosines(bank):
    keys = random_keys("abcdef")
    add_keys(bank, keys)
    (hits,) = KeyIndex(bank).search(keys["d"][None], 3)
    expected = torch.stack(list(keys.values())).double() @ keys["d"].double()
    order = expected.argsort(descending=True)[:3]
    assert [hit.memory_id for hit in hits] == (order + 1).tolist()
    assert [hit.score for hit in hits] == pytest.approx(expected[order].tolist(), abs=1e-6)
    assert hits[0].score == pytest.approx(1.0)


def test_several_questions_are_answered_each_for_itself(bank):
    keys = random_keys("abcdefgh")
    add_keys(bank, keys)
    index = KeyIndex(bank)
    queries = torch.stack([make_key(50 + n) for n in range(5)])
    together = index.search(queries, 4)
    assert together == [index.search(query[None], 4)[0] for query in queries]
    assert index.search(queries[:0], 4) == []


def test_a_bank_smaller_than_top_k_gives_all_it_has(bank):
    add_keys(bank, random_keys("ab"))
    (hits,) = KeyIndex(bank).search(make_key(9)[None], 5)
    assert len(hits) == 2


def test_equal_keys_come_in_the_order_of_their_ids(bank):
    same = make_key(1)
    add_keys(bank, {name: same for name in "abcdefg"})
    index = KeyIndex(bank)
    assert found(index, bank, same, 3) == ["a", "b", "c"]
    bank.delete("b")  # the last row moves into b's place
    assert found(index, bank, same, 3) == ["a", "c", "d"]
    assert found(KeyIndex(bank), bank, same, 3) == ["a", "c", "d"]


def test_search_is_the_same_however_the_index_came_about(bank):
    """Also where float32 rounding, which depends on a key's row, decides."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(576, generator=generator)
    near = normalize(base + 1e-6 * torch.randn(300, 576, generator=generator), dim=1)
    index = KeyIndex(bank)
    for start in range(0, 300, 100):
        add_keys(bank, {f"{n}": near[n] for n in range(start, start + 100)})
        index.refresh()
        bank.delete(f"{start + 7}")
    query = normalize(base + torch.randn(576, generator=generator), dim=0)[None]
    others = normalize(torch.randn(15, 576, generator=generator), dim=1)
    expected = KeyIndex(bank).search(query, 10)[0]
    assert index.search(query, 10)[0] == expected
    assert index.search(torch.cat([others, query]), 10)[-1] == expected
    exact = (near.double() * query[0].double()).sum(dim=1).float()
    exact[[7, 107, 207]] = -1
    assert [hit.score for hit in expected] == exact.sort(descending=True).values[:10].tolist()


def test_the_index_follows_adds_updates_and_deletes(bank, path):
    keys = random_keys("abc")
    add_keys(bank, keys)
    index = KeyIndex(bank)
    assert found(index, bank, keys["b"], 1) == ["b"]
    bank.delete("b")
    assert "b" not in found(index, bank, keys["b"], 3)
    with Bank.open(path, FINGERPRINT) as other:
        add_keys(other, {"d": keys["b"]})
    assert found(index, bank, keys["b"], 1) == ["d"]
    bank.add([(Document(text="new", id="d"), [make_piece("new", key=-keys["b"])])])
    assert found(index, bank, -keys["b"], 1) == ["d"]
    assert found(index, bank, keys["b"], 3)[-1] == "d"
    assert len(index) == bank.count().memories == 3


def test_the_index_grows_past_its_first_capacity(bank, monkeypatch):
    monkeypatch.setattr("cmt.matching._FIRST_ROWS", 2)
    monkeypatch.setattr("cmt.matching._KEYS_AT_ONCE", 3)
    keys = random_keys("abcdefghijk")
    index = KeyIndex(bank)
    add_keys(bank, {name: keys[name] for name in "ab"})
    assert found(index, bank, keys["b"], 1) == ["b"]
    add_keys(bank, {name: keys[name] for name in "cdefghijk"})
    for name, key in keys.items():
        assert found(index, bank, key, 1) == [name]
    assert len(index) == 11


def test_an_unchanged_bank_is_not_read_again(bank, monkeypatch):
    add_keys(bank, random_keys("ab"))
    index = KeyIndex(bank)
    index.refresh()
    calls = []
    read = bank.key_changes
    monkeypatch.setattr(
        bank, "key_changes", lambda *a, **k: calls.append(read(*a, **k)) or calls[-1]
    )
    index.search(make_key(0)[None], 1)
    assert [changes.added_ids for changes in calls] == [[]]


def test_an_empty_bank_says_what_to_do(bank):
    index = KeyIndex(bank)
    message = "the bank holds no memory yet: add documents first"
    with pytest.raises(EmptyBankError, match=message):
        index.search(make_key(0)[None], 1)
    add_keys(bank, random_keys("a"))
    assert len(index.search(make_key(0)[None], 1)[0]) == 1
    bank.delete("a")
    with pytest.raises(EmptyBankError, match=message):
        index.search(make_key(0)[None], 1)


@pytest.mark.parametrize(
    ("query", "top_k", "message"),
    [
        (make_key(0)[None], 0, "expected top_k >= 1, got 0"),
        (make_key(0), 1, r"expected query keys of shape \(Q, 8\), as the bank's keys, got \(8,\)"),
        (make_key(0, 9)[None], 1, r"shape \(Q, 8\), as the bank's keys, got \(1, 9\)"),
        (make_key(0)[None] * 3, 1, "expected query keys of length 1, got length 3"),
        (make_key(0)[None] * float("nan"), 1, "expected query keys of length 1, got length nan"),
    ],
)
def test_a_wrong_question_is_refused(bank, query, top_k, message):
    add_keys(bank, random_keys("ab"))
    with pytest.raises(InputError, match=message):
        KeyIndex(bank).search(query, top_k)


def test_query_keys_of_other_dtypes_and_with_gradients_are_fine(bank):
    keys = random_keys("abc")
    add_keys(bank, keys)
    index = KeyIndex(bank)
    for query in (keys["b"].double(), keys["b"].bfloat16(), keys["b"].requires_grad_()):
        assert found(index, bank, query, 1) == ["b"]


def test_a_damaged_key_is_left_out_and_logged(bank, path, caplog):
    keys = random_keys("abc")
    add_keys(bank, keys)
    nan = np.full(8, np.nan, np.float32).tobytes()
    outside = sqlite3.connect(path)
    outside.execute("UPDATE memories SET key = ? WHERE memory_id = 2", (nan,))
    outside.commit()
    outside.close()
    with caplog.at_level(logging.WARNING):
        assert sorted(found(KeyIndex(bank), bank, keys["b"], 3)) == ["a", "c"]
    assert "the key of memory 2 is damaged" in caplog.text
    assert [problem.document_id for problem in bank.verify()] == ["b"]


def test_threads_share_an_index_while_the_bank_changes(bank):
    keys = random_keys("abcdefghij")
    add_keys(bank, {"a": keys["a"]})
    index = KeyIndex(bank)
    errors = []

    def search() -> None:
        try:
            for _ in range(50):
                (hits,) = index.search(keys["a"][None], 3)
                assert hits[0].memory_id == 1
        except (CMTError, AssertionError) as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for name in "bcdefghij":
        add_keys(bank, {name: keys[name]})
        if name > "d":
            bank.delete(chr(ord(name) - 2))
    for thread in threads:
        thread.join()
    assert errors == []
    index.refresh()
    assert len(index) == bank.count().memories
