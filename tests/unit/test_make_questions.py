"""The scripts whose tuned copies write paragraphs under titles, and questions on texts."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cmt.base_model import BaseModel
from cmt.datasets import hold_out, load_jsonl, load_squad
from cmt.generation import generate as really_generate
from cmt.methods.asking_tuned import TunedAsker
from tests import tiny
from tests.unit.test_stream_benchmark import ROOT, run

TEXT = (
    "The tower of {0} was built by Clara Weiss in 1823. That of {0} stands on a rock by the sea. "
    "The lamp of {0} was made in Selka by Jon Sand, who had come there in 1824."
)
TITLES = ["Arbon", "Mirna", "Torvik"]


def article(title: str) -> dict[str, object]:
    asked = (("Who built the tower?", "Clara Weiss"), ("When was it built?", "1823"))
    qas = [
        {"id": f"{title}-{place}", "question": question, "answers": [{"text": answer}]}
        for place, (question, answer) in enumerate(asked)
    ]
    return {"title": title, "paragraphs": [{"context": TEXT.format(title), "qas": qas}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a training and a development file, and texts, two of them held out."""
    made = tmp_path_factory.mktemp("asking")
    tiny.save(made / "model")
    articles = [article(title) for title in ("Ulmen", "Varga", "Wistow")]
    (made / "train.json").write_text(json.dumps({"data": articles}))
    (made / "dev.json").write_text(json.dumps({"data": [article("Ysel")]}))
    _, validation = hold_out(load_squad(made / "train.json"), articles=1)
    texts = [{"title": title, "text": TEXT.format(title)} for title in TITLES]
    texts.append({"title": "ysel", "text": TEXT.format("Kelm")})
    texts.append({"title": validation.documents[0].title, "text": TEXT.format("Orlov")})
    (made / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return made


def arguments(folder: Path, out: str, texts: str = "texts.jsonl") -> list[object]:
    """Of either script: what it reads and writes, with copies tuned in a step."""
    return [
        folder / texts, folder / out, "--training", folder / "train.json", "--articles", 1,
        "--held-out", folder / "dev.json", "--model", folder / "model", "--device", "cpu",
        "--steps", 1, "--states", folder / "states",
    ]  # fmt: skip


def states(folder: Path) -> dict[str, int]:
    """When each copy's state was written."""
    files = (folder / "states").glob("*/state/state.json")
    return {file.parts[-3].split("-", 1)[0]: file.stat().st_mtime_ns for file in files}


def test_the_copy_that_writes_is_tuned_once(folder: Path) -> None:
    writers: list[str] = []

    def generate(writer: BaseModel, *given: Any, **how: Any) -> list[list[int]]:
        writers.append(writer.digest())
        return really_generate(writer, *given, **how)

    written = []
    for out in ("first.jsonl.gz", "again.jsonl.gz"):
        more = ("--paragraphs", 12, "--batch-size", 5)
        with mock.patch("cmt.generation.generate", generate):
            ran = run("make_paragraphs.py", *arguments(folder, out), *more)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("3 texts with titles\n")
        lines = gzip.decompress((folder / out).read_bytes()).splitlines()
        assert re.search(rf"/{out}: {len(lines)} paragraphs; \d+ s\n$", ran.stdout)
        written.append(states(folder)["titles"])
    assert written[0] == written[1]
    assert len(writers) == 6  # batches
    (tuned,) = set(writers)
    assert tuned != BaseModel.load(str(folder / "model"), device="cpu").digest()


def test_what_is_written_ends_with_a_sentence(folder: Path) -> None:
    tokenizer = tiny.tokenizer()
    whole = "It is so \n" * 9

    def generate(_: object, prompts: Sequence[Sequence[int]], **__: object) -> list[list[int]]:
        titles = tokenizer.batch_decode(prompts)
        assert {title.removesuffix("\n") for title in titles} <= set(TITLES)
        texts = [whole, "Too short.", "On and on. " * 60, "On and on " * 60]
        return [tokenizer(texts[n % 4])["input_ids"][:220] for n in range(len(titles))]

    more = ("--paragraphs", 16, "--batch-size", 8)
    with mock.patch("cmt.generation.generate", generate):
        ran = run("make_paragraphs.py", *arguments(folder, "whole.jsonl.gz"), *more)
    assert ran.returncode == 0, ran.stderr
    assert "/whole.jsonl.gz: 8 paragraphs; " in ran.stdout
    lines = written(folder / "whole.jsonl.gz")
    texts = {line["text"] for line in lines}
    assert " ".join(whole.split()) in texts
    (cut_off,) = texts - {" ".join(whole.split())}
    assert re.fullmatch(r"(On and on\. )+On and on\.", cut_off)
    assert {line["title"] for line in lines} <= set(TITLES)


def test_titles_are_invented(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt.datasets.inventing.SEEN", 1)  # so few names are spelled one way
    text = tiny.tokenizer()("It is so. " * 9)["input_ids"]
    more = ("--paragraphs", 12, "--invented", 1)
    with mock.patch("cmt.generation.generate", lambda _, prompts, **__: [text] * len(prompts)):
        ran = run("make_paragraphs.py", *arguments(folder, "invented.jsonl.gz"), *more)
    assert ran.returncode == 0, ran.stderr
    titles = {line["title"] for line in written(folder / "invented.jsonl.gz")}
    assert len(titles - set(TITLES)) > 3


def written(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def test_no_title_to_write_under(folder: Path) -> None:
    (folder / "untitled.jsonl").write_text(json.dumps({"text": TEXT.format("Arbon")}))
    ran = run("make_paragraphs.py", *arguments(folder, "none.jsonl.gz", "untitled.jsonl"))
    assert ran.stderr == "expected texts with titles that are not held out, got none\n"
    assert not (folder / "none.jsonl.gz").exists()


def test_an_untrained_copy_asks_nothing(folder: Path) -> None:
    script = ROOT / "benchmarks" / "make_questions.py"
    command = [sys.executable, script, *arguments(folder, "rubbish.jsonl.gz"), "--documents", 2]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    counted, copies = done.stdout.splitlines()
    assert counted == "5 documents, 3 of them once and not held out"
    assert re.fullmatch(r"copies tuned or loaded in \d+ s", copies)
    assert "rubbish: expected a text to ask about, got none in 2" in done.stderr
    assert not (folder / "rubbish.jsonl.gz").exists()
    assert {"writing_tuned", "text_tuned"} <= states(folder).keys()


def test_what_the_copies_agree_on_is_kept(folder: Path) -> None:
    pairs = [("Who built it?", "Clara Weiss"), ("Where is it?", "Atlantis"), ("When?", "1824")]

    def write(_: TunedAsker, passages: Sequence[object]) -> list[list[tuple[str, str]]]:
        return [pairs for _ in passages]

    def agree(
        _: TunedAsker, _passages: object, asked: Sequence[tuple[int, tuple[str, str]]]
    ) -> list[bool]:
        return [answer != "1824" for _, (_, answer) in asked]

    with mock.patch.multiple(TunedAsker, _write=write, _agree=agree):
        ran = run("make_questions.py", *arguments(folder, "asked.jsonl.gz"))
    assert ran.returncode == 0, ran.stderr
    told = "/asked.jsonl.gz: 3 documents, 3 questions; 9 written, 3 answered alike; "
    assert told in ran.stdout
    made = load_jsonl(folder / "asked.jsonl.gz")
    assert [document.title for document in made.documents] == TITLES
    assert made.documents[0].id == "asked-00000"
    assert {(q.text, q.answers) for q in made.questions} == {("Who built it?", ("Clara Weiss",))}
