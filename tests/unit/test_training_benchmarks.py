"""Benchmarks of training and of a checkpoint: one small run of each on the tiny model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cmt.checkpoint import save_pretrained
from cmt.training import BatchConfig, TrainingData
from tests import small, tiny
from tests.unit.test_stream_benchmark import ROOT, run, squad_format

RECIPE = """
from cmt.compressor import CompressorConfig
from cmt.training import BatchConfig, ObjectiveConfig, TrainingConfig

def recipe():
    return TrainingConfig(
        base_model={model!r}, held_out_articles=1, steps=1, compile=True,
        compressor=CompressorConfig(**{settings!r}),
        batch=BatchConfig(documents=4, group=2, most_memories=2, asked=True),
        objectives=ObjectiveConfig(alpha=0.3),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("training")
    tiny.save(made / "model")
    save_pretrained(small.compressor(memory_sizes=(2,)), made / "checkpoint")
    (made / "squad").mkdir()
    towers = small.dataset(16)
    halves = [squad_format(towers.select_documents(half)) for half in (range(8), range(8, 16))]
    articles = [article for half in halves for article in half["data"]]
    (made / "squad" / "train-v1.1.json").write_text(json.dumps({"data": articles}))
    recipe = RECIPE.format(model=str(made / "model"), settings=small.SETTINGS)
    (made / "recipe.py").write_text(recipe)
    return made


def test_throughput_of_training(folder: Path) -> None:
    out = folder / "throughput.json"
    ran = run(
        "training_throughput.py", "--data", folder, "--recipe", folder / "recipe.py", "--steps", 2,
        "--warm-up", 1, "--no-compile", "--profile", "--commit", "abc1234", "--out", out,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result = json.loads(out.read_text())
    assert (result["commit"], result["steps"], result["compiled"]) == ("abc1234", 2, False)
    assert result["attention"] == "rectangles"
    assert str(folder) not in json.dumps(result)
    needed = sum(result["operations_a_step"].values())
    assert result["rate"] == pytest.approx(needed / result["seconds_a_step"])
    assert result["share_of_ceiling"] == pytest.approx(result["rate"] / result["ceiling"])
    assert result["documents_per_second"] == pytest.approx(4 / result["seconds_a_step"])
    assert result["profile"]["operators"]


def throughput() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    file = ROOT / "benchmarks" / "training_throughput.py"
    spec = importlib.util.spec_from_file_location("training_throughput", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operations_are_counted_by_hand() -> None:
    base = tiny.base_model()
    data = TrainingData(
        small.dataset(8), base.tokenizer, BatchConfig(documents=4, most_memories=2, group=2),
        memory_tokens=4, max_piece_tokens=96,
    )  # fmt: skip
    batch = data[0]
    module = throughput()
    counted = module.operations(base, batch, aware=False)
    inner = sum(
        p.numel() for n, p in base.decoder.named_parameters() if p.dim() == 2 and "embed" not in n
    )
    config = base.model.config
    a_pair = 4 * config.num_hidden_layers * config.hidden_size

    def seen(lengths: list[int], before: int) -> int:
        return sum(n * (n + 1) // 2 + n * before for n in lengths)

    def lengths(group: Any) -> list[int]:
        return group.valid_BT.sum(1).tolist()

    documents, questions = batch.compressor.packing.groups
    tokens = len(batch.compressor.tokens_N)
    pairs = seen(lengths(documents), 0) + seen(lengths(questions), 0)
    assert counted["compressing"] == 6 * inner * tokens + 3 * a_pair * pairs
    one, several, retold = batch.reading.packing.groups
    pairs = seen(lengths(one), 5) + seen(lengths(several), 9) + seen(lengths(retold), 5)
    tokens = len(batch.reading.tokens_N)
    assert counted["reading"] == 4 * inner * tokens + 3 * a_pair * pairs
    head = config.vocab_size * config.hidden_size
    assert counted["head"] == 4 * head * len(batch.reading.targets_T)


def test_a_checkpoint_on_whole_sets(folder: Path) -> None:
    out = folder / "checkpoint.json"
    ran = run(
        "checkpoint_eval.py", folder / "squad" / "train-v1.1.json", "--held-out", 1, "--model",
        folder / "model", "--checkpoint", folder / "checkpoint", "--memory-tokens", 4, 2,
        "--rerank", 0, 3, "--top-k", 1, 2, "--aggregate", "mix", "--tiers", "int8",
        "--questions", 4, "--device", "cpu", "--commit", "abc1234", "--out", out,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    assert len(report["rows"]) == 8  # of each size: two re-rankings, one mixture, one tier
    assert [row["memory_tokens"] for row in report["rows"]] == [4] * 4 + [2] * 4
    first, second, mixed, rounded = report["rows"][:4]
    assert set(first["result"]["found"]) == {"1", "2"}
    assert first["result"]["given"] is not None
    assert second["result"]["given"] is None
    assert set(mixed["result"]["found"]) == {"2"}
    assert (rounded["tier"], rounded["rerank"]) == ("int8", 0)
    assert "predictions" not in json.dumps(report)
    assert str(folder) not in json.dumps(report)


def test_a_lexical_partner(folder: Path) -> None:
    out = folder / "lexical.json"
    ran = run(
        "lexical.py", folder / "squad" / "train-v1.1.json", "--held-out", 1, "--model",
        folder / "model", "--checkpoint", folder / "checkpoint", "--sums", 0, 9, "--rerank", 2,
        "--questions", 6, "--device", "cpu", "--commit", "abc1234", "--out", out,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    rows = {(row["way"], row["rerank"]): row["recall"] for row in report["rows"]}
    assert list(rows) == [
        ("self-matching", 0), ("self-matching", 2), ("BM25", 0), ("reciprocal-rank fusion", 0),
        ("logit + 0 BM25", 0), ("logit + 0 BM25", 2), ("logit + 9 BM25", 0), ("logit + 9 BM25", 2),
    ]  # fmt: skip
    assert rows["logit + 0 BM25", 0] == rows["self-matching", 0]
    assert rows["BM25", 0]["1"] == 100.0  # every tower has a name of its own
    assert rows["logit + 9 BM25", 0]["1"] > rows["self-matching", 0]["1"]


def test_bm25_alone(folder: Path) -> None:
    out = folder / "bm25.json"
    ran = run(
        "lexical.py", folder / "squad" / "train-v1.1.json", "--bm25-alone", "--commit", "abc1234",
        "--out", out,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    [row] = json.loads(out.read_text())["rows"]
    assert row["way"] == "BM25" and 0 < row["recall"]["1"] <= row["recall"]["5"] <= 100


def test_a_weight_of_likelihood(folder: Path) -> None:
    out = folder / "weights.json"
    ran = run(
        "likelihood_weight.py", folder / "squad" / "train-v1.1.json", "--articles", 1, "--model",
        folder / "model", "--checkpoint", folder / "checkpoint", "--weights", 0, 5, "--rerank", 2,
        "--memory-tokens", 4, 2, "--device", "cpu", "--commit", "abc1234", "--out", out,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    assert [(row["memory_tokens"], row["weight"]) for row in report["rows"]] == [
        (4, 0.0), (4, 5.0), (2, 0.0), (2, 5.0),
    ]  # fmt: skip
    assert all(0 <= row["recall"]["1"] <= row["recall"]["5"] <= 100 for row in report["rows"])
    assert str(folder) not in json.dumps(report)


def test_text_in_the_prompt(folder: Path) -> None:
    squad, out = folder / "squad" / "train-v1.1.json", folder / "text.json"
    ran = run(
        "text_in_prompt.py", squad, squad, "--documents", 3, "--questions", 2, "--model",
        folder / "model", "--checkpoint", folder / "checkpoint", "--device", "cpu", "--commit",
        "abc1234", "--out", out,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result = json.loads(out.read_text())
    assert (result["commit"], result["documents"], result["questions"]) == ("abc1234", 3, 2)
    assert result["command"].startswith("python text_in_prompt.py train-v1.1.json")
    assert result["date"]
    assert "CPU cores" in result["hardware"]
    assert len(result["rows"]) == 5
    assert all(row["tokens_read"] > 0 for row in result["rows"].values())
    assert str(folder) not in json.dumps(result)


def printed(script: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """What a benchmark without --out prints about the tiny checkpoint."""
    ran = run(
        script, *arguments, "--model", folder / "model", "--checkpoint", folder / "checkpoint",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert str(folder) not in ran.stdout
    result: dict[str, Any] = json.loads(ran.stdout)
    assert result["machine"]["command"].startswith(f"python {script} ")
    assert result["machine"]["command"].endswith("--model model --checkpoint checkpoint")
    assert {"commit", "date", "hardware", "processor"} <= result["machine"].keys()
    return result


def test_abstention_asks_about_what_was_learned_and_what_was_not(folder: Path) -> None:
    data = folder / "squad" / "train-v1.1.json"
    result = printed("abstention.py", folder, data, "--documents", 10, "--questions", 12)
    assert 0 < result["documents_learned"] < 10  # those of one article of the two
    assert result["answerable"] + result["unanswerable"] == 12
    assert result["answerable"] > 0
    assert result["unanswerable"] > 0
    assert len(result["least_score"]) == 5


def test_freshness_asks_each_pair(folder: Path) -> None:
    data = folder / "squad" / "train-v1.1.json"
    result = printed(
        "freshness.py", folder, "--squad", data, "--documents", 4, "--questions", 3,
    )  # fmt: skip
    for way in ("matching_alone", "later_preferred"):
        assert result[way]["later_read"] + result[way]["earlier_read"] <= result["pairs"]
        assert result["random_dates"]["right_passage_first"][way] <= 3
