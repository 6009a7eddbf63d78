"""What methods are built from: the frozen model, the parts of the data, how long to train."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cmt.base_model import BaseModel
from cmt.datasets.qa import QADataset
from cmt.methods.answering import AnswerConfig
from cmt.methods.fitting import FitConfig
from cmt.training import TrainingConfig


@dataclass(kw_only=True, slots=True)
class Materials:
    """The same for every method of a table.

    Attributes:
        base: The frozen model, fresh: a method may lay its adapters over it.
        training: What a method is trained on (SQuAD: the protocol's questions 42118–82011).
        qa_training: What a baseline's reader is tuned on first (SQuAD: 0–40006).
        asked: What will be asked; only gold text looks into it.
        folder: Where trained weights are kept, and resumed from.
        code: Which code trains them, a commit say: weights of other code are not taken up.
        steps, minutes: Training stops at whichever comes first; None: that one doesn't bound.
        checkpoint: Folder of a compressor; None: the one shipped for the base model.
        recipe: How key/value memory is trained, but for its length.
        answers: How answers are generated.
    """

    base: BaseModel
    training: QADataset
    qa_training: QADataset
    asked: QADataset
    folder: Path
    steps: int | None = None
    minutes: float | None = None
    checkpoint: Path | None = None
    seed: int = 0
    code: str = ""
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    recipe: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=1))

    def fit_config(self, **changes: Any) -> FitConfig:
        """A training run of the allowed length.

        Raises:
            InputError: Neither steps nor minutes bound it, or a value without meaning.
        """
        return FitConfig(steps=self.steps, minutes=self.minutes, seed=self.seed, **changes)

    def state_folder(self, name: str, *settings: Any) -> Path:
        """A folder for what is trained under this name with these settings and this data."""
        described = repr([
            self.base.fingerprint, self.training.name, self.qa_training.name, self.seed,
            self.code, self.steps, self.minutes, *(asdict(part) for part in settings),
        ])  # fmt: skip
        return self.folder / f"{name}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
