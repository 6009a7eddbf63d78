"""Of documents that disagree the later is read, and the other shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmt import Document, finding
from cmt.bank import Bank
from cmt.freshness import CLOSE, LATER, SAME_SUBJECT, prefer_later
from cmt.generation import Sampling
from cmt.memory import Memory
from cmt.opening import fingerprint
from tests import small

SAME = np.ones((4, 4))
DAY = LATER


def test_of_two_that_match_about_as_well_the_later_comes_first():
    assert prefer_later([9.0, 8.0], [0, DAY], SAME) == ([1], {0: 1})
    assert prefer_later([9.0, 8.0], [DAY, 0], SAME) == ([0], {1: 0})


def test_a_later_one_takes_the_place_of_the_best_it_replaces():
    alike = np.eye(3)
    alike[0, 2] = alike[2, 0] = SAME_SUBJECT
    assert prefer_later([9.0, 8.5, 8.0], [0, 9 * DAY, DAY], alike) == ([2, 1], {0: 2})


def test_of_several_the_latest_is_read():
    order, replaced = prefer_later([9.0, 8.5, 8.0], [0, DAY, 2 * DAY], SAME)
    assert (order, replaced) == ([2], {0: 2, 1: 2})


def test_a_chain_ends_at_its_last():
    """The third is too far behind the first, but not behind the second."""
    logits = [9.0, 9.0 - 0.9 * CLOSE, 9.0 - 1.8 * CLOSE]
    assert prefer_later(logits, [0, DAY, 2 * DAY], SAME) == ([2], {0: 2, 1: 2})


@pytest.mark.parametrize(
    ("logits", "starts", "alike"),
    [
        ([9.0, 8.9 - CLOSE], [0, DAY], 1.0),  # matches worse
        ([9.0, 8.0], [0, DAY - 1], 1.0),  # of the same day
        ([9.0, 8.0], [0, DAY], SAME_SUBJECT - 0.01),  # another subject
    ],
)
def test_otherwise_the_order_is_that_of_matching(logits, starts, alike):
    assert prefer_later(logits, starts, np.full((2, 2), alike)) == ([0, 1], {})


def test_equal_logits_keep_their_order():
    assert prefer_later([1.0, 1.0, 1.0], [0, 0, 0], SAME) == ([0, 1, 2], {})
    assert prefer_later([], [], SAME) == ([], {})


@pytest.fixture
def memory(tmp_path):
    compressor = small.compressor()
    bank = Bank.open(tmp_path / "m.sqlite", fingerprint(compressor))
    with Memory(bank, compressor) as made:
        made.add(
            [
                Document(text="Ann is the mayor of Arbon.", id="old", date="2020-01-01"),
                Document(text="Bob is the mayor of Arbon.", id="new", date="2024-01-01"),
                Document(text="Rivers carry sand to the sea.", id="rivers", date="2022-01-01"),
            ]
        )
        yield made


@pytest.mark.parametrize("likelihoods", [[-10.0, -12.0, -400.0], [-12.0, -10.0, -400.0]])
def test_an_answer_reads_the_later_and_shows_both(memory, monkeypatch, likelihoods):
    """Whichever matches a little better; keys and likelihoods are set here."""
    ids = {source.document_id: source.memory_id for source in memory.bank.sources([1, 2, 3])}
    of = dict(zip((ids["old"], ids["new"], ids["rivers"]), likelihoods, strict=True))

    def in_order(hits, *_):
        return [sorted(own, key=lambda hit: hit.memory_id) for own in hits]

    def read(*_, **__):
        return torch.tensor([[of[memory_id] for memory_id in sorted(of)]])

    alike = np.eye(3, dtype=np.float32)
    alike[0, 1] = alike[1, 0] = 0.95
    monkeypatch.setattr(memory._finder, "_ordered", in_order)
    monkeypatch.setattr(memory._finder._index, "alike", lambda _: alike)
    monkeypatch.setattr(memory.compressor, "scale", lambda: torch.tensor(0.0))
    monkeypatch.setattr(finding, "question_log_likelihoods", read)
    options = {"sampling": Sampling(max_new_tokens=4)}
    answer = memory.ask("Who is the mayor of Arbon?", **options)
    assert [match.document_id for match in answer.matches] == ["new"]
    assert [match.document_id for match in answer.older] == ["old"]
    assert (answer.matches[0].weight, answer.older[0].weight) == (1.0, 0.0)
    plain = memory.ask("Who is the mayor of Arbon?", prefer_later=False, **options)
    first = "old" if likelihoods[0] > likelihoods[1] else "new"
    assert [match.document_id for match in plain.matches] == [first]
    assert plain.older == ()
    stream = memory.stream("Who is the mayor of Arbon?", **options)
    assert "".join(stream) == answer.text
    assert stream.answer.older == answer.older


def test_keys_are_compared_and_those_gone_are_like_none(memory):
    index = memory._finder._index
    index.refresh()
    alike = index.alike([1, 2, 99])
    assert np.allclose(np.diag(alike), [1, 1, 0], atol=1e-5)
    assert alike[0, 2] == 0
