"""Results as files, and the tables and plots made of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from cmt.errors import InputError
from cmt.evaluation import results
from cmt.evaluation.plots import draw
from cmt.evaluation.published import ABLATION, MODELS, PUBLISHED
from cmt.evaluation.report import markdown, newest
from cmt.evaluation.results import (
    ResultStore,
    code_commit,
    is_known,
    read_result,
    shown,
    stamp,
    without_predictions,
)
from cmt.evaluation.stream import reading, retention, robustness, run_stream
from cmt.evaluation.stream_costs import measure_costs
from cmt.methods import METHODS
from tests.unit.test_evaluation_stream import DATA, UNRELATED, Forgetful, Told

MADE = stamp(torch.device("cpu"), "abc1234")
DATASET = "squad-dev-stream-20"


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results", "abc1234")


def settings(**more: object) -> dict[str, object]:
    return {"dataset": DATASET, "base_model": "smollm2-135m", **more}


def fill(store: ResultStore, *rows: str) -> list[dict[str, object]]:
    known = {"text_loss": 3.2, "text_tokens": 5, "unrelated": {"f1": 20.0}}
    for number, row in enumerate(rows):
        method = Forgetful(capacity=20 - number)
        stream = without_predictions(run_stream(method, DATA))
        stream |= {"knowledge_before": known, "knowledge_after": known, "reader_unchanged": True}
        points = without_predictions(retention(method, DATA, first=10, step=10))
        mixed = without_predictions(robustness(method, DATA, UNRELATED, (0.0, 1.0)))
        for part, result in (("stream", stream), ("retention", points), ("robustness", mixed)):
            store.save(row, part, settings(), result, MADE)
    return [read_result(file) for file in sorted(store.folder.glob("*.json"))]


def test_a_result_is_found_again_by_settings_and_commit(store: ResultStore) -> None:
    file = store.save("mac", "stream", settings(a=1), {"x": 2}, MADE)
    assert store.load("mac", "stream", settings(a=1)) == {"x": 2}
    assert store.load("mac", "stream", settings(a=2)) is None
    assert store.load("mac", "retention", settings(a=1)) is None
    assert ResultStore(store.folder, "def5678").load("mac", "stream", settings(a=1)) is None
    record = read_result(file)
    assert (record["commit"], record["row"], record["part"]) == ("abc1234", "mac", "stream")
    assert not list(store.folder.glob("*.new"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": 1500, "minutes": None}, "| 1,500 steps |"),
        ({"steps": None, "minutes": 2.5}, "| 2.5 minutes |"),
        ({"steps": 20, "minutes": 3.0}, "| 20 steps, 3 minutes |"),
    ],
)
def test_the_table_tells_how_long_was_trained(
    store: ResultStore, given: dict[str, object], told: str
) -> None:
    stream = without_predictions(run_stream(Forgetful(), DATA))
    store.save("mac", "stream", settings(**given), stream, MADE)
    text = markdown([read_result(file) for file in store.folder.glob("*.json")], DATASET)
    assert told in text


def test_the_table_tells_which_checkpoint_was_shipped(store: ResultStore) -> None:
    stream = without_predictions(run_stream(Forgetful(), DATA))
    for name, checkpoint in (("mac", "shipped 0000"), ("kv_memory", "shipped abc123")):
        store.save(name, "stream", settings(checkpoint=checkpoint), stream, MADE)
    text = markdown([read_result(file) for file in store.folder.glob("*.json")], DATASET)
    assert "when they were measured, whose files' digest begins with abc123." in text
    assert f"| {MADE.hardware} | abc123 | `{MADE.command}` |" in text
    assert f"| {MADE.hardware} | – | `{MADE.command}` |" in text


def test_the_table_tells_which_row_is_of_which_shipped_checkpoint(store: ResultStore) -> None:
    stream = without_predictions(run_stream(Forgetful(), DATA))
    for name, checkpoint in (("kv_memory_rerank", "shipped abc"), ("kv_memory", "shipped 0123")):
        store.save(name, "stream", settings(checkpoint=checkpoint), stream, MADE)
    text = markdown([read_result(file) for file in store.folder.glob("*.json")], DATASET)
    one, other = METHODS["kv_memory"].title, METHODS["kv_memory_rerank"].title
    assert f"digest begins with 0123 ({one}), abc ({other})." in text


def test_the_table_tells_whether_memories_are_read(store: ResultStore) -> None:
    told = without_predictions(reading(Told(), DATA))
    store.save("cmt_paper", "reading", settings(asked=40), told, MADE)
    text = markdown([read_result(file) for file in store.folder.glob("*.json")], DATASET)
    [line] = [own for own in text.split("\n") if own.startswith("| CMT as the paper draws it |")]
    assert "| 40 | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 0.0 [0.0, 0.0] |" in line
    assert "Is the memory read?" in text


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("/home/ann/data", "data"),
        ("data/squad", "data/squad"),
        ("dense_model=/home/ann/minilm", "dense_model=minilm"),
        ("gradient=250", "gradient=250"),
        ("/home/ann/run=1/dev.json", "dev.json"),
        ("--shares", "--shares"),
        (Path("/home/ann/model"), "model"),
    ],
)
def test_results_tell_no_folders_of_the_machine(argument: object, told: str) -> None:
    assert shown(argument) == told


@pytest.mark.parametrize("commit", ["unknown", "abc1234+"])
def test_results_of_changed_or_unknown_code_are_not_reused(tmp_path: Path, commit: str) -> None:
    store = ResultStore(tmp_path, commit)
    store.save("mac", "stream", settings(), {}, MADE)
    assert store.load("mac", "stream", settings()) is None


def test_files_that_are_no_results(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content, reason in (("{", "expected a result in .*a.json, got"), ("[]", "without row")):
        file.write_text(content)
        with pytest.raises(InputError, match=reason):
            read_result(file)


def test_the_commit_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"log": "abc1234", "status": ""}
    monkeypatch.setattr(results, "_git", lambda arguments, folder: answers[arguments[0]])
    assert code_commit() == "abc1234"
    answers["status"] = " M cmt/memory.py"
    assert code_commit() == "abc1234+"
    answers["log"] = ""
    assert code_commit() == "unknown"


def test_a_python_file_that_git_does_not_know_is_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cmt").mkdir()
    (tmp_path / "cmt" / "results.py").touch()
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "code")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(results, "__file__", str(tmp_path / "cmt" / "results.py"))
    commit = code_commit()
    assert is_known(commit)
    for name in ("notes.py", "cmt/weights.bin"):
        (tmp_path / name).touch()
    assert code_commit() == commit
    for folder in ("cmt/new", "benchmarks", "recipes"):
        file = tmp_path / folder / "a new.py"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        assert code_commit() == f"{commit}+"
        file.unlink()
    (tmp_path / "cmt" / "results.py").write_text("changed = True")
    assert code_commit() == f"{commit}+"


def test_answers_are_left_out() -> None:
    plain = without_predictions({"a": [run_stream(Forgetful(), DATA).scores]})
    assert "predictions" not in plain["a"][0]
    assert plain["a"][0]["exact_match"] == 100
    json.dumps(plain)


def test_the_newest_record_of_a_row_counts(store: ResultStore) -> None:
    records = fill(store, "mac", "closed_book")
    later = {**records[0], "date": "2999-01-01", "result": {"later": True}}
    found = newest([later, *records], str(later["part"]), DATASET)
    assert list(found) == ["closed_book", "mac"]  # in the order of the table
    assert found[str(later["row"])]["result"] == {"later": True}
    assert newest(records, "stream", "another") == {}


def test_tables_hold_ours_and_the_published_rows(store: ResultStore) -> None:
    text = markdown(fill(store, "kv_memory", "cmt_paper", "cmt_paper_without_top_k"), DATASET)
    ours, peers = "CMT, key/value memory, shipped checkpoint", "*published CMT* | *DistilGPT2 82M*"
    assert f"| {ours} | smollm2-135m | – | 20 / 40 | 100.0 [" in text
    assert f"| {peers} | – | *1665* | – | – | 3.12 | 7.59 | – | – |" in text
    ablation = text.split("### Ablation")[1]
    assert "| paper's form, without top-k | smollm2-135m | – | 40 | " in ablation  # of 40 questions
    assert "*published without top-k aggregation*" in text
    assert "### Retention by documents" in text
    assert "### Robustness by share" in text
    assert "unchanged" in text.split("### Forgetting")[1]
    assert MADE.command in text
    for heading in text.split("### ")[1:]:  # every table's rows are of one width
        rows = [line for line in heading.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) == 1, heading


def test_costs_measured_alone_are_told_instead(store: ResultStore) -> None:
    records = fill(store, "kv_memory", "mac", "cmt_paper_without_top_k")
    for record in records:
        if record["part"] == "stream":
            record["result"]["costs"]["learn_seconds"] = 7.0
    assert "part of its own" not in markdown(records, DATASET)
    for row in ("mac", "camels", "cmt_paper_without_matching"):
        made = without_predictions(measure_costs(Forgetful(), DATA, learned=12, asked=7))
        made["costs"]["learn_seconds"] = 5.0
        assert (made["cores"], made["load"] >= 0) == (os.cpu_count(), True)
        made |= {"load": 1.25, "cores": 16}
        if row == "camels":  # of a time when it wasn't recorded
            del made["load"], made["cores"]
        file = store.save(row, "costs", settings(), made, MADE)
        records.append(read_result(file))
    text = markdown(records, DATASET)
    table = text.split("### What it cost")[1].split("###")[0]
    rows = [line.split(" | ")[:3] for line in table.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        ["| CMT, key/value memory, shipped checkpoint", MADE.hardware, "7.0000"],
        ["| MAC", MADE.hardware, "5.0000"],
        ["| CaMeLS", MADE.hardware, "5.0000"],  # no stream of it was measured
    ]
    assert table.strip().splitlines()[-1] == (
        "Measured in a part of its own, on 12 documents and 7 questions, in brackets the machine's "
        "load average in the minute before: MAC (1.2 on 16 cores); CaMeLS (not recorded). "
        "The other rows: over the whole stream, whatever else ran beside it."
    )
    assert "MAC: stream, retention, robustness, costs; CaMeLS: costs" in text.replace(
        "; paper's form, without self-matching: costs", ""
    ).replace("; paper's form, without top-k: stream, retention, robustness", "")
    only = markdown([record for record in records if record["row"] == "camels"], DATASET)
    assert "The other rows" not in only
    assert f"| CaMeLS | {MADE.hardware} | 5.0000 |" in only


def test_a_share_is_of_the_first_column_or_not_told(store: ResultStore) -> None:
    records = fill(store, "kv_memory", "mac")
    short = next(r for r in records if (r["row"], r["part"]) == ("mac", "robustness"))
    short["result"] = short["result"][1:]  # without the point at no unrelated document
    curve = markdown(records, DATASET).split("### Robustness")[1].split("###")[0]
    (whole,) = (line for line in curve.splitlines() if "shipped checkpoint" in line)
    (line,) = (line for line in curve.splitlines() if line.startswith("| MAC |"))
    assert whole.count("%") == 2
    assert "%" not in line
    assert line.startswith("| MAC | – | ")


def test_a_table_of_some_parts_only(store: ResultStore) -> None:
    store.save("mac", "retention", settings(), [], MADE)
    text = markdown([read_result(next(store.folder.glob("*.json")))], "other-dataset")
    assert text == "## other-dataset\n\n" + text.split("\n\n", 1)[1]
    assert "Forgetting" not in text


def test_published_figures_are_whole() -> None:
    assert set(PUBLISHED) == set(ABLATION) == {"streamingqa", "squad", "archivalqa"}
    for methods in PUBLISHED.values():
        assert all(len(figures) == len(MODELS) for figures in methods.values())
        assert methods["CaMeLS"][-1] is None  # not run on Llama-2


def test_plots_are_drawn(store: ResultStore, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = draw(fill(store, "kv_memory", "mac"), DATASET, tmp_path / "plots")
    assert {file.stem.removeprefix(f"{DATASET}-") for file in files} == {
        "retention", "robustness", "bytes", "tokens",
    }  # fmt: skip
    assert all(file.stat().st_size > 5000 for file in files)
