import gzip
import importlib.util
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmt.bank import Bank
from cmt.checkpoint import save_pretrained
from cmt.cli import main
from cmt.commands import demo as demo_command
from cmt.commands.options import size
from cmt.commands.train import read_texts
from cmt.compressor import Compressor, CompressorConfig
from cmt.errors import InputError
from cmt.memory import BATCH_TOKENS
from cmt.records import Fingerprint
from tests import tiny

SMALL = CompressorConfig(
    memory_tokens=4, key_size=16, lora_rank=2, lora_alpha=4, max_piece_tokens=48, overlap_tokens=8
)
ARBON = "The lighthouse of Arbon was built in 1823 by Clara Weiss."
RIVERS = "Rivers carry sand, silt and clay to the sea."
SQUAD = {
    "data": [
        {
            "title": f"Article {number}",
            "paragraphs": [
                {
                    "context": f"{name} was built in {1800 + number} by {builder}.",
                    "qas": [
                        {
                            "id": f"q{number}",
                            "question": f"Who built {name}?",
                            "answers": [{"text": builder}],
                        }
                    ],
                }
            ],
        }
        for number, (name, builder) in enumerate(
            [("Arbon", "Clara Weiss"), ("Mirna", "Otto Lang"), ("Sant", "Ida Roth")]
        )
    ]
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Options that name the tiny model and its compressor."""
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder / "base")
    save_pretrained(Compressor(tiny.base_model(), SMALL), folder / "checkpoint")
    return ["--model", str(folder / "base"), "--checkpoint", str(folder / "checkpoint")]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CMT_BANK", raising=False)


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def done(*arguments, stdin=None):
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def learned(model):
    documents = [
        {"text": ARBON, "id": "arbon", "title": "Arbon", "date": "2024-05-31", "page": 3},
        {"text": RIVERS, "id": "rivers", "date": "2024-06-01"},
    ]
    Path("facts.jsonl").write_text("\n".join(map(json.dumps, documents)))
    done("add", "facts.jsonl", *model)
    return model


# The whole.


def test_help_names_every_command_and_imports_nothing_slow():
    code = (
        "import sys; from cmt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for command in "demo add ask chat list show forget stats verify fetch train eval".split():
        assert f"\n  {command} " in shown
        assert done(command, "--help").output.startswith("Usage:")


def test_the_help_of_add_tells_the_librarys_batch_tokens():
    told = " ".join(done("add", "--help").output.split())
    assert f"[default: {BATCH_TOKENS['cpu']}, on a GPU {BATCH_TOKENS['cuda']}]" in told


def test_version():
    assert done("--version").output.startswith("cmt, version ")


def test_the_bank_is_named_by_option_or_environment(model, monkeypatch):
    done("add", "-", "--bank", "one.sqlite", *model, stdin=ARBON)
    monkeypatch.setenv("CMT_BANK", "two.sqlite")
    done("add", "-", *model, stdin=ARBON)
    monkeypatch.delenv("CMT_BANK")
    done("add", "-", *model, stdin=ARBON)
    for name in ("one.sqlite", "two.sqlite", "memory.sqlite"):
        assert done("list", "--bank", name).output.count("\n") == 1


# add


def test_add_reads_files_folders_and_standard_input(model):
    Path("notes").mkdir()
    Path("notes/a.txt").write_text(ARBON)
    Path("b.md").write_text("# Rivers\n\n" + RIVERS)
    result = done("add", "notes", "b.md", "-", *model, stdin="A third fact.")
    assert result.stdout.startswith("added 3, updated 0, unchanged 0, failed 0\n3 memories of ")
    assert "documents/s" in result.stdout
    assert result.stderr == ""
    again = done("add", "notes", "b.md", *model)
    assert again.stdout.startswith("added 0, updated 0, unchanged 2, failed 0")


def test_add_takes_a_format_for_standard_input(model):
    records = "\n".join(json.dumps({"text": text}) for text in (ARBON, RIVERS))
    result = done("add", "-", "--format", "jsonl", "--json", *model, stdin=records)
    report = json.loads(result.stdout)
    assert len(report["added"]) == report["memories"] == 2


def test_add_keeps_the_rest_and_names_what_failed(model):
    Path("good.txt").write_text(ARBON)
    Path("empty.txt").write_text("")
    result = run("add", "good.txt", "empty.txt", "missing.txt", *model)
    assert result.exit_code == 1
    assert result.stdout.startswith("added 1, updated 0, unchanged 0, failed 2")
    errors = result.stderr.splitlines()
    assert errors[0].startswith("error: empty.txt: ")
    assert errors[1].startswith("error: missing.txt: ")
    assert done("list").output.count("\n") == 1


def test_add_as_json_keeps_failures_out_of_standard_output(model):
    result = run("add", "missing.txt", "--json", *model)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failed"][0]["document"] == "missing.txt"
    assert result.stderr.startswith("error: missing.txt: ")


def test_add_needs_a_path():
    assert run("add").exit_code == 2


def test_errors_are_a_line_with_their_own_exit_code(model):
    Path("other.sqlite").write_text("no database at all")
    result = run("add", "-", "--bank", "other.sqlite", *model, stdin=ARBON)
    assert result.exit_code == 4
    assert result.stderr.startswith("error: expected a bank (an SQLite file)")
    assert result.stdout == ""
    result = run("add", "-", "--checkpoint", "nowhere", stdin=ARBON)
    assert result.exit_code == 3
    assert "expected a compressor checkpoint in nowhere" in result.stderr
    result = run("add", "-", *model, "--device", "toaster", stdin=ARBON)
    assert result.exit_code == 2
    assert "expected a device of this machine" in result.stderr


# ask, chat


def test_ask_prints_answer_and_source(learned):
    result = done("ask", "Who built it?", "--top-k", 2, "--max-new-tokens", 8, *learned)
    question, answer, *sources = result.stdout.rstrip("\n").split("\n")
    assert question == "Who built it?"
    assert answer.startswith("  ")
    assert len(sources) >= 2
    assert "| arbon |" in result.stdout
    assert "rivers | facts.jsonl" in result.stdout
    assert result.stderr == ""


def test_ask_as_json_gives_a_line_an_answer(learned):
    result = done("ask", "Who?", "What?", "--json", "--max-new-tokens", 4, *learned)
    answers = lines(result.stdout)
    assert [answer["question"] for answer in answers] == ["Who?", "What?"]
    match = answers[0]["matches"][0]
    assert {"document_id", "score", "weight", "excerpt"} <= match.keys()
    assert answers[0]["memory_tokens"] == SMALL.memory_tokens
    assert match["log_likelihood"] < 0
    both = lines(done("ask", "Who?", "--json", "--top-k", 2, "--rerank", 0, *learned).stdout)[0]
    assert both["memory_tokens"] == 2 * SMALL.memory_tokens
    assert both["matches"][0]["log_likelihood"] is None


def test_ask_reads_questions_from_standard_input(learned):
    options = ["--json", "--batch-size", 2, "--max-new-tokens", 4, *learned]
    result = done("ask", *options, stdin="Who?\n\nWhat?\nWhen?\n")
    assert [answer["question"] for answer in lines(result.stdout)] == ["Who?", "What?", "When?"]


def test_ask_without_memory_shows_no_source(learned):
    options = ["--without-memory", "--json", "--max-new-tokens", 4, *learned]
    assert lines(done("ask", "Who?", *options).stdout)[0]["matches"] == []


def test_ask_with_a_seed_repeats_itself(learned):
    options = ["--temperature", 1, "--top-p", 0.9, "--seed", 1, "--json", *learned]
    texts = [lines(done("ask", "Who?", *options).stdout)[0]["text"] for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("", "expected at least one question on standard input, got none"),
        (" \n\n", "expected at least one question on standard input, got none"),
        (b"Who?\n\xff\n", "expected UTF-8 on standard input, got other bytes in line 2"),
    ],
)
def test_ask_refuses_standard_input_without_questions(stdin, message):
    result = run("ask", stdin=stdin)
    assert result.exit_code == 2
    assert message in result.stderr


def test_ask_at_a_terminal_wants_a_question(monkeypatch):
    monkeypatch.setattr("cmt.commands.ask._stdin_is_a_terminal", lambda: True)
    result = run("ask")
    assert result.exit_code == 2
    assert "Expected a question, or questions on standard input." in result.stderr


def test_ask_of_a_missing_bank_makes_none(model):
    result = run("ask", "Who?", *model)
    assert result.exit_code == 4
    assert "there is no bank at memory.sqlite" in result.stderr
    assert not Path("memory.sqlite").exists()


def test_ask_of_an_empty_bank(learned):
    done("forget", "arbon", "rivers")
    result = run("ask", "Who?", *learned)
    assert result.exit_code == 4
    assert "add documents first" in result.stderr


def test_chat_answers_until_an_empty_line(learned):
    result = done("chat", "--max-new-tokens", 6, *learned, stdin="Who built it?\nWhat?\n\nWhy?\n")
    first, *rest = result.stdout.split("\n")
    assert first == "2 documents in memory.sqlite; an empty line ends the chat."
    assert sum(line.startswith("  [") for line in rest) == 2


def test_chat_ends_with_its_input_and_survives_a_wrong_question(learned):
    result = done("chat", "--max-new-tokens", 6, *learned, stdin="why " * 2000 + "\nWhat?")
    assert "error: question 1: expected at most" in result.stderr
    assert sum(line.startswith("  [") for line in result.stdout.split("\n")) == 1


# list, show, forget, stats, verify: without the model


def test_list_shows_a_line_a_document(learned):
    shown = done("list").stdout.splitlines()
    assert shown[0].split() == ["arbon", "2024-05-31", "1", "768", "B", "Arbon"]
    assert done("list", "--offset", 1, "--limit", 1).stdout.splitlines() == shown[1:]
    as_json = lines(done("list", "--json").stdout)
    assert [document["id"] for document in as_json] == ["arbon", "rivers"]
    assert as_json[0]["metadata"] == {"page": 3}
    assert "text" not in as_json[0]


def test_show_has_fields_and_text(learned):
    shown = done("show", "arbon").stdout
    assert "id:            arbon\n" in shown
    assert 'metadata:      {"page": 3}\n' in shown
    assert shown.endswith(f"\n\n{ARBON}\n")
    assert json.loads(done("show", "arbon", "--json").stdout)["text"] == ARBON
    result = run("show", "nobody")
    assert result.exit_code == 2
    assert "nobody" in result.stderr


def test_forget_forgets_what_there_is_and_names_the_rest(learned):
    result = run("forget", "arbon", "nobody", "--vacuum")
    assert result.exit_code == 2
    assert result.stdout == "forgot 1\n"
    assert "expected ids that memory.sqlite holds, got 'nobody': see `cmt list`" in result.stderr
    assert [document["id"] for document in lines(done("list", "--json").stdout)] == ["rivers"]
    assert ARBON.encode() not in Path("memory.sqlite").read_bytes()
    assert json.loads(done("forget", "rivers", "--json").stdout) == {
        "forgotten": ["rivers"],
        "unknown": [],
    }


def test_stats_tell_counts_bytes_and_weights(learned):
    stats = json.loads(done("stats", "--json").stdout)
    assert (stats["documents"], stats["memories"]) == (2, 2)
    assert stats["memory_bytes_per_document"] * 2 == stats["memory_bytes"]
    shown = done("stats").stdout
    assert stats["base_model"] in shown
    assert stats["compressor"] in shown
    assert "768 B a document" in shown


def test_verify_finds_what_is_damaged(learned):
    assert done("verify").stdout == "sound: 2 documents, 2 memories\n"
    assert done("verify", "--json").stdout == ""
    done("forget", "rivers", "--vacuum")
    content = Path("memory.sqlite").read_bytes()
    Path("memory.sqlite").write_bytes(content.replace(ARBON.encode(), ARBON.upper().encode()))
    result = run("verify")
    assert result.exit_code == 4
    assert result.stdout.startswith("document 'arbon'")
    assert "expected a sound bank, got" in result.stderr
    result = run("verify", "--json")
    assert lines(result.stdout)[0]["document_id"] == "arbon"


def test_verify_names_damage_that_forbids_counting(learned):
    with closing(sqlite3.connect("memory.sqlite")) as bank:
        bank.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = bank.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'documents_in_force'"
        ).fetchone()
    content = bytearray(Path("memory.sqlite").read_bytes())
    content[(page - 1) * 16384 : (page - 1) * 16384 + 100] = b"\xff" * 100
    Path("memory.sqlite").write_bytes(content)
    result = run("verify")
    assert result.exit_code == 4
    assert result.stdout.startswith("file: ")
    assert "expected a sound bank, got 1 damaged places" in result.stderr


@pytest.mark.parametrize(
    "command", [["list"], ["show", "x"], ["forget", "x"], ["stats"], ["verify"]]
)
def test_looking_into_a_missing_bank_makes_none(command):
    result = run(*command)
    assert result.exit_code == 4
    assert "there is no bank at memory.sqlite" in result.stderr
    assert not Path("memory.sqlite").exists()


def test_any_bank_can_be_looked_into():
    Bank.open("memory.sqlite", Fingerprint(base_model="a" * 64, compressor="b" * 64)).close()
    assert "a" * 64 in done("stats").stdout


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e12, "2.0 TB")]
)
def test_size(number, shown):
    assert size(number) == shown


# fetch


def test_fetch_prints_the_models_folder(model):
    assert done("fetch", "--model", model[1]).stdout.strip() == model[1]
    result = run("fetch", "--model", "./nothing")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: Expected a model folder")


# demo


def test_demo_learns_asks_and_compares(model, tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "documents.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "id": text[:6]}) for text in (ARBON, RIVERS))
    )
    question = {"question": "Who built it?", "answers": ["Clara Weiss"], "document": ARBON[:6]}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    monkeypatch.setattr(demo_command, "FOLDER", folder)
    shown = done("demo", "--bank", "kept.sqlite", *model).stdout
    assert "documents/s" in shown
    for start in (
        " 1. Who",
        "    without memory  ",
        "    with memory     ",
        "    gold answer     C",
    ):
        assert f"\n{start}" in shown
    assert "of 1 answers with memory" in shown
    assert "the same before and after" in shown
    assert str(folder / "NOTICE.md") in shown
    assert done("list", "--bank", "kept.sqlite").stdout.count("\n") == 2


# eval


def test_eval_scores_and_writes_results(model):
    Path("dev-v1.1.json").write_text(json.dumps(SQUAD))
    options = ["--top-k", "1,2", "--out", "results.json", *model]
    shown = done("eval", "dev-v1.1.json", *options).stdout
    assert shown.startswith("3 documents in 3 memories of 4 tokens (768 B each), 3 questions\n")
    assert "recall  @1 " in shown
    for row in ("top 1", "top 2", "given"):
        assert f"\n{row} " in shown
    results = json.loads(Path("results.json").read_text())
    assert results["found"].keys() == {"1", "2"}
    assert len(results["given"]["predictions"]) == 3
    assert results["date"]
    assert results["command"].startswith("cmt")
    assert len(results["base_model_fingerprint"]) == 64


def test_eval_of_a_part(model):
    Path("dev-v1.1.json").write_text(json.dumps(SQUAD))
    result = json.loads(done("eval", ".", "--bank-size", 2, "--limit", 1, "--json", *model).stdout)
    assert (result["documents"], result["questions"]) == (2, 1)


def test_eval_refuses_what_it_cannot_do(model):
    Path("dev-v1.1.json").write_text(json.dumps(SQUAD))
    assert "fewer" not in run("eval", ".", *model).stderr
    result = run("eval", ".", "--out", "no/such/results.json", *model)
    assert result.exit_code == 2
    assert "expected a folder to write no/such/results.json in" in result.stderr
    result = run("eval", ".", "--top-k", "1,none", *model)
    assert result.exit_code == 2
    assert "expected numbers from 1 on with commas between, got '1,none'" in result.stderr
    empty = {"data": [{"title": "A", "paragraphs": [{"context": ARBON, "qas": []}]}]}
    Path("empty.json").write_text(json.dumps(empty))
    result = run("eval", "empty.json", *model)
    assert result.exit_code == 2
    assert "expected at least one question in empty.json, got none" in result.stderr


# train

RECIPE = """
from cmt.compressor import CompressorConfig
from cmt.training import TrainingConfig
from cmt.training.data import BatchConfig

def recipe():
    return TrainingConfig(
        base_model={model!r},
        compressor=CompressorConfig(memory_tokens=4, key_size=16, lora_rank=2, max_piece_tokens=48,
                                    overlap_tokens=8),
        batch=BatchConfig(documents=2, texts=1, group=1, most_memories=2),
        minutes=60,
        log_every=1,
    )
"""


@pytest.fixture
def recipe(model):
    Path("recipe.py").write_text(RECIPE.format(model=model[1]))
    Path("train-v1.1.json").write_text(json.dumps(SQUAD))
    return model[1]


def test_train_leaves_a_checkpoint_that_other_commands_take(recipe):
    Path("texts.txt").write_text("\n\n".join([ARBON * 3, RIVERS * 3]))
    options = ["--data", ".", "--out", "run", "--steps", 2, "--memory-tokens", 3]
    plot = ["--plot"] if importlib.util.find_spec("matplotlib") else []
    result = done("train", "recipe.py", *options, "--texts", "texts.txt", *plot)
    assert "cmt demo --model" in result.stdout
    assert "3 documents, 3 questions (0 left out), 2 texts" in result.stderr
    assert len(lines(Path("run/metrics.jsonl").read_text())) == 2
    assert Path("run/metrics.png").exists() == bool(plot)
    saved = json.loads(Path("run/checkpoint/config.json").read_text())
    assert saved["compressor"]["memory_tokens"] == 3
    done("add", "-", "--model", recipe, "--checkpoint", "run/checkpoint", stdin=ARBON)
    again = run("train", "recipe.py", *options)
    assert again.exit_code == 2
    assert "expected a folder without a run in it, got run: or give --resume" in again.stderr
    longer = ["--data", ".", "--out", "run", "--steps", 3, "--memory-tokens", 3, "--resume"]
    done("train", "recipe.py", *longer, "--texts", "texts.txt")
    assert [line["step"] for line in lines(Path("run/metrics.jsonl").read_text())] == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a recipe at recipe.py, got: No such file"),
        ("def recipe(:", "got one that fails: "),
        ("import no_such_module", "got one that fails: No module named"),
        ("def recipe(): return 1 + 'a'", "got one that fails: unsupported operand"),
        (
            "x = 1",
            "expected a function recipe() in recipe.py that returns a TrainingConfig, got no",
        ),
        ("def recipe(): return 3", "that returns a TrainingConfig, got int"),
    ],
)
def test_train_refuses_what_is_no_recipe(content, message):
    if content is not None:
        Path("recipe.py").write_text(content)
    result = run("train", "recipe.py", "--data", ".", "--out", "run")
    assert result.exit_code == 2
    assert message in result.stderr


def test_train_with_a_plot_needs_matplotlib(recipe, monkeypatch):
    monkeypatch.setattr("cmt.commands.train.importlib.util.find_spec", lambda name: None)
    result = run("train", "recipe.py", "--data", ".", "--out", "run", "--plot")
    assert result.exit_code == 2
    assert "expected matplotlib for --plot, found none: pip install" in result.stderr


def test_texts_are_the_long_paragraphs_of_any_file():
    text = f"= Title =\n\n{ARBON * 2}\nstill the same\n \n{RIVERS * 3}\n\nShort."
    paragraphs = [f"{ARBON * 2}\nstill the same", RIVERS * 3]
    Path("plain.txt").write_text(text)
    Path("packed.txt.gz").write_bytes(gzip.compress(text.encode()))
    Path("packed.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": text}).encode()))
    for name in ("plain.txt", "packed.txt.gz", "packed.jsonl.gz"):
        assert list(read_texts(Path(name))) == paragraphs


@pytest.mark.parametrize("name", ["missing.txt", "missing.txt.gz", "broken.txt.gz", "empty.txt"])
def test_texts_that_cannot_be_read_are_refused(name):
    Path("broken.txt.gz").write_bytes(b"no gzip")
    Path("empty.txt").write_text("")
    with pytest.raises(InputError, match=name):
        list(read_texts(Path(name)))
