"""The life cycle on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmt.checkpoint import save_pretrained
from cmt.cli import main
from cmt.commands.add import _Bar
from cmt.memory_records import Progress
from tests import small, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Options that name the tiny model and its compressor."""
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder / "base")
    save_pretrained(small.compressor(), folder / "checkpoint")
    return ["--model", str(folder / "base"), "--checkpoint", str(folder / "checkpoint")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CMT_BANK", raising=False)
    return tmp_path


def run(*arguments: object, stdin: str | None = None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def done(*arguments: object, stdin: str | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def answer(model, *options: object) -> dict:
    question = "Who is the mayor?"
    return json.loads(done("ask", question, "--json", "--max-new-tokens", 4, *options, *model))


def dated(name: str, text: str, date: str) -> None:
    Path(name).write_text(json.dumps({"text": text, "id": "mayor", "date": date}))


def test_an_edited_file_replaces_what_was_learned_from_it(model):
    Path("note.txt").write_text("Ann is the mayor.")
    done("add", "note.txt", *model)
    Path("note.txt").write_text("Bob is the mayor.")
    report = json.loads(done("add", "./note.txt", "--json", *model))
    assert report["updated"] == [os.path.abspath("note.txt")]
    assert json.loads(done("stats", "--json"))["documents"] == 1


def test_a_touched_file_takes_over_its_date_without_compressing(model):
    Path("note.txt").write_text("Ann is the mayor.")
    os.utime("note.txt", (0, 0))
    done("add", "note.txt", *model)
    os.utime("note.txt", (10**9, 10**9))
    report = json.loads(done("add", "note.txt", "--json", *model))
    assert (len(report["unchanged"]), report["tokens"]) == (1, 0)
    assert json.loads(done("list", "--json"))["date"] == "2001-09-09"


def test_history_is_kept_shown_asked_and_purged(model):
    dated("a.jsonl", "Ann is the mayor.", "2020-01-01")
    dated("b.jsonl", "Bob is the mayor.", "2024-01-01")
    done("add", "a.jsonl", *model)
    done("add", "b.jsonl", "--supersede", *model)
    assert "Ann" not in done("show", "mayor")
    shown = done("show", "mayor", "--history")
    assert shown.index("Ann is the mayor.") < shown.index("Bob is the mayor.")
    versions = [
        json.loads(line) for line in done("show", "mayor", "--history", "--json").split("\n")[:-1]
    ]
    assert [version["superseded_at"] for version in versions] == ["2024-01-01", None]
    assert answer(model)["matches"][0]["excerpt"].startswith("Bob")
    assert answer(model, "--as-of", "2021-05-01")["matches"][0]["excerpt"].startswith("Ann")
    assert "documents   1 (1 superseded versions)" in done("stats")
    assert done("purge") == "purged 0\n"
    assert json.loads(done("purge", "--history", "--json")) == {"purged": ["mayor"]}


def test_a_time_to_live_runs_out(model):
    done("add", "-", "--ttl", "1s", *model, stdin="Ann is the mayor.")
    done("add", "-", "--expires-at", "2020-01-01", *model, stdin="Bob is the mayor.")
    expiries = [json.loads(line)["expires_at"] for line in done("list", "--json").split("\n")[:-1]]
    assert expiries[0] > "2026"
    assert expiries[1] == "2020-01-01"
    assert "purged" in done("purge", "--vacuum")
    assert run("add", "-", "--ttl", "soon", *model, stdin="x").exit_code == 2


def test_namespaces_and_tags_select(model):
    done("add", "-", "--tag", "news", "--tag", "town", *model, stdin="Ann is the mayor.")
    done("add", "-", "--namespace", "other", *model, stdin="Bob is the mayor.")
    assert answer(model)["matches"][0]["excerpt"].startswith("Ann")
    assert answer(model, "--namespace", "other")["matches"][0]["excerpt"].startswith("Bob")
    assert len(answer(model, "--all-namespaces", "--top-k", 5)["matches"]) == 2
    assert answer(model, "--tag", "news", "--since", "2020")["matches"]
    none = answer(model, "--tag", "sport")
    assert (none["text"], none["abstained"]) == ("I don't know.", True)
    assert len(done("list").splitlines()) == 2
    assert len(done("list", "--namespace", "other").splitlines()) == 1
    assert len(done("list", "--tag", "town").splitlines()) == 1
    (listed,) = done("list", "--namespace", "other", "--json").splitlines()
    name = json.loads(listed)["id"]
    assert run("show", name).exit_code == 2
    assert "Bob" in done("show", name, "--namespace", "other")
    assert run("forget", name).exit_code == 2
    assert done("forget", name, "--namespace", "other") == "forgot 1\n"
    assert "namespaces  default\n" in done("stats")


def test_search_shows_what_a_question_finds(model):
    dated("a.jsonl", "Ann is\nthe mayor.", "2020-01-01")
    done("add", "a.jsonl", *model)
    done("add", "-", *model, stdin="Rivers carry sand.")
    shown = done("search", "Who is the mayor?", *model)
    assert "Ann is the mayor." in shown
    assert len(shown.splitlines()) == 4
    first = json.loads(done("search", "Who?", "--json", "--until", "2021", *model))
    assert (first["document_id"], first["date"]) == ("mayor", "2020-01-01")
    assert done("search", "Who?", "--tag", "none", *model) == ""


def test_a_least_score_makes_it_abstain(model):
    done("add", "-", *model, stdin="Ann is the mayor.")
    assert answer(model, "--min-score", 1)["abstained"]
    assert not answer(model, "--min-score", -1)["abstained"]
    shown = done("chat", "--min-score", 1, *model, stdin="Who is it?\n\n")
    assert "I don't know." in shown


def test_a_filter_that_is_no_date_is_refused(model):
    done("add", "-", *model, stdin="Ann is the mayor.")
    result = run("ask", "Who?", "--as-of", "yesterday", *model)
    assert result.exit_code == 2
    assert "expected as_of as in 2026-01-31" in result.stderr


def test_what_is_forgotten_is_not_in_the_file(model, folder):
    done("add", "-", *model, stdin="The password is swordfish.")
    name = json.loads(done("list", "--json"))["id"]
    done("forget", name)
    assert not [f for f in folder.glob("memory.sqlite*") if b"swordfish" in f.read_bytes()]


def test_progress_goes_on_within_a_long_document(capsys):
    with _Bar(True, (), None) as bar:
        bar._bar.mininterval = 0
        bar.show(Progress(documents=9, tokens=90, memory_bytes=900))
        bar.show(Progress(documents=9, tokens=4_090, memory_bytes=900))
        bar.show(Progress(documents=9, tokens=8_090, memory_bytes=900))
    shown = capsys.readouterr().err
    assert "4,090 tokens" in shown
    assert "8,090 tokens" in shown


def test_progress_has_a_total_and_an_estimate(model):
    Path("many.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(300)))
    result = run("add", "many.jsonl", "--progress", *model)
    assert result.exit_code == 0
    assert "/300" in result.stderr
    assert "/300" not in run("add", "many.jsonl", *model).stderr


def test_an_interrupted_add_goes_on_where_it_stopped(model, monkeypatch):
    from cmt.bank import Bank

    Path("many.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(600)))
    add, calls = Bank.add, []

    def stopping(bank, entries, **options):
        calls.append(len(entries))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(bank, entries, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Bank, "add", stopping)
        assert run("add", "many.jsonl", *model).exit_code != 0
    Path("many.jsonl").rename("elsewhere.jsonl")  # as before: another path, the same texts
    report = json.loads(done("add", "elsewhere.jsonl", "--json", *model))
    assert len(report["unchanged"]) == sum(calls[:2]) > 0
    assert len(report["unchanged"]) + len(report["added"]) == 600
