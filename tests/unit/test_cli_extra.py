"""`cmt train --extra`: further questions on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmt.cli import main
from tests import small, tiny

RECIPE = """
from cmt.compressor import CompressorConfig
from cmt.training import BatchConfig, TrainingConfig

def recipe():
    return TrainingConfig(
        base_model={model!r},
        held_out_articles=1,
        compressor=CompressorConfig(memory_tokens=4, key_size=16, lora_rank=2, max_piece_tokens=320,
                                    overlap_tokens=8),
        batch=BatchConfig(documents=2, extra=1, texts=0, group=2, most_memories=2,
                          more_questions=1, cropped_share=0.4, joined_share=0.4, asked=True),
        steps=2,
        log_every=1,
    )
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recipe.py").write_text(RECIPE.format(model=str(tiny.save(tmp_path / "model"))))
    towers = small.dataset(6, articles=3)
    articles = [
        {
            "title": f"Tower {article}",
            "paragraphs": [
                {
                    "context": towers.documents[i].text,
                    "qas": [
                        {"id": q.id, "question": q.text,
                         "answers": [{"text": a} for a in q.answers]}
                        for q in towers.questions if q.document == i
                    ],
                }
                for i in (2 * article, 2 * article + 1)
            ],
        }
        for article in range(3)
    ]  # fmt: skip
    Path("train-v1.1.json").write_text(json.dumps({"data": articles}))
    made = [
        {"text": f"The mill of Orva {i} is red.", "question": "What mill?", "answers": ["Orva"]}
        for i in range(3)
    ]
    made += [
        {"text": f"Stone {i}.", "question": "Of what?", "answers": ["Stone"], "title": f"Tower {i}"}
        for i in range(3)
    ]
    more = [
        {"text": d.text, "question": "Where does it stand?", "answers": ["on a rock"]}
        for d in towers.documents
    ]
    for name, records in (("extra.jsonl", made), ("more.jsonl", [*more, made[0]])):
        Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_train_with_further_questions_leaves_held_out_ones_out(folder: Path) -> None:
    options = ["--data", ".", "--extra", "extra.jsonl", "--extra", "more.jsonl", "--out", "run"]
    result = CliRunner().invoke(main, ["train", "recipe.py", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    # three mills, one of them twice; two stones of three and four towers of six aren't held out
    assert "extra: 9 documents, 10 questions (4 documents left out" in result.stderr
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "run/checkpoint/config.json").exists()
    batch = json.loads(Path("run/training.json").read_text())["batch"]
    assert batch["extra"] == batch["more_questions"] == 1


def test_train_without_the_further_questions_that_its_recipe_asks_for(folder: Path) -> None:
    result = CliRunner().invoke(main, ["train", "recipe.py", "--data", ".", "--out", "run"])
    assert result.exit_code != 0
    said = result.stderr + str(result.exception)
    assert "expected further questions for extra=1 and more_questions=1, got none" in said


def test_train_with_a_file_that_is_not_there(folder: Path) -> None:
    options = ["--data", ".", "--extra", "none.jsonl", "--out", "run"]
    result = CliRunner().invoke(main, ["train", "recipe.py", *options])
    assert result.exit_code != 0
    assert "none.jsonl: can't be read" in result.stderr + str(result.exception)
