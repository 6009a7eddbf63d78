"""`benchmarks/inference.py`: one small run on the tiny model, and what it refuses."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from cmt.checkpoint import save_pretrained
from cmt.generation import Sampling, generate
from cmt.late_interaction import SHORTLIST
from cmt.reading import question_tokens
from cmt.resident import learn, match_scores, rerank_scores
from tests import small, tiny
from tests.unit.test_stream_benchmark import ROOT, Ran, run, squad_format


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("inference")
    tiny.save(made / "model")
    save_pretrained(small.compressor(), made / "checkpoint")
    (made / "data").mkdir()
    for split in ("train", "dev"):
        text = json.dumps(squad_format(small.dataset(16)))
        (made / "data" / f"{split}-v1.1.json").write_text(text)
    return made


def inference(folder: Path, *more: object) -> Ran:
    return run(
        "inference.py", "--model", folder / "model", "--checkpoint", folder / "checkpoint",
        "--device", "cpu", "--rounds", 1, "--documents", 8, "--questions", 4, "--tokens", 3,
        "--commit", "abc1234", *more,
    )  # fmt: skip


def test_one_run(folder: Path) -> None:
    out = folder / "results" / "inference.json"
    ran = inference(
        folder, "--data", folder / "data", "--batch-sizes", 1, 4, 64, "--profile", "--out", out
    )
    assert ran.returncode == 0, ran.stderr
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    result = json.loads(out.read_text())
    assert result["commit"] == "abc1234"
    assert str(folder) not in json.dumps(result)
    compression = result["compression"]
    assert compression["documents"] == 8
    more = small.SETTINGS["memory_tokens"] + 1
    long = compression["tokens"] + more * compression["pieces"]
    assert compression["tokens_with_memory_and_key"] == long
    assert set(compression["rows"]) == {
        "compress", "learn, from text", "plain, packed", "plain, padded",
    }  # fmt: skip
    rows = compression["rows"]
    rate = result["matrix_rate"]["operations_per_second"]
    for row in rows.values():
        share = row["floating_point_operations"] / row["seconds"]["median"] / rate
        assert row["share_of_matrix_rate"] == pytest.approx(share)
    counted = [rows[name]["floating_point_operations"] for name in ("compress", "plain, packed")]
    assert counted[0] > counted[1]
    assert len(compression["ratios"]) == 4
    assert 0 < len(compression["profile"]["operators"]) <= 20
    questions = result["questions"]
    assert questions["left_out"] == [64]
    assert set(questions["batches"]) == {"1", "4"}
    batch = questions["batches"]["4"]
    assert len(batch["free"]) == 6
    assert len(batch["fixed"]) == 5
    assert batch["free"]["memory"]["ratio_to_memory"] == 1
    assert list(batch["memory_stages"]) == [
        "question encoding", "key search", "late interaction", "re-ranking of 4",
        "prefix assembly", "prefill and first token", "2 further tokens",
    ]  # fmt: skip
    read = {name: row["tokens_per_question"] for name, row in batch["free"].items()}
    memory_tokens = small.SETTINGS["memory_tokens"]
    assert read["memory"]["memory"] == memory_tokens * 5  # four of them looked at, one read
    assert read["memory, no re-ranking"]["memory"] == memory_tokens
    texts = [read[name]["text"] for name in ("closed book", "text, BM25 top 1", "text, BM25 top 3")]
    assert texts == sorted(texts)
    assert "64: left out" in ran.stdout
    assert "plain, padded" in ran.stdout


def test_a_single_file(folder: Path) -> None:
    """Examples come from the documents that are not learned."""
    ran = inference(folder, "--data", folder / "data" / "dev-v1.1.json", "--batch-sizes", 2)
    assert ran.returncode == 0, ran.stderr
    few = inference(folder, "--data", folder / "data" / "dev-v1.1.json", "--documents", 16)
    assert "expected 3 examples with passages" in few.stderr


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--documents", 0), "expected --documents of at least 1, got 0"),
        (("--questions", 0), "expected --questions of at least 1, got 0"),
        (("--batch-sizes", 1, 0), "expected --batch-sizes of at least 1, got 0"),
        (("--batch-tokens", -1), "expected --batch-tokens of at least 1, got -1"),
        (("--rounds", 0), "expected --rounds of at least 1, got 0"),
        (("--batches", 0), "expected --batches of at least 1, got 0"),
        (("--tokens", 1), "expected --tokens of at least 2, got 1"),
    ],
)
def test_numbers_without_meaning(folder: Path, option: tuple[object, ...], told: str) -> None:
    ran = inference(folder, "--data", folder / "data", *option)
    assert ran.returncode != 0
    assert told in ran.stderr


@pytest.fixture(scope="module")
def scripts() -> object:
    with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
        yield {
            name: runpy.run_path(str(ROOT / "benchmarks" / f"inference_{name}.py"))
            for name in ("answering", "compressing", "timing")
        }


def test_stages_choose_what_the_method_chooses(scripts: dict[str, dict]) -> None:
    compressor, data = small.compressor(), small.dataset(12)
    bank = learn(compressor, data)
    asked = [question.text for question in data.questions]
    road = scripts["answering"]["Staged"](compressor, bank, 3)
    road.run(asked, rerank=4)
    prompts = question_tokens(compressor.base.tokenizer, asked)
    with torch.no_grad():
        scores = match_scores(compressor, bank, prompts, SHORTLIST, len(asked))
        scores = rerank_scores(compressor, bank, prompts, scores, 4, len(asked))
    assert road.chosen == scores.argmax(1).tolist()


def test_answers_of_fixed_length(scripts: dict[str, dict]) -> None:
    base = tiny.base_model()
    prompts = small.tokens(5, 9)
    stops = list(range(tiny.VOCABULARY))
    sampling = Sampling(max_new_tokens=6)
    assert generate(base, prompts, sampling=sampling, stop_tokens=stops) == [[], []]
    endless = scripts["answering"]["endless"](base)
    made = generate(endless, prompts, sampling=sampling, stop_tokens=stops)
    assert [len(text) for text in made] == [6, 6]


def test_operations_are_those_of_the_layers(scripts: dict[str, dict]) -> None:
    count = scripts["compressing"]["operations"]
    base = tiny.base_model()
    layers = base.dimensions.layers
    linear = sum(p.numel() for layer in base.layers for p in layer.parameters() if p.dim() == 2)
    heads, size = base.model.config.num_attention_heads, base.model.config.head_dim
    own = 2 * linear * 10 + 4 * layers * heads * size * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10)
    assert count(base, [10]) == own
    compressor = small.compressor()  # its adapters are merged: no operations of their own
    assert count(compressor.base, [10]) == own


def test_time_covered() -> None:
    with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
        timing = runpy.run_path(str(ROOT / "benchmarks" / "inference_timing.py"))
    assert timing["covered"]([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == 5
    assert timing["covered"]([]) == 0


def test_rounds_alternate() -> None:
    timing = runpy.run_path(str(ROOT / "benchmarks" / "inference_timing.py"))
    seen: list[tuple[str, int]] = []
    variants = {name: lambda which, name=name: seen.append((name, which)) for name in "ab"}
    times = timing["rounds"](torch.device("cpu"), variants, 2, 1)
    assert seen == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert [len(own) for own in times.values()] == [2, 2]
