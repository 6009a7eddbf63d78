"""`benchmarks/aggregation.py`: one small run on a tiny model."""

from __future__ import annotations

import json
import runpy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from cmt.aggregating import Aggregation
from cmt.checkpoint import save_pretrained
from cmt.compressor import Compressor
from cmt.datasets import hold_out, load_squad
from cmt.encoding import encode_documents
from cmt.evaluation.qa import evaluate
from cmt.generation import Sampling, generate
from cmt.opening import load_compressor
from tests import small, tiny
from tests.unit.test_stream_benchmark import ROOT, run


def squad(file: Path) -> Path:
    """Four articles in SQuAD's format."""
    data = small.dataset(24, articles=4)
    articles = []
    for article in range(4):
        paragraphs = []
        for number, document in enumerate(data.documents):
            if data.articles[number] == article:
                qas = [
                    {
                        "id": q.id,
                        "question": q.text,
                        "answers": [{"text": a, "answer_start": 0} for a in q.answers],
                    }
                    for q in data.questions
                    if q.document == number
                ]
                paragraphs.append({"context": document.text, "qas": qas})
        articles.append({"title": f"towers {article}", "paragraphs": paragraphs})
    file.write_text(json.dumps({"version": "1.1", "data": articles}))
    return file


@pytest.fixture
def files(tmp_path: Path) -> Path:
    made: Compressor = small.compressor()
    tiny.save(tmp_path / "model")
    save_pretrained(made, tmp_path / "checkpoint")
    squad(tmp_path / "train.json")
    return tmp_path


def test_every_row_is_what_evaluation_says(files: Path) -> None:
    out = files / "aggregation.json"
    ran = run(
        "aggregation.py", files / "train.json", "--model", files / "model",
        "--checkpoint", files / "checkpoint", "--device", "cpu", "--articles", 2,
        "--top-k", 6, 3, 1, "--temperatures", 1, 2, "--rerank", 4, "--out", out,
        "--commit", "abc1234",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    made = json.loads(out.read_text())
    assert made["commit"] == "abc1234"
    assert (made["documents"], made["questions"], made["rerank"]) == (12, 24, 4)
    assert str(files) not in out.read_text()
    assert [(row["top_k"], row["how"], row["temperature"]) for row in made["rows"]] == [
        (1, "concatenate", 1.0),
        *(
            (k, how, t)
            for k in (3, 6)
            for how in ("concatenate", "mix", "posterior")
            for t in (1.0, 2.0)
        ),
    ]
    assert len(ran.stdout.splitlines()) == 2 + 13
    assert made["rows"][0]["f1_gain"] == 0.0
    _, data = hold_out(load_squad(files / "train.json", strict=False), articles=2)
    compressor = load_compressor(str(files / "model"), files / "checkpoint", device="cpu")
    for row in made["rows"]:
        way = Aggregation(how=row["how"], temperature=row["temperature"])
        expected = evaluate(
            compressor, data, top_k=(row["top_k"],), rerank=4, given=False, aggregation=way
        )
        scores = expected.found[row["top_k"]]
        assert row["f1"] == pytest.approx(scores.f1, abs=1e-9)
        assert row["exact_match"] == pytest.approx(scores.exact_match, abs=1e-9)
        assert row["f1_gain"] == pytest.approx(row["f1"] - made["rows"][0]["f1"], abs=1e-9)


def test_a_sample_and_numbers_below_one(files: Path) -> None:
    common = (files / "train.json", "--model", files / "model",
              "--checkpoint", files / "checkpoint", "--device", "cpu", "--articles", 2)  # fmt: skip
    ran = run("aggregation.py", *common, "--documents", 5, "--questions", 6, "--top-k", 1)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("5 memories, 6 questions, ")
    wrong = run("aggregation.py", *common, "--top-k", 0)
    assert wrong.returncode == 2
    assert "expected --top-k from 1 on, got 0" in wrong.stderr


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_cross_attention_to_memories_of_one_weight_is_reading_the_other(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cross_attention = runpy.run_path(str(ROOT / "benchmarks/aggregation.py"))["cross_attention"]
    compressor = small.compressor(family)
    pieces = [small.tokens(length, seed=length)[0] for length in (20, 33, 25)]
    with torch.no_grad():
        memories = torch.cat([e.stacked() for _, e in encode_documents(compressor, pieces)])
    asked, sampling = small.tokens(9, 14), Sampling(max_new_tokens=8)

    def texts(chosen: list[list[int]], scores: list[list[float]], crossed: bool) -> list[list[int]]:
        way, scores_QM = Aggregation(how="mix"), torch.tensor(scores)
        prefix = way.resident_prefix(memories, torch.tensor(chosen), scores_QM)
        with cross_attention(compressor, way.weights(scores_QM)) if crossed else nullcontext():
            return generate(compressor.base, asked, prefix, start=97, sampling=sampling)

    alone = texts([[2], [0]], [[0.0], [0.0]], crossed=False)
    assert texts([[2, 1], [0, 1]], [[0.0, -99.0]] * 2, crossed=True) == alone
    assert texts([[2, 2], [0, 0]], [[0.0, -1.0]] * 2, crossed=True) == alone
    assert texts([[2, 1], [0, 1]], [[0.0, 0.0]] * 2, crossed=True) != alone
