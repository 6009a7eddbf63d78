"""A new compressor for a bank: in the background, resumable, in one moment."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from cmt import Document, reindexing
from cmt.bank import Bank
from cmt.bank.staging import Staging
from cmt.checkpoint import save_pretrained
from cmt.cli import main
from cmt.errors import FingerprintMismatchError, InputError
from cmt.generation import Sampling
from cmt.memory import Memory
from cmt.opening import fingerprint
from cmt.reindexing import reindex
from tests import small, tiny

SHORT = {"sampling": Sampling(max_new_tokens=6)}
QUESTION = "Who is the mayor of Arbon?"


@pytest.fixture(scope="module")
def old():
    return small.compressor()


@pytest.fixture(scope="module")
def new():
    """Another one, with longer memories too."""
    return small.compressor(seed=1, memory_tokens=6)


def fill(memory: Memory) -> None:
    memory.add(Document(text="Ann is the mayor of Arbon.", id="mayor", date="2020-01-01"))
    memory.add(
        Document(text="Bob is the mayor of Arbon.", id="mayor", date="2024-01-01"), supersede=True
    )
    memory.add([f"The river carries {n} tonnes of sand." for n in range(6)], tags=["rivers"])
    memory.add("A very long text about the sea and its rivers. " * 12, namespace="other")


@pytest.fixture
def path(tmp_path, old):
    path = tmp_path / "m.sqlite"
    with Memory(Bank.open(path, fingerprint(old)), old) as memory:
        fill(memory)
    return path


def opened(path, compressor) -> Memory:
    return Memory(Bank.open(path, fingerprint(compressor)), compressor)


def contents(bank: Bank) -> list[tuple[object, ...]]:
    return [
        (document, [(piece.start, piece.end, piece.key, piece.memory) for piece in pieces])
        for document, pieces in bank.entries()
    ]


def test_a_date_that_is_none_of_an_old_bank_stays(path, old, new):
    with opened(path, old) as memory:
        document = replace(memory.get("mayor"), id="other", date="31.01.2020")
        (_, pieces), *_ = memory.bank.entries()
        memory.bank.restore([(document, pieces)])
        assert memory.ask(QUESTION, **SHORT).text
    reindex(path, new)
    with opened(path, new) as memory:
        assert memory.get("other").date == "31.01.2020"


def test_the_bank_is_as_if_made_by_the_new_compressor(path, new, tmp_path):
    seen = []
    before = [document for document, _ in Bank.open(path, None).entries()]
    count = reindex(path, new, batch_tokens=120, on_progress=lambda *now: seen.append(now))
    assert count == len(before) == 9
    assert len(seen) > 2
    assert seen[-1] == (9, 9)
    fresh = opened(tmp_path / "fresh.sqlite", new)
    fill(fresh)
    with opened(path, new) as memory:
        assert memory.bank.verify() == []
        now = contents(memory.bank)
        for (document, pieces), (other, others) in zip(now, contents(fresh.bank), strict=True):
            assert (document.id, document.text) == (other.id, other.text)
            for one, two in zip(pieces, others, strict=True):
                assert one[:2] == two[:2]
                torch.testing.assert_close(one[2], two[2], rtol=0.02, atol=0.02)
                torch.testing.assert_close(one[3], two[3], rtol=0.05, atol=0.05)
        for document, was in zip((d for d, _ in now), before, strict=True):
            assert (document.added_at, document.superseded_at) == (was.added_at, was.superseded_at)
            assert (document.tags, document.namespace) == (was.tags, was.namespace)
        assert memory.ask(QUESTION, **SHORT).matches
    assert sorted(file.name for file in path.parent.glob("m.sqlite*")) == ["m.sqlite"]


def test_old_answers_are_served_until_the_end_and_then_refused(path, old, new, monkeypatch):
    memory = opened(path, old)
    answer = memory.ask(QUESTION, **SHORT)
    stage = reindexing._stage

    def asking(*arguments):
        stage(*arguments)
        assert memory.ask(QUESTION, **SHORT).text == answer.text

    monkeypatch.setattr(reindexing, "_stage", asking)
    reindex(path, new, batch_tokens=120)
    with pytest.raises(
        FingerprintMismatchError, match=r"was reindexed meanwhile: .* open it again"
    ):
        memory.ask(QUESTION, **SHORT)
    with pytest.raises(FingerprintMismatchError, match="was reindexed meanwhile"):
        memory.add("A text of the old compressor.")
    with pytest.raises(FingerprintMismatchError):
        opened(path, old)


def test_what_changes_meanwhile_is_caught_up_with(path, old, new, monkeypatch):
    memory = opened(path, old)
    stage, changes = reindexing._stage, []

    def changing(*arguments):
        stage(*arguments)
        if not changes:
            changes.append(True)
            memory.add("A new text.")
            memory.update("mayor", text="Cid is the mayor of Arbon.", supersede=True)
            memory.update("mayor", title="The mayor")
            (first, *_) = memory.documents(tags=["rivers"])
            memory.forget(first.id)

    monkeypatch.setattr(reindexing, "_stage", changing)
    reindex(path, new, batch_tokens=200)
    with opened(path, new) as after:
        assert after.bank.verify() == []
        assert [version.text[:3] for version in after.history("mayor")] == ["Ann", "Bob", "Cid"]
        assert after.get("mayor").title == "The mayor"
        assert len(list(after.documents(tags=["rivers"]))) == 5
        assert "A new text." in [document.text for document in after.documents()]


def test_a_change_at_the_last_moment_is_not_lost(path, old, new, monkeypatch):
    memory = opened(path, old)
    take_over, calls = Staging.take_over, []

    def late(staging):
        if not calls:
            memory.add("Just in time.")
        calls.append(take_over(staging))
        return calls[-1]

    monkeypatch.setattr(Staging, "take_over", late)
    reindex(path, new)
    assert calls == [False, True]
    with opened(path, new) as after:
        assert "Just in time." in [document.text for document in after.documents()]


def test_an_interrupted_run_goes_on_where_it_stopped(path, new, monkeypatch):
    def stop(done, total):
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(path, new, batch_tokens=120, on_progress=stop)
    assert path.with_name("m.sqlite.reindex").exists()
    with Bank.open(path, None) as bank:
        assert bank.verify() == []
    assert 0 < reindex(path, new, batch_tokens=120) < 6


def test_a_run_begun_with_another_compressor_is_named(path, new):
    other = small.compressor(seed=2)
    with Bank.open(path, None) as bank:
        Staging(bank, fingerprint(other)).close()
    with pytest.raises(FingerprintMismatchError, match=r"m\.sqlite\.reindex to be begun with"):
        reindex(path, new)


def test_the_texts_beside_the_bank_go_even_if_the_end_was_interrupted(path, new, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Staging, "remove", interrupted)
        reindex(path, new)
    beside = path.with_name("m.sqlite.reindex")
    assert beside.exists()
    with Bank.open(path, fingerprint(new)) as bank:
        before = contents(bank)
        assert reindex(path, new) == 0
        assert not beside.exists()
        assert [document for document, _ in contents(bank)] == [document for document, _ in before]


def test_the_same_compressor_is_refused(path, old):
    with pytest.raises(InputError, match=r"expected a new compressor for .*, got its own"):
        reindex(path, old)
    with pytest.raises(InputError, match="batch_tokens of at least 1, got 0"):
        reindex(path, old, batch_tokens=0)


def test_the_command(path, new, tmp_path):
    tiny.save(tmp_path / "base")
    save_pretrained(new, tmp_path / "checkpoint")
    model = ["--model", str(tmp_path / "base"), "--checkpoint", str(tmp_path / "checkpoint")]
    done = CliRunner().invoke(main, ["reindex", "--json", "--bank", str(path), *model])
    assert json.loads(done.stdout) == {"compressed": 9}
    done = CliRunner().invoke(main, ["reindex", "--bank", str(tmp_path / "none"), *model])
    assert done.exit_code == 4
