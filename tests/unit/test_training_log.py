"""Lines of means, and what becomes of them when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt.training.log import TrainingLog


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_holds_the_means_since_the_last(file: Path) -> None:
    with TrainingLog(file, step=0, every=2) as log:
        for step, loss in enumerate((4.0, 2.0, 1.0, 0.5), start=1):
            log.add({"loss": torch.tensor(loss, requires_grad=True), "norm": torch.tensor(1.0)})
            assert log.is_due(step) == (step % 2 == 0)
            if log.is_due(step):
                line = log.write(step, seconds=1.5 * step, learning_rate=0.1, documents=8)
                assert line == lines(file)[-1], "on disk at once"
    first, second = lines(file)
    rate = first.pop("documents_per_second")
    assert rate > 0
    assert first == {"loss": 3.0, "norm": 1.0, "step": 2, "seconds": 3.0, "learning_rate": 0.1}
    assert (second["loss"], second["step"]) == (0.75, 4)


def test_a_resumed_run_drops_the_lines_of_lost_steps(file: Path) -> None:
    old = '{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st'
    file.write_text(old)
    with TrainingLog(file, step=4, every=1) as log:
        log.add({"loss": torch.tensor(1.0)})
        log.write(5, seconds=1.0, learning_rate=0.1, documents=8)
    assert [line["step"] for line in lines(file)] == [2, 4, 5]
    assert lines(file)[-1]["loss"] == 1.0, "a mean over the steps of this run"


def test_a_new_run_begins_anew(file: Path) -> None:
    file.write_text('{"step": 2}\n')
    with TrainingLog(file, step=0, every=1):
        pass
    assert file.read_text() == ""


def test_resuming_without_a_log(file: Path) -> None:
    with TrainingLog(file, step=4, every=1):
        pass
    assert file.read_text() == ""


def test_a_process_without_a_file(tmp_path: Path) -> None:
    with TrainingLog(None, step=0, every=1) as log:
        log.add({"loss": torch.tensor(1.0)})
        assert log.write(1, seconds=1.0, learning_rate=0.1, documents=8)["loss"] == 1.0
    assert list(tmp_path.iterdir()) == []
