"""`benchmarks/stream.py` and `benchmarks/report.py`: one small run, cached, resumed, reported."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.methods import ABLATIONS, METHODS, tuned_text
from cmt.methods.fine_tuning import FineTuning
from cmt.records import Document
from tests import small, tiny

ROOT = Path(__file__).parents[2]


def write_csv(file: Path, dataset: QADataset) -> None:
    """StreamingQA's format."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["question", "answers", "text"])
        for question in dataset.questions:
            text = dataset.documents[question.document].text
            writer.writerow([question.text, "\\".join(question.answers), text])


def squad_format(dataset: QADataset) -> dict[str, object]:
    paragraphs = [
        {
            "context": document.text,
            "qas": [
                {"id": q.id, "question": q.text, "answers": [{"text": a} for a in q.answers]}
                for q in dataset.questions
                if q.document == number
            ],
        }
        for number, document in enumerate(dataset.documents)
    ]
    return {"data": [{"title": "towers", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("benchmark")
    tiny.save(made / "model")
    (made / "csv").mkdir()
    for split in ("train", "val", "test"):
        write_csv(made / "csv" / f"{split}.csv", small.dataset(24))
    (made / "new_wiki").mkdir()
    (made / "new_wiki" / "x.json").write_text(json.dumps(squad_format(small.dataset(8))))
    (made / "text").mkdir()
    filler = "It goes on for as long as it takes to be a document of its own. " * 2
    pages = {str(i): {"extract": f"Page {i} is about nothing at all. {filler}"} for i in range(30)}
    with gzip.open(made / "text" / "wikipedia_summaries.json.gz", "wt") as opened:
        json.dump(pages, opened)
    for part in ("train", "valid", "test"):
        with gzip.open(made / "text" / f"{part}.raw.gz", "wt") as opened:
            opened.write("A line about the sea and the rock. " * 20 + "\n")
    return made


@dataclass
class Ran:
    """What a script did: its exit code, 0 or what it was given to say, and what it printed."""

    returncode: int | str
    stdout: str
    stderr: str


def run(script: str, *arguments: object) -> Ran:
    """A script as its own command line would run it, in this process: torch is loaded already."""
    file = ROOT / "benchmarks" / script
    out, err = io.StringIO(), io.StringIO()
    code: int | str = 0
    with (
        mock.patch.object(sys, "argv", [str(file), *map(str, arguments)]),
        mock.patch.object(sys, "path", [str(file.parent), *sys.path]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(file), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    text = f"{code}\n" if isinstance(code, str) else ""
    return Ran(code, out.getvalue(), err.getvalue() + text)


def stream(folder: Path, *more: object) -> Ran:
    return run(
        "stream.py", "--data", folder, "--dataset", "streamingqa", "--path", folder / "csv",
        "--model", folder / "model", "--device", "cpu", "--out", folder / "results",
        "--states", folder / "states", "--commit", "abc1234", "--smoke", *more,
    )  # fmt: skip


def test_rows_are_measured_once_and_reported(folder: Path) -> None:
    rows = ("--method", "closed_book", "--method", "uniform", "--method", "mac")
    first = stream(folder, *rows)
    assert first.returncode == 0, first.stderr
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # a plan for each length of an answer
    results = sorted((folder / "results").glob("*.json"))
    parts = {tuple(file.name.split("-")[:2]) for file in results}
    assert parts == {
        *((row, part) for row in ("closed_book", "uniform", "mac")
          for part in ("stream", "retention", "robustness")),
        ("uniform", "choice"),
    }  # fmt: skip
    record = json.loads(next(f for f in results if f.name.startswith("mac-stream")).read_text())
    assert record["commit"] == "abc1234"
    assert record["command"].startswith("python stream.py --data ")
    assert str(folder) not in json.dumps(record)
    assert record["result"]["documents"] == 20
    assert record["result"]["reader_unchanged"] is True
    assert record["result"]["knowledge_before"] == record["result"]["knowledge_after"]
    assert record["settings"]["config"]["memory_tokens"] == 24
    tuned = json.loads(next(f for f in results if f.name.startswith("uniform-stream")).read_text())
    assert tuned["result"]["reader_unchanged"] is False
    assert tuned["result"]["knowledge_before"] != tuned["result"]["knowledge_after"]
    times = {file: file.stat().st_mtime_ns for file in results}
    results[0].unlink()  # a part that was not done when the run was cut short
    again = stream(folder, *rows)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("measured before") == len(results) - 1
    assert all(file.stat().st_mtime_ns == time for file, time in list(times.items())[1:])
    fewer = ("--documents", 12, "--parts", "stream", "--no-forgetting")
    other = stream(folder, "--method", "uniform", *fewer)
    assert "uniform choice: measured before" in other.stdout  # of another stream, the same choice
    assert "uniform stream: measured before" not in other.stdout
    made = ("report.py", "--results", folder / "results", "--out", folder / "stream.md")
    report = run(*made, "--model", "model")
    assert report.returncode == 0, report.stderr
    assert "left out: mac stream, abc1234, " in report.stdout
    assert ": documents=4, not 64\n" in report.stdout  # a smoke run's
    assert "\n| MAC |" not in (folder / "stream.md").read_text()
    assert "found none" in run(*made).stderr  # of another base model
    assert "left out" not in run(*made, "--drafts").stdout
    text = (folder / "stream.md").read_text()
    headings = re.findall("^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["streamingqa-test-stream-20", "streamingqa-test-stream-12"]  # the fullest
    assert "\n| MAC |" in text
    assert "| *published MAC* | *Llama-2-7B* | – | *1665* | – | – | 14.29 | 21.79 | – | – |" in text


def test_one_pass_serves_stream_and_retention(folder: Path) -> None:
    learn, learned = FineTuning.learn, [0]

    def counted(method: FineTuning, documents: Sequence[Document]) -> None:
        learned[0] += len(documents)
        learn(method, documents)

    def measured(out: str, *parts: str) -> int:
        learned[0] = 0
        with mock.patch.object(FineTuning, "learn", counted):
            ran = stream(folder, "--method", "uniform", "--no-choice", "--no-forgetting",
                         "--out", folder / out, "--parts", *parts)  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return learned[0]

    assert measured("together", "stream", "retention") == 20
    assert measured("apart", "stream") == 20
    assert measured("apart", "retention") == 20
    assert measured("together", "stream", "retention") == 0
    together, apart = (
        {file.name: json.loads(file.read_text()) for file in (folder / out).glob("*.json")}
        for out in ("together", "apart")
    )
    assert len(together) == 2
    assert together.keys() == apart.keys()  # of the same settings
    for name, record in together.items():
        for result in (record["result"], apart[name]["result"]):
            if record["part"] == "stream":
                del result["costs"]["learn_seconds"], result["costs"]["answer_seconds"]
        assert record["result"] == apart[name]["result"]
    next((folder / "together").glob("*-retention-*")).unlink()
    assert measured("together", "stream", "retention") == 20  # retention alone


def test_costs_are_a_part_of_their_own(folder: Path) -> None:
    for row in ("closed_book", "gold_text"):
        ran = stream(folder, "--method", row, "--parts", "costs", "--cost-questions", 3)
        assert ran.returncode == 0, ran.stderr
        (file,) = (folder / "results").glob(f"{row}-costs-*.json")
        record = json.loads(file.read_text())
        grows = row == "gold_text"
        assert record["result"].keys() == {
            "documents", "questions", "learned", "load", "cores", "costs",
        }  # fmt: skip
        assert record["result"]["documents"] == record["settings"]["cost_documents"] == 6
        assert record["result"]["questions"] == record["settings"]["cost_questions"] == 3
        assert record["result"]["learned"] == (20 if grows else 6)
        assert (record["result"]["costs"]["bytes_stored"] > 0) is grows


def test_settings_from_the_command_line(folder: Path) -> None:
    swept = stream(
        folder, "--method", "mac", "--parts", "stream", "--no-forgetting",
        "--set", "memory_tokens=4", "--sweep", "group=0,2",
    )  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    choices = [json.loads(f.read_text()) for f in (folder / "results").glob("mac-choice-*.json")]
    (choice,) = (c for c in choices if c["settings"]["candidates"] == {"group": [0, 2]})
    assert len(choice["result"]) == 2
    assert choice["settings"]["config"]["memory_tokens"] == 4
    wrong = stream(folder, "--method", "mac", "--set", "colour=red")
    assert wrong.returncode != 0
    assert "mac: expected name=value with a name in memory_tokens, " in wrong.stderr
    wrong = stream(folder, "--method", "mac", "--set", "memory_tokens=few")
    assert "expected a number like 24, got 'few'" in wrong.stderr


def test_a_choice_is_asked_about_the_validation_split(folder: Path) -> None:
    asked: list[str] = []

    class Noted(tuned_text.Right):
        def __init__(self, dataset: QADataset) -> None:
            super().__init__(dataset)
            asked.append(dataset.name)

    with mock.patch.object(tuned_text, "Right", Noted):
        ran = stream(folder, "--method", "tuned_gold_text", "--parts", "stream", "--no-forgetting")
    assert ran.returncode == 0, ran.stderr
    *choosing, measuring = asked
    assert len(choosing) == 2  # as many as a smoke run tries
    assert len({*choosing}) == 1
    assert "val" in choosing[0]
    assert measuring not in choosing


def test_what_is_missing_is_told(folder: Path, tmp_path: Path) -> None:
    nothing = run("stream.py", "--data", folder)
    assert nothing.returncode != 0
    assert "expected --data and --method, --all or --ablations" in nothing.stderr
    assert "kv_memory" in run("stream.py", "--list").stdout
    row = stream(folder, "--method", "kv_memory", "--method", "closed_book", "--parts", "retention")
    assert row.returncode != 0  # nothing is shipped for a tiny model; the other row goes on
    assert "expected a base model with a shipped compressor" in row.stderr
    assert "not measured: kv_memory" in row.stderr
    report = run("report.py", "--results", tmp_path, "--out", tmp_path / "x.md")
    assert "found none" in report.stderr


def test_recipe_and_spans_are_known_by_their_content(tmp_path: Path) -> None:
    with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
        made = runpy.run_path(str(ROOT / "benchmarks" / "stream_data.py"))
    names = []
    for number, text in enumerate(("a", "b", "a")):
        file = tmp_path / str(number) / "mine.py"
        file.parent.mkdir()
        file.write_text(text)
        spans = made["told"](replace(METHODS["salient_spans"].config, spans=str(file)))["spans"]
        assert made["recipe_name"](file, METHODS["kv_trained"].config) == spans
        assert made["recipe_name"](file, METHODS["mac"].config) == "mine.py"
        names.append(spans)
    assert names[0] == names[2] != names[1]
    assert names[0] == "mine.py ca978112ca1b"  # of SHA-256 the beginning
    assert made["told"](METHODS["salient_spans"].config)["spans"] == ""
    for what, tell in (
        ("a recipe", lambda: made["recipe_name"](tmp_path / "no", METHODS["kv_trained"].config)),
        ("salient spans",
         lambda: made["told"](replace(METHODS["salient_spans"].config, spans="no"))),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"expected {what} in .*no, got: "):
            tell()


def options_of() -> Any:
    """What `stream_options.py` makes of a command line and the rows."""
    with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
        return runpy.run_path(str(ROOT / "benchmarks" / "stream_options.py"))["options"]


def test_a_smoke_run_writes_nothing_among_the_published_results() -> None:
    places = {}
    for words in ([], ["--smoke"], ["--smoke", "--out", "a", "--states", "b"]):
        with mock.patch.object(sys, "argv", ["stream.py", *words]):
            options = options_of()(None, ["mac"])
        places[" ".join(words)] = (options.out, options.states)
    assert places == {
        "": (ROOT / "benchmarks/results/stream", ROOT / "runs/stream"),
        "--smoke": (ROOT / "runs/smoke", ROOT / "runs/smoke-states"),
        "--smoke --out a --states b": (Path("a"), Path("b")),
    }


def test_documented_commands_are_understood() -> None:
    parse = options_of()
    text = (ROOT / "docs" / "benchmark.md").read_text()
    commands = re.findall(r"^python benchmarks/stream\.py (.*)$", text, flags=re.MULTILINE)
    commands += re.findall(r"`(--method [^`]*)`", text)
    assert len(commands) > 10
    rows = [*METHODS, *ABLATIONS]
    named: set[str] = set()
    for command in commands:
        words = shlex.split(command.replace("$D", "--data DATA --device cuda"), comments=True)
        with mock.patch.object(sys, "argv", ["stream.py", *words]):
            options = parse(None, rows)
        named |= set(options.method) | (set(ABLATIONS) if options.ablations else set())
        for setting in (*options.set, *options.sweep):
            config = {**METHODS, **ABLATIONS}[options.method[0]].config
            assert hasattr(config, setting.partition("=")[0])
    assert named == set(rows)  # every row has its command
