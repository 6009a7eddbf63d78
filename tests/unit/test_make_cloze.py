"""The script that makes questions from files of texts."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmt.datasets import load_jsonl

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "make_cloze.py"
ARBON = (
    "The lighthouse of Arbon was built by Clara Weiss in 1823. It stands on a rock in the sea "
    "and is 20 metres high. Its lamp was made in Selka by Jon Sand in 1824."
)
WIKITEXT = """
 = Selka =

 The old harbour of Selka was built by Ada Moss in 1901 . The tower is 1 @,@ 200 metres away . \
The <unk> of Selka is near . It wasn 't easy to sail ( in winter ) to the town of Selka , she said .

 = = Nothing = =

 Too short .
"""
SQUAD = {
    "data": [
        {
            "title": title,
            "paragraphs": [{"context": ARBON.replace("Arbon", title), "qas": []}],
        }
        for title in ("Mirna", "Torvik", "Ulmen")
    ]
}


def run(folder: Path, *arguments: object) -> str:
    command = [sys.executable, SCRIPT, *arguments]
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_every_kind_of_file_gets_questions(tmp_path: Path) -> None:
    titled = {"text": ARBON, "title": "Arbon"}
    (tmp_path / "a.jsonl").write_text(json.dumps(titled) + "\n" + json.dumps({"text": "Short."}))
    (tmp_path / "b.json").write_text(json.dumps({"Varga": {"extract": ARBON[:-1] + " again."}}))
    (tmp_path / "c.json").write_text(json.dumps(SQUAD))
    (tmp_path / "d.raw.gz").write_bytes(gzip.compress(WIKITEXT.encode()))
    said = run(tmp_path, "a.jsonl", "b.json", "c.json", "d.raw.gz", "out.jsonl.gz", "--most", 4)
    assert "6 documents, 6 of them once and not held out" in said
    made = load_jsonl(tmp_path / "out.jsonl.gz")
    assert [d.title for d in made.documents] == "Arbon Varga Mirna Torvik Ulmen Selka".split()
    assert len(set(made.articles)) == 6
    assert made.documents[-1].text == (
        "The old harbour of Selka was built by Ada Moss in 1901. The tower is 1,200 metres away. "
        "It wasn't easy to sail (in winter) to the town of Selka, she said."
    )
    assert all(1 <= len(own) <= 4 for own in made.questions_by_document())


def test_what_validates_is_left_out(tmp_path: Path) -> None:
    lines = [{"text": ARBON, "title": "Arbon"}, {"text": ARBON.replace("Jon", "Una"), "title": "X"}]
    unlike = ARBON.replace("Clara", "Ada").replace("rock", "reef").replace("Jon", "Lea")
    lines.append({"text": unlike, "title": "Torvik"})
    lines.append({"text": unlike, "title": "Left"})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "dev.json").write_text(
        json.dumps({"data": [{"title": "arbon", "paragraphs": [{"context": ARBON, "qas": []}]}]})
    )
    (tmp_path / "train.json").write_text(json.dumps(SQUAD))
    held_out = ["--held-out", "dev.json", "--training", "train.json", "--articles", 2]
    run(tmp_path, "a.jsonl", "out.jsonl", *held_out)
    titles = {d.title for d in load_jsonl(tmp_path / "out.jsonl").documents}
    assert titles <= {"Torvik", "Left"}
    assert "Left" in titles or titles == {"Torvik"}


def test_a_line_without_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "A"}')
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(tmp_path, "a.jsonl", "out.jsonl")
    assert "a.jsonl: line 1.text: expected text, got nothing" in caught.value.stderr
