"""BM25 beside self-matching: following the bank, the same in an evaluation, off by default."""

from __future__ import annotations

import importlib
import threading

import numpy as np
import pytest

from cmt import Document, lexical
from cmt.bank import Bank
from cmt.errors import InputError
from cmt.evaluation.qa import evaluate
from cmt.lexical import LexicalIndex
from cmt.memory import Memory
from cmt.opening import fingerprint
from cmt.resident import learn, lexical_scores
from tests import small

TEXTS = [
    "The lighthouse of Arbon was built in 1823 by Clara Weiss.",
    "Rivers carry sand, silt and clay to the sea.",
    "The delta of Mirna grows 12 metres a year; the lighthouse of Mirna stands on it.",
]


@pytest.fixture
def memory(tmp_path):
    compressor = small.compressor().eval().requires_grad_(False)
    with Memory(Bank.open(tmp_path / "m.sqlite", fingerprint(compressor)), compressor) as made:
        made.add([Document(text=text, id=f"d{i}") for i, text in enumerate(TEXTS)])
        yield made


def test_the_index_follows_the_bank(memory):
    index = LexicalIndex(memory.bank)
    ids = [source.memory_id for source in memory.bank.sources([1, 2, 3])]
    [first] = index.scores(["the delta of Mirna"], [ids])
    assert first.index(max(first)) == 2
    memory.add([Document(text="Mirna, Mirna, Mirna: a song of the delta.", id="song")])
    [more] = index.scores(["the delta of Mirna"], [[*ids, 4, 99]])
    assert more[3] > more[2] > 0
    assert more[4] == 0.0  # not in the bank
    memory.forget("song")
    [last] = index.scores(["the delta of Mirna"], [[*ids, 4]])
    assert last == pytest.approx([*first, 0.0])


def test_an_index_that_takes_long_is_renewed_beside_the_questions(memory, monkeypatch, caplog):
    index = LexicalIndex(memory.bank)
    asked = (["the delta of Mirna"], [[1, 2, 3, 4]])
    [first] = index.scores(*asked)
    made, gate = lexical.Texts, threading.Event()

    def slow(*texts):
        gate.wait(10)
        return made(*texts)

    monkeypatch.setattr(lexical, "Texts", slow)
    monkeypatch.setattr(lexical, "PATIENCE", 0.0)
    memory.add([Document(text="Mirna, Mirna, Mirna: a song of the delta.", id="song")])
    [before] = index.scores(*asked)
    assert before == first  # the new memory doesn't count yet
    assert index.scores(*asked) == [before]  # nor is it waited for, or indexed twice at once
    gate.set()
    wait_for_threads()
    [after] = index.scores(*asked)
    assert after[3] > after[2] > 0
    wait_for_threads()
    memory.close()
    assert index.scores(*asked) == [after]
    wait_for_threads()
    assert "BM25 was not made anew: the bank" in caplog.text


def test_a_question_waits_a_little_for_a_new_index(memory, monkeypatch):
    index = LexicalIndex(memory.bank)
    asked = (["the delta of Mirna"], [[1, 2, 3, 4]])
    index.scores(*asked)
    index._made = index._made._replace(seconds=60.0)  # the next one might take long
    monkeypatch.setattr(lexical, "PATIENCE", 10.0)
    memory.add([Document(text="Mirna, Mirna, Mirna: a song of the delta.", id="song")])
    [scores] = index.scores(*asked)
    assert scores[3] > 0


def test_an_index_that_could_not_be_made_is_tried_again(memory, monkeypatch):
    index = LexicalIndex(memory.bank)
    asked = (["the delta of Mirna"], [[1, 2, 3, 4]])
    index.scores(*asked)
    memory.add([Document(text="Mirna, Mirna, Mirna: a song of the delta.", id="song")])
    monkeypatch.setattr(lexical, "PATIENCE", 1e9)
    with monkeypatch.context() as full:
        full.setattr(lexical, "Texts", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            index.scores(*asked)
    [scores] = index.scores(*asked)
    assert scores[3] > 0


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "lexical index":
            thread.join(timeout=10)


def test_a_large_weight_finds_by_words_and_none_changes_nothing(memory):
    for question, right in (("Who was Clara Weiss?", "d0"), ("Rivers and silt", "d1")):
        for rerank in (0, 3):
            found = memory.search(question, top_k=3, rerank=rerank, lexical=1e4)
            assert found[0].document_id == right
            assert found[0].lexical_score > 0
    plain = memory.search("Who was Clara Weiss?", top_k=3)
    assert [match.lexical_score for match in plain] == [0.0] * 3
    asked = memory.ask("Rivers and silt", lexical=1e4)
    assert asked.matches[0].document_id == "d1"


def test_evaluation_adds_the_same():
    compressor = small.compressor().eval().requires_grad_(False)
    data = small.dataset(12)
    bank = learn(compressor, data)
    right = [question.document for question in data.questions]
    by_words = lexical_scores(data, bank).argmax(1).tolist()
    result = evaluate(compressor, data, lexical=1e4, given=False, max_new_tokens=2)
    assert result.recall[1] == 100 * np.mean([a == b for a, b in zip(by_words, right, strict=True)])
    plain = evaluate(compressor, data, given=False, max_new_tokens=2)
    assert plain.recall[1] < result.recall[1]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_without_meaning_is_refused(memory, weight):
    with pytest.raises(InputError, match="expected lexical of at least 0, got"):
        memory.ask("Who?", lexical=weight)


def test_without_bm25s_only_a_weight_is_refused(memory, monkeypatch):
    real = importlib.import_module

    def missing(name, *rest):
        if name == "bm25s":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert memory.search("Who was Clara Weiss?")
    with pytest.raises(InputError, match=r"found none: pip install -e '\.\[train\]' in"):
        memory.search("Who was Clara Weiss?", lexical=0.2)
