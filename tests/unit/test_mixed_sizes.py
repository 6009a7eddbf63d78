"""Memories of several sizes in one bank: added, found, read, measured and moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmt import transfer
from cmt.bank import Bank
from cmt.bank.tensor_bytes import TIERS, Tier
from cmt.checkpoint import save_pretrained
from cmt.cli import main
from cmt.compressor import Compressor
from cmt.errors import InputError
from cmt.evaluation import qa
from cmt.finding import Search
from cmt.generation import Sampling
from cmt.memory import Memory
from cmt.opening import fingerprint
from cmt.prompts import plain
from cmt.records import Match
from cmt.reindexing import reindex
from cmt.resident import learn
from cmt.selection import select
from tests import small, tiny

DATA = small.dataset()
FULL, HALF = DATA.documents[::2], DATA.documents[1::2]
QUESTIONS = [question.text for question in DATA.questions[:5]]
SHORT = Sampling(max_new_tokens=6)
WRONG = "expected memory_tokens out of 1, 2, 4, which this compressor is trained for, got 3"


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return small.compressor(memory_sizes=(1, 2)).eval().requires_grad_(False)


def opened(path: Path, compressor: Compressor, tier: Tier | None = None) -> Memory:
    return Memory(Bank.open(path, fingerprint(compressor), tier=tier), compressor)


def fill(memory: Memory) -> None:
    memory.add(FULL)
    memory.add(HALF, memory_tokens=2)


def sizes(bank: Bank) -> dict[str, set[int]]:
    """K of each document's memories."""
    return {
        document.id: {piece.memory.shape[3] for piece in pieces}
        for document, pieces in bank.entries()
    }


def found(memory: Memory, questions: list[str]) -> list[dict[str, Match]]:
    """What self-matching finds for questions asked together, by document, all re-ranked."""
    tokens = plain(memory.compressor.base, questions, memory._start, 6)
    some = memory._finder.find(
        [""] * len(tokens), tokens, Search(top_k=4, rerank=100, prefer_later=False), select()
    )
    return [{match.document_id: match for match in own.matches} for own in some]


def assert_alike(one: Match, other: Match) -> None:
    assert one.excerpt == other.excerpt
    for name in ("score", "late_score", "log_likelihood"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-5, abs=1e-4)


def test_questions_together_find_what_each_finds_alone(tmp_path, compressor):
    with opened(tmp_path / "m.sqlite", compressor) as memory:
        fill(memory)
        together = found(memory, QUESTIONS)
        for question, own in zip(QUESTIONS, together, strict=True):
            [alone] = found(memory, [question])
            assert list(own) == list(alone)
            for name, match in own.items():
                assert_alike(match, alone[name])
                assert match.weight == pytest.approx(alone[name].weight, rel=1e-3, abs=1e-5)


def test_a_mixed_bank_scores_as_banks_of_one_size(tmp_path, compressor):
    apart = {}
    for name, documents, K in (("full", FULL, None), ("half", HALF, 2)):
        with opened(tmp_path / name, compressor) as memory:
            memory.add(documents, memory_tokens=K)
            for place, question in enumerate(QUESTIONS):
                tokens = plain(compressor.base, [question], memory._start, 6)
                [own] = memory._finder.find(
                    [""] * len(tokens),
                    tokens,
                    Search(top_k=50, rerank=100, prefer_later=False),
                    select(),
                )
                apart |= {(place, match.document_id): match for match in own.matches}
    with opened(tmp_path / "mixed", compressor) as memory:
        fill(memory)
        tokens = plain(compressor.base, QUESTIONS, memory._start, 6)
        mixed = memory._finder.find(
            [""] * len(tokens), tokens, Search(top_k=8, rerank=100, prefer_later=False), select()
        )
    read = set()
    for place, own in enumerate(mixed):
        for match, tensor in zip(own.matches, own.memories, strict=True):
            assert_alike(match, apart[place, match.document_id])
            read.add(tensor.shape[3])
    assert read == {2, 4}


@pytest.mark.parametrize("tier", TIERS)
def test_a_mixed_bank_goes_out_and_comes_back(tmp_path, compressor, tier):
    expected = {document.id: {4} for document in FULL} | {document.id: {2} for document in HALF}
    with opened(tmp_path / "m.sqlite", compressor, tier) as memory:
        fill(memory)
        assert memory.bank.verify() == []
        assert sizes(memory.bank) == expected
        assert memory.stats().memory_tokens == {2: len(HALF), 4: len(FULL)}
        transfer.export_bank(memory.bank, tmp_path / "export")
        answers = memory.ask(QUESTIONS, top_k=3, sampling=SHORT)
    assert all(4 < answer.memory_tokens <= 12 for answer in answers)
    with opened(tmp_path / "copy.sqlite", compressor, tier) as copy:
        report = transfer.import_bank(copy.bank, tmp_path / "export")
        assert report.memories == len(DATA.documents)
        assert copy.bank.verify() == []
        assert sizes(copy.bank) == expected
        for one, other in zip(answers, copy.ask(QUESTIONS, top_k=3, sampling=SHORT), strict=True):
            assert (one.text, one.memory_tokens) == (other.text, other.memory_tokens)
            assert [match.excerpt for match in one.matches] == [
                match.excerpt for match in other.matches
            ]


def test_a_new_text_has_the_size_asked_for_and_an_old_one_keeps_its(tmp_path, compressor):
    with opened(tmp_path / "m.sqlite", compressor) as memory:
        memory.add(DATA.documents[0], memory_tokens=2)
        assert memory.add(DATA.documents[0]).unchanged == ("tower-0",)
        memory.update("tower-0", title="Arbon", memory_tokens=1)
        assert sizes(memory.bank) == {"tower-0": {2}}
        memory.update("tower-0", text="It fell into the sea.", memory_tokens=1)
        assert sizes(memory.bank) == {"tower-0": {1}}
        memory.update("tower-0", text="It was built anew.")
        assert sizes(memory.bank) == {"tower-0": {4}}


@pytest.mark.parametrize("wrong", [3, 0, 2.0, True])
def test_a_size_that_there_is_not_is_refused_before_anything_is_done(tmp_path, compressor, wrong):
    message = WRONG[:-1] + str(wrong)
    with opened(tmp_path / "m.sqlite", compressor) as memory:
        memory.add(DATA.documents[0])

        def never():
            raise AssertionError("read")
            yield

        with pytest.raises(InputError, match=message):
            memory.add(never(), memory_tokens=wrong)
        with pytest.raises(InputError, match=message):
            memory.update("tower-0", text="Another.", memory_tokens=wrong)
        assert memory.get("tower-0").text == DATA.documents[0].text
    with pytest.raises(InputError, match=message):
        learn(compressor, DATA, memory_tokens=wrong)


def test_evaluation_is_of_the_size_asked_for(compressor):
    options = {"given": False, "max_new_tokens": 2, "resamples": 10}
    result = qa.evaluate(compressor, DATA, memory_tokens=2, **options)
    bank = learn(compressor, DATA, memory_tokens=2)
    assert bank.memories.shape[4] == 2
    again = qa.evaluate(compressor, DATA, bank=bank, **options)
    assert result.memory_tokens == again.memory_tokens == 2
    assert result.bytes_per_memory == 3 * 2 * 2 * 2 * 8 * 2
    assert result.found[1].predictions == again.found[1].predictions
    with pytest.raises(InputError, match="expected a bank of 4 memory tokens, got one of 2"):
        qa.evaluate(compressor, DATA, bank=bank, memory_tokens=4, **options)


def test_reindexing_keeps_each_size_that_the_new_compressor_has(tmp_path, compressor):
    path = tmp_path / "m.sqlite"
    with opened(path, compressor) as memory:
        fill(memory)
        memory.add("A river.", memory_tokens=1)
    new = small.compressor(seed=1, memory_tokens=6, memory_sizes=(2,))
    assert reindex(path, new, batch_tokens=300) == len(DATA.documents) + 1
    with opened(path, new) as memory:
        assert memory.bank.verify() == []
        now = sizes(memory.bank)
        assert [now[document.id] for document in FULL] == [{6}] * len(FULL)
        assert [now[document.id] for document in HALF] == [{2}] * len(HALF)
        assert memory.stats().memory_tokens == {2: len(HALF), 6: len(FULL) + 1}
        assert memory.ask(QUESTIONS[0], sampling=SHORT).matches


def test_a_damaged_shape_counts_for_no_size(tmp_path, compressor):
    with opened(tmp_path / "m.sqlite", compressor) as memory:
        fill(memory)
        with memory.bank.writing() as sqlite:
            sqlite.execute("UPDATE memories SET shape = '[' WHERE memory_id = 1")
            sqlite.execute("UPDATE memories SET shape = '[1]' WHERE memory_id = 2")
        assert memory.stats().memory_tokens == {2: len(HALF), 4: len(FULL) - 2}
        assert memory.bank.memory_tokens(1) is None
        assert memory.bank.memory_tokens(3) == 4


def test_commands_take_a_size(tmp_path, compressor, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(tiny.save(tmp_path / "model")), "--checkpoint", "checkpoint"]
    save_pretrained(compressor, tmp_path / "checkpoint")
    Path("one.txt").write_text("The lighthouse of Arbon was built in 1823.")
    Path("two.txt").write_text("Rivers carry sand to the sea.")

    def run(*arguments):
        return CliRunner().invoke(main, [str(one) for one in arguments])

    for arguments in (["one.txt"], ["two.txt", "--memory-tokens", 2]):
        assert run("add", *arguments, *model).exit_code == 0
    assert "memories    2 (1 of 2 tokens, 1 of 4 tokens)" in run("stats").stdout
    assert json.loads(run("stats", "--json").stdout)["memory_tokens"] == {"2": 1, "4": 1}
    result = run("add", "one.txt", "--memory-tokens", 3, *model)
    assert result.exit_code != 0
    assert WRONG in result.stderr
    paragraph = {
        "context": "The lighthouse of Arbon was built in 1823.",
        "qas": [
            {
                "id": "q",
                "question": "When was it built?",
                "answers": [{"text": "1823", "answer_start": 37}],
            }
        ],
    }
    data = {"version": "1.1", "data": [{"title": "Arbon", "paragraphs": [paragraph]}]}
    Path("dev.json").write_text(json.dumps(data))
    shown = run("eval", "dev.json", "--memory-tokens", 2, "--json", *model)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["memory_tokens"] == 2
    assert WRONG in run("eval", "dev.json", "--memory-tokens", 3, *model).stderr
