"""Whole runs of the loop: resumed to the bit, stopped by the clock, logged, learning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cmt.base_model import BaseModel
from cmt.compressor import Compressor
from cmt.errors import CheckpointError, InputError
from cmt.training import TrainingConfig, learning_rate_factor, loop, train
from cmt.training.data import BatchConfig, TrainingData
from cmt.training.step import ObjectiveConfig, TrainingStep
from tests import small, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save(tmp_path_factory.mktemp("base")))


def config(model: str, **settings: Any) -> TrainingConfig:
    batch = {"documents": 4, "questions_per_document": 2, "retold_share": 0.5, "most_memories": 3}
    own = {
        "base_model": model,
        "compressor": small.config(),
        "batch": BatchConfig(**batch),  # type: ignore[arg-type]
        "learning_rate": 5e-3,
        "warmup_steps": 2,
        "log_every": 1,
        "seed": 5,
    }
    return TrainingConfig(**{**own, **settings})


class InterruptedRunError(Exception):
    pass


def interrupt(at: int) -> Any:
    def on_step(step: int, compressor: Compressor) -> None:
        if step == at:
            raise InterruptedRunError

    return on_step


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_is_the_uninterrupted_run_to_the_bit(model: str, tmp_path: Path) -> None:
    """Every weight, every optimizer moment, the stale keys, and every logged figure."""
    dataset, texts = small.dataset(), ["A plain text about rivers and sand."]
    settings = config(model, steps=4, save_every=2)
    settings.batch.texts = 1
    settings.objectives.stale_keys = True
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(settings, dataset, straight, texts=texts)
    with pytest.raises(InterruptedRunError):
        train(settings, dataset, resumed, texts=texts, on_step=interrupt(3))
    assert json.loads((resumed / "state" / "state.json").read_text())["step"] == 2
    assert [line["step"] for line in lines(resumed)] == [1, 2, 3], "the third is to be done again"
    train(settings, dataset, resumed, texts=texts, resume=True)

    theirs = load_file(straight / "state" / "state.safetensors")
    ours = load_file(resumed / "state" / "state.safetensors")
    assert set(ours) == set(theirs)
    kinds = {name.split("/")[0] for name in ours} | {name.rsplit("/", 1)[1] for name in ours}
    assert {"module", "optimizer", "exp_avg", "exp_avg_sq", "step"} <= kinds
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    timings = ("seconds", "documents_per_second")
    for ours_line, theirs_line in zip(lines(resumed), lines(straight), strict=True):
        for name in timings:
            assert ours_line.pop(name) >= 0
            theirs_line.pop(name)
        assert ours_line == theirs_line


def test_the_same_run_twice_is_the_same_and_another_seed_is_not(model: str, tmp_path: Path) -> None:
    def weights(name: str, **settings: Any) -> dict[str, torch.Tensor]:
        train(config(model, steps=2, **settings), small.dataset(), tmp_path / name)
        return load_file(tmp_path / name / "state" / "state.safetensors")

    first, again, other = weights("a"), weights("b"), weights("c", seed=6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_worker_processes_make_the_same_batches(model: str, tmp_path: Path) -> None:
    in_line = train(config(model, steps=2), small.dataset(), tmp_path / "a")
    ahead = train(config(model, steps=2, workers=1), small.dataset(), tmp_path / "b")
    assert in_line.fingerprint() == ahead.fingerprint()


def test_what_a_run_leaves(model: str, tmp_path: Path) -> None:
    seen: list[int] = []
    settings = config(model, steps=3, log_every=2)
    compressor = train(
        settings, small.dataset(), tmp_path / "run", on_step=lambda step, _: seen.append(step)
    )
    assert seen == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "metrics.jsonl",
        "state",
        "training.json",
    ]
    saved = json.loads((tmp_path / "run" / "training.json").read_text())
    assert saved["batch"]["documents"] == 4
    assert saved["compressor"]["memory_tokens"] == 4
    kept = load_file(tmp_path / "run" / "state" / "state.safetensors")
    for name, tensor in compressor.state_dict().items():
        assert torch.equal(kept[f"module/compressor.{name}"], tensor)
    first, second = lines(tmp_path / "run")
    assert (first["step"], second["step"]) == (2, 3), "the last step too, whatever log_every"
    assert set(first) == {
        "loss",
        "answer",
        "matching",
        "late_matching",
        "reconstruction",
        "found_in_batch",
        "gradient_norm",
        "learning_rate",
        "step",
        "seconds",
        "documents_per_second",
    }
    factor = learning_rate_factor(1, 1 / 3, 2)
    assert first["learning_rate"] == pytest.approx(5e-3 * factor)
    assert compressor.base.digest() == BaseModel.load(model, device="cpu").digest()


def test_the_clock_stops_a_run_and_its_time_is_resumed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(tick: float) -> None:
        ticks = count()
        monkeypatch.setattr(
            loop, "time", SimpleNamespace(monotonic=lambda: 1000 + tick * next(ticks))
        )

    settings = config(model, minutes=1.0, log_every=100)
    clock(5.0)  # one look a step, another at each save
    train(settings, small.dataset(), tmp_path)
    state = json.loads((tmp_path / "state" / "state.json").read_text())
    assert state == {"step": 11, "seconds": 65.0}  # looks at 5, 10 … 60 s; the save at 65 s
    clock(5.0)
    train(settings, small.dataset(), tmp_path, resume=True)  # looks at 70 s, saves at 75 s
    state = json.loads((tmp_path / "state" / "state.json").read_text())
    assert state == {"step": 11, "seconds": 75.0}
    settings.minutes = 1.5
    clock(5.0)
    train(settings, small.dataset(), tmp_path, resume=True)
    assert json.loads((tmp_path / "state" / "state.json").read_text())["step"] == 11 + 2


def test_steps_stop_a_run_before_the_clock(model: str, tmp_path: Path) -> None:
    train(config(model, steps=2, minutes=60.0), small.dataset(), tmp_path)
    assert json.loads((tmp_path / "state" / "state.json").read_text())["step"] == 2


def test_learning_rate_warms_up_and_falls() -> None:
    assert learning_rate_factor(0, 0.0, 4) == 0.25
    assert learning_rate_factor(3, 0.0, 4) == 1.0
    assert learning_rate_factor(50, 0.5, 4) == pytest.approx(0.5)
    assert learning_rate_factor(99, 1.0, 4) == 0.02
    assert learning_rate_factor(99, 2.0, 4) == 0.02
    assert learning_rate_factor(0, 0.0, 0) == 1.0


def test_training_learns(model: str, tmp_path: Path) -> None:
    settings = config(
        model,
        steps=30,
        learning_rate=2e-2,
        log_every=5,
        objectives=ObjectiveConfig(matching=0.1),  # the norm is clipped: let answers count
    )
    train(settings, small.dataset(), tmp_path)
    first, *_, last = lines(tmp_path)
    assert last["answer"] < 0.9 * first["answer"]
    assert last["reconstruction"] < first["reconstruction"]
    assert last["matching"] < 0.7 * first["matching"]
    assert last["found_in_batch"] > first["found_in_batch"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected steps or minutes to stop after, got neither"),
        ({"steps": 0}, "expected steps above 0, got 0"),
        ({"steps": -1}, "expected steps above 0, got -1"),
        ({"minutes": 0.0}, "expected minutes above 0, got 0.0"),
        ({"minutes": float("nan")}, "expected minutes above 0, got nan"),
        ({"steps": 1, "learning_rate": 0.0}, "expected learning_rate above 0, got 0.0"),
        ({"steps": 1, "clip_norm": 0.0}, "expected clip_norm above 0, got 0.0"),
        ({"steps": 1, "log_every": 0}, "expected log_every of at least 1, got 0"),
        ({"steps": 1, "save_every": -1}, "expected save_every of at least 0, got -1"),
        ({"steps": 1, "workers": -1}, "expected workers of at least 0, got -1"),
        ({"steps": 1, "seed": -1}, "expected seed of at least 0, got -1"),
    ],
)
def test_a_run_that_makes_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingConfig(**settings)


def test_nothing_to_resume(model: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="to resume, found none"):
        train(config(model, steps=1), small.dataset(), tmp_path, resume=True)


def test_the_state_of_another_configuration(model: str, tmp_path: Path) -> None:
    train(config(model, steps=1), small.dataset(), tmp_path)
    other = config(model, steps=2, compressor=small.config(memory_tokens=5))
    with pytest.raises(CheckpointError, match="a run with this configuration"):
        train(other, small.dataset(), tmp_path, resume=True)


TWO_PROCESSES = """
import sys
from accelerate import PartialState
from tests import small
from tests.unit.test_training import two_process_config
from cmt.training import train

model, folder, stale = sys.argv[1:]
compressor = train(two_process_config(model, stale == "True"), small.dataset(), folder)
with open(f"{folder}/fingerprint-{PartialState().process_index}", "w") as file:
    file.write(compressor.fingerprint())
"""


def two_process_config(model: str, stale_keys: bool) -> TrainingConfig:
    settings = config(model, steps=3, save_every=2)
    settings.objectives.stale_keys = stale_keys
    settings.batch.documents, settings.batch.most_memories = 2, 2
    return settings


def by_hand(settings: TrainingConfig) -> Compressor:
    """The two processes' steps in one: the gradient is the mean of theirs."""
    torch.manual_seed(settings.seed)
    base = BaseModel.load(settings.base_model, device="cpu")
    compressor = Compressor(base, settings.compressor)
    steps = [TrainingStep(base, compressor, settings.objectives, 8) for _ in (0, 1)]
    parts = [
        TrainingData(
            small.dataset(), base.tokenizer, settings.batch, memory_tokens=4, max_piece_tokens=96,
            seed=settings.seed, process=process, processes=2,
        )
        for process in (0, 1)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(
        compressor.parameters(), weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    assert settings.steps is not None
    for step in range(settings.steps):
        factor = learning_rate_factor(step, step / settings.steps, settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        for process, data in enumerate(parts):
            torch.manual_seed((settings.seed << 32) + step * 1024 + process)
            (steps[process](data[step])["loss"] / 2).backward()
        torch.nn.utils.clip_grad_norm_(compressor.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return compressor


@pytest.mark.parametrize("stale_keys", [False, True])
def test_two_processes_train_one_compressor(model: str, tmp_path: Path, stale_keys: bool) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
               "--standalone", str(script), model, str(tmp_path), str(stale_keys)]  # fmt: skip
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": root, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        timeout=120,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"fingerprint-{i}").read_text() for i in (0, 1))
    assert first == second
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert json.loads((tmp_path / "state" / "state.json").read_text())["step"] == 3
    kept = load_file(tmp_path / "state" / "state.safetensors")
    for name, tensor in by_hand(two_process_config(model, stale_keys)).state_dict().items():
        # Adam turns the rounding of a gradient near 0 into a step: a few elements may differ
        apart = (kept[f"module/compressor.{name}"] - tensor).norm()
        assert apart <= 1e-4 * tensor.norm(), name
