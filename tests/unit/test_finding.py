"""Self-matching with late interaction: what is read is what the scores say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt import finding
from cmt.bank import Bank
from cmt.compressor import Compressor
from cmt.encoding import encode_documents, encode_questions
from cmt.errors import CorruptRecordError
from cmt.late_interaction import late_scores
from cmt.memory import Memory
from cmt.opening import fingerprint
from cmt.reading import question_tokens
from tests import small

TEXTS = [document.text for document in small.dataset().documents]
QUESTION = "Who built the tower of Selka 2?"


@pytest.fixture
def compressor() -> Compressor:
    return small.compressor().eval().requires_grad_(False)


@pytest.fixture
def memory(compressor: Compressor, tmp_path: Path) -> Iterator[Memory]:
    with Memory(Bank.open(tmp_path / "bank.sqlite", fingerprint(compressor)), compressor) as opened:
        opened.add(TEXTS)
        yield opened


def logits_by_hand(compressor: Compressor, question: str) -> torch.Tensor:
    """Key score plus late score of each text, from tensors that never saw the bank."""
    tokenizer = compressor.base.tokenizer
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    [(_, known)] = encode_documents(compressor, pieces)
    asked = encode_questions(compressor, question_tokens(tokenizer, [question]))
    assert asked.vectors is not None
    assert known.document_vectors_DKV is not None
    vectors = known.document_vectors_DKV.bfloat16().float()  # as the bank stores them
    by_key = (asked.keys_QC @ known.document_keys_DC.T)[0] * compressor.scale()
    return by_key + late_scores(asked.vectors, vectors, 1)[0]


def test_matches_are_ordered_by_key_and_late_score(memory: Memory, compressor: Compressor) -> None:
    matches = memory.search(QUESTION, top_k=len(TEXTS), rerank=0)
    by_hand = logits_by_hand(compressor, QUESTION)
    order = by_hand.argsort(descending=True).tolist()
    assert [TEXTS.index(match.excerpt) for match in matches] == order
    scale = compressor.scale().item()
    logits = torch.tensor([scale * match.score + match.late_score for match in matches])
    torch.testing.assert_close(logits, by_hand[order], atol=1e-3, rtol=1e-4)
    weights = torch.tensor([match.weight for match in matches])
    torch.testing.assert_close(weights, logits.softmax(0), atol=1e-4, rtol=1e-4)
    keys = sorted(matches, key=lambda match: -match.score)
    assert list(matches) != keys, "late interaction changes the order here"


def test_only_the_shortlist_is_compared(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = memory.search(QUESTION, top_k=len(TEXTS), rerank=0)
    monkeypatch.setattr(finding, "SHORTLIST", 3)
    best_by_key = sorted(everything, key=lambda match: -match.score)[:3]
    (match,) = memory.search(QUESTION, top_k=1, rerank=0)
    expected = max(best_by_key, key=lambda match: everything.index(match) * -1)
    assert replace(match, weight=0.0) == replace(expected, weight=0.0)


def test_a_memory_whose_vectors_are_gone_is_named_and_the_others_serve(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    first = memory.search(QUESTION, top_k=1, rerank=0)[0]
    with memory.bank.writing() as sqlite:
        sqlite.execute(
            "UPDATE memories SET vectors = x'00' WHERE memory_id = ?", (first.memory_id,)
        )
    with pytest.raises(CorruptRecordError, match="its vectors are cut or gone"):
        memory.bank.vectors([first.memory_id])
    second = memory.search(QUESTION, top_k=1, rerank=0)[0]
    assert second.memory_id != first.memory_id
    assert "left out of matching" in caplog.text
    assert [problem.memory_id for problem in memory.bank.verify()] == [first.memory_id]


def test_a_batch_reads_each_memory_once(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three questions, all of whose candidates are the same few memories."""
    seen: dict[str, list[list[int]]] = {"vectors": [], "memories": [], "sources": []}
    for name, calls in seen.items():
        read = getattr(memory.bank, name)

        def counting(ids: list[int], read: Any = read, calls: list[list[int]] = calls) -> Any:
            calls.append(list(ids))
            return read(ids)

        monkeypatch.setattr(memory.bank, name, counting)
    memory.ask([QUESTION, "When was it built?", QUESTION], rerank=4)
    for calls in seen.values():
        [ids] = calls
        assert len(ids) == len(set(ids))
    assert len(seen["vectors"][0]) == len(TEXTS)


def test_nothing_is_compared_where_nothing_is_selected(memory: Memory) -> None:
    assert memory.search(QUESTION, namespace="none") == ()
