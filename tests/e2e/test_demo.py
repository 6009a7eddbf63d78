"""The command line as a user runs it, on the real model and the shipped compressor."""

import json
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e

HARBOUR = (
    "The harbour of Valdis was dredged in 1987 under the engineer Marta Lindqvist. The work took "
    "three years and cost forty million crowns. Since then ships of up to twelve metres draught "
    "can enter the port at any tide."
)
BAKERY = (
    "Oskar Brandt opened the first bakery of Kelmen in 1904. It sold rye bread, plum cakes and a "
    "sweet roll called the moonling, which the town still bakes every October."
)


def run(*arguments, cwd, stdin=None, code=0):
    """Standard output of `cmt` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "cmt.cli", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_demo_answers_better_with_memory_than_without(tmp_path):
    shown = run("demo", "--offline", cwd=tmp_path)
    assert "41 documents" in shown
    assert shown.count("with memory     ") == shown.count("gold answer     ") == 13
    numbers = re.search(
        r"in (\d+) of 13 answers with memory, in (\d+) without; (\d+) questions found", shown
    )
    with_memory, without, found = map(int, numbers.groups())
    assert with_memory > without
    assert found > 13 / 2
    assert "the same before and after" in shown
    assert list(tmp_path.iterdir()) == []  # its bank was a temporary one


def test_learn_ask_list_forget(tmp_path):
    (tmp_path / "harbour.txt").write_text(HARBOUR)
    bakery = json.dumps({"id": "bakery", "title": "Bakery", "text": BAKERY})
    added = run("add", "harbour.txt", "--offline", "--json", cwd=tmp_path)
    (harbour_id,) = json.loads(added)["added"]
    run("add", "-", "--format", "jsonl", "--offline", cwd=tmp_path, stdin=bakery)
    again = json.loads(run("add", "harbour.txt", "--offline", "--json", cwd=tmp_path))
    assert (again["unchanged"], again["tokens"]) == ([harbour_id], 0)

    questions = "When was the harbour of Valdis dredged?\nWho opened the first bakery of Kelmen?\n"
    asked = run("ask", "--json", "--offline", cwd=tmp_path, stdin=questions)
    answers = [json.loads(line) for line in asked.splitlines()]
    assert [a["matches"][0]["document_id"] for a in answers] == [harbour_id, "bakery"]
    assert "1987" in answers[0]["text"]
    assert "Brandt" in answers[1]["text"]  # a small model: of Oskar it makes Skarbor

    listed = [json.loads(line) for line in run("list", "--json", cwd=tmp_path).splitlines()]
    assert [document["id"] for document in listed] == [harbour_id, "bakery"]
    assert listed[0]["memory_bytes"] == 32 * 30 * 2 * 3 * 64 * 2

    assert run("forget", harbour_id, cwd=tmp_path) == "forgot 1\n"
    asked = run("ask", "When was the harbour of Valdis dredged?", "--offline", cwd=tmp_path)
    assert harbour_id not in asked
    assert run("verify", cwd=tmp_path) == "sound: 1 documents, 1 memories\n"
    run("forget", harbour_id, cwd=tmp_path, code=2)
