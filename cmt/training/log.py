"""The log of a training run: a line of JSON every so many steps, means over those steps."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor


class TrainingLog:
    """Writes ``metrics.jsonl``; a resumed run takes up where its state was saved.

    Measurements stay tensors until a line is due, so that no step waits for the device.
    """

    def __init__(self, file: Path | None, *, step: int, every: int) -> None:
        """Go on after `step` steps: lines of later ones, of a run cut short, are dropped.

        Args:
            file: Where the lines go; None writes none (a process that isn't the main one).
            step: Steps done; 0 begins the file anew.
            every: Steps between lines.
        """
        if file is not None:
            kept = _lines_up_to(file, step) if step else []
            file.write_text("".join(kept), encoding="utf-8")
        self._file = None if file is None else file.open("a", encoding="utf-8")
        self._every, self._since, self._began = every, step, time.monotonic()
        self._totals: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take up a step's measurements, each a scalar."""
        for name, value in values.items():
            before = self._totals.get(name)
            self._totals[name] = value.detach() if before is None else before + value.detach()

    def is_due(self, step: int) -> bool:
        """Whether a line is to be written after `step` steps."""
        return step % self._every == 0

    def write(
        self, step: int, seconds: float, learning_rate: float, documents: int
    ) -> dict[str, float]:
        """Write a line and begin the next.

        Args:
            step: Steps done.
            seconds: Trained so far.
            learning_rate: Of the last step.
            documents: Documents a step, of all processes together.
        """
        now, steps = time.monotonic(), step - self._since
        line = {name: (value / steps).item() for name, value in self._totals.items()}
        line |= {
            "step": step,
            "seconds": seconds,
            "learning_rate": learning_rate,
            "documents_per_second": steps * documents / max(now - self._began, 1e-9),
        }
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        self._totals, self._since, self._began = {}, step, now
        return line


def _lines_up_to(file: Path, step: int) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return [line for line in whole if json.loads(line)["step"] <= step]
